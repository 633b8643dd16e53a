"""How fast and how smoothly blocks are blended, how fast they are written, and how much memory a block takes, on one core.

    python tests/benchmarks/mosaic.py [--check] [--prompts 5]

Blend: 100 megapixels a second and prompt, from stored logits to mask and confidence, over a block of tiles of all sizes. Seams: every tile sees
the same smooth ground and errs by an offset and a slope of its own, as a model does that sees each tile alone; the step at a seam is the
mean difference of neighbouring pixels across the edges of the tiles' cores, the background that of all others. The usual way crops the halo:
a pixel is what the tile says whose core it lies in.

Write: the same planes into the same layout by the same function, once with the zarrs codec pipeline and once with zarr-python's own; what both
hold must be equal. The sides alternate; medians count. Time is processor time of this process.

Memory: peak of the resident set of a fresh process that blends, writes and traces one block with 5 prompts, of a map of one block and of one
of 64 x 64 of them.

Confidence: what 32 levels lose against the 8 bits that there are, and what they save.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
import shapely
import zarr
from numcodecs import Zstd

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the table's printing is no part of the package

from geopixel import ledger, mosaic
from geopixel.mosaic.blend import tile_weights
from geopixel.pipeline import MapRequest, Run, write_block
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, CONFIDENCE_LEVELS, HALO, LOGIT_SCALE, Asset, Block, Grid, Scene, Source, Tile, TilePrediction
from tests.benchmarks.table import Figure, exit_code, markdown

GRID = Grid("EPSG:32645", 0.5)
BLOCK = Block(GRID, 0, 0)
EVERYWHERE = shapely.box(-1e6, -1e6, 1e6, 1e6)
ROUNDS = 5
SAMPLES = 256
"""Stored logits along a tile's edge."""


def tiles_of_all_sizes() -> list[Tile]:
    """A quarter of the block in tiles of 512, a quarter of 2048, two of 1024; and what borders on it."""
    sizes = {(0, 0): 512, (1, 1): 2048, (0, 1): 1024, (1, 0): 1024}
    inside = [
        Tile(GRID, size, 2048 // size * column + dx, 2048 // size * row + dy)
        for (column, row), size in sizes.items()
        for dx in range(2048 // size)
        for dy in range(2048 // size)
    ]
    around = [Tile(GRID, 2048, column, row) for column in range(-1, 3) for row in range(-1, 3) if not (0 <= column < 2 and 0 <= row < 2)]
    return inside + around


def ground(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Logits at places in pixels: waves of 300 and of 90 pixels."""
    return 3 * np.sin(x * 2 * np.pi / 311) * np.cos(y * 2 * np.pi / 287) + np.sin((x + y) * 2 * np.pi / 91)


def predictions_of(tiles: Sequence[Tile], prompts: int) -> dict[str, TilePrediction]:
    rng = np.random.default_rng(0)
    said = {}
    for tile in tiles:
        edge = tile.size + 2 * HALO
        along = (np.arange(SAMPLES) + 0.5) * edge / SAMPLES
        x, y = np.meshgrid(tile.left - HALO + along, tile.top - HALO + along)
        offset, right, down = rng.normal(0, 0.5, (3, prompts, 1, 1))
        logits = ground(x, y) + offset + (right * x + down * y - right * tile.left - down * tile.top) / edge
        stored = np.clip(np.rint(LOGIT_SCALE * logits), -127, 127).astype(np.int8)
        said[tile.id] = TilePrediction(tile.id, "ok", stored, np.zeros((edge, edge), np.uint16), np.ones(prompts, np.float32))
    return said


def blended(tiles: Sequence[Tile], said: dict[str, TilePrediction]) -> np.ndarray:
    return mosaic.blend(mosaic.pieces_of(BLOCK, tiles, said), 0, slice(0, BLOCK_SIZE))


def halo_crop(tiles: Sequence[Tile], said: dict[str, TilePrediction]) -> np.ndarray:
    """A pixel is what the tile says whose core it lies in."""
    out = np.full((BLOCK_SIZE, BLOCK_SIZE), np.nan, np.float32)
    for tile in tiles:
        rows, columns = (slice(max(0, first), min(BLOCK_SIZE, max(0, first + tile.size))) for first in (tile.top, tile.left))
        if rows.start < rows.stop:
            out[rows, columns] = mosaic.blend(mosaic.pieces_of(BLOCK, [tile], said), 0, rows)[:, columns]
    return out


def step_at_seams(probability: np.ndarray, tiles: Sequence[Tile]) -> float:
    """Mean difference of neighbours across the edges of cores over that of all other neighbours."""
    seams = np.zeros((2, BLOCK_SIZE, BLOCK_SIZE), bool)  # between a pixel and the one before it, across columns and across rows
    for tile in tiles:
        top, left = max(0, tile.top), max(0, tile.left)
        rows, columns = slice(top, max(0, tile.top + tile.size)), slice(left, max(0, tile.left + tile.size))
        if 0 < tile.left < BLOCK_SIZE:
            seams[0, rows, tile.left] = True
        if 0 < tile.top < BLOCK_SIZE:
            seams[1, tile.top, columns] = True
    across = np.abs(np.diff(probability, axis=1)), np.abs(np.diff(probability, axis=0))
    at = seams[0][:, 1:], seams[1][1:]
    steps, others = (np.concatenate([a[s] for a, s in zip(across, which, strict=True)]) for which in (at, [~s for s in at]))
    return float(steps.mean() / others.mean())


def largest_error_of_weights(tiles: Sequence[Tile]) -> float:
    total = np.zeros((BLOCK_SIZE + 4096 + 4 * HALO,) * 2, np.float32)
    for tile in tiles:
        weight = tile_weights(tile.size)
        top, left = tile.top + 2048 + HALO, tile.left + 2048 + HALO
        total[top : top + len(weight), left : left + len(weight)] += weight[:, None] * weight
    return float(np.abs(total[2048 + 2 * HALO :, 2048 + 2 * HALO :][:BLOCK_SIZE, :BLOCK_SIZE] - 1).max())


def time_blend(tiles: Sequence[Tile], said: dict[str, TilePrediction], prompts: int) -> tuple[float, mosaic.BlockMosaic]:
    """Median seconds from stored logits to mask, confidence, status and scene of a block."""
    seconds = []
    for _ in range(ROUNDS + 1):  # the first compiles
        start = process_time()
        made = mosaic.mosaic_block(BLOCK, tiles, lambda tile: said[tile.id], prompts=prompts, threshold=0.5, area=EVERYWHERE)
        seconds.append(process_time() - start)
    return median(seconds[1:]), made


def time_write(made: mosaic.BlockMosaic) -> tuple[float, float]:
    """Median seconds to write a block with zarrs and with zarr-python. Raises AssertionError unless both hold the block."""
    prompts = [str(index) for index in range(len(made.mask))]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with TemporaryDirectory() as scratch:
        for turn in range(2 * (ROUNDS + 1)):
            with_zarrs = turn % 2 == 0
            folder = Folder(f"{scratch}/{with_zarrs}")
            mosaic.create_mosaic(folder, [BLOCK], prompts, ["item"])
            with mock.patch("geopixel.mosaic.store.find_spec", (lambda name: name) if with_zarrs else (lambda name: None)):
                start = process_time()
                mosaic.write_block(folder, BLOCK, made)
                seconds[with_zarrs].append(process_time() - start)
        for side in seconds:
            root: Any = zarr.open_group(Folder(f"{scratch}/{side}").zarr(mosaic.MASKS), mode="r")
            for name in ("mask", "confidence", "status", "scene"):
                if not np.array_equal(root[name][:], getattr(made, name)):
                    raise AssertionError(f"{name} written {'with' if side else 'without'} zarrs is not what was to be written")
    return median(seconds[True][1:]), median(seconds[False][1:])


def loss_of_levels(tiles: Sequence[Tile], said: dict[str, TilePrediction]) -> tuple[float, float, float]:
    """Of CONFIDENCE_LEVELS against 250: mean and largest error of a probability, and bytes, as chunks of zstd-1."""
    probability = blended(tiles, said)
    coarse, fine = (np.rint(probability * levels).astype(np.uint8) for levels in (CONFIDENCE_LEVELS, 250))
    error = np.abs(coarse / np.float32(CONFIDENCE_LEVELS) - probability)
    parts = [np.s_[row : row + 512, column : column + 512] for row in range(0, BLOCK_SIZE, 512) for column in range(0, BLOCK_SIZE, 512)]
    stored = [sum(len(Zstd(level=1).encode(np.ascontiguousarray(plane[part]))) for part in parts) for plane in (coarse, fine)]
    return float(error.mean()), float(error.max()), stored[0] / stored[1]


def kibibytes(name: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))


def peak_of_a_block(prompts: int, blocks_along: int) -> int:
    """Bytes: the most that this process ever held, to blend, write and trace one block of a map of blocks_along x blocks_along of them."""
    tiles = tiles_of_all_sizes()
    with TemporaryDirectory() as scratch:
        folder = Folder(scratch)
        for prediction in predictions_of(tiles, prompts).values():
            ledger.store_prediction(folder, prediction)
        names = tuple(f"prompt {index}" for index in range(prompts))
        mosaic.create_mosaic(folder, [BLOCK, Block(GRID, blocks_along - 1, blocks_along - 1)], names, ["item"])
        scene = Scene("c", "2020-01-01", (Source("item", shapely.box(0, 0, 1, 1), (Asset("a.tif", (1,)),)),))
        area = shapely.box(86.9, -0.1, 87.3, 0.1)
        run = Run(MapRequest(area, names, "catalog", "nano"), (scene,), GRID)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: making the predictions is no part of the task
        write_block(run, folder, BLOCK, mosaic.blocks_of(tiles)[BLOCK], {tile.id: "ok" for tile in tiles})
        return 1024 * kibibytes("VmHWM")


def peak_in_a_fresh_process(prompts: int, blocks_along: int) -> int:
    command = [sys.executable, __file__, "--prompts", str(prompts), "--peak", str(blocks_along)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(prompts: int = 5) -> tuple[list[Figure], list[tuple[str, str]]]:
    """The figures, and for each how the usual way and ours came out."""
    tiles = tiles_of_all_sizes()
    said = predictions_of(tiles, prompts)
    megapixels = prompts * BLOCK_SIZE**2 / 1e6
    blending, made = time_blend(tiles, said, prompts)
    cropped, smooth = step_at_seams(halo_crop(tiles, said), tiles), step_at_seams(blended(tiles, said), tiles)
    ours, usual = time_write(made)
    small, large = (peak_in_a_fresh_process(prompts, along) for along in (1, 64))
    mean_error, largest_error, share = loss_of_levels(tiles, said)
    return [
        Figure(f"blend {prompts} prompts over tiles of all sizes, a prompt", megapixels / blending, 100, " Mpx/s"),
        Figure("weights, where sizes meet too: largest difference of their sum from 1", largest_error_of_weights(tiles), 0, "", at_most=True),
        Figure("step at seams over the background, against a halo crop", smooth, 1.5, at_most=True),
        Figure("Zarr block write with overviews, against zarr-python, same layout", usual / ours, 2.5),
        Figure(f"peak memory of a block task, {prompts} prompts", small / 1e9, 1.5, " GB", at_most=True),
        Figure("the same in a map of 64 x 64 blocks, over that of one", large / small, 1.05, at_most=True),
        Figure(f"confidence in {CONFIDENCE_LEVELS} levels: mean error of a probability", mean_error, 0.01, "", at_most=True),
        Figure(f"confidence in {CONFIDENCE_LEVELS} levels: bytes, against 250 levels", share, 0.5, at_most=True),
    ], [
        ("", f"{blending:.3g} s"),
        ("", ""),
        (f"{cropped:.3g}x", f"{smooth:.3g}x"),
        (f"{usual:.3g} s", f"{ours:.3g} s"),
        ("", f"{small / 1e9:.3g} GB"),
        ("", f"{large / 1e9:.3g} GB"),
        ("", f"largest {largest_error:.3g}"),
        ("", ""),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed, seams and memory of the mosaic against the usual way, on one core.")
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.prompts < 1:
        parser.error(f"--prompts must be at least 1, got {options.prompts}")
    if options.peak:
        print(peak_of_a_block(options.prompts, options.peak))
        return 0
    figures, sides = measure(options.prompts)
    print(f"{date.today()}, one core, processor time, zarr {zarr.__version__}\n")
    rows = [[figure.name, *side, figure.measured, figure.wanted, figure.verdict] for figure, side in zip(figures, sides, strict=True)]
    print(markdown(["figure", "usual way", "ours", "measured", "target", "met"], rows))
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
