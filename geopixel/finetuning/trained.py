"""What training changes of a model, as files: the trained weights in our names with AdamW's memory (a checkpoint), and those written into their base
(a whole model). Knows names and shapes; nothing of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from geopixel.errors import CheckpointError
from geopixel.model.checkpoint import Weights, read_parts, save_parts, save_weights
from geopixel.model.config import find_model

TRAINED, ADAM = "trained.safetensors", "adam.safetensors"
LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"
"""What peft calls the two factors of an adapter; we say lora_a and lora_b, as of Partial LoRA."""
CPU = torch.device("cpu")


def save_state(folder: Path, step: int, weights: Mapping[str, Tensor], adam: Mapping[str, Tensor], *, model: str, recipe: Mapping[str, Any]) -> None:
    """trained.safetensors (float32; `.lora_a` and `.lora_b` beside the weight that they are added to) and adam.safetensors."""
    said = {"format": "pt", "step": str(step), "model": model, "recipe": json.dumps(recipe)}
    save_file({_ours(name): value.contiguous() for name, value in weights.items()}, folder / TRAINED, metadata=said)
    save_file({name: value.contiguous() for name, value in adam.items()}, folder / ADAM)


def read_state(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """The steps taken, and what Steps.save gave."""
    weights = {_theirs(name): value for name, value in load_file(folder / TRAINED).items()}
    return int(read_notes(folder / TRAINED)["step"]), weights, load_file(folder / ADAM)


def find_trained(place: Path) -> Path:
    """The file of trained weights at place: itself, or of the whole ones in a folder (a machine may have ended while it wrote) that of most steps.
    Raises CheckpointError where there is none."""
    if place.is_file():
        return place
    steps: dict[Path, int] = {}
    for path in sorted(place.rglob(TRAINED)):
        with suppress(CheckpointError):
            steps[path] = int(read_notes(path)["step"])
    if not steps:
        raise CheckpointError(f"no whole {TRAINED} in {place}")
    return max(steps, key=steps.__getitem__)


def read_notes(path: Path) -> dict[str, str]:
    """What a file of trained weights says of itself: step, model (the base), recipe (JSON). Raises CheckpointError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            notes: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no file of trained weights: {error}") from error
    if not notes.keys() >= {"step", "model", "recipe"}:
        raise CheckpointError(f"{path} is no file of trained weights: it does not say of which model")
    return notes


def merge(
    trained: Path, out: Path, dtype: torch.dtype, model: str | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Writes the whole model into the folder out in our layout: the base, W + (alpha / rank) B A where LoRA was trained, other trained weights in
    place of the base's. Computed in float32, a shard in memory at a time. model: the base, if it is not called as it was.

    The files are written beside out's own and renamed, config.json last: out is a model when it is whole. Raises CheckpointError where trained
    holds no trained weights or they are not of this base.
    """
    notes = read_notes(trained)
    recipe, source = json.loads(notes["recipe"]), find_model(model or notes["model"])
    changed = load_file(trained)
    config, _ = read_parts(source)
    base = Weights(source, config)
    adapted = {name.removesuffix("lora_a") + "weight" for name in changed if name.endswith(".lora_a")}
    unknown = ({name for name in changed if not name.endswith((".lora_a", ".lora_b"))} | adapted) - base.shapes.keys()
    if unknown:
        raise CheckpointError(f"{trained} is not of the model {source}: that has no {sorted(unknown)[0]}")
    scale = recipe["alpha"] / recipe["rank"]

    def merged() -> Iterator[tuple[str, Tensor]]:
        for done, (name, weight) in enumerate(base.read(torch.float32, CPU)):
            progress(done, len(base.places))
            if name in adapted:
                module = name.removesuffix("weight")
                weight = weight + scale * (changed[module + "lora_b"] @ changed[module + "lora_a"])
            new = changed.get(name, weight)
            if new.shape != weight.shape:
                raise CheckpointError(f"{trained} is not of the model {source}: {name} has shape {tuple(new.shape)}, not {tuple(weight.shape)}")
            yield name, new.to(dtype)

    out.mkdir(parents=True, exist_ok=True)
    sizes = {name: prod(base.shapes[name]) * dtype.itemsize for name in base.places}
    with TemporaryDirectory(dir=out, prefix=".merging-") as beside:
        save_parts(Path(beside), config, (source / "tokenizer.model").read_bytes())
        save_weights(Path(beside), sizes, merged())
        for file in sorted(Path(beside).iterdir(), key=lambda file: file.name == "config.json"):
            file.rename(out / file.name)
    progress(len(base.places), len(base.places))


def _ours(name: str) -> str:
    return name.replace(LORA_A, ".lora_a").replace(LORA_B, ".lora_b")


def _theirs(name: str) -> str:
    return name.removesuffix(".lora_a") + LORA_A if name.endswith(".lora_a") else name.removesuffix(".lora_b") + LORA_B if name.endswith(".lora_b") else name
