"""Fine-tuning on Ray Train: the loop of finetuning/ in workers that share every step, begun anew from the last checkpoint where one of them dies, or
where the same job is submitted again."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopixel.distributed.runner import start
from geopixel.errors import GeoPixelError

if TYPE_CHECKING:
    from geopixel.finetuning import Job  # loads torch

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
MAX_FAILURES = 3
"""Of workers, after which a job is given up; submitted again it goes on from its last checkpoint."""
KEPT = 2
"""Checkpoints that stay: the newest, and the one before."""
WATCH_SECONDS = 0.5


def train_on_ray(job: Job, work: Path, workers: int | None, progress: Callable[[int, int], None]) -> Path:
    """Trains in workers (None: one for each GPU, as many as share a step evenly, or one without any) to the end and returns the file of trained
    weights. work: an absolute folder that all nodes share, which holds checkpoints, log and curves; a training that it holds is gone on with.
    progress: of steps.

    Raises ValueError where workers cannot share a step evenly or are more than this machine can run, GeoPixelError with the reason where the training
    could not be finished.
    """
    start()
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray.train
    from ray.train.torch import TorchTrainer

    from geopixel.finetuning import TRAINED, check_workers

    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = workers or max(count for count in range(1, max(1, gpus) + 1) if job.recipe.parts % count == 0)
    check_workers(job.recipe, workers)
    kind, there = ("GPU", gpus) if gpus else ("CPU", int(ray.cluster_resources().get("CPU", 0)))
    if workers > there:
        wanted = f"{workers} workers want a {kind} each, and there are {there}"
        if not os.environ.get("RAY_ADDRESS"):
            raise ValueError(f"{wanted}: give fewer --workers")
        logger.warning("%s: waiting for the cluster to grow", wanted)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "work": work},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus > 0),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=str(work),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # the types are of Train's first version
        ),
    )
    try:
        with _watched(work, job.steps, progress):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise GeoPixelError(f"the training did not end: {_reason(error)}; submitted again it goes on from its last checkpoint, when that is mended") from error
    assert result.checkpoint is not None, "the last step stores one"
    with result.checkpoint.as_directory() as folder:
        shutil.copyfile(Path(folder, TRAINED), work / TRAINED)
    return work / TRAINED


def _work(settings: dict[str, Any]) -> None:
    """What every worker does."""
    import ray.train
    import ray.train.torch
    import torch

    from geopixel.finetuning import Curves, World, train

    def keep(figures: dict[str, float], folder: Path | None) -> None:
        ray.train.report(figures, checkpoint=None if folder is None else ray.train.Checkpoint.from_directory(folder))

    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a worker sees all GPUs of its node
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
    world = World(context.get_world_rank(), context.get_world_size(), device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        train(settings["job"], world, None, Curves(settings["work"]), keep)
    else:
        with checkpoint.as_directory() as folder:
            train(settings["job"], world, Path(folder), Curves(settings["work"]), keep)


@contextmanager
def _watched(work: Path, steps: int, progress: Callable[[int, int], None]) -> Iterator[None]:
    """Tells progress what the log says while the context lasts, and once more at its end."""
    from geopixel.finetuning import read_log

    over = threading.Event()

    told = -1

    def tell() -> None:
        nonlocal told
        step = int(max((line["step"] for line in read_log(work)), default=0))
        if step != told:
            told = step
            progress(step, steps)

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        tell()


def _reason(error: BaseException) -> str:
    """The last line that says something: what a worker raised, below what Ray says of it."""
    failures = getattr(error, "worker_failures", None)
    text = str(next(iter(failures.values()))) if failures else str(error)
    return next(line.strip() for line in reversed(text.splitlines()) if line.strip())
