"""One fine-tuning from its settings to the finished folder: what is refused is refused before anything is written, and what is there of an earlier
submission is gone on with. Knows settings by name; where steps are computed is distributed's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geopixel.aoi import read_area
from geopixel.errors import RunConflictError
from geopixel.finetuning.area import cut_area
from geopixel.finetuning.curves import model_card, read_log
from geopixel.finetuning.loop import Job
from geopixel.finetuning.recipe import Recipe
from geopixel.finetuning.samples import Lesson, hold_out, read_class_chips, read_published
from geopixel.finetuning.trained import merge
from geopixel.labels import optional, read_json
from geopixel.model.checkpoint import DTYPES
from geopixel.model.config import find_model, read_model_config

WORK, SETTINGS, DATA, CARD = "training", "settings.json", "data", "README.md"
SAMPLES = "content of samples"
"""Among the settings: a digest of what is learnt and validated with."""
RUNNING = ("workers", "shard", "every", "config", "out")
"""Settings that may be others when a training is gone on with."""
SEARCH = ("collection", "datetime", "max_cloud", "access", "assets", "bands", "stretch", "allow_hosts")


@dataclass(frozen=True, slots=True)
class Submission:
    job: Job
    out: Path
    """The model when it is finished."""
    data: str
    """What it learns from, in words."""
    settings: Mapping[str, Any]

    @property
    def work(self) -> Path:
        """Checkpoints, log and curves."""
        return self.out / WORK

    def summary(self) -> str:
        """A few lines for who started it."""
        log = read_log(self.work)
        steps = [line for line in log if "loss" in line]
        validated = [line["validation_iou"] for line in log if "validation_iou" in line]
        lines = [f"loss {steps[0]['loss']:.3f} at the first step, {steps[-1]['loss']:.3f} at the last of {self.job.steps}"]
        if len(validated) > 1:
            lines.append(f"IoU on {len(self.job.validation)} samples held out: {validated[0]:.3f} before, {validated[-1]:.3f} after")
        return "\n".join([*lines, f"    model: {self.out}", f"     card: {self.out / CARD}", f"   curves: tensorboard --logdir {self.work}"])


def prepare(settings: Mapping[str, Any], model: str, progress: Callable[[int, int], None]) -> Submission:
    """The submission of these settings (see FineTuneSettings). model: the base. progress: of the chips of an area.

    Raises ValueError and GeoPixelError for what cannot be, RunConflictError where the folder holds something else.
    """
    optional("peft", "finetune")
    optional("torch.utils.tensorboard", "finetune")
    read_model_config(model)  # an unknown one is refused
    model = str(find_model(model).absolute()) if model != "nano" and Path(model).expanduser().is_dir() else model
    names = ("epochs", "batch", "micro_batch", "learning_rate", "seed")
    recipe = Recipe(**{name: settings[name] for name in names})
    out = Path(settings["out"])
    stored = json.loads(json.dumps({name: value for name, value in settings.items() if name not in RUNNING} | {"model": model}, default=str))
    stored |= {f"content of {name}": _digest(settings[name].read_bytes()) for name in ("labels", "window") if settings[name] and settings[name].is_file()}
    held = _check_folder(out, stored)
    made, begun = not out.exists(), (out / WORK).exists()
    try:
        lessons, validation, data = _lessons(settings, out, stored, progress)
        if recipe.batch > len(lessons):
            raise ValueError(f"a step would learn from a sample more than once: give a --batch of at most {len(lessons)}, the samples, got {recipe.batch}")
    except BaseException:
        if not begun:
            shutil.rmtree(out if made else out / WORK, ignore_errors=True)
        raise
    stored[SAMPLES] = _digest("".join(lesson.content for lesson in [*lessons, *validation]).encode())
    if held.get(SAMPLES, stored[SAMPLES]) != stored[SAMPLES]:
        raise RunConflictError(f"{out} holds a training with other samples than those that {data} has now: a changed data set wants a new folder")
    _store(out, stored)
    return Submission(Job(model, lessons, validation, recipe, settings["every"], settings["shard"]), out, data, settings)


def _check_folder(out: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder holds of this training's settings."""
    path = out / WORK / SETTINGS
    if path.is_file():
        held: dict[str, Any] = read_json(path)
        for name in stored:
            if held.get(name) != stored[name]:
                raise RunConflictError(f"{out} holds another training: its {name.replace('_', '-')} is {held.get(name)}, not {stored[name]}")
        return held
    if out.exists() and any(out.iterdir()):
        raise RunConflictError(f"a model is written to a new or an empty folder, or one that holds this training, got {out}")
    return {}


def _store(out: Path, stored: Mapping[str, Any]) -> None:
    (out / WORK).mkdir(parents=True, exist_ok=True)
    aside = out / WORK / f"{SETTINGS}.new"
    aside.write_text(json.dumps(stored, indent=1) + "\n")
    aside.replace(out / WORK / SETTINGS)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lessons(
    settings: Mapping[str, Any], out: Path, stored: Mapping[str, Any], progress: Callable[[int, int], None]
) -> tuple[list[Lesson], list[Lesson], str]:
    """To learn from, to validate with, and both in words."""
    prompt = settings["prompt"]
    if settings["labels"] is not None:
        area = read_area(settings["aoi"], warn=lambda line: None)
        folder = out / WORK / DATA
        if not folder.is_dir():
            _store(out, stored)
            names = {"window": "window", "size": "chip_size", "share": "validation_share", "seed": "seed", "crs": "crs", "resolution": "resolution"}
            options = {name: settings[flag] for name, flag in names.items()} | {name: settings[name] for name in SEARCH}
            cut_area(folder, settings["catalog"], area, settings["labels"], prompt, progress=progress, **options)
        held = folder / "validation.json"
        words = f"{prompt} of {settings['labels']} in {settings['aoi']}, imagery of {settings['catalog']}, split by blocks of ground"
        return read_published(folder / "train.json"), read_published(held) if held.exists() else [], words
    if settings["data"] is not None:
        lessons, words = read_published(settings["data"].absolute()), f"{settings['data']} (published format)"
    else:
        lessons, words = read_class_chips(settings["images"].absolute(), settings["masks"].absolute(), prompt), f"chips of {prompt} in {settings['images']}"
    validation: list[Lesson] = read_published(settings["validation"].absolute()) if settings["validation"] is not None else []
    if settings["hold_out"] is not None:
        lessons, held_out = hold_out(lessons, settings["hold_out"])
        validation, words = validation + held_out, f"{words}, {settings['hold_out']} held out"
    return lessons, validation, words


def publish(submission: Submission, trained: Path, progress: Callable[[int, int], None]) -> None:
    """Writes the card and the whole model into the folder: the trained weights merged into the base, as precise as they are asked for here."""
    log = read_log(submission.work)
    (submission.out / CARD).write_text(model_card(submission.job, submission.data, submission.settings, log))
    merge(trained, submission.out, DTYPES["bfloat16" if torch.cuda.is_available() else "float32"], submission.job.model, progress)
