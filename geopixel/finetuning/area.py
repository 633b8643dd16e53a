"""An area, imagery and labels into chips in the published format: squares of the world-anchored grid that lie wholly where the labels are complete,
learnt from or validated with by blocks of ground. Knows scenes and polygons; nothing of models or training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import ceil, floor, sqrt
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from PIL import Image
from rasterio.features import rasterize
from shapely import Geometry

from geopixel.finetuning.samples import class_turn
from geopixel.labels import encode_mask, read_polygons
from geopixel.raster import read_scenes, scenes_near
from geopixel.search import search_catalog
from geopixel.tiling import choose_grid, project_area
from geopixel.types import Grid, Scene

PARTS = ("train", "validation")
BLOCKS = 25
"""Into about so many squares the ground is cut, each of which goes to one part as a whole: neighbouring chips show the same houses and light."""
MOST_CELLS = 4_000_000
"""Squares within the bounds of an area, beyond which it is refused."""
SEEN = 0.9
"""Share of a chip's pixels that imagery must cover; labels on the others do not count."""
READERS = 4
"""Chips that are read at once."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A square of ground, which either part of the data has."""

    grid: Grid
    size: int
    """Pixels along an edge."""
    column: int
    row: int
    """In chips from the CRS origin; rows grow southwards."""
    part: str
    """One of PARTS."""
    labelled: bool
    """Whether any label touches it."""

    @property
    def id(self) -> str:
        return f"{self.column}_{self.row}"

    @property
    def ground(self) -> Geometry:
        """In the CRS of the grid."""
        edge = self.size * self.grid.resolution
        return shapely.box(self.column * edge, -(self.row + 1) * edge, (self.column + 1) * edge, -self.row * edge)


def plan_chips(grid: Grid, known: Geometry, polygons: np.ndarray, *, size: int, share: float, seed: int) -> list[Chip]:
    """The chips of size pixels that lie in known, the ground (in the grid's CRS) on which the polygons are all there is. Of those without any
    polygon as many as with are kept, in either part. share: of the labelled chips, about, that blocks for validation hold; 0: no such part.

    Raises ValueError where no chip fits, none has a label, or there is too little ground for two parts.
    """
    edge = size * grid.resolution
    if known.is_empty:
        raise ValueError("no ground is in the area and in the window on which the labels are complete")
    left, bottom, right, top = known.bounds
    columns, rows = np.arange(floor(left / edge), ceil(right / edge)), np.arange(floor(-top / edge), ceil(-bottom / edge))
    if len(columns) * len(rows) > MOST_CELLS:
        raise ValueError(f"the area is {len(columns) * len(rows):,} chips of {size} pixels within its bounds, more than {MOST_CELLS:,}: give a smaller one")
    column, row = (axis.ravel() for axis in np.meshgrid(columns, rows))
    squares = shapely.box(column * edge, -(row + 1) * edge, (column + 1) * edge, -row * edge)
    shapely.prepare(known)
    inside = shapely.contains(known, squares)
    column, row, squares = column[inside], row[inside], squares[inside]
    if not len(squares):
        raise ValueError(f"no chip of {size} pixels ({edge:g} units of {grid.crs}) fits into the area: give smaller chips")
    labelled = np.zeros(len(squares), bool)
    labelled[shapely.STRtree(squares).query(polygons, predicate="intersects")[1]] = True
    if not labelled.any():
        raise ValueError(f"no label lies on the {len(squares)} chips of {size} pixels that fit into the area")
    rng = np.random.default_rng(seed)
    held = _held_out(column, row, labelled, share, rng)
    kept = labelled.copy()
    for part in (held, ~held):
        empty = np.flatnonzero(part & ~labelled)
        kept[rng.permutation(empty)[: np.count_nonzero(part & labelled)]] = True
    chosen = zip(column[kept].tolist(), row[kept].tolist(), held[kept].tolist(), labelled[kept].tolist(), strict=True)
    return [Chip(grid, size, c, r, PARTS[out], there) for c, r, out, there in chosen]


def _held_out(column: np.ndarray, row: np.ndarray, labelled: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: chips of blocks drawn by lot until they hold their share of the labelled ones."""
    if not share:
        return np.zeros(len(column), bool)
    block = max(1, round(sqrt(len(column) / BLOCKS)))
    _, blocks = np.unique(np.stack([column // block, row // block]), axis=1, return_inverse=True)
    counts = np.bincount(blocks, labelled)
    order = rng.permutation(np.flatnonzero(counts))
    before = np.cumsum(counts[order]) - counts[order]
    drawn = order[before < share * counts.sum()]
    if len(drawn) == len(order):
        raise ValueError(f"the labels lie in {len(order)} block of ground, too few to hold one back: give more ground or smaller chips, or no validation share")
    empty = np.flatnonzero(counts == 0)
    return np.isin(blocks, np.concatenate([drawn, empty[rng.random(len(empty)) < share]]))


def cut_area(
    folder: Path,
    catalog: str,
    area: Geometry,
    labels: Path,
    prompt: str,
    *,
    window: Path | None = None,
    size: int = 512,
    share: float = 0.2,
    seed: int = 0,
    crs: str | None = None,
    resolution: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **search: Any,
) -> None:
    """Writes train.json and validation.json, the pictures of both, and chips.parquet (where each lies) into folder, which is there whole or not at all.

    area: EPSG:4326. labels: polygons of what the prompt names, complete within those of window (the whole area without one). search: as
    search_catalog wants it. Raises ValueError and what search_catalog and read_scenes raise.
    """
    scenes = search_catalog(catalog, area, **search).scenes
    grid = choose_grid(scenes, crs, resolution)
    known = project_area(area, grid.crs)
    if window is not None:
        known = shapely.intersection(known, shapely.union_all(read_polygons(window, grid.crs)))
    polygons = read_polygons(labels, grid.crs)
    chips = plan_chips(grid, known, polygons, size=size, share=share, seed=seed)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    cut = partial(_cut, scenes=scenes, polygons=polygons, tree=shapely.STRtree(polygons), prompt=prompt, folder=part)
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    seen: list[Chip] = []
    with ThreadPoolExecutor(READERS) as readers:
        for done, (chip, entry) in enumerate(zip(chips, readers.map(cut, chips), strict=True), start=1):
            if entry is not None:
                entries[chip.part].append(entry)
                seen.append(chip)
            progress(done, len(chips))
    if not entries["train"]:
        raise ValueError(f"imagery of {catalog} covers none of the {len(chips)} chips")
    for name, found in entries.items():
        if found:
            (part / f"{name}.json").write_text(json.dumps(found))
    table = {"id": [chip.id for chip in seen], "part": [chip.part for chip in seen], "labelled": [chip.labelled for chip in seen]}
    gpd.GeoDataFrame(table, geometry=[chip.ground for chip in seen], crs=grid.crs).to_crs("EPSG:4326").to_parquet(part / "chips.parquet")
    part.rename(folder)


def _cut(chip: Chip, scenes: Sequence[Scene], polygons: np.ndarray, tree: shapely.STRtree, prompt: str, folder: Path) -> dict[str, Any] | None:
    """Writes the picture of a chip; its sample, or None where imagery does not cover it."""
    geobox = chip.grid.geobox(chip.column * chip.size, chip.row * chip.size, chip.size, chip.size)
    rgb, valid = read_scenes(scenes_near(scenes, geobox), geobox)
    if valid.mean() < SEEN:
        return None
    near = polygons[tree.query(chip.ground, predicate="intersects")]
    mask = rasterize(near, geobox.shape, transform=geobox.affine).astype(bool) & valid if len(near) else np.zeros(geobox.shape, bool)
    there = bool(mask.any())
    question, answer = class_turn(prompt, there)
    name = f"images/{chip.id}.png"
    Image.fromarray(rgb).save(folder / name)
    messages = [{"from": "human", "value": question}, {"from": "bot", "value": answer}]
    return {"id": chip.id, "image": name, "conversations": messages, "segmentation": [encode_mask(mask)] if there else []}
