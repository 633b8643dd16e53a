"""Fine-tuning on Ray: a worker that is killed costs nothing but time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from geopixel.distributed import start
from geopixel.distributed.finetune import CHECKPOINTS, KEPT, train_on_ray
from geopixel.finetuning import read_log
from geopixel.finetuning.trained import TRAINED, read_notes
from geopixel.model import GeoPixel

from .conftest import make_job
from .test_job import job as run_job
from .test_loop import losses, run

pytestmark = pytest.mark.skipif("GEOPIXEL_LONG_TESTS" not in os.environ, reason="Ray Train takes minutes to start where others work: set GEOPIXEL_LONG_TESTS")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    start()
    yield
    ray.shutdown()


def masks_or_death(masks: Callable[[], np.ndarray], work: Path) -> np.ndarray:
    """The masks; once, after the third step is logged, the end of the process."""
    if len(read_log(work)) > 3 and not (work / "killed").exists():
        (work / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return masks()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_no_step(base: Path, chips: Path, tmp_path: Path) -> None:
    """SIGKILL in the fourth step of five, after the checkpoint of the second: the same figures as undisturbed and without Ray."""
    job = make_job(base, chips, epochs=3)
    deadly = replace(job, lessons=[replace(lesson, masks=partial(masks_or_death, lesson.masks, tmp_path)) for lesson in job.lessons])
    told: list[tuple[int, int]] = []
    trained = train_on_ray(deadly, tmp_path, 1, lambda done, total: told.append((done, total)))
    assert (tmp_path / "killed").exists()
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5]
    assert losses(log) == pytest.approx(losses(run(job)), rel=1e-4)
    assert read_notes(trained)["step"] == "5"
    assert len(list((tmp_path / CHECKPOINTS).rglob(TRAINED))) <= KEPT
    assert told[-1] == (5, 5)
    assert len(told) == len(set(told))
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_workers_that_never_come_are_not_waited_for(base: Path, chips: Path, tmp_path: Path) -> None:
    job = make_job(base, chips, batch=1024)
    with pytest.raises(ValueError, match=r"1024 workers want a CPU each, and there are \d+: give fewer --workers"):
        train_on_ray(job, tmp_path, 1024, lambda done, total: None)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_job_leaves_a_model(base: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It loads like any other, says what it is, and submitted again is left as it is; the merge of its trained weights is the same model."""
    words = ["--images", str(chips / "images"), "--masks", str(chips / "masks"), "--prompt", "a road", "--hold-out", "south_*", "--model", str(base)]
    words += ["--epochs", "1", "--batch", "2", "--micro-batch", "1", "--out", str(tmp_path / "out")]
    assert run_job(monkeypatch, "finetune", *words) == 0
    said = capsys.readouterr().out
    assert "IoU on 2 samples held out" in said
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (f"base_model: {base}", "4 samples to learn from, 2 to validate with", "2 steps of 2 samples", '"hold_out": "south_*"', "step | loss"):
        assert part in card
    made = GeoPixel.from_pretrained(str(tmp_path / "out"), device="cpu").network.state_dict()
    assert run_job(monkeypatch, "finetune", *words) == 0
    assert capsys.readouterr().out == said
    assert run_job(monkeypatch, "merge_model", str(tmp_path / "out" / "training"), str(tmp_path / "merged"), "--dtype", "float32") == 0
    merged = GeoPixel.from_pretrained(str(tmp_path / "merged"), device="cpu").network.state_dict()
    assert all(torch.equal(made[name], merged[name]) for name in made)
