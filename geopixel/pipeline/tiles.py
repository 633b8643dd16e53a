"""What happens to one tile, or to a few together: read, predicted, stored. Knows nothing of where it runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

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
STORING = 4
"""Threads that store: an object store answers in tens of milliseconds, and a tile asks it some five times."""

Item = TypeVar("Item")


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


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is to be stored of a tile."""

    prediction: TilePrediction
    seen: Seen
    predict_seconds: float = 0.0
    backend: str = ""


def predict_tiles(folder: Folder, predictor: Predictor, seen: Iterable[Seen], max_attempts: int) -> Iterator[TileReceipt]:
    """Predicts and stores tiles, as many together as the model takes. While it works, threads store the answers before and begin the tiles that come
    next. A tile that was begun before without a result is tried alone, so that one that ends its workers costs no other its place; begun max_attempts
    times it is set aside. Raises StorageError where a prediction cannot be stored; that is no attempt of its tile."""
    seen, begun = iter(seen), set[str]()
    storing: deque[Future[TileReceipt]] = deque()
    try:
        with ThreadPoolExecutor(STORING) as threads:
            batches = iter(lambda: list(islice(seen, predictor.batch_size)), [])
            for batch in _drawn_ahead(_begin(threads, folder, batch, begun) for batch in batches):
                for answer in _predict_batch(folder, predictor, batch, max_attempts, storing):
                    storing.append(threads.submit(_keep, folder, answer))
                while len(storing) > len(batch):
                    yield _stored(storing.popleft(), begun)
            while storing:
                yield _stored(storing.popleft(), begun)
    except StorageError:
        with suppress(StorageError):  # the worker lives: nothing is to be said against its tiles
            for tile_id in begun:
                ledger.end_attempts(folder, tile_id)
        raise


def _stored(storing: Future[TileReceipt], begun: set[str]) -> TileReceipt:
    receipt = storing.result()
    begun.discard(receipt.tile_id)
    return receipt


def _begin(threads: Executor, folder: Folder, batch: Sequence[Seen], begun: set[str]) -> list[tuple[Seen, Future[bool] | None]]:
    """The tiles, and whether this is the first attempt at each; None where there is nothing to try. Their ids are put into begun."""
    pictures = [one.picture.tile.id if isinstance(one.picture, TileImage) else None for one in batch]
    begun.update(filter(None, pictures))
    return [(one, threads.submit(ledger.begin_first_attempt, folder, tile_id) if tile_id else None) for one, tile_id in zip(batch, pictures, strict=True)]


def _drawn_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items; when one is given the next is drawn already."""
    waiting = deque(islice(items, 1))
    while waiting:
        waiting.extend(islice(items, 1))
        yield waiting.popleft()


def _predict_batch(
    folder: Folder, predictor: Predictor, batch: Iterable[tuple[Seen, Future[bool] | None]], max_attempts: int, storing: Iterable[Future[TileReceipt]]
) -> Iterator[_Answer]:
    """Tiles that the model takes together."""
    fresh: list[tuple[TileImage, Seen]] = []
    again: list[tuple[TileImage, Seen]] = []
    for one, first in batch:
        if isinstance(one.picture, TilePrediction):
            yield _Answer(one.picture, one)
        elif first is not None:
            (fresh if first.result() else again).append((one.picture, one))
    for picture, one in again:
        wait(storing)  # what it may end along with its worker
        if (attempt := ledger.begin_attempt(folder, picture.tile.id)) > max_attempts:
            yield _Answer(TilePrediction(picture.tile.id, "failed", reason=f"its worker ended {attempt - 1} times"), one)
        else:
            yield from _predict(predictor, [(picture, one)])
    if fresh:
        yield from _predict(predictor, fresh)


def _predict(predictor: Predictor, pictures: Sequence[tuple[TileImage, Seen]]) -> Iterator[_Answer]:
    """Predicts tiles whose attempt has begun. One that does not fit the context or the memory is a hole, not the end of the run."""
    began = time.monotonic()
    try:
        predictions = predictor.predict([picture for picture, _ in pictures])
    except (ValueError, RuntimeError) as error:
        if len(pictures) > 1:
            for pair in pictures:
                yield from _predict(predictor, [pair])
            return
        predictions = [TilePrediction(pictures[0][0].tile.id, "failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")]
    each = (time.monotonic() - began) / len(pictures)
    for prediction, (_, one) in zip(predictions, pictures, strict=True):
        yield _Answer(prediction, one, each, predictor.backend)


def _keep(folder: Folder, answer: _Answer) -> TileReceipt:
    """Stored before it counts."""
    prediction, seen = answer.prediction, answer.seen
    ledger.store_prediction(folder, prediction)
    ledger.end_attempts(folder, prediction.tile_id)
    times = {"read_seconds": seen.read_seconds, "predict_seconds": answer.predict_seconds}
    return TileReceipt(prediction.tile_id, prediction.state, prediction.reason, **times, read_bytes=seen.read_bytes, backend=answer.backend)
