"""What became of a training, step by step: lines of JSON that anybody can read, curves for TensorBoard, and the model card. Knows figures, not how
they were computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from geopixel.finetuning.loop import Job
from geopixel.labels import optional

LOG, TENSORBOARD = "log.jsonl", "tensorboard"
COLUMNS = ("step", "loss", "answers", "bce", "dice", "validation_loss", "validation_iou")
CARD = """---
library_name: geopixel-ray
base_model: {model}
pipeline_tag: image-segmentation
tags: [remote-sensing, geopixel]
---
# {name}, fine-tuned

Base: `{model}`. Data: {data}; {learnt} samples to learn from, {held} to validate with.

Recipe, as published for GeoPixel (arXiv:2501.13925): 1.0 answers + 2.0 BCE + 0.5 Dice; LoRA of rank {recipe.rank} (alpha {recipe.alpha}, dropout
{recipe.dropout}) on the five projections of every layer, merged into their weights; embeddings, output, text projection, mask decoder and vision
projector trained; the rest as in the base. {steps} steps of {recipe.batch} samples, AdamW at {recipe.learning_rate:g}, a cosine after {warmup} steps of
warm-up.

{gained}

{table}

Made by `jobs/finetune.py` with these settings:

```json
{settings}
```
"""


class Curves:
    """Writes into a folder; what it held of steps that are taken anew is dropped with the first of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board: Any = None

    def __call__(self, figures: dict[str, float]) -> None:
        step = int(figures["step"])
        if self.board is None:
            before = [line for line in read_log(self.folder) if line["step"] < step]
            (self.folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in before))
            self.board = optional("torch.utils.tensorboard", "finetune").SummaryWriter(str(self.folder / TENSORBOARD), purge_step=step, flush_secs=10)
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(figures) + "\n")
        for name, value in figures.items():
            if name != "step":
                self.board.add_scalar(name, value, step)


def read_log(folder: Path) -> list[dict[str, float]]:
    """The figures of every step, and of the validation before the first (step 0); none where there is no log yet. A line being written is left out."""
    path = folder / LOG
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def model_card(job: Job, data: str, settings: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    """README.md of a fine-tuned model: what it is, what it learnt from and how, what came of it. data: one line."""
    steps = [line for line in log if "loss" in line]
    shown = [line for line in log if "validation_loss" in line or line in (steps[0], steps[-1])]
    ious = [line["validation_iou"] for line in shown if "validation_iou" in line]
    gained = f"Mean IoU of the validation masks, the words of the answers given: {ious[0]:.3f} before, {ious[-1]:.3f} after." if len(ious) > 1 else ""
    rows = [" | ".join(f"{line[name]:.4g}" if name in line else "" for name in COLUMNS) for line in shown]
    said = {**settings, "torch": torch.__version__, "transformers": transformers.__version__}
    return CARD.format(
        model=job.model,
        name=Path(job.model).name,
        data=data,
        learnt=len(job.lessons),
        held=len(job.validation),
        steps=job.steps,
        warmup=min(job.recipe.warmup, job.steps // 10),
        recipe=job.recipe,
        gained=gained,
        table="\n".join([" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *rows]),
        settings=json.dumps(said, indent=1, default=str),
    )
