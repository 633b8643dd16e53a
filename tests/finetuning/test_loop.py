"""Laws of training on a network of a few thousand parameters: it learns, goes on where it stopped, and is the same for any number of workers."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from geopixel.finetuning import Job, World, merge, train
from geopixel.finetuning.loop import LOSSES
from geopixel.finetuning.trained import TRAINED
from geopixel.labels import read_image
from geopixel.model import GeoPixel

from .conftest import make_job, published


def run(job: Job, world: World | None = None, resumed: Path | None = None, stop: int | None = None, keep_in: Path | None = None) -> list[dict[str, float]]:
    """The figures of every step. stop: dies at the checkpoint of this step, after it is stored in keep_in."""
    log: list[dict[str, float]] = []

    def keep(figures: dict[str, float], folder: Path | None) -> None:
        if folder is not None and keep_in is not None:
            shutil.copytree(folder, keep_in, dirs_exist_ok=True)
        if figures["step"] == stop:
            raise KeyboardInterrupt

    try:
        train(job, world or World(), resumed, log.append, keep)
    except KeyboardInterrupt:
        assert stop is not None
    return log


def losses(log: list[dict[str, float]]) -> list[float]:
    return [line[name] for line in log if "loss" in line for name in ("loss", *LOSSES, "gradient_norm")]


def test_a_handful_of_chips_is_learnt(base: Path, chips: Path, tmp_path: Path) -> None:
    """And the merged model says so where it is really asked: it finds the square, and finds none where there is none."""
    job = replace(make_job(base, chips, epochs=12, learning_rate=5e-3), every=100)
    log = run(job, keep_in=tmp_path / "kept")
    first, last = log[0], log[-1]
    assert last["validation_loss"] < 0.5 * first["validation_loss"]
    assert first["validation_iou"] < 0.1
    assert last["validation_iou"] > 0.6
    merge(tmp_path / "kept" / TRAINED, tmp_path / "model", torch.float32)
    model = GeoPixel.from_pretrained(str(tmp_path / "model"), device="cpu")
    lesson = job.lessons[2]
    (answer,) = model.segment([read_image(lesson.image)], ["a road"])[0]
    if len(answer.logits):  # so short a training need not teach the words; where it did, the mask is the one that was learnt
        found, true = answer.masks[0] > 0.5, lesson.masks()[0]
        assert (found & true).sum() / (found | true).sum() > 0.5


def test_a_training_goes_on_where_it_stopped(base: Path, chips: Path, tmp_path: Path) -> None:
    job = make_job(base, chips, epochs=3)
    whole = run(job)
    begun = run(job, stop=2, keep_in=tmp_path)
    ended = run(job, resumed=tmp_path)
    assert [line["step"] for line in begun + ended] == [line["step"] for line in whole] == [0, 1, 2, 3, 4, 5]
    assert losses(begun + ended) == losses(whole)
    assert ended[-1]["validation_iou"] == whole[-1]["validation_iou"]


def work(rank: int, address: str, jobs: list[Job], out: Path) -> None:
    """One of two processes: every job, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    logs = [run(job, World(rank, 2), keep_in=out / f"kept_{number}" if rank == 0 else None) for number, job in enumerate(jobs)]
    if rank == 0:
        (out / "logs.json").write_text(json.dumps(logs))
    dist.barrier()  # who leaves while the other still talks to it may abort as it ends
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(base: Path, chips: Path, tmp_path: Path) -> None:
    """Copied (DDP) or sharded (FSDP): equal losses and gradient norms to rounding, and checkpoints that the other can go on with."""
    job = make_job(base, chips)
    copied, sharded = job, replace(job, shard=True)
    os.environ.pop("RANK", None)
    spawn(work, (f"file://{tmp_path / 'meeting'}", [copied, sharded], tmp_path), nprocs=2)
    alone = run(job)
    for number, log in enumerate(json.loads((tmp_path / "logs.json").read_text())):
        assert losses(log) == pytest.approx(losses(alone), rel=1e-4)
        assert log[-1]["validation_iou"] == pytest.approx(alone[-1]["validation_iou"], rel=1e-3)
        assert {path.name for path in (tmp_path / f"kept_{number}").iterdir()} == {TRAINED, "adam.safetensors"}
    longer = make_job(base, chips, epochs=3)
    assert losses(run(longer, resumed=tmp_path / "kept_1")) == pytest.approx(losses(run(longer, resumed=tmp_path / "kept_0")), rel=1e-3)


def test_workers_that_cannot_share_a_step_are_refused(base: Path, chips: Path) -> None:
    with pytest.raises(ValueError, match="3 workers must share a batch evenly: 4 samples are 4 micro-batches of 1"):
        train(make_job(base, chips), World(0, 3), None, print, lambda figures, folder: None)


def test_a_sample_that_cannot_be_read_is_named(base: Path, chips: Path, tmp_path: Path) -> None:
    from geopixel.finetuning import read_published

    whole = (chips / "images" / "north_0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    turns = [{"from": "human", "value": "a road"}, {"from": "bot", "value": "It is [SEG]."}]
    path = published(tmp_path, [{"id": "odd", "image": "a.png", "conversations": turns, "segmentation": [{"size": [48, 48], "counts": [5, 2, 2297]}]}])
    job = replace(make_job(base, chips), lessons=read_published(path), validation=[])
    with pytest.raises(ValueError, match=r"train\.json, sample 0 \(id odd\): .*a\.png cannot be read as a picture"):
        run(job)


def test_bfloat16_learns_like_float32(base: Path, chips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What GPUs compute in: the network in bfloat16, steps in float32."""
    job = replace(make_job(base, chips, epochs=4, learning_rate=5e-3), every=100)
    exact = run(job)
    monkeypatch.setattr(World, "dtype", torch.bfloat16)
    found = run(job)
    assert losses(found) != losses(exact)
    assert [line["loss"] for line in found if "loss" in line] == pytest.approx([line["loss"] for line in exact if "loss" in line], rel=0.15)
    assert found[-1]["validation_iou"] == pytest.approx(exact[-1]["validation_iou"], abs=0.15)
