"""Recounts a run from what is stored, trusting no number that the run wrote about itself. Knows what a run folder must hold; writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from pyarrow import ArrowInvalid

from geopixel import features, ledger, mosaic
from geopixel.pipeline import Run, check_finished, load_run, trace_features
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, STATUS_CODES, Block, State, Tile

ANSWERED = (STATUS_CODES["ok"], STATUS_CODES["empty"])


@dataclass(frozen=True, slots=True)
class Verdict:
    tiles: dict[State, int]
    pixels: dict[State, int]
    """Of the status band."""
    holes: list[str]
    """One line for everything that is missing or does not add up; none: the map is whole."""


def verify(folder: Folder) -> Verdict:
    """Recounts tiles, pixels and features. Raises FileNotFoundError where the folder holds no run, ValueError where its run never ended."""
    check_finished(folder)
    tiles = ledger.load_plan(folder)
    states = ledger.read_states(folder, tiles)
    counts = ledger.recount(states)
    holes = []
    if sum(counts.values()) != len(tiles):
        holes.append(f"{len(tiles)} tiles planned, {sum(counts.values())} have a state")
    if counts["failed"]:
        holes.append(f"{counts['failed']} tiles failed")
    holes += _check_coverage(folder, tiles, states)
    holes += (broken := _check_predictions(folder, tiles, states))
    pixels: Counter[State] = Counter()
    present: Counter[str] = Counter()
    if len(states) == len(tiles) and not broken:
        if not folder.exists(f"{mosaic.MASKS}/zarr.json"):
            return Verdict(counts, {}, [*holes, f"{mosaic.MASKS} is missing"])
        run = load_run(folder)
        holes += _check_mosaic(folder, run, tiles, states, pixels, present)
        holes += _check_features(folder, run, mosaic.blocks_of(tiles), present)
    return Verdict(counts, dict(pixels), holes)


def _check_coverage(folder: Folder, tiles: Sequence[Tile], states: Mapping[str, State]) -> list[str]:
    try:
        table = gpd.read_parquet(BytesIO(folder.get(ledger.COVERAGE)))
    except FileNotFoundError:
        return [f"{ledger.COVERAGE} is missing"]
    told = dict(zip(table["tile_id"], table["state"], strict=True))
    wrong = [tile.id for tile in tiles if told.get(tile.id) != states.get(tile.id)]
    extra = len(table) - len(tiles)
    holes = [f"{ledger.COVERAGE} is wrong about {len(wrong)} tiles, first {wrong[0]}"] if wrong else []
    return holes + ([f"{ledger.COVERAGE} has {len(table)} rows for {len(tiles)} planned tiles"] if extra else [])


def _check_predictions(folder: Folder, tiles: Sequence[Tile], states: Mapping[str, State]) -> list[str]:
    broken = []
    for tile in tiles:
        if tile.decided is None and tile.id in states:
            try:
                ledger.load_prediction(folder, tile.id, states[tile.id])
            except (ArrowInvalid, OSError, ValueError, IndexError) as error:
                broken.append(f"{tile.id} ({type(error).__name__})")
    return [f"{len(broken)} stored predictions cannot be read, first {broken[0]}"] if broken else []


def _check_mosaic(folder: Folder, run: Run, tiles: Sequence[Tile], states: Mapping[str, State], pixels: Counter[State], present: Counter[str]) -> list[str]:
    """Compares status and scene with what plan, predictions and area say, pixel for pixel, and counts pixels by state and prompt."""
    root: Any = zarr.open_group(folder.zarr(mosaic.MASKS), mode="r")
    resolution, _, left, _, _, top = root["mask"].attrs["spatial:transform"]
    first_column, first_row = round(left / resolution), round(-top / resolution)
    names: dict[int, State] = {code: state for state, code in STATUS_CODES.items()}
    holes = []
    for block, near in mosaic.blocks_of(tiles).items():
        window = _window(block, first_column, first_row)
        predictions = {tile.id: ledger.load_prediction(folder, tile.id, states[tile.id]) for tile in near if tile.decided is None}
        status, scene = root["status"][window], root["scene"][window]
        for name, stored, expected in zip(("status", "scene"), (status, scene), mosaic.status_and_scene(block, near, predictions, run.area), strict=True):
            if wrong := int((stored != expected).sum()):
                holes.append(f"{name} of block {block.id} is wrong at {wrong} pixels")
        pixels.update({names[int(code)]: int(count) for code, count in zip(*np.unique(status, return_counts=True), strict=True)})
        silent = ~np.isin(status, ANSWERED)
        for index, prompt in enumerate(run.request.prompts):
            mask, confidence = (root[name][(index, *window)] for name in ("mask", "confidence"))
            present[prompt] += int((mask == 1).sum())
            unlike = int(((mask == mosaic.NONE) != silent).sum()) + int(((confidence == mosaic.NONE) != silent).sum())
            if unlike:
                holes.append(f"masks of {prompt!r} in block {block.id} disagree with its status at {unlike} pixels")
    return holes


def _check_features(folder: Folder, run: Run, blocks: Iterable[Block], present: Mapping[str, int]) -> list[str]:
    """The traced parts have every pixel of the published raster, and the features are what these parts give."""
    holes = []
    try:
        parts = features.load_parts(folder, blocks)
        traced = {prompt: parts.filter(pc.equal(parts["prompt"], index)) for index, prompt in enumerate(present)}
    except (ArrowInvalid, OSError) as error:
        return [f"traced blocks cannot be read: {error}"]
    for prompt, count in present.items():
        if (found := pc.sum(traced[prompt]["pixels"]).as_py() or 0) != count:
            holes.append(f"{prompt!r} is {count} pixels in {mosaic.MASKS} and {found} in the traced blocks")
    try:
        stored = pq.read_table(BytesIO(folder.get(features.FEATURES)))
    except FileNotFoundError:
        return [*holes, f"{features.FEATURES} is missing"]
    except ArrowInvalid as error:
        return [*holes, f"{features.FEATURES} cannot be read: {error}"]
    if stored.schema.names != features.SCHEMA.names:
        return [*holes, f"{features.FEATURES} has other columns: {', '.join(stored.schema.names)}"]
    expected = trace_features(run, folder, blocks)
    if len(stored) != len(expected):
        holes.append(f"{features.FEATURES} has {len(stored)} features, the traced blocks give {len(expected)}")
    elif wrong := [name for name in expected.schema.names if stored[name].to_pylist() != expected[name].to_pylist()]:
        holes.append(f"{features.FEATURES} is not what the traced blocks give: {', '.join(wrong)}")
    return holes


def _window(block: Block, first_column: int, first_row: int) -> tuple[slice, slice]:
    row, column = block.top - first_row, block.left - first_column
    return slice(row, row + BLOCK_SIZE), slice(column, column + BLOCK_SIZE)
