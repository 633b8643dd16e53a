"""Tiles and blocks on Ray: tiles are read by CPU tasks, predicted by actors that hold the model and stored from there; blocks are
tasks. The driver sees receipts, never pixels."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayTaskError
from ray.util.dask import ray_dask_get

from geopixel import events, ledger
from geopixel.assignment import Assignment
from geopixel.distributed import metrics
from geopixel.distributed.backpressure import keep_source_near
from geopixel.errors import GeoPixelError
from geopixel.pipeline import MAX_ATTEMPTS, Job, MapRequest, Result, Run, Seen, Work, assign_tiles, load_run, predict_tiles, see_tile, write_block
from geopixel.storage import Folder
from geopixel.types import Block, Grid, State, Tile, TileImage, TilePrediction, TileReceipt, Tiles

ACTOR_CPUS, READER_CPUS = 0.6, 0.4
"""On a machine without GPUs: as many actors as cores, each on one thread, and room for a reader beside each: one that never finds room stops the run."""
GPU_ACTOR_CPUS = 0.1
"""Of an actor that has a GPU. Ray would give it a whole core, and where GPUs are as many as cores none would be left to read."""
TILES_PER_TASK = 16
"""Rows that travel together: as many as a GPU computes at once, and few enough that a resumed run loses little."""
TASKS_PER_ACTOR = 4
"""At least, in a run of few tiles: so that the copies of the model end together."""
TILES_PER_SOURCE = 1024
"""Of one run, that are one to the driver until a worker cuts them into tasks: a country would be a hundred thousand of these."""
PIECES = 64
"""That the tiles of one of many runs are read in: so many readers may share them."""
SECONDS_PER_ASKING = 0.5
"""Between looks at which runs have been finished."""

DEATHS_AT_START = 5
"""Workers that may die one after the other while they load the model: Ray Data else ends the run with the first whose machine is taken away then."""
RAY_SETTINGS = {
    # Its C++ parts else tell every user of an actor pool, as an error, what could happen if the driver lost the actors' arguments.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Milliseconds. It else ends what idles for a second, where workers are more than cores; the next reader would import for seconds.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # Ray Data else copies the pictures of every task side by side, which costs as much as storing their masks.
    "RAY_DATA_MIN_NUM_CHUNKS_TO_TRIGGER_COMBINE_CHUNKS": "1000",
}
"""Environment of a Ray that starts here; what the user has set stays."""

_CODEC = pa.Codec("lz4_raw")
"""Of the plane of scenes."""
SCENE_BYTES = 2
"""Of one value of it."""


def start() -> None:
    """Joins the cluster of a submitted job, else starts Ray on this machine."""
    if not ray.is_initialized():
        for name, value in RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "include_dashboard": False}
        if events.SUBMITTED in os.environ:  # its log is read by machines
            local["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="INFO")
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **local)
        logging.getLogger("ray").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = DEATHS_AT_START
    keep_source_near(context)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and hints are not what a user of ours wants to read


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a task raised of our own kinds comes as itself, without Ray's account of its way."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, GeoPixelError):
            first, *others = error.cause.args
            error.cause.args = (str(first).splitlines()[0], *others)  # Ray Data appends its advice
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
        if events.SUBMITTED in os.environ:
            start()  # the cluster is there, and from here on what is logged is JSON
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
        plan = Tiles.of(tiles)
        together = min(TILES_PER_TASK, -(-len(plan) // (TASKS_PER_ACTOR * self._actors()[1])))
        parts = [plan[at : at + TILES_PER_SOURCE] for at in range(0, len(plan), TILES_PER_SOURCE)]
        tasks = len(parts) * -(-len(parts[0]) // together)
        rows = ray.data.read_datasource(
            _Runs(parts, partial(_part, folder)), override_num_blocks=tasks, num_cpus=READER_CPUS, concurrency=self._planners()
        )
        for _, receipt in self._looked_at(rows, run.request, tasks, together):
            if receipt is not None:
                yield receipt

    def stream(
        self,
        request: MapRequest,
        jobs: Sequence[Job],
        begin: Callable[[Job], tuple[Folder, Tiles | None]],
        finish: Callable[[Job, Work], Result],
        receive: Callable[[Job, int, TileReceipt], None],
    ) -> Iterator[Result]:
        """Runs are begun while others are looked at, and finished as soon as their last tile is stored: the model never waits for the end of one."""
        start()
        rows = ray.data.read_datasource(
            _Runs(jobs, begin), override_num_blocks=len(jobs) * PIECES, num_cpus=READER_CPUS, concurrency=self._planners()
        )
        shared, left = ray.put((finish, jobs)), {index: Work() for index in range(len(jobs))}
        finishing: list[ray.ObjectRef[Any]] = []
        asked = time.monotonic()
        for (job, count), receipt in self._looked_at(rows, request, len(jobs) * PIECES, TILES_PER_TASK):
            if receipt is not None and job in left:
                left[job].add(receipt)
                receive(jobs[job], count, receipt)
            if job in left and left[job].tiles >= count:
                finishing.append(_do.remote(shared, job, left.pop(job)))
            if finishing and time.monotonic() - asked > SECONDS_PER_ASKING:
                done, finishing = ray.wait(finishing, num_returns=len(finishing), timeout=0)
                with _own_errors():
                    yield from ray.get(done)
                asked = time.monotonic()
        # A worker that was lost may have stored tiles and never have told: what is stored counts.
        finishing += [_do.remote(shared, job, work) for job, work in left.items()]
        while finishing:
            done, finishing = ray.wait(finishing)
            with _own_errors():
                yield ray.get(done[0])

    def each(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        start()
        shared = ray.put((work, jobs))
        for done in [_do.remote(shared, index) for index in range(len(jobs))]:
            with _own_errors():
                yield ray.get(done)

    def _planners(self) -> int:
        """Runs, or parts of one, that are begun at a time: planning ahead must not take the readers' cores."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)) // 8)

    def _looked_at(
        self, rows: ray.data.Dataset, request: MapRequest, tasks: int, together: int
    ) -> Iterator[tuple[tuple[int, int], TileReceipt | None]]:
        """For every row of _rows, in any order: the job it is of and how many rows that has, and the receipt of its tile, if there is one."""
        gpus, (fewest, most) = self._gpus(), self._actors()
        resources: dict[str, Any] = {"num_gpus": gpus, "num_cpus": GPU_ACTOR_CPUS} if gpus else {"num_cpus": ACTOR_CPUS}
        seen = rows.map_batches(_see, batch_size=None, batch_format="pyarrow", num_cpus=READER_CPUS)
        receipts = seen.map_batches(
            _Look,
            fn_constructor_kwargs={"request": request, "max_attempts": self.max_attempts},
            batch_size=together,
            batch_format="pyarrow",
            # The model works on one batch; of a second one its worker takes in the pictures meanwhile.
            compute=ray.data.ActorPoolStrategy(min_size=min(fewest, tasks), max_size=min(most, tasks), max_concurrent_calls_per_actor=2),
            **resources,
        )
        with _own_errors():
            for row in _received(receipts):
                job = row.pop("job"), row.pop("of")
                receipt = TileReceipt(**row) if row["tile_id"] else None
                if receipt is not None:
                    metrics.count_tile(receipt)
                yield job, receipt

    def note(self, stage: Literal["plan", "publish"], seconds: float) -> None:
        start()
        metrics.observe(stage, seconds)

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        start()
        shared = ray.put((run, folder))
        waiting = [_write.remote(shared, block, tiles, {tile.id: states[tile.id] for tile in tiles}) for block, tiles in blocks.items()]
        while waiting:
            done, waiting = ray.wait(waiting)
            with _own_errors():
                yield ray.get(done[0])


def _received(rows: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """As iter_rows gives them, which every few seconds sends off the statistics of all blocks so far: of a country the driver would do nothing else."""
    for bundle in rows.iter_internal_ref_bundles():
        for block in ray.get(bundle.block_refs):
            yield from block.to_pylist()


def _rows(folder: Folder, tiles: Tiles | None, job: int) -> pa.Table:
    """What travels from step to step: a row for every tile of a run. A run without tiles to look at has one row, of size 0, which says so."""
    columns = [np.zeros(1, np.int32)] * 3 if tiles is None else [tiles.size, tiles.column, tiles.row]
    count = len(columns[0])
    grid = {} if tiles is None else {"crs": tiles.grid.crs, "resolution": tiles.grid.resolution}
    said = {"folder": folder.url, "job": job, "of": 0 if tiles is None else count, "crs": "", "resolution": 0.0} | grid
    arrays = {name: pa.array(values, pa.int32()) for name, values in zip(("size", "column", "row"), columns, strict=True)}
    return pa.table(arrays | {name: pa.repeat(value, count) for name, value in said.items()})


@lru_cache(maxsize=16)
def _run(url: str) -> tuple[Run, Assignment]:
    """A run as its folder holds it: what a worker reads is the same for all of its tiles."""
    run, tiles = load_run(Folder(url)), ledger.load_plan(Folder(url))
    return run, assign_tiles(run, tiles[tiles.to_read])


def _see(rows: pa.Table) -> Iterator[pa.Table]:
    """Row by row, each with the tile's picture as bytes: Arrow's columns travel between workers without pickling."""
    for at, row in enumerate(rows.to_pylist()):
        seen, rgb, scene = Seen(TilePrediction("", "failed"), 0.0, 0), np.empty(0, np.uint8), b""
        if row["size"]:
            run, assigned = _run(row["folder"])
            seen = see_tile(run, _tile(row), assigned)
        picture = seen.picture
        if isinstance(picture, TileImage):
            rgb, scene = picture.rgb, _packed(ledger.pack_scene(picture.scene))
        told = {
            "read_seconds": pa.array([seen.read_seconds]),
            "read_bytes": pa.array([seen.read_bytes], pa.int64()),
            "rgb": ledger.binary_array(np.ascontiguousarray(rgb)),
            "scene": pa.array([scene], pa.binary()),
            "reason": pa.array([picture.reason if isinstance(picture, TilePrediction) else ""]),
        }
        here = rows.slice(at, 1)
        yield pa.table({**{name: here[name] for name in here.column_names}, **told})


def _packed(scene: np.ndarray) -> bytes:
    """One value as it is, a whole plane compressed: it hardly ever changes within a tile."""
    return scene.tobytes() if len(scene) == 1 else _CODEC.compress(scene, asbytes=True)


def _tile(row: dict[str, Any]) -> Tile:
    return Tile(Grid(row["crs"], row["resolution"]), row["size"], row["column"], row["row"])


class _Look:
    """An actor with the model, asked batch by batch."""

    def __init__(self, request: MapRequest, max_attempts: int) -> None:
        from geopixel.prediction import Predictor  # loads torch: only where the model is

        self.max_attempts = max_attempts
        self.predictor = Predictor.load(request.model, request.prompts, request.describe)
        self.since = time.monotonic()

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """A row for every receipt, with the job that its tile is of; those of a job without tiles stay, with an empty tile_id."""
        began = time.monotonic()
        done: list[tuple[int, int, TileReceipt | None]] = []
        every = _unpacked(batch)
        for job in dict.fromkeys(row["job"] for row in every):  # tiles of several runs may come together
            rows = [row for row in every if row["job"] == job]
            count = rows[0]["of"]
            seen = [_seen(row) for row in rows if count]
            receipts = list(predict_tiles(Folder(rows[0]["folder"]), self.predictor, seen, self.max_attempts))
            done += [(job, count, receipt) for receipt in receipts] if count else [(job, count, None)]
        now = time.monotonic()
        metrics.watch_model([receipt for _, _, receipt in done if receipt], now - began, now - self.since)
        each, self.since = (now - self.since) / len(done), now
        told = [TileReceipt("", "ok") if receipt is None else replace(receipt, worker_seconds=each) for _, _, receipt in done]
        columns = {one.name: [getattr(receipt, one.name) for receipt in told] for one in fields(TileReceipt)}
        return columns | {"job": [job for job, _, _ in done], "of": [count for _, count, _ in done]}


def _unpacked(batch: pa.Table) -> list[dict[str, Any]]:
    """The rows, their pictures (rgb) as buffers in the memory that the workers of a node share."""
    rows: list[dict[str, Any]] = batch.drop_columns("rgb").to_pylist()
    for row, rgb in zip(rows, _buffers(batch["rgb"]), strict=True):
        row["rgb"] = rgb
    return rows


def _buffers(column: pa.ChunkedArray) -> Iterator[pa.Buffer]:
    """The values of a binary column. Its scalars would be copies."""
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        yield from (data.slice(start, end - start) for start, end in pairwise(ends))


def _seen(row: dict[str, Any]) -> Seen:
    tile = _tile(row)
    picture = _picture(tile, row["rgb"], row["scene"]) if row["rgb"].size else TilePrediction(tile.id, "failed", reason=row["reason"])
    return Seen(picture, row["read_seconds"], row["read_bytes"])


def _picture(tile: Tile, rgb: pa.Buffer, scene: bytes) -> TileImage:
    height, width = tile.geobox.shape
    plane = scene if len(scene) == SCENE_BYTES else _CODEC.decompress(scene, SCENE_BYTES * height * width, asbytes=True)
    origin = ledger.unpack_scene(np.frombuffer(plane, "<u2"), (height, width))
    return TileImage(tile, np.frombuffer(rgb, np.uint8).reshape(height, width, 3), origin)


def _part(folder: Folder, tiles: Tiles) -> tuple[Folder, Tiles]:
    return folder, tiles


class _Runs(Datasource):
    """The tiles of runs as they are begun, one task a run. Of a source Ray Data cuts what a task gives into pieces, so that many read the tiles of
    one run; what a map gives it would cut in a step of its own, for which a small machine that is full of actors never has a core."""

    def __init__(self, jobs: Sequence[Job], begin: Callable[[Job], tuple[Folder, Tiles | None]]) -> None:
        self.jobs, self.begin = jobs, begin

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        shared = ray.put((self.jobs, self.begin))
        return [ReadTask(partial(_begin, shared, index), unknown) for index in range(len(self.jobs))]


def _begin(shared: ray.ObjectRef[Any], index: int) -> Iterator[pa.Table]:
    jobs, begin = ray.get(shared)
    folder, tiles = begin(jobs[index])
    yield _rows(folder, tiles, index)


@ray.remote(num_cpus=READER_CPUS)
def _do(shared: tuple[Callable[..., Any], Sequence[Any]], index: int, *more: Any) -> Any:
    work, jobs = shared
    return work(jobs[index], *more)


@ray.remote(num_cpus=1)
def _write(shared: tuple[Run, Folder], block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> str:
    with metrics.observed("block"):
        return write_block(*shared, block, tiles, states)
