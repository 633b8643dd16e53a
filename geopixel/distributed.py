"""The steps of pipeline.py on Ray: tiles are read by CPU tasks, predicted by actors that hold the model and stored from there; blocks are
tasks. The only file that imports ray. The driver sees receipts, never pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.dask import ray_dask_get

from geopixel.assignment import Assignment
from geopixel.pipeline import Run, Seen, assign_tiles, predict_tiles, see_tile, write_block
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
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and hints are not what a user of ours wants to read


class RayRunner:
    """See pipeline.Runner. Workers that die are replaced and their tiles tried again; ledger counts the attempts."""

    dask_scheduler: Any = staticmethod(ray_dask_get)

    @property
    def device(self) -> str:
        return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        actors = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
        resources = {"num_gpus": 1} if gpus else {"num_cpus": ACTOR_CPUS}
        together = TILES_PER_TASK[self.device]
        tasks = min(len(tiles), max(actors, len(tiles) // together))
        rows = ray.data.from_items([{"size": tile.size, "column": tile.column, "row": tile.row} for tile in tiles], override_num_blocks=tasks)
        pictures = rows.map(partial(_see, run=run, assigned=assign_tiles(run, tiles)), num_cpus=READER_CPUS)
        receipts = pictures.map_batches(
            _Look,
            fn_constructor_kwargs={"run": run, "folder": folder},
            batch_size=together,
            compute=ray.data.ActorPoolStrategy(size=min(actors, tasks)),
            **resources,
        )
        for row in receipts.iter_rows():
            yield TileReceipt(**row)

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        shared = ray.put((run, folder))
        waiting = [_write.remote(shared, block, tiles, {tile.id: states[tile.id] for tile in tiles}) for block, tiles in blocks.items()]
        while waiting:
            done, waiting = ray.wait(waiting)
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

    def __init__(self, run: Run, folder: Folder) -> None:
        from geopixel.prediction import Predictor  # loads torch: only where the model is

        self.grid, self.folder = run.grid, folder
        self.predictor = Predictor.load(run.request.model, run.request.prompts)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        names = ("size", "column", "row", "rgb", "scene", "reason", "read_seconds", "read_bytes")
        seen = []
        for size, column, row, rgb, scene, reason, seconds, read in zip(*(batch[name] for name in names), strict=True):
            tile = Tile(self.grid, int(size), int(column), int(row))
            picture = _picture(tile, rgb, scene) if rgb else TilePrediction(tile.id, "failed", reason=reason)
            seen.append(Seen(picture, float(seconds), int(read)))
        receipts = list(predict_tiles(self.folder, self.predictor, seen))
        return {one.name: [getattr(receipt, one.name) for receipt in receipts] for one in fields(TileReceipt)}


def _picture(tile: Tile, rgb: bytes, scene: bytes) -> TileImage:
    height, width = tile.geobox.shape
    origin = np.frombuffer(_CODEC.decompress(scene, 2 * height * width, asbytes=True), np.uint16)
    return TileImage(tile, np.frombuffer(rgb, np.uint8).reshape(height, width, 3), origin.reshape(height, width))


@ray.remote(num_cpus=1)
def _write(shared: tuple[Run, Folder], block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> str:
    return write_block(*shared, block, tiles, states)
