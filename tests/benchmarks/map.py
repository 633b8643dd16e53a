"""How much faster the map is made than the usual way, on one core, both sides in one process.

    python tests/benchmarks/map.py [--check] [--size 16384]

The raster: seeded, 150 objects a megapixel (rectangles, some with a courtyard, and discs, 6 to 30 pixels wide) and roads 10 pixels wide, one in each
direction for every 1024 pixels, which cross everything and each other. The usual way to polygons is rasterio.features.shapes, shapely
geometries of what it yields, and a GeoDataFrame; ours ends in Arrow WKB and counts pixels and sums confidences besides. Both must have found the
same polygons. The sides alternate, ours first and last; medians count.

Time is processor time of this process, not the clock's: both sides run on one thread, and whatever else runs on the machine counts less. Extra memory is
measured in a fresh process for each side: the peak of its resident set while it traces (Linux: VmHWM, set back by clear_refs when the
raster is there), less its resident set just before.

GeoParquet: a feature for every 16 x 16 pixels of 3 m, with its attributes and traced polygon at hand: both sides bring the polygons to longitude and
latitude, measure them, put them along a Hilbert curve and write the same columns in the same groups of rows. The usual way, GeoDataFrame.to_crs and
to_parquet, is spared the geodesic measures: its areas are planar. A box of 5 km (in proportion to --size) is read of ours by GeoPandas.

The figures of blending and writing are those of tests/benchmarks/mosaic.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from io import BytesIO
from math import log
from pathlib import Path
from statistics import median
from time import process_time
from typing import TypeVar

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio.features
import shapely

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the table's printing is no part of the package

from geopixel.features import ROWS_PER_GROUP, Origin, Outline, build_features, encode
from geopixel.polygonize import stitch, trace_block
from geopixel.types import Asset, Grid, Scene, Source
from tests.benchmarks import mosaic
from tests.benchmarks.table import Figure, exit_code, markdown

T = TypeVar("T")

TILE = 1024
ROUNDS = 3
OBJECTS_PER_MEGAPIXEL = 150
ROAD = 10


def render(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask and confidence, (size, size) uint8."""
    rng = np.random.default_rng(0)
    mask = np.zeros((size, size), np.uint8)
    offsets = np.arange(-15, 16)
    discs = [(np.hypot(*np.meshgrid(offsets[15 - r : 16 + r], offsets[15 - r : 16 + r])) <= r).astype(np.uint8) for r in range(16)]
    count = OBJECTS_PER_MEGAPIXEL * size**2 // 10**6
    places, shapes, kinds = rng.integers(0, size, (count, 2)), rng.integers(6, 31, (count, 2)), rng.integers(0, 4, count)
    for (y, x), (height, width), kind in zip(places.tolist(), shapes.tolist(), kinds.tolist(), strict=True):
        if kind < 2:
            mask[y : y + height, x : x + width] = 1
        else:
            disc = discs[width // 2]
            under = mask[y : y + len(disc), x : x + len(disc)]
            np.maximum(under, disc[: under.shape[0], : under.shape[1]], out=under)
        if kind == 1:
            mask[y + height // 3 : y + 2 * height // 3, x + width // 3 : x + 2 * width // 3] = 0
    along = np.arange(size)
    for _ in range(max(1, size // TILE)):
        for plane in (mask, mask.T):
            across = (rng.integers(0, size) + rng.uniform(-0.2, 0.2) * along).astype(np.int64)
            for offset in range(ROAD):
                inside = (across + offset >= 0) & (across + offset < size)
                plane[across[inside] + offset, along[inside]] = 1
    return mask, rng.integers(1, 33, (size, 1), np.uint8).repeat(size, 1)


def usual_way(mask: np.ndarray) -> gpd.GeoDataFrame:
    shapes = [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(mask, mask=mask, connectivity=4)]
    return gpd.GeoDataFrame(geometry=shapes, crs="EPSG:32645")


def our_way(mask: np.ndarray, confidence: np.ndarray) -> pa.Table:
    return trace_block(mask[None], confidence[None], left=0, top=0)


def cut(raster: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(raster[y : y + TILE, x : x + TILE]) for y, x in corners(raster)]


def corners(raster: np.ndarray) -> list[tuple[int, int]]:
    return [(y, x) for y in range(0, raster.shape[0], TILE) for x in range(0, raster.shape[1], TILE)]


def check_same(ours: pa.Table, usual: gpd.GeoDataFrame) -> None:
    """Raises AssertionError unless both are the same polygons, none of them invalid."""
    mine = shapely.from_wkb(ours["geometry"].to_numpy(zero_copy_only=False))
    if not shapely.is_valid(mine).all():
        raise AssertionError(f"{(~shapely.is_valid(mine)).sum()} polygons are not valid")
    if sorted(shapely.to_wkb(shapely.normalize(mine))) != sorted(shapely.to_wkb(shapely.normalize(usual.geometry.to_numpy()))):
        raise AssertionError(f"{len(mine)} polygons are not the {len(usual)} of the usual way")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def timed(label: str, run: Callable[[], T]) -> tuple[float, T]:
    start = process_time()
    given = run()
    seconds = process_time() - start
    note(f"  {label}: {seconds:.3f} s")
    return seconds, given


def trace(mask: np.ndarray, confidence: np.ndarray) -> tuple[float, float]:
    """Median seconds of ours and of the usual way."""
    times: dict[str, list[float]] = {"ours": [], "usual way": []}
    for _ in range(ROUNDS):
        seconds, ours = timed("ours", lambda: our_way(mask, confidence))
        times["ours"].append(seconds)
        seconds, usual = timed("usual way", lambda: usual_way(mask))
        times["usual way"].append(seconds)
    times["ours"].append(timed("ours", lambda: our_way(mask, confidence))[0])
    check_same(ours, usual)
    return median(times["ours"]), median(times["usual way"])


def trace_in_tiles(mask: np.ndarray, confidence: np.ndarray) -> tuple[float, float]:
    """Median seconds to trace the tiles and to stitch them. Raises AssertionError unless that gives what a trace of the whole gives."""
    whole = stitch(our_way(mask, confidence))
    tiles = list(zip(cut(mask), cut(confidence), corners(mask), strict=True))
    tracing, stitching = [], []
    for _ in range(2 * ROUNDS):  # they are short
        seconds, parts = timed("tiles", lambda: pa.concat_tables([trace_block(m[None], c[None], left=x, top=y) for m, c, (y, x) in tiles]))
        tracing.append(seconds)
        seconds, stitched = timed("stitch", partial(stitch, parts))
        stitching.append(seconds)
    if not stitched.equals(whole):
        raise AssertionError("tiles stitched are not what the whole raster gives")
    return median(tracing), median(stitching)


def kibibytes(name: str) -> int:
    """A field of this process's status: VmRSS, the resident set, or VmHWM, its peak."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))


def peak_of(side: str, size: int) -> int:
    """Bytes that this process needs, beyond the raster, to trace it."""
    mask, confidence = render(size)
    ways: dict[str, Callable[[int], object]] = {
        "ours": lambda stop: our_way(mask[:stop, :stop], confidence[:stop, :stop]),
        "usual": lambda stop: usual_way(mask[:stop, :stop]),
    }
    for stop in (256, 512):
        ways[side](stop)  # code is no part of the figure
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kibibytes("VmRSS")
    ways[side](size)
    return 1024 * (kibibytes("VmHWM") - before)


def peak_in_a_fresh_process(side: str, size: int) -> int:
    note(f"memory of {side}")
    command = [sys.executable, __file__, "--size", str(size), "--peak-of", side]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


CELL = 16
GRID = Grid("EPSG:32645", 3.0)
LEFT, TOP = 27 * 4096, -248 * 4096
SCENE = Scene("naip", "2021-07-02", (Source("item", shapely.box(-180, -90, 180, 90), (Asset("scene.tif", (1, 2, 3)),), gsd=3.0),))
MEASURES = ["area_m2", "perimeter_m"]


def houses(size: int) -> pa.Table:
    """Traced: rectangles, some without a corner, one in every cell of a size x size raster."""
    rng = np.random.default_rng(0)
    cells, edge = size // CELL, np.arange(CELL)
    mask = np.empty((cells, CELL, cells, CELL), np.uint8)
    for row in mask:
        (top, left), (height, width) = rng.integers(0, 4, (2, cells, 1)), rng.integers(4, 12, (2, cells, 1))
        (low, inside_y), (far, inside_x) = (
            (edge >= first + length // 2, (edge >= first) & (edge < first + length)) for first, length in ((top, height), (left, width))
        )
        notch = (rng.random((cells, 1)) < 0.3) & low
        row[:] = (inside_y[:, :, None] & inside_x[:, None, :] & ~(notch[:, :, None] & far[:, None, :])).swapaxes(0, 1)
    whole = mask.reshape(size, size)
    return stitch(trace_block(whole[None], whole[None], left=LEFT, top=TOP))


def our_file(objects: pa.Table) -> bytes:
    return encode(build_features(objects, {"house": Outline()}, Origin(GRID, (SCENE,), GRID.resolution, "nano", "ab" * 32, "run")))


def usual_file(objects: pa.Table, attributes: pd.DataFrame) -> bytes:
    """attributes: of the objects, in their order."""
    pixels = shapely.from_wkb(objects["geometry"].to_numpy(zero_copy_only=False))
    polygons = shapely.transform(pixels, lambda points: points * (GRID.resolution, -GRID.resolution))
    frame = gpd.GeoDataFrame(attributes, geometry=polygons, crs=GRID.crs)
    frame["area_m2"], frame["perimeter_m"] = frame.area, frame.length
    frame = frame.to_crs("OGC:CRS84")
    frame = frame.iloc[np.argsort(frame.hilbert_distance().to_numpy())]
    sink = BytesIO()
    frame.to_parquet(sink, index=False, compression="zstd", write_covering_bbox=True, schema_version="1.1.0", row_group_size=ROWS_PER_GROUP)
    return sink.getvalue()


def check_same_files(ours: bytes, usual: bytes) -> None:
    """Raises AssertionError unless both hold the same features."""
    mine, theirs = (gpd.read_parquet(BytesIO(file)).set_index("id").sort_index() for file in (ours, usual))
    if mine.index.tolist() != theirs.index.tolist() or not mine.geometry.normalize().geom_equals_exact(theirs.geometry.normalize(), 1e-9).all():
        raise AssertionError("the files hold other features")


def write_files(size: int) -> tuple[int, float, float, bytes]:
    """Features, median seconds of ours and of the usual way, and our file."""
    objects = houses(size)
    described = pq.read_table(BytesIO(our_file(objects))).drop_columns(["geometry", "bbox", *MEASURES]).to_pandas()
    places = described["id"].str.rsplit("_", n=2, expand=True)[[2, 1]].astype(int)
    attributes = described.iloc[np.lexsort(places.to_numpy().T[::-1])].reset_index(drop=True)
    times: dict[str, list[float]] = {"ours": [], "usual way": []}
    for _ in range(ROUNDS):
        seconds, ours = timed("ours", lambda: our_file(objects))
        times["ours"].append(seconds)
        seconds, usual = timed("usual way", lambda: usual_file(objects, attributes))
        times["usual way"].append(seconds)
    times["ours"].append(timed("ours", lambda: our_file(objects))[0])
    check_same_files(ours, usual)
    return len(objects), median(times["ours"]), median(times["usual way"]), ours


def read_box(file: bytes, metres: float) -> tuple[float, float, float]:
    """Median seconds to read a box in the middle and everything, and the share of row groups that the box lies in."""
    every = gpd.read_parquet(BytesIO(file))
    west, south, east, north = every.total_bounds
    x, y, half = (west + east) / 2, (south + north) / 2, metres / 2 / 111_195
    box = (x - half / np.cos(np.radians(y)), y - half, x + half / np.cos(np.radians(y)), y + half)
    times: dict[str, list[float]] = {"box": [], "all": []}
    for _ in range(ROUNDS):
        seconds, some = timed("box", lambda: gpd.read_parquet(BytesIO(file), bbox=box))
        times["box"].append(seconds)
        times["all"].append(timed("all", lambda: gpd.read_parquet(BytesIO(file)))[0])
    if not 0 < len(some) == every.intersects(shapely.box(*box)).sum():
        raise AssertionError(f"{len(some)} features are read of {every.intersects(shapely.box(*box)).sum()} in the box")
    bounds = every.bounds.to_numpy()
    groups = [bounds[start : start + ROWS_PER_GROUP] for start in range(0, len(bounds), ROWS_PER_GROUP)]
    touched = sum((group[:, :2].min(axis=0) <= box[2:]).all() and (group[:, 2:].max(axis=0) >= box[:2]).all() for group in groups)
    return median(times["box"]), median(times["all"]), touched / len(groups)


def measure(size: int) -> tuple[list[Figure], list[tuple[str, str]]]:
    """The figures, and for each how the usual way and ours came out."""
    megapixels = size**2 / 1e6
    small, middle, large = size // 4, size // 2, size
    warm = render(2 * TILE)
    trace_in_tiles(*warm)  # compiles
    spent: dict[int, tuple[float, float]] = {}
    for edge in (small, middle, large):
        note(f"{edge} x {edge} in tiles")
        raster = render(edge)
        spent[edge] = trace_in_tiles(*raster)
    note(f"{size} x {size} in one piece")
    ours, usual = trace(*raster)
    tracing, stitching = spent[large]
    growth = log(sum(spent[large]) / sum(spent[small]), (large / small) ** 2)
    stitch_growth = log(stitching / spent[small][1], (large / small) ** 2)
    mine, theirs = (peak_in_a_fresh_process(side, size) for side in ("ours", "usual"))
    note(f"GeoParquet of {(size // CELL) ** 2} features")
    count, written, usually_written, file = write_files(size)
    metres = 5000 * size / 16384
    box, everything, touched = read_box(file, metres)
    rates = (f"{megapixels / usual:.3g} Mpx/s", f"{megapixels / ours:.3g} Mpx/s")
    return [
        Figure(f"polygonise {size} x {size}, against rasterio.features.shapes -> GeoDataFrame", usual / ours, 20),
        Figure(f"polygonise {size} x {size}", megapixels / ours, 500, " Mpx/s"),
        Figure("extra memory of it", mine / theirs, 1 / 3, at_most=True),
        Figure(f"{TILE} px tiles, exactly the whole: stitching's share of the time", stitching / (tracing + stitching), 0.15, "", at_most=True),
        Figure(f"tiles traced and stitched: growth with pixels from {small}, exponent", growth, 1.1, "", at_most=True),
        Figure(f"stitching alone: growth with pixels from {small}, exponent", stitch_growth, 1.1, "", at_most=True),
        Figure(f"GeoParquet of {count} traced polygons, against GeoDataFrame.to_crs and to_parquet", usually_written / written, 4),
        Figure(f"read a box of {metres / 1000:g} km of them: share of the time", box / everything, 0.1, "", at_most=True),
        Figure("row groups that it lies in: share", touched, 0.1, "", at_most=True),
    ], [
        (f"{usual:.3g} s", f"{ours:.3g} s"),
        rates,
        (f"{theirs / 2**20:.0f} MiB", f"{mine / 2**20:.0f} MiB"),
        (f"whole: {ours:.3g} s", f"{tracing:.3g} + {stitching:.3g} s"),
        ("", " -> ".join(f"{sum(spent[edge]):.3g} s" for edge in (small, middle, large))),
        ("", " -> ".join(f"{spent[edge][1]:.3g} s" for edge in (small, middle, large))),
        (f"{usually_written:.3g} s", f"{written:.3g} s"),
        (f"everything: {everything:.3g} s", f"{box:.3g} s"),
        ("", ""),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of making the map against the usual way, on one core.")
    parser.add_argument("--size", type=int, default=16384, help=f"edge of the raster in pixels, a multiple of {4 * TILE}")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    parser.add_argument("--peak-of", choices=["ours", "usual"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.size % (4 * TILE) or options.size <= 0:
        parser.error(f"--size must be a multiple of {4 * TILE}, got {options.size}")
    if options.peak_of:
        print(peak_of(options.peak_of, options.size))
        return 0
    figures, sides = measure(options.size)
    blended_and_written = mosaic.measure()
    figures, sides = figures + blended_and_written[0], sides + blended_and_written[1]
    print(f"{date.today()}, one core, processor time, rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}\n")
    rows = [[figure.name, *side, figure.measured, figure.wanted, figure.verdict] for figure, side in zip(figures, sides, strict=True)]
    print(markdown(["figure", "usual way", "ours", "measured", "target", "met"], rows))
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
