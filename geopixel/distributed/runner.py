"""Tiles and blocks on Ray: tiles are read by CPU tasks, predicted by actors that hold the model and stored from there; blocks are
tasks. The driver sees receipts, never pixels."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.dask import ray_dask_get

from geopixel.assignment import Assignment
from geopixel.errors import GeoPixelError
from geopixel.pipeline import MAX_ATTEMPTS, Run, Seen, assign_tiles, predict_tiles, see_tile, write_block
from geopixel.storage import Folder
from geopixel.types import Block, State, Tile, TileImage, TilePrediction, TileReceipt

ACTOR_CPUS, READER_CPUS = 0.8, 0.4
"""On a machine without GPUs: as many actors as cores, each on one thread, and room for a reader beside them even with two cores."""
TILES_PER_TASK = {"cpu": 4, "cuda": 16}
"""Rows that travel together: small, so that a resumed run loses little; on a GPU as many as it computes at once."""


_CODEC = pa.Codec("lz4_raw")
"""Of the plane of scenes, which hardly ever changes within a tile."""


def start() -> None:
    """Joins the cluster of a submitted job, else starts Ray on this machine."""
    if not ray.is_initialized():
        # Its C++ parts else tell every user of an actor pool, as an error, what could happen if the driver lost the actors' arguments.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **local)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and hints are not what a user of ours wants to read


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a task raised of our own kinds comes as itself, without Ray's account of its way."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, GeoPixelError):
            raise error.cause from None
        raise


class RayRunner:
    """See pipeline.Runner. Workers that die are replaced and their tiles tried again; ledger counts the attempts. Ray starts when there is something
    to do: a request that is refused, or a run that is finished, needs none.

    gpus_per_actor: share of a GPU, or GPUs, for each copy of the model; None: one where the cluster has GPUs, else the model runs on CPUs.
    min_actors, max_actors: copies of the model; None: as many as fit into the cluster as it is. A higher max_actors lets it grow.
    max_attempts: a tile that was begun so often without a result is set aside as failed.
    """

    @property
    def dask_scheduler(self) -> Any:
        start()
        return ray_dask_get

    def __init__(
        self, *, gpus_per_actor: float | None = None, min_actors: int | None = None, max_actors: int | None = None, max_attempts: int = MAX_ATTEMPTS
    ) -> None:
        if min_actors and max_actors and min_actors > max_actors:
            raise ValueError(f"min_actors must not be above max_actors, got {min_actors} and {max_actors}")
        self.gpus_per_actor, self.min_actors, self.max_actors, self.max_attempts = gpus_per_actor, min_actors, max_actors, max_attempts

    @property
    def device(self) -> str:
        return "cuda" if self._gpus() else "cpu"

    def _gpus(self) -> float:
        """GPUs for each copy of the model; 0: it runs on CPUs."""
        if self.gpus_per_actor is not None:
            return self.gpus_per_actor
        start()
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def _actors(self) -> tuple[int, int]:
        """Fewest and most copies of the model."""
        there, gpus = ray.cluster_resources(), self._gpus()
        fitting = max(1, int(there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1)))
        most = self.max_actors or max(fitting, self.min_actors or 1)
        return self.min_actors or min(fitting, most), most

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        start()
        gpus, (fewest, most) = self._gpus(), self._actors()
        resources: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": ACTOR_CPUS}
        together = TILES_PER_TASK[self.device]
        tasks = min(len(tiles), max(most, len(tiles) // together))
        rows = ray.data.from_items([{"size": tile.size, "column": tile.column, "row": tile.row} for tile in tiles], override_num_blocks=tasks)
        pictures = rows.map(partial(_see, run=run, assigned=assign_tiles(run, tiles)), num_cpus=READER_CPUS)
        receipts = pictures.map_batches(
            _Look,
            fn_constructor_kwargs={"run": run, "folder": folder, "max_attempts": self.max_attempts},
            batch_size=together,
            compute=ray.data.ActorPoolStrategy(min_size=min(fewest, tasks), max_size=min(most, tasks)),
            **resources,
        )
        with _own_errors():
            for row in receipts.iter_rows():
                yield TileReceipt(**row)

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        start()
        shared = ray.put((run, folder))
        waiting = [_write.remote(shared, block, tiles, {tile.id: states[tile.id] for tile in tiles}) for block, tiles in blocks.items()]
        while waiting:
            done, waiting = ray.wait(waiting)
            with _own_errors():
                yield ray.get(done[0])


def _see(row: dict[str, Any], run: Run, assigned: Assignment) -> dict[str, Any]:
    """A row with the tile's picture as bytes: typed columns travel between workers without pickling."""
    seen = see_tile(run, Tile(run.grid, row["size"], row["column"], row["row"]), assigned)
    picture = seen.picture
    spent = {"read_seconds": seen.read_seconds, "read_bytes": seen.read_bytes}
    if isinstance(picture, TilePrediction):
        return row | spent | {"rgb": b"", "scene": b"", "reason": picture.reason}
    return row | spent | {"rgb": picture.rgb.tobytes(), "scene": _CODEC.compress(picture.scene, asbytes=True), "reason": ""}


class _Look:
    """An actor with the model, asked batch by batch."""

    def __init__(self, run: Run, folder: Folder, max_attempts: int) -> None:
        from geopixel.prediction import Predictor  # loads torch: only where the model is

        self.grid, self.folder, self.max_attempts = run.grid, folder, max_attempts
        self.predictor = Predictor.load(run.request.model, run.request.prompts, run.request.describe)
        self.since = time.monotonic()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        names = ("size", "column", "row", "rgb", "scene", "reason", "read_seconds", "read_bytes")
        seen = []
        for size, column, row, rgb, scene, reason, seconds, read in zip(*(batch[name] for name in names), strict=True):
            tile = Tile(self.grid, int(size), int(column), int(row))
            picture = _picture(tile, rgb, scene) if rgb else TilePrediction(tile.id, "failed", reason=reason)
            seen.append(Seen(picture, float(seconds), int(read)))
        receipts = list(predict_tiles(self.folder, self.predictor, seen, self.max_attempts))
        now = time.monotonic()
        receipts = [replace(receipt, worker_seconds=(now - self.since) / len(receipts)) for receipt in receipts]
        self.since = now
        return {one.name: [getattr(receipt, one.name) for receipt in receipts] for one in fields(TileReceipt)}


def _picture(tile: Tile, rgb: bytes, scene: bytes) -> TileImage:
    height, width = tile.geobox.shape
    origin = np.frombuffer(_CODEC.decompress(scene, 2 * height * width, asbytes=True), np.uint16)
    return TileImage(tile, np.frombuffer(rgb, np.uint8).reshape(height, width, 3), origin.reshape(height, width))


@ray.remote(num_cpus=1)
def _write(shared: tuple[Run, Folder], block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> str:
    return write_block(*shared, block, tiles, states)
