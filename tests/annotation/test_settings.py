"""The door of annotation: what it refuses, in one line with exit code 2, and a whole run through it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from geopixel.annotation.settings import load_settings

ROOT = Path(__file__).parents[2]


def annotate(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """The job's exit code, run in this process."""
    spec = importlib.util.spec_from_file_location("annotate", ROOT / "jobs" / "annotate.py")
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    monkeypatch.setattr(sys, "argv", ["annotate.py", *flags])
    try:
        return int(job.main())
    except SystemExit as stop:
        return int(stop.code or 0)


REFUSALS = {
    "no imagery": ([], "say where the imagery is with --images FOLDER or --catalog"),
    "two imageries": (["--images", ".", "--catalog", "demo"], "not both"),
    "no labels": (["--images", "."], "--labels is missing"),
    "labels that are not there": (["--images", ".", "--labels", "building=nowhere.gpkg"], "--labels 'nowhere.gpkg' is not a file"),
    "labels without a class": (["--images", ".", "--labels", "=labels.txt"], "names no class"),
    "no picture": (["--images", ".", "--labels", "road=labels.txt"], "labels.txt cannot be read"),
    "a flag of catalogs": (["--images", ".", "--labels", "road=labels.txt", "--datetime", "2020"], "--datetime is of a catalog"),
    "a strange day": (["--catalog", "demo", "--datetime", "noon"], "--datetime 'noon' is neither a date"),
    "a small chip": (["--catalog", "demo", "--chip-size", "8"], "--chip-size must be greater than or equal to 64, got '8'"),
    "a slip": (["--catalog", "demo", "--sead", "8"], "did you mean --seed?"),
    "a folder that is there": (["--catalog", "demo", "--out", "."], "is there already"),
    "review of what was never written": (["--review", "."], "review.jsonl cannot be read"),
    "review and imagery": (["--review", ".", "--catalog", "demo"], "--review takes samples as they are: leave out --catalog"),
    "review and chips": (["--review", ".", "--chip-size", "128", "--window", "0,0,1,1"], "leave out --chip-size, --window"),
    "samples in a bucket": (["--catalog", "demo", "--out", "s3://bucket/samples"], "--out"),
}


@pytest.mark.parametrize(("flags", "why"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(flags: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("no labels")
    assert annotate(monkeypatch, *flags) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("annotate: error: ")
    assert why in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.txt"], "nothing is written"


def test_flags_and_file_say_the_same(tmp_path: Path) -> None:
    labels = tmp_path / "roofs.gpkg"
    labels.touch()
    flags = load_settings(["--images", str(tmp_path), "--labels", f"building={labels}", "--chip-size", "256", "--seed", "4", "--bands", "3,2,1"])
    file = tmp_path / "samples.toml"
    file.write_text(f'images = "{tmp_path}"\nlabels = ["building={labels}"]\nchip-size = 256\nseed = 4\nbands = [3, 2, 1]\n')
    assert load_settings(["--config", str(file)]).model_dump(exclude={"config"}) == flags.model_dump(exclude={"config"})


def test_a_run_and_its_review(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On rendered scenes with labels of one made-up lake."""
    monkeypatch.chdir(tmp_path)
    area = json.loads(catalog.with_name("aoi.geojson").read_text())["features"][0]["geometry"]
    west, south = (min(at[axis] for at in area["coordinates"][0]) for axis in (0, 1))
    ring = [[west + x * 0.0006, south + y * 0.0006] for x, y in ((2, 2), (4, 2), (4, 3), (2, 3), (2, 2))]
    lake = {"type": "Feature", "properties": {"class": "lake"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    Path("lake.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [lake]}))
    flags = ["--catalog", str(catalog), "--labels", "lake.geojson", "--window", str(catalog.with_name("aoi.geojson"))]
    assert annotate(monkeypatch, *flags, "--chip-size", "128", "--validation", "0", "--out", "samples") == 0
    told = capsys.readouterr()
    assert "scene samples" in told.out
    assert told.out.strip().endswith("annotate.py --review samples")
    samples = json.loads(Path("samples/train.json").read_text())
    assert all("lake" in sample["conversations"][1]["value"] for sample in samples)
    assert len([sample for sample in samples if sample["level"] == "scene"]) >= 1
    assert annotate(monkeypatch, "--review", "samples", "--out", "reviewed") == 0
    assert json.loads(Path("reviewed/train.json").read_text()) == samples
