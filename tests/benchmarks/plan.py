"""How fast a country is planned against the common way with shapely, both sides in one process, and how fast and lean its plan is stored. Prints
the figures of pixels.py (surveying, adaptive tiles, assignment, reading) as well.

    python tests/benchmarks/plan.py [--check] [--size full|small]

The common way asks one prepared geometry about every candidate, all tiles of the bounds, vectorised. It gets the geometry projected and
prepared for nothing, ours does that in its time. Every measurement is checked: ours must give the very tiles. The sides alternate, ours
first and last; medians count. Times are CPU seconds: both sides run on one thread, and what else the machine does should not count.

Peak memory is measured in a fresh process: the peak of its resident set while it plans (Linux: VmHWM, set back by clear_refs just before),
less its resident set just before. The outline is metropolitan France by Natural Earth where the shared folder has it (GEOPIXEL_SHARED, else
../shared beside the repository), else one of as many points, made up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from math import nan
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import TypeVar

import numpy as np
import shapely
from shapely import Geometry

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from geopixel.ledger import store_plan
from geopixel.storage import Folder
from geopixel.tiling import plan_tiles, project_area
from geopixel.types import HALO, TILE_SIZES, Grid, Tiles
from tests.benchmarks.table import Figure, exit_code, markdown

Ours = TypeVar("Ours")
Theirs = TypeVar("Theirs")

ROOT = Path(__file__).parents[2]
BASE = 1024
CRS = "EPSG:2154"
FRANCE = shapely.box(-6, 41, 10, 52)
POINTS = 3740
"""Of the outline of metropolitan France at 1:10 million."""
PART = 262_144
"""Candidates that the common way is asked about together: the fastest of those tried, and it bounds the memory."""


@dataclass(frozen=True, slots=True)
class Size:
    resolution: float
    rounds: int


SIZES = {"full": Size(0.6, 3), "small": Size(20.0, 1)}


def outline() -> tuple[str, Geometry]:
    """What it is, and the polygons in EPSG:4326."""
    path = Path(os.environ.get("GEOPIXEL_SHARED") or ROOT.parent / "shared") / "aoi" / "FRA.geojson"
    if path.exists():
        country = shapely.geometry.shape(json.loads(path.read_text())["geometry"])
        return "France (Natural Earth)", shapely.MultiPolygon([part for part in country.geoms if FRANCE.contains(part)])
    print(f"no {path}: the outline is made up", file=sys.stderr)
    random = np.random.default_rng(1)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    waves = np.arange(1, 200)
    coast = (np.cos(angles[:, None] * waves + random.uniform(0, 2 * np.pi, len(waves))) / waves**1.1).sum(axis=1)
    radius = 0.9 + 0.08 * coast
    lonlat = np.stack([2.5 + 5.6 * radius * np.cos(angles), 46.6 + 4.1 * radius * np.sin(angles)], axis=-1)
    return "a made-up outline", shapely.make_valid(shapely.Polygon(lonlat))


def in_pixels(shapes: Geometry | np.ndarray, grid: Grid) -> Geometry | np.ndarray:
    scaled = shapely.transform(shapes, lambda xy: xy / (grid.resolution, -grid.resolution))
    shapely.prepare(scaled)
    return scaled


def plan(area: Geometry, grid: Grid) -> Tiles:
    """Ours: tiles of BASE pixels where the area is."""
    costs = dict.fromkeys((size for size in TILE_SIZES if size <= BASE), 1.0)
    tiles = plan_tiles(area, grid, None, smallest_object=1000 * grid.resolution, ground_sample_distance=grid.resolution, costs=costs)
    return tiles[tiles.to_read]


def halos(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    low, high = (columns * BASE - HALO, rows * BASE - HALO), ((columns + 1) * BASE + HALO, (rows + 1) * BASE + HALO)
    return np.asarray(shapely.box(*low, *high))


def candidates(shape: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of all tiles whose core and halo the bounds touch."""
    low, high = np.reshape(shape.bounds, (2, 2))
    first, last = np.floor((low - HALO) / BASE).astype(np.int64), np.floor((high + HALO) / BASE).astype(np.int64)
    columns, rows = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last, strict=True)))
    return columns.ravel(), rows.ravel()


def plan_commonly(shape: Geometry) -> np.ndarray:
    """(n, 2) column and row of the tiles that the prepared shape touches."""
    columns, rows = candidates(shape)
    touched = [shapely.intersects(shape, halos(columns[at : at + PART], rows[at : at + PART])) for at in range(0, len(columns), PART)]
    return np.stack([columns, rows], axis=-1)[np.concatenate(touched)]


def alternate(ours: Callable[[], Ours], common: Callable[[], Theirs], rounds: int) -> tuple[float, float, Ours, Theirs]:
    """Median CPU seconds of both sides, and what they gave last."""
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(2 * rounds + 1):
        began = process_time()
        if turn % 2:
            theirs = common()
        else:
            mine = ours()
        seconds[turn % 2].append(process_time() - began)
    return median(seconds[0]), median(seconds[1]), mine, theirs


def store(tiles: Tiles) -> None:
    with TemporaryDirectory() as folder:
        store_plan(Folder(folder), tiles)


def peak_of(what: str, size: Size) -> int:
    """Bytes that planning, or storing the plan, takes."""
    _, area = outline()
    coarse = plan(area, Grid(CRS, 1000.0))  # what loads once is not the plan's
    store(coarse)
    tiles = plan(area, Grid(CRS, size.resolution)) if what == "store" else coarse

    def resident(name: str) -> int:
        return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if what == "store":
        store(tiles)
    else:
        plan(area, Grid(CRS, size.resolution))
    return resident("VmHWM") - before


def measure(name: str) -> tuple[str, list[Figure], list[tuple[str, str]]]:
    size = SIZES[name]
    what, area = outline()
    grid = Grid(CRS, size.resolution)
    shape = in_pixels(project_area(area, CRS), grid)
    ours, common, tiles, expected = alternate(lambda: plan(area, grid), lambda: plan_commonly(shape), size.rounds)
    if {*zip(tiles.column.tolist(), tiles.row.tolist(), strict=True)} != set(map(tuple, expected.tolist())) or len(tiles) != len(expected):
        raise AssertionError(f"the plan has {len(tiles)} tiles and is not that of shapely with {len(expected)}")
    plans = (f"{common:.3g} s", f"{ours:.3g} s")
    began = process_time()
    store(tiles)
    storing = process_time() - began
    peaks = {"plan": nan, "store": nan}
    for what_for in peaks if Path("/proc/self/clear_refs").exists() else ():
        command = [sys.executable, __file__, "--size", name, "--peak", what_for]
        peaks[what_for] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6
    figures = [
        Figure("plan the country, ratio", common / ours, 15),
        Figure("plan the country, time", ours, 1, " s", at_most=True),
        Figure("plan the country, peak memory", peaks["plan"], 100, " MB", at_most=True),
        Figure("store the plan, time", storing, 5, " s", at_most=True),
        Figure("store the plan, peak memory", peaks["store"], 300, " MB", at_most=True),
    ]
    told = f"{what}, {len(candidates(shape)[0])} candidates, {len(tiles)} tiles of {BASE} px at {size.resolution} m"
    own = [f"{peaks['plan']:.3g} MB", f"{storing:.3g} s", f"{peaks['store']:.3g} MB"]
    return told, figures, [plans, plans, *(("", each) for each in own)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of planning against the common way.")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="the full size takes about five minutes")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    parser.add_argument("--peak", choices=("plan", "store"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        print(peak_of(options.peak, SIZES[options.size]))
        return 0
    from tests.benchmarks import pixels  # loads torch: not where memory is measured

    told, figures, sides = measure(options.size)
    more, others = pixels.measure(options.size)
    figures, sides = [*figures, *more], [*sides, *others]
    print(f"{date.today()}, {told}, one thread, CPU seconds, shapely {shapely.__version__}, GEOS {shapely.geos_version_string}\n")
    rows = [[figure.name, *side, figure.measured, figure.wanted, figure.verdict] for figure, side in zip(figures, sides, strict=True)]
    print(markdown(["figure", "common way", "ours", "measured", "target", "met"], rows))
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
