"""The benchmark of everything but the model, at a small size: its figures mean nothing here, but they are of what they say, and a run that is not whole
is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import cycle
from typing import Any

import pytest

from geopixel import ledger
from geopixel.storage import Folder
from geopixel.types import Tiles
from tests.benchmarks import scale

CPU = {"good": 0.02, "slow": 0.2}
"""Seconds a tile."""


def invented(kind: str) -> Any:
    disturbed = cycle((True, False, False))

    def apart(part: str, **options: Any) -> Any:
        if part == "flow":
            reachable = min(1.0, 2 / CPU[kind] / (scale.GPUS * options["rate"]))
            cpu = CPU[kind] * (7 if next(disturbed) else 1)
            return {"cpu": cpu, "reading": 0.01, "rate": options["rate"] * scale.GPUS * reachable, "busy": 0.97 * reachable}
        if part == "driver":
            return {"memory": 1e8 + (1000 if kind == "slow" else 1) * options["tiles"], "seconds": 1.0}
        if part == "nano":
            return {"cpu": 0.5}
        stages = {"planned": 3.0, "recorded": 10.0, "resumed": 4.0}
        return stages | {f"{name}, clock": 2 * took for name, took in stages.items()} | {"tiles": 1_000_000, "memory": 8e8, "laid": 60.0}

    return apart


@pytest.mark.parametrize("kind", CPU)
def test_what_the_cores_cannot_give_is_not_asked_of_them(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scale, "apart", invented(kind))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    code = scale.main(["--check"])
    printed = capsys.readouterr()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in printed.out.splitlines() if line.startswith("| ")}
    if kind == "good":
        assert code == 0
        assert rows["overhead a tile, without reading it"] == ["10 ms", "<= 20 ms", "yes"]
        assert rows["4 GPUs busy at 40 tiles/s"][0] == "97 %"
        assert "the cores give 100 tiles/s at most" in printed.out
    else:
        assert code == 1
        assert "the cores give 10 tiles/s at most" in printed.out
        assert "were 24.2% busy" in printed.out  # a quarter of what the GPUs ask for
        assert rows["4 GPUs busy at 8 tiles/s"] == ["97 %", ">= 95 %", "yes"]
        missed = [line.split(": ")[1] for line in printed.err.splitlines() if line.startswith("missed")]
        assert missed == ["overhead a tile, without reading it", "driver, 100,000 tiles above 1,000"]
    assert rows["a country planned, recorded, resumed"][0] == "17 s"
    assert "4.7 tiles/s an H200, 6,387 km2/h; 500,000 km2 on 8, 95% busy: 10.3 h" in printed.out


def test_what_an_ended_process_took_is_not_left_out() -> None:
    with scale.watched() as cpu_seconds:
        before = cpu_seconds()
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 3: pass"], check=True)
        assert cpu_seconds() - before > 1.5


def test_a_country_is_planned_recorded_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPIXEL_SHARED", "nowhere")
    took = scale.country("small")
    assert took["tiles"] > 1000
    assert all(took[stage] > 0 for stage in ("planned", "recorded", "resumed"))


def test_a_country_with_a_tile_that_is_not_stored_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPIXEL_SHARED", "nowhere")
    right = ledger.store_plan

    def one_more(folder: Folder, tiles: Tiles) -> None:
        right(folder, tiles[1:])

    monkeypatch.setattr(ledger, "store_plan", one_more)
    with pytest.raises(ValueError, match="coverage needs the state of every tile, got none for 1 of"):
        scale.country("small")


@pytest.mark.slow
def test_tiles_flow_through_ray_while_the_model_waits() -> None:
    flow = scale.apart("flow", size="small", rate=40.0)
    assert flow["reading"] > 0
    assert 0 < flow["busy"] <= 1
    assert flow["rate"] > 0
