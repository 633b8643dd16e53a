"""What the survey, the adaptive tiles, the assignment of scenes and the reading of a tile cost, each against the common way in the same run.

    python tests/benchmarks/pixels.py [--check] [--size full|small]

Reading: plain rasterio reads the same windows (core and halo of tiles of 1024 pixels, neighbours in turn) of the same file, colours and mask, with
the file open all the while and the same block cache. The survey: the scene of 11264 x 8704 pixels, on its own grid; bytes as the files' own
index counts them. The sides alternate; medians of CPU seconds count, but for the survey, whose seconds are those of the clock.

Adaptive against fixed: the cost is that of the published 7B network (its configuration's own count of operations) for one prompt, building, over
all tiles that are read; fixed tiles are the same plan with tiles of 1024 pixels only, and like it skip ground without data. What recall can mean
without the published weights is what the tiles alone can lose, by size or by being skipped: a perfect decoder draws the labelled
buildings on each tile's own low-resolution mask, as the shares of the cells that they cover, and what is stored of it is blended and thresholded by
the real mosaic. A building is recalled where its intersection over union with the published mask is at least a half; the union is with the mask within half a
building around it, without other buildings. Needs the shared imagery
(GEOPIXEL_SHARED, else ../shared beside the repository); without it only the assignment is measured, and --check fails.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from math import nan
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import rasterio
import shapely
from affine import Affine
from rasterio.features import geometry_mask, rasterize
from rasterio.warp import transform_bounds
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from geopixel import mosaic
from geopixel.assignment import assign_sources
from geopixel.imagery import read_tile
from geopixel.model.config import published_config
from geopixel.pipeline import tile_flops
from geopixel.raster.files import CACHE_BYTES
from geopixel.survey import survey_scenes
from geopixel.tiling import ground_sample_distance, plan_tiles, project_area, smallest_object, survey_cells
from geopixel.types import BLOCK_SIZE, HALO, LOGIT_SCALE, Asset, Grid, Scene, Source, Tile, TilePrediction, Tiles
from tests.benchmarks.table import Figure, exit_code, markdown
from tests.model import tiny

SHARED = Path(os.environ.get("GEOPIXEL_SHARED") or Path(__file__).parents[3] / "shared")
OVERSAMPLED = 4
"""Samples along the edge of a mask cell, of which the share that a building covers is counted."""
STEEPNESS = 12.0
"""Logits between nothing and all of a cell."""


@dataclass(frozen=True, slots=True)
class Size:
    footprints: int
    tiles: int
    rounds: int
    sites: tuple[str, ...]


SIZES = {"full": Size(10_000, 40, 5, ("banepa", "zanzibar")), "small": Size(300, 4, 1, ("banepa",))}


@dataclass(frozen=True, slots=True)
class Site:
    """A scene with its labels."""

    scene: Scene
    grid: Grid
    path: Path

    @property
    def footprint(self) -> shapely.Geometry:
        return self.scene.sources[0].footprint


def site(name: str) -> Site:
    path = SHARED / "imagery" / "oam-drone" / name / f"{name}_3857.tif"
    with rasterio.open(path) as file:
        grid = Grid(file.crs.to_string(), file.res[0])
        footprint = shapely.box(*transform_bounds(file.crs, "EPSG:4326", *file.bounds))
    source = Source(name, footprint, (Asset(str(path), (1, 2, 3)),), grid.crs, grid.resolution)
    return Site(Scene("oam-drone", "2022-07-20", (source,)), grid, path)


def buildings(site: Site) -> list[shapely.Geometry]:
    """In pixels of the grid: those inside the window in which every building is labelled, where there is such a window."""
    folder, name = SHARED / "imagery" / "labels", site.scene.sources[0].item
    shapes = shapely.get_parts(shapely.from_geojson((folder / f"{name}_buildings.geojson").read_text()))
    window = folder / f"{name}_labelled_window.geojson"
    known = shapely.from_geojson(window.read_text()) if window.exists() else site.footprint
    scale = (site.grid.resolution, -site.grid.resolution)
    inside = [shape for shape in shapely.make_valid(shapes) if known.contains(shape)]
    return [shapely.transform(project_area(shape, site.grid.crs), lambda xy: xy / scale) for shape in inside]


def plan(site: Site, costs: dict[int, float], fixed: bool) -> Tiles:
    """Of all ground of the scene: as a run would, or with tiles of 1024 pixels wherever there is data."""
    survey = survey_scenes([site.scene], site.grid, survey_cells(site.footprint, site.grid), scheduler="synchronous")
    metres = ground_sample_distance(site.grid, site.footprint)
    if fixed:
        # A quadtree that may not stop above 1024 pixels and has no reason to go below.
        survey, costs, smallest = survey.assign(detail=survey.detail * 0), {size: cost for size, cost in costs.items() if size <= 1024}, 1000.0
        costs = dict.fromkeys(costs, 1.0)
    else:
        smallest = smallest_object(["building"])
    return plan_tiles(site.footprint, site.grid, survey, smallest_object=smallest, ground_sample_distance=metres, costs=costs)


def decoded(tile: Tile, shapes: shapely.STRtree, mask_size: int) -> TilePrediction:
    """What a perfect decoder stores of a tile: logits from the share of each mask cell that is building."""
    edge = tile.size + 2 * HALO
    near = shapes.geometries[shapes.query(shapely.box(tile.left - HALO, tile.top - HALO, tile.left + tile.size + HALO, tile.top + tile.size + HALO))]
    scene = np.zeros((edge, edge), np.uint16)
    if not len(near):
        return TilePrediction(tile.id, "empty", scene=scene)
    samples = mask_size * OVERSAMPLED
    cell = Affine(edge / samples, 0, tile.left - HALO, 0, edge / samples, tile.top - HALO)
    drawn = rasterize(near, out_shape=(samples, samples), transform=cell, dtype="uint8")
    share = drawn.reshape(mask_size, OVERSAMPLED, mask_size, OVERSAMPLED).mean(axis=(1, 3))
    logits = np.clip(np.rint((share - 0.5) * STEEPNESS * LOGIT_SCALE), -127, 127).astype(np.int8)
    return TilePrediction(tile.id, "ok", logits[None], scene, np.ones(1, np.float32))


def recalled(site: Site, tiles: Tiles, shapes: list[shapely.Geometry], mask_size: int) -> int:
    """How many of the buildings have an intersection over union of at least a half with the published mask."""
    tree = shapely.STRtree(shapes)
    common, union = np.zeros(len(shapes)), np.zeros(len(shapes))
    area = project_area(site.footprint, site.grid.crs)
    for block, near in mosaic.blocks_of(tiles).items():
        here = tree.query(shapely.box(block.left, block.top, block.left + BLOCK_SIZE, block.top + BLOCK_SIZE))
        if not len(here):
            continue
        blended = mosaic.mosaic_block(block, near, lambda tile: decoded(tile, tree, mask_size), prompts=1, threshold=0.5, area=area)
        for index in here.tolist():
            left, top, right, bottom = shapes[index].bounds
            margin = int(max(right - left, bottom - top) / 2)
            column0, row0 = max(int(left) - margin - block.left, 0), max(int(top) - margin - block.top, 0)
            column1, row1 = min(int(right) + 1 + margin - block.left, BLOCK_SIZE), min(int(bottom) + 1 + margin - block.top, BLOCK_SIZE)
            if column0 >= column1 or row0 >= row1:
                continue
            frame = {"out_shape": (row1 - row0, column1 - column0), "transform": Affine.translation(block.left + column0, block.top + row0)}
            around = shapely.box(block.left + column0, block.top + row0, block.left + column1, block.top + row1)
            building, any_building = ~geometry_mask([shapes[index]], **frame), ~geometry_mask(tree.geometries[tree.query(around)], **frame)
            mask = blended.mask[0, row0:row1, column0:column1] == 1
            common[index] += (mask & building).sum()
            union[index] += (building | (mask & ~any_building)).sum()
    return int((common >= 0.5 * np.maximum(union, 1)).sum())


def adaptive(sites: Sequence[str]) -> tuple[list[Figure], list[tuple[str, str]]]:
    config = published_config(tiny.PUBLISHED)
    costs = tile_flops(config, 1)
    spent, hits, labelled = {True: 0.0, False: 0.0}, {True: 0, False: 0}, 0
    told: dict[bool, list[str]] = {True: [], False: []}
    for name in sites:
        here = site(name)
        shapes = buildings(here)
        labelled += len(shapes)
        for fixed in (True, False):
            tiles = plan(here, costs, fixed)
            sizes = np.unique(tiles.size[tiles.to_read], return_counts=True)
            spent[fixed] += sum(costs[size] * count for size, count in zip(*(values.tolist() for values in sizes), strict=True))
            hits[fixed] += recalled(here, tiles, shapes, config.grounding.mask_size)
            told[fixed].append(f"{name} {', '.join(f'{count} of {size}' for size, count in zip(*sizes, strict=True))}")
    recall = {fixed: 100 * hits[fixed] / labelled for fixed in (True, False)}
    figures = [
        Figure("adaptive tiles, model cost of fixed ones", 100 * spent[False] / spent[True], 60, " %", at_most=True),
        Figure(f"adaptive tiles, recall of {labelled} buildings that is lost", recall[True] - recall[False], 1, " points", at_most=True),
    ]
    sides = [tuple(f"{spent[fixed] / 1e15:.3g} PFLOP ({'; '.join(told[fixed])})" for fixed in (True, False))]
    return figures, [(sides[0][0], sides[0][1]), (f"{recall[True]:.1f} %", f"{recall[False]:.1f} %")]


def assignment(count: int) -> tuple[Figure, tuple[str, str]]:
    """Footprints of a sixteenth of a degree over a country, to all super-tiles of it at 0.6 m."""
    random = np.random.default_rng(0)
    lon, lat = random.uniform(-4, 8, count), random.uniform(43, 50, count)
    sources = tuple(
        Source(str(index), shapely.box(west, south, west + 0.075, south + 0.0625), (Asset("x.tif", (1, 2, 3)),))
        for index, (west, south) in enumerate(zip(lon.tolist(), lat.tolist(), strict=True))
    )
    grid = Grid("EPSG:2154", 0.6)
    columns, rows = np.meshgrid(np.arange(40, 500), np.arange(-2950, -2750))
    squares = np.stack([columns.ravel(), rows.ravel()], axis=-1)
    began = process_time()
    assigned = assign_sources([Scene("c", "2020-01-01", sources)], grid, squares, BLOCK_SIZE)
    seconds = process_time() - began
    told = f"{seconds:.3g} s, {len(assigned.source)} pairs kept for {len(assigned.key)} super-tiles"
    return Figure(f"assign {count} footprints", seconds, 2, " s", at_most=True), ("", told)


def alternate(common: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median CPU seconds."""
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(2 * rounds):
        began = process_time()
        (common, ours)[turn % 2]()
        seconds[turn % 2].append(process_time() - began)
    return median(seconds[0]), median(seconds[1])


def reading(count: int, rounds: int) -> tuple[Figure, tuple[str, str]]:
    here = site("banepa")
    with rasterio.open(here.path) as file:
        left, top = round(file.transform.c / file.res[0]), round(-file.transform.f / file.res[0])
    tiles = [Tile(here.grid, 1024, left // 1024 + 1 + index % 8, top // 1024 + 1 + index // 8) for index in range(count)]
    windows = [Window(tile.left - HALO - left, tile.top - HALO - top, 1024 + 2 * HALO, 1024 + 2 * HALO) for tile in tiles]

    def plainly() -> list[tuple[np.ndarray, np.ndarray]]:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(here.path) as file:
            return [(file.read((1, 2, 3), window=window), file.dataset_mask(window=window)) for window in windows]

    for tile, (pixels, mask) in zip(tiles, plainly(), strict=True):
        image = read_tile(tile, [here.scene])
        if not (np.array_equal(image.valid, mask > 0) and np.array_equal(image.rgb, np.moveaxis(pixels, 0, -1) * (mask > 0)[..., None])):
            raise AssertionError(f"tile {tile.id} does not read as the file")
    common, ours = alternate(plainly, lambda: [read_tile(tile, [here.scene]) for tile in tiles], rounds)
    rates = f"{count / common:.3g} tiles/s", f"{count / ours:.3g} tiles/s"
    return Figure("read_tile, 1024 px RGB, rate of plain rasterio", common / ours, 0.8), rates


def surveying() -> tuple[list[Figure], list[tuple[str, str]]]:
    here = site("banepa")
    size = here.path.stat().st_size
    seconds = []
    for _ in range(3):
        began = perf_counter()
        survey = survey_scenes([here.scene], here.grid, survey_cells(here.footprint, here.grid), scheduler="threads")
        seconds.append(perf_counter() - began)
    figures = [
        Figure("survey of 11264 x 8704 px, time", median(seconds), 2, " s", at_most=True),
        Figure("survey of 11264 x 8704 px, share of the file", 100 * survey.bytes_read / size, 5, " %", at_most=True),
    ]
    return figures, [("", f"{median(seconds):.3g} s"), (f"{size / 1e6:.3g} MB", f"{survey.bytes_read / 1e6:.3g} MB")]


def measure(name: str) -> tuple[list[Figure], list[tuple[str, str]]]:
    size = SIZES[name]
    figure, side = assignment(size.footprints)
    figures, sides = [figure], [side]
    if not SHARED.is_dir():
        print(f"no {SHARED}: nothing to read", file=sys.stderr)
        return [*figures, Figure("everything that reads imagery", nan, 0)], [*sides, ("", "")]
    figure, side = reading(size.tiles, size.rounds)
    for more, others in (([figure], [side]), surveying(), adaptive(size.sites)):
        figures += more
        sides += others
    return figures, sides


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What surveying, adaptive tiles, assignment and reading cost against the common way.")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="the full size takes about two minutes")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    options = parser.parse_args(arguments)
    figures, sides = measure(options.size)
    print(f"{date.today()}, rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}\n")
    rows = [[figure.name, *side, figure.measured, figure.wanted, figure.verdict] for figure, side in zip(figures, sides, strict=True)]
    print(markdown(["figure", "common way", "ours", "measured", "target", "met"], rows))
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
