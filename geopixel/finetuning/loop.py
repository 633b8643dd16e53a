"""Training from the first step to the last, in one process or as one of several that share every step: what is computed is the same for any
number of them. Knows torch's process groups; nothing of Ray or of where samples come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from geopixel.finetuning.recipe import Recipe, Steps, apply_recipe, touch, trained
from geopixel.finetuning.samples import Lesson, Samples
from geopixel.finetuning.trained import read_state, save_state
from geopixel.model.checkpoint import load_model
from geopixel.model.config import find_model
from geopixel.model.losses import BCE_WEIGHT, DICE_WEIGHT
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.supervision import Sample, forward

LOSSES = ("answers", "bce", "dice")


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained on what; everything a worker needs."""

    model: str
    """Name of the base: see find_model."""
    lessons: Sequence[Lesson]
    validation: Sequence[Lesson]
    """May be empty."""
    recipe: Recipe
    every: int
    """Steps from one checkpoint, with its validation, to the next."""
    shard: bool = False
    """The network's weights spread over the workers (FSDP), not copied (DDP)."""

    @property
    def steps(self) -> int:
        return self.recipe.steps(len(self.lessons))


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, for each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    @property
    def dtype(self) -> torch.dtype:
        """Of the network: bfloat16 on a GPU, float32 on a CPU."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


class Objective(nn.Module):
    """The network with its losses: one module, so that what spreads networks over processes sees every forward."""

    def __init__(self, network: GeoPixelNetwork, seg: int) -> None:
        super().__init__()
        self.network, self.seg = network, seg

    def forward(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What is minimised, the LOSSES (3,) not weighted, and the mask logits of every sample."""
        losses, predicted = forward(self.network, samples, seg=self.seg)
        parts = torch.stack([losses.answers, losses.bce, losses.dice])
        return losses.total + touch(self.network), parts.detach(), predicted


def train(job: Job, world: World, resumed: Path | None, log: Callable[[dict[str, float]], None], keep: Callable[[dict[str, float], Path | None], None]) -> None:
    """Trains from the checkpoint in resumed (None: from the base) to the last step.

    log: called by the first process with the figures of each step, and with those of a validation before the first, which says what the base can
    do. keep: called by every process at each checkpoint with the figures; the first one gives the folder that holds it, which is gone when keep
    returns.
    Raises ValueError where workers cannot share a step evenly, or a sample is none.
    """
    check_workers(job.recipe, world.size)
    network, tokenizer = load_model(find_model(job.model), world.dtype, world.device)
    apply_recipe(network, job.recipe)
    objective = spread(Objective(network, tokenizer.seg), world, shard=job.shard)
    taught, held = (Samples(lessons, tokenizer, network.config) for lessons in (job.lessons, job.validation))
    steps = Steps(trained(network))
    first = 0 if resumed is None else _resume(steps, resumed)
    batches = [part for step in range(first, job.steps) for part in job.recipe.drawn(step, len(taught))[world.rank :: world.size]]
    loader = iter(DataLoader(taught, batch_sampler=batches, collate_fn=list, num_workers=2 if world.device.type == "cuda" else 0))
    if first == 0 and len(held):
        _first(world, log, {"step": 0.0, **validate(objective, held, world)})
    for step in range(first, job.steps):
        objective.train()
        found = torch.zeros(len(LOSSES), device=world.device)
        own = job.recipe.parts // world.size
        for part in range(own):
            torch.manual_seed(_seed(job.recipe, step, world.rank + part * world.size))  # dropout: of the micro-batch, whoever computes it
            with _unshared(objective) if part < own - 1 else nullcontext():
                loss, parts, _ = objective(next(loader))
                (loss / own).backward()
            found += parts
        rate = job.recipe.rate(step, job.steps)
        norm = steps.take(rate)
        means = (world.total(found) / job.recipe.parts).tolist()
        figures = {"step": float(step + 1), "loss": total(means), **dict(zip(LOSSES, means, strict=True)), "learning_rate": rate, "gradient_norm": norm}
        last = step + 1 == job.steps
        if ends := (step + 1) % job.every == 0 or last:
            figures |= validate(objective, held, world) if len(held) else {}
        _first(world, log, figures)
        if ends:
            _keep(steps, step + 1, job, world, figures, keep)


def check_workers(recipe: Recipe, workers: int) -> None:
    """Raises ValueError unless workers share the micro-batches of a step evenly."""
    if recipe.parts % workers:
        raise ValueError(f"{workers} workers must share a batch evenly: {recipe.batch} samples are {recipe.parts} micro-batches of {recipe.micro_batch}")


def spread(objective: Objective, world: World, *, shard: bool) -> nn.Module:
    """The same module whose gradients are means over all processes."""
    if world.size == 1:
        return objective
    if shard:
        for layer in objective.network.language.layers:
            fully_shard(layer)
        fully_shard(objective)  # in its place
        return objective
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)


def total(parts: Sequence[float]) -> float:
    """The weighted sum of the LOSSES."""
    answers, bce, dice = parts
    return answers + BCE_WEIGHT * bce + DICE_WEIGHT * dice


@torch.no_grad()
def validate(objective: nn.Module, samples: Samples, world: World) -> dict[str, float]:
    """Mean losses over samples and, where they have masks, the mean IoU of these at probability 0.5 with the answer's words given: 1 where both are
    empty."""
    objective.eval()
    sums = torch.zeros(len(LOSSES) + 3, device=world.device)
    rounds = -(-len(samples) // world.size)  # as many for every process, because a sharded network is gathered by all together
    for index in range(world.rank, rounds * world.size, world.size):
        sample = samples[index % len(samples)]
        _, parts, (logits,) = objective([sample])
        if index < len(samples):
            true = sample.masks.to(world.device)
            found = logits > 0
            union = (found | true).sum((1, 2))
            ious = torch.where(union > 0, (found & true).sum((1, 2)) / union.clamp(min=1), 1.0)
            sums += torch.cat([parts, parts.new_ones(1), torch.stack([ious.sum(), ious.new_tensor(float(len(ious)))])])
    *losses, count, overlaps, masks = world.total(sums).tolist()
    means = [loss / count for loss in losses]
    return {"validation_loss": total(means)} | ({"validation_iou": overlaps / masks} if masks else {})


def _unshared(objective: nn.Module) -> Any:
    """A context in which gradients are kept, and shared with the other processes later. (A sharded network has no room to keep them.)"""
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext()


def _seed(recipe: Recipe, step: int, part: int) -> int:
    return (recipe.seed * 2**32 + step * recipe.parts + part) % 2**63


def _resume(steps: Steps, folder: Path) -> int:
    """The step that comes next."""
    step, weights, adam = read_state(folder)
    steps.load(weights, adam)
    return step


def _keep(steps: Steps, step: int, job: Job, world: World, figures: dict[str, float], keep: Callable[[dict[str, float], Path | None], None]) -> None:
    weights, adam = steps.save()
    if world.rank:
        keep(figures, None)
        return
    with TemporaryDirectory() as folder:
        save_state(Path(folder), step, weights, adam, model=job.model, recipe=asdict(job.recipe))
        keep(figures, Path(folder))


def _first(world: World, log: Callable[[dict[str, float]], None], figures: dict[str, float]) -> None:
    if world.rank == 0:
        log(figures)
