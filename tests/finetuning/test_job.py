"""The door: what is refused is refused in one line before anything is written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopixel.config import load
from geopixel.config.finetune import FineTuneSettings
from geopixel.errors import CatalogError, RunConflictError
from geopixel.finetuning.submission import Submission, prepare
from geopixel.lease import hold
from geopixel.storage import Folder

from .conftest import published

ROOT = Path(__file__).parents[2]


def job(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> int:
    """A job's exit code, run in this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "jobs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    try:
        return int(module.main())
    except SystemExit as stop:
        return int(stop.code or 0)


CHIPS = ["--images", "images", "--masks", "masks", "--prompt", "a road"]
REFUSALS = {
    "nothing to learn": ([], "what to learn is one of --data, --images (with --masks) and --labels (with --aoi), got none"),
    "two things to learn": ([*CHIPS, "--data", "train.json"], "got data and images"),
    "no masks": (["--images", "images"], "--images needs --masks and --prompt"),
    "no area": (["--labels", "a.parquet"], "--labels needs --aoi and --prompt"),
    "a flag of areas": ([*CHIPS, "--validation-share", "0.1"], "--images has no use for --validation-share: leave it out"),
    "a flag of chips": (["--labels", "train.json", "--aoi", "0,0,1,1", "--prompt", "x", "--hold-out", "a*"], "--labels has no use for --hold-out"),
    "odd batch": ([*CHIPS, "--batch", "9"], "--batch is whole micro-batches of 2, got 9"),
    "odd workers": ([*CHIPS, "--batch", "8", "--workers", "3"], "--workers must share a batch of 4 micro-batches evenly, got 3"),
    "an object store": ([*CHIPS, "--out", "s3://bucket/out"], "s3://bucket/out"),
    "unknown flag": ([*CHIPS, "--epoch", "3"], "did you mean --epochs?"),
    "unknown model": ([*CHIPS, "--model", "nanoo"], "nanoo"),
    "no pictures": (["--images", "nowhere", "--masks", "masks", "--prompt", "a road"], "nowhere is not there"),
    "nothing held out": ([*CHIPS, "--hold-out", "west_*"], "'west_*' must hold out some"),
    "a sample without its mask": (["--data", "train.json"], "train.json, sample 0 (id x): every [SEG] has one mask, got 0 masks for 1 [SEG]"),
    "no catalog": (["--aoi", "0,0,1,1", "--labels", "train.json", "--prompt", "x", "--catalog", "http://127.0.0.1:9/stac", "--collection", "a"], "127.0.0.1:9"),
    "a batch of more than all": (CHIPS, "give a --batch of at most 6, the samples, got 80"),
    "a folder in use": ([*CHIPS, "--out", "images"], "a model is written to a new or an empty folder"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    case: str, base: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / name).symlink_to(chips / name)
    turns = [{"from": "human", "value": "a road"}, {"from": "bot", "value": "It is [SEG]."}]
    published(tmp_path, [{"id": "x", "image": "images/north_1.png", "conversations": turns}])
    before = set(tmp_path.rglob("*"))
    words, said = REFUSALS[case]
    given = [*([] if "--model" in words else ["--model", str(base)]), *([] if "--out" in words else ["--out", "out"])]
    assert job(monkeypatch, "finetune", *words, *given) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("finetune: error: ")
    assert said in line
    assert set(tmp_path.rglob("*")) == before


def test_another_training_in_the_folder_is_refused(chips: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--images", str(chips / "images"), "--masks", str(chips / "masks"), "--prompt", "a road", "--out", str(tmp_path / "out"), "--batch", "4"]
    first = load(FineTuneSettings, words)
    prepare(first.model_dump(), str(base), lambda done, total: None)
    again = prepare(load(FineTuneSettings, [*words, "--every", "7", "--workers", "2"]).model_dump(), str(base), lambda done, total: None)
    assert again.job.every == 7
    with pytest.raises(RunConflictError, match=r"holds another training: its learning-rate is 0\.0003, not 0\.1"):
        prepare(load(FineTuneSettings, [*words, "--learning-rate", "0.1"]).model_dump(), str(base), lambda done, total: None)
    assert json.loads((tmp_path / "out" / "training" / "settings.json").read_text())["model"] == str(base)


def test_a_changed_data_set_is_not_gone_on_with(chips: Path, base: Path, tmp_path: Path) -> None:
    """Weights of other samples would be called the model of these."""
    shutil.copytree(chips, tmp_path / "chips")
    folders = [tmp_path / "chips" / name for name in ("images", "masks")]
    words = ["--images", str(folders[0]), "--masks", str(folders[1]), "--prompt", "a road", "--out", str(tmp_path / "out"), "--batch", "4"]

    def prepared() -> Submission:
        return prepare(load(FineTuneSettings, words).model_dump(), str(base), lambda done, total: None)

    prepared()
    prepared()
    mask = folders[1] / "north_1.png"
    Image.fromarray(255 - np.array(Image.open(mask))).save(mask)
    with pytest.raises(RunConflictError, match="other samples than those that chips of a road in .* has now"):
        prepared()
    shutil.copy(chips / "masks" / mask.name, mask)
    prepared()
    (folders[0] / "north_2.png").unlink()
    with pytest.raises(RunConflictError, match="other samples"):
        prepared()


def test_a_folder_that_could_not_be_begun_is_as_it_was(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    labels = tmp_path / "labels.geojson"
    labels.write_text("nothing")
    words = ["--aoi", "0,0,1,1", "--labels", str(labels), "--prompt", "x", "--catalog", str(tmp_path / "catalog.json"), "--out", str(tmp_path / "out")]
    with pytest.raises(CatalogError):
        prepare(load(FineTuneSettings, words).model_dump(), str(base), lambda done, total: None)
    assert not list((tmp_path / "out").iterdir())


def test_one_training_at_a_time(chips: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--images", str(chips / "images"), "--masks", str(chips / "masks"), "--prompt", "a road", "--out", str(tmp_path / "out"), "--batch", "4"]
    prepare(load(FineTuneSettings, words).model_dump(), str(base), lambda done, total: None)
    with hold(Folder.at(str(tmp_path / "out" / "training"))):
        assert job(monkeypatch, "finetune", *words, "--model", str(base)) == 2
    assert "another driver works in" in capsys.readouterr().err


def test_refusals_of_the_merge(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {"no whole trained.safetensors": (str(base), "out"), "a new or an empty folder": (str(base), str(base)), "'int8'": ("a", "b", "--dtype", "int8")}
    for said, words in cases.items():
        assert job(monkeypatch, "merge_model", *words) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
