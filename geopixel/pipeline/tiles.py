"""What happens to one tile, or to a few together: read, predicted, stored. Knows nothing of where it runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from geopixel import ledger
from geopixel.assignment import Assignment, assign_sources
from geopixel.errors import ReadError, StorageError
from geopixel.imagery import read_tile
from geopixel.pipeline.request import Run
from geopixel.storage import Folder
from geopixel.tally import tallied
from geopixel.types import BLOCK_SIZE, Tile, TileImage, TilePrediction, TileReceipt, Tiles

if TYPE_CHECKING:
    from geopixel.prediction import Predictor  # loads torch: imported where a model is loaded, never by those who only read


MAX_ATTEMPTS = 3
"""A tile that was begun this often without a result kills its workers: it is set aside as failed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A tile that was read."""

    picture: TileImage | TilePrediction
    """Or why there is none."""
    read_seconds: float
    read_bytes: int
    """Of the files, as they are stored."""


def assign_tiles(run: Run, tiles: Sequence[Tile]) -> Assignment:
    """The sources near each tile, by super-tile: what see_tile wants."""
    plan = Tiles.of(tiles)
    return assign_sources(run.scenes, run.grid, np.stack([plan.left // BLOCK_SIZE, plan.top // BLOCK_SIZE], axis=-1), BLOCK_SIZE)


def see_tile(run: Run, tile: Tile, assigned: Assignment) -> Seen:
    """Reads a tile. assigned: of assign_tiles, for this tile among others."""
    began = time.monotonic()
    with tallied() as touched:
        try:
            picture: TileImage | TilePrediction = read_tile(tile, run.scenes, assigned.at(tile.left, tile.top))
        except ReadError as error:
            picture = TilePrediction(tile.id, "failed", reason=str(error))
    return Seen(picture, time.monotonic() - began, sum(each.bytes for each in touched))


def predict_tiles(folder: Folder, predictor: Predictor, seen: Iterable[Seen], max_attempts: int) -> Iterator[TileReceipt]:
    """Predicts and stores tiles, as many together as the model takes. A tile that was begun before without a result is tried alone, so that
    one that ends its workers costs no other its place; begun max_attempts times it is set aside. Raises StorageError where a prediction cannot be
    stored; that is no attempt of its tile."""
    seen = iter(seen)
    while batch := list(islice(seen, predictor.batch_size)):
        try:
            yield from _predict_batch(folder, predictor, batch, max_attempts)
        except StorageError:
            with suppress(StorageError):  # the worker lives: nothing is to be said against its tiles
                for one in batch:
                    if isinstance(one.picture, TileImage):
                        ledger.end_attempts(folder, one.picture.tile.id)
            raise


def _predict_batch(folder: Folder, predictor: Predictor, batch: Sequence[Seen], max_attempts: int) -> Iterator[TileReceipt]:
    """Tiles that the model takes together."""
    pictures: list[tuple[TileImage, Seen]] = []
    fresh: list[tuple[TileImage, Seen]] = []
    for one in batch:
        if isinstance(one.picture, TilePrediction):
            yield _keep(folder, one.picture, one)
        else:
            pictures.append((one.picture, one))
    for picture, one in pictures:
        if not ledger.attempts(folder, picture.tile.id):
            fresh.append((picture, one))
        elif (attempt := ledger.begin_attempt(folder, picture.tile.id)) > max_attempts:
            yield _keep(folder, TilePrediction(picture.tile.id, "failed", reason=f"its worker ended {attempt - 1} times"), one)
        else:
            yield from _predict(folder, predictor, [(picture, one)])
    for picture, _ in fresh:
        ledger.begin_attempt(folder, picture.tile.id)
    if fresh:
        yield from _predict(folder, predictor, fresh)


def _predict(folder: Folder, predictor: Predictor, pictures: Sequence[tuple[TileImage, Seen]]) -> Iterator[TileReceipt]:
    """Predicts and stores tiles whose attempt has begun. One that does not fit the context or the memory is a hole, not the end of the run."""
    began = time.monotonic()
    try:
        predictions = predictor.predict([picture for picture, _ in pictures])
    except (ValueError, RuntimeError) as error:
        if len(pictures) > 1:
            for pair in pictures:
                yield from _predict(folder, predictor, [pair])
            return
        predictions = [TilePrediction(pictures[0][0].tile.id, "failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")]
    each = (time.monotonic() - began) / len(pictures)
    for prediction, (_, one) in zip(predictions, pictures, strict=True):
        yield _keep(folder, prediction, one, each, predictor.backend)


def _keep(folder: Folder, prediction: TilePrediction, seen: Seen, predict_seconds: float = 0.0, backend: str = "") -> TileReceipt:
    """Stored before it counts."""
    ledger.store_prediction(folder, prediction)
    ledger.end_attempts(folder, prediction.tile_id)
    times = {"read_seconds": seen.read_seconds, "predict_seconds": predict_seconds}
    return TileReceipt(prediction.tile_id, prediction.state, prediction.reason, **times, read_bytes=seen.read_bytes, backend=backend)
