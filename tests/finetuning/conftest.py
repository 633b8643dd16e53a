"""A base of a few thousand parameters, and pictures of bright squares to teach it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geopixel.finetuning import Job, Recipe, read_class_chips
from geopixel.model.checkpoint import save_checkpoint
from tests.model.tiny import CONFIG, network, tokenizer_model

pytest.importorskip("peft", reason="the extra `finetune` is not installed")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("models") / "base"
    grounding = replace(CONFIG.grounding, multimask_fallback=False)
    save_checkpoint(folder, network(config=replace(CONFIG, hd_num=1, grounding=grounding)), tokenizer_model(), torch.float32)
    return folder


@pytest.fixture(scope="session")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and masks/: six pictures of noise, in five of which a bright square is meant."""
    folder = tmp_path_factory.mktemp("chips")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(6):
        picture, mask = rng.integers(0, 100, (48, 48, 3), np.uint8), np.zeros((48, 48), np.uint8)
        if number:
            top, left = rng.integers(0, 24, 2)
            mask[top : top + 24, left : left + 24] = 255
            picture[mask > 0] += 150
        site = "north" if number < 4 else "south"
        Image.fromarray(picture).save(folder / "images" / f"{site}_{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{site}_{number}.png")
    return folder


def make_job(base: Path, chips: Path, **recipe: int | float) -> Job:
    lessons = read_class_chips(chips / "images", chips / "masks", "a road")
    return Job(str(base), lessons, lessons[1:3], Recipe(**{"epochs": 2, "batch": 4, "micro_batch": 1, **recipe}), every=2)  # type: ignore[arg-type]


def published(folder: Path, entries: object) -> Path:
    (folder / "train.json").write_text(json.dumps(entries))
    return folder / "train.json"
