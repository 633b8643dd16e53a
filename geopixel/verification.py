"""Recounts a run from what is stored, trusting no number that the run wrote about itself: whether every planned tile has a prediction, and whether
blocks, traced parts and features are what these predictions give. Knows what a run folder must hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from geopixel import features, ledger, mosaic
from geopixel.errors import DamagedError, StorageError
from geopixel.pipeline import PUBLISHED, Run, check_finished, load_run, make_block, trace_features
from geopixel.storage import Folder
from geopixel.types import STATUS_CODES, Block, State, Tile


@dataclass(frozen=True, slots=True)
class Verdict:
    tiles: dict[State, int]
    pixels: dict[State, int]
    """By what the status band must say."""
    holes: list[str]
    """One line for everything that is missing or does not add up; none: the map is whole."""
    broken: list[str]
    """Files without which the same job, submitted again, makes anew what does not add up. Failed tiles are no such thing."""


def verify(folder: Folder) -> Verdict:
    """Recounts tiles, pixels and features; writes nothing. Raises FileNotFoundError where the folder holds no run, ValueError where its run never
    ended."""
    check_finished(folder)
    tiles = ledger.load_plan(folder)
    states = ledger.read_states(folder, tiles)
    counts = ledger.recount(states)
    holes, broken = [], list[str]()
    if sum(counts.values()) != len(tiles):
        holes.append(f"{len(tiles)} tiles planned, {sum(counts.values())} have a state")
    if failed := counts["failed"]:
        holes.append(f"{failed} tiles failed")
    wrong = _check_coverage(folder, tiles, states)
    unreadable, broken = _check_predictions(folder, tiles, states)
    wrong += unreadable
    pixels: Counter[State] = Counter()
    if len(states) == len(tiles) and not broken:
        run, blocks = load_run(folder), mosaic.blocks_of(tiles)
        found, broken = _check_blocks(folder, run, blocks, states, pixels)
        wrong += found or _check_features(folder, run, blocks)
    return Verdict(counts, dict(pixels), holes + wrong, [*broken, *filter(folder.exists, PUBLISHED)] if wrong else [])


def mend(folder: Folder, verdict: Verdict) -> None:
    """Removes what verify found broken."""
    for path in verdict.broken:
        folder.delete(path)


def _check_coverage(folder: Folder, tiles: Sequence[Tile], states: Mapping[str, State]) -> list[str]:
    try:
        table = gpd.read_parquet(BytesIO(folder.get(ledger.COVERAGE)))
    except FileNotFoundError:
        return [f"{ledger.COVERAGE} is missing"]
    except (ArrowInvalid, OSError) as error:
        return [f"{ledger.COVERAGE} cannot be read: {error}"]
    told = dict(zip(table["tile_id"], table["state"], strict=True))
    wrong = [tile.id for tile in tiles if told.get(tile.id) != states.get(tile.id)]
    extra = len(table) - len(tiles)
    holes = [f"{ledger.COVERAGE} is wrong about {len(wrong)} tiles, first {wrong[0]}"] if wrong else []
    return holes + ([f"{ledger.COVERAGE} has {len(table)} rows for {len(tiles)} planned tiles"] if extra else [])


def _check_predictions(folder: Folder, tiles: Sequence[Tile], states: Mapping[str, State]) -> tuple[list[str], list[str]]:
    """Holes, and the files."""
    broken = []
    for tile in tiles:
        if tile.decided is None and tile.id in states:
            try:
                ledger.load_prediction(folder, tile.id, states[tile.id])
            except DamagedError as error:
                broken.append(error.path)
    return [f"{len(broken)} stored predictions cannot be read, first {broken[0]}"] if broken else [], broken


def _check_blocks(
    folder: Folder, run: Run, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State], pixels: Counter[State]
) -> tuple[list[str], list[str]]:
    """Makes every block again from the predictions and compares what is stored of it with that, value for value at every level. Counts pixels by
    state. Returns holes, and files whose absence has their blocks made anew."""
    names: dict[int, State] = {code: state for state, code in STATUS_CODES.items()}
    holes, broken = [], []
    for block, near in blocks.items():
        blended, parts = make_block(run, folder, block, near, states)
        pixels.update({names[int(code)]: int(count) for code, count in zip(*np.unique(blended.status, return_counts=True), strict=True)})
        try:
            unlike, digest = mosaic.unlike_block(folder, block, blended), mosaic.digest_block(folder, block)
        except (StorageError, ValueError, KeyError) as error:
            return [f"{mosaic.MASKS} is missing or cannot be opened: {error}"], [*folder.list(mosaic.MASKS), *folder.list("parts")]
        try:
            if not features.load_parts(folder, [block]).equals(parts):
                unlike.append("the traced parts are not what its predictions give")
            elif not unlike and not (features.parts_states(folder, block) or "").endswith(digest):
                unlike.append(f"its files in {mosaic.MASKS} are not those that were written, although they say the same")
        except (FileNotFoundError, DamagedError) as error:
            unlike.append(f"the traced parts are missing or cannot be read: {str(error).splitlines()[0]}")
        holes += [f"block {block.id}: {each}" for each in unlike]
        broken += [features.parts_path(block)] if unlike else []
    return holes, broken


def _check_features(folder: Folder, run: Run, blocks: Iterable[Block]) -> list[str]:
    """The features are what the traced parts give."""
    try:
        stored = pq.read_table(BytesIO(folder.get(features.FEATURES)))
    except FileNotFoundError:
        return [f"{features.FEATURES} is missing"]
    except (ArrowInvalid, OSError) as error:
        return [f"{features.FEATURES} cannot be read: {error}"]
    if stored.schema.names != features.SCHEMA.names:
        return [f"{features.FEATURES} has other columns: {', '.join(stored.schema.names)}"]
    expected = trace_features(run, folder, blocks)
    if len(stored) != len(expected):
        return [f"{features.FEATURES} has {len(stored)} features, the traced blocks give {len(expected)}"]
    wrong = [name for name in expected.schema.names if stored[name].to_pylist() != expected[name].to_pylist()]
    return [f"{features.FEATURES} is not what the traced blocks give: {', '.join(wrong)}"] if wrong else []
