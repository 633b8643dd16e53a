"""The doors as a user finds them: refusals in one line, a killed job that is finished by the next, and the same map through a submitted job."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import xarray as xr

from tests.conftest import PROMPTS

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "RAY_AUTH_MODE": "disabled",
}


def command(catalog: Path, out: Path) -> list[str]:
    flags = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    area = str(catalog.with_name("aoi.geojson"))
    return ["python", "jobs/map_region.py", "--catalog", str(catalog), "--aoi", area, *flags, "--model", "nano", "--out", str(out)]


def map_region(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """The job's exit code, run in this process."""
    spec = importlib.util.spec_from_file_location("map_region", ROOT / "jobs" / "map_region.py")
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    monkeypatch.setattr(sys, "argv", ["map_region.py", *flags])
    try:
        return job.main()
    except SystemExit as stop:
        return int(stop.code or 0)


POINT = json.dumps({"type": "Point", "coordinates": [15.0, 48.7]})
BOWTIE_BESIDE = "POLYGON ((1 1, 2 2, 2 1, 1 2, 1 1))"
REFUSALS = {
    "missing file": (["--aoi", "nowhere.geojson"], "nowhere.geojson"),
    "empty file": (["--aoi", "empty.geojson"], "empty.geojson"),
    "no area": (["--aoi", "point.geojson"], "no area"),
    "no polygon": (["--aoi", "POINT (15 48.7)"], "no area"),
    "outside": (["--aoi", "0,0,0.1,0.1"], "no scenes: "),
    "outside, repaired": (["--aoi", BOWTIE_BESIDE], "no scenes: "),
    "unknown model": (["--model", "nanoo"], "nanoo"),
    "unreachable catalog": (["--catalog", "http://127.0.0.1:9/stac", "--collection", "naip"], "127.0.0.1:9"),
    "not a catalog": (["--catalog", "point.geojson"], "point.geojson"),
    "unknown asset": (["--assets", "infrared"], "infrared"),
    "threshold": (["--threshold", "1.5"], "1.5"),
    "out that cannot be": (["--out", "/dev/null/map"], "/dev/null/map"),
    "other run": (["--resolution", "0.4", "--out", "SERIAL"], "resolution is None, not 0.4"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    case: str, catalog: Path, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, said = REFUSALS[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    Path("empty.geojson").touch()
    Path("point.geojson").write_text(POINT)
    flags = {"--catalog": str(catalog), "--aoi": str(catalog.with_name("aoi.geojson")), "--prompt": "building", "--model": "nano", "--out": "out"}
    if case == "other run":
        flags["--prompt"] = PROMPTS[0]
    flags |= {name: value.replace("SERIAL", str(serial)) for name, value in zip(changes[::2], changes[1::2], strict=True)}
    words = [word for pair in flags.items() for word in pair] + (["--prompt", PROMPTS[1]] if case == "other run" else [])
    assert map_region(monkeypatch, *words) == 2
    captured = capfd.readouterr()
    errors = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
    if case == "outside, repaired":
        assert "repaired" in captured.err


def test_a_submitted_job_refuses_a_relative_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert map_region(monkeypatch, "--catalog", "demo", "--prompt", "building", "--out", "runs/x") == 2
    assert "runs/x is relative" in capsys.readouterr().err


def test_a_finished_run_ends_without_a_cluster(
    catalog: Path, serial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no model is named: it is the run's."""
    ray.shutdown()  # a refusal before this one may have come so far as to start it
    words = command(catalog, serial)[2:]
    for flags in (words, [word for word in words if word not in ("--model", "nano")]):
        assert map_region(monkeypatch, *flags) == 0
        assert not ray.is_initialized()
        assert "nothing was left to do" in capsys.readouterr().out


def predictions(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("predictions/*/*.arrow")}


def equal_to(serial: Path, out: Path) -> None:
    assert (out / "features.parquet").read_bytes() == (serial / "features.parquet").read_bytes()
    one, other = (xr.open_dataset(folder / "masks.zarr", engine="zarr", mask_and_scale=False) for folder in (serial, out))
    for name in ("mask", "confidence", "status"):
        np.testing.assert_array_equal(one[name].values, other[name].values)


@pytest.mark.slow
def test_a_killed_job_is_finished_by_the_next_without_redoing_tiles(catalog: Path, serial: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command(catalog, out), cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 600
        while len(predictions(out)) < 2 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = predictions(out)
    assert done, (tmp_path / "log").read_text()
    assert not (out / "features.parquet").exists()
    time.sleep(3)  # workers of the dead job notice and end
    second = subprocess.run(command(catalog, out), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    kept = predictions(out)
    assert {name: kept[name] for name in done} == done
    equal_to(serial, out)
    checked = subprocess.run(["python", "jobs/verify.py", str(out)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray head that belongs to this test alone. All ports are its own: an agent whose port is taken takes no jobs."""
    port = free_port()
    others = ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    ports = [f"--dashboard-port={port}", *(f"--{name}={free_port()}" for name in others)]
    words = ["ray", "start", "--head", "--block", "--num-cpus=2", *ports]
    with (tmp_path / "head.log").open("w") as log:
        started = subprocess.Popen(words, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert started.poll() is None, (tmp_path / "head.log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGTERM)
            time.sleep(5)  # its children end with it
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(30)


@pytest.mark.slow
def test_a_submitted_job_gives_the_same_map(catalog: Path, serial: Path, tmp_path: Path, head: str) -> None:
    out = tmp_path / "map"
    words = ["ray", "job", "submit", "--address", head, "--working-dir", str(ROOT), "--", *command(catalog, out)]
    deadline = time.monotonic() + 300
    while True:  # the dashboard listens before it serves jobs
        done = subprocess.run(words, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        if done.returncode == 0 or out.exists() or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, done.stdout + done.stderr
    equal_to(serial, out)
    records = [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]
    stored = json.loads((out / "run.json").read_text())
    ends = next(record for record in records if record["message"] == "run ends")
    assert (ends["run_id"], ends["tiles"]) == (stored["id"], stored["finished"]["tiles"])
    assert {record["stage"] for record in records if "stage" in record} >= {"tiles", "blocks", "publish"}
