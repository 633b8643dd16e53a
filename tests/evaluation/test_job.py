"""The door: one line for what is wrong, tables for a person, JSON for a program."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from PIL import Image

from geopixel.demo import CLASSES, render_scene
from tests.conftest import PROMPTS

ROOT = Path(__file__).parents[2]


def evaluate(monkeypatch: pytest.MonkeyPatch, *flags: str | Path) -> int:
    """The job's exit code, run in this process."""
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "jobs" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    try:
        return int(job.main())
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_run_is_scored_against_labels(serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    features = gpd.read_parquet(serial / "features.parquet")
    labels = tmp_path / "labels.geojson"
    features[features["prompt"] == "water"].to_crs("EPSG:4326")[["geometry"]].to_file(labels)
    assert evaluate(monkeypatch, "--run", serial, "--labels", labels, "--prompt", "water", "--json") == 0
    said = capsys.readouterr().out.splitlines()
    scores = json.loads(said[-1])
    assert scores["F1"] == 1
    assert scores["IoU"] == pytest.approx(1, abs=1e-3)
    assert said[0].startswith("water: ")
    for words in ("objects (IoU >= 0.5)", "1.000 [1.000, 1.000]", "Best threshold", "Expected calibration error"):
        assert words in "\n".join(said)


def test_the_demo_s_run_is_scored_against_its_own_truth(serial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(monkeypatch, "--run", serial) == 0
    said = capsys.readouterr().out
    for words in (*PROMPTS, "objects F1", "mean IoU 0."):
        assert words in said
    assert evaluate(monkeypatch, "--run", serial, "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["prompts"]) == set(PROMPTS)


def test_chips_are_scored_by_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On rendered ground, of which nano knows the trees, and where there is no airplane."""
    scene = render_scene(1_000_002, size=512, gsd=0.8)
    for folder in ("img", "msk", "none"):
        (tmp_path / folder).mkdir()
    Image.fromarray(scene.rgb).save(tmp_path / "img" / "a.png")
    Image.fromarray(((scene.truth == CLASSES["tree"]) * 255).astype(np.uint8)).save(tmp_path / "msk" / "a.png")
    Image.fromarray(np.zeros((512, 512), np.uint8)).save(tmp_path / "none" / "a.png")
    flags = ("--images", tmp_path / "img", "--model", "nano", "--json")
    assert evaluate(monkeypatch, *flags, "--masks", tmp_path / "msk", "--prompt", "tree") == 0
    said = capsys.readouterr().out.splitlines()
    scores = json.loads(said[-1])
    assert scores["P@0.5"] == 1
    assert scores["oIoU"] == scores["cIoU"] == scores["mIoU"] > 0.5
    assert f"{100 * scores['oIoU']:.2f} %" in "\n".join(said)
    assert evaluate(monkeypatch, *flags, "--masks", tmp_path / "none", "--prompt", "airplane") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["N-acc"] == 1


REFUSALS = {
    "no run": (["--run", "nowhere"], "holds no finished run"),
    "an empty name": (["--run", ""], "holds no finished run"),
    "masks of a run": (["--run", "SERIAL", "--masks", "."], "--run has no use for --masks: leave it out"),
    "labels of chips": (["--images", ".", "--labels", "a.geojson"], "--images has no use for --labels: leave it out"),
    "prompt of a data set": (["--dataset", "refsegrs", ".", "--prompt", "tree"], "--dataset has no use for --prompt: leave it out"),
    "no split": (["--dataset", "geopixeld", "."], "has no split"),
    "labels of what": (["--run", "SERIAL", "--labels", "a.geojson"], "say which with --prompt"),
    "no labels": (["--run", "SERIAL", "--labels", "a.geojson", "--prompt", "water"], "a.geojson cannot be read"),
    "window alone": (["--run", "SERIAL", "--window", "a.geojson"], "give both"),
    "another prompt": (["--run", "SERIAL", "--prompt", "tree"], "building, water, not 'tree'"),
    "unknown data set": (["--dataset", "coco", "."], "rrsis-d, refsegrs, geopixeld, got 'coco'"),
    "no data set": (["--dataset", "rrsis-d", "."], "refs(unc).p is not there"),
    "chips without masks": (["--images", "."], "--images needs --masks and --prompt"),
    "chips without chips": (["--images", ".", "--masks", ".", "--prompt", "tree"], "holds no picture"),
    "limit": (["--dataset", "refsegrs", ".", "--limit", "0"], "--limit must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_line(case: str, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    flags, said = REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    assert evaluate(monkeypatch, *(flag.replace("SERIAL", str(serial)) for flag in flags)) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
