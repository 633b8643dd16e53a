"""What Prometheus reads of a node that runs ours, and the dashboard that draws it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from urllib.request import urlopen

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from geopixel.distributed import metrics
from geopixel.types import TileReceipt

DASHBOARD = json.loads((Path(__file__).parents[1] / "cluster" / "grafana.json").read_text())
EXPORTED = {f"ray_{name}" for name in (metrics.TILES, metrics.BYTES, metrics.SECONDS, metrics.BUSY)}
PATIENCE = 90.0
"""Seconds: Ray's agent starts after Ray does."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a node of a Ray of our own exports its metrics."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "200")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    node = ray.nodes()[0]
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def samples(address: str) -> list[Sample]:
    try:
        with urlopen(address, timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except OSError:
        return []
    return [sample for family in families for sample in family.samples if sample.name.startswith("ray_geopixel")]


def value(of: list[Sample], name: str, **labels: str) -> float:
    return sum(sample.value for sample in of if sample.name == name and labels.items() <= sample.labels.items())


def le_of(of: list[Sample], boundary: float) -> str:
    """A bucket's label, as it is written."""
    return next(label for sample in of if (label := sample.labels.get("le")) and float(label) == pytest.approx(boundary, rel=1e-3))


@ray.remote
def work() -> None:
    metrics.watch_model([TileReceipt("512_0_0", "ok", predict_seconds=1.5)] * 2, 3.5, 4.0)
    with metrics.observed("block"):
        time.sleep(0.02)
    time.sleep(2)  # longer than an interval


@pytest.mark.slow
def test_a_node_exports_what_driver_and_workers_say(address: str) -> None:
    for state, count in {"ok": 3, "empty": 2, "failed": 1}.items():
        for index in range(count):
            backend = "" if state == "failed" else "cpu float32 sdpa"
            metrics.count_tile(TileReceipt(f"512_{index}_0", state, read_seconds=0.5, predict_seconds=2.0, read_bytes=1000, backend=backend))  # type: ignore[arg-type]
    metrics.observe("publish", 7.0)
    waiting = work.remote()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        seen = samples(address)
        here = all(value(seen, "ray_geopixel_stage_seconds_count", stage=stage) for stage in ("publish", "block"))
        if here and value(seen, "ray_geopixel_model_busy_share"):  # Ray exports one metric after the other
            break
        time.sleep(0.2)
    ray.get(waiting)
    assert {re.sub("_(bucket|sum|count)$", "", sample.name) for sample in seen} == EXPORTED
    tiles = {state: value(seen, "ray_geopixel_tiles_total", state=state) for state in ("ok", "empty", "failed", "cloud")}
    assert tiles == {"ok": 3, "empty": 2, "failed": 1, "cloud": 0}
    assert value(seen, "ray_geopixel_read_bytes_total") == 6000
    counts = {stage: value(seen, "ray_geopixel_stage_seconds_count", stage=stage) for stage in get_args(metrics.Stage)}
    assert counts == {"plan": 0, "read": 6, "predict": 5, "store": 2, "block": 1, "publish": 1}
    for stage, seconds in {"read": 0.5, "predict": 2.0, "store": 0.25, "publish": 7.0}.items():  # as exact as the buckets
        above = min(boundary for boundary in metrics.BOUNDARIES if boundary > seconds)
        below = max(boundary for boundary in metrics.BOUNDARIES if boundary < seconds)
        inside = [value(seen, "ray_geopixel_stage_seconds_bucket", stage=stage, le=le_of(seen, boundary)) for boundary in (below, above)]
        assert inside == [0, counts[stage]], stage
    assert {sample.labels["ray_job"] for sample in seen} == {ray.get_runtime_context().get_job_id()}
    assert value(seen, "ray_geopixel_model_busy_share") == 0.75


def test_the_dashboard_queries_what_is_exported_and_all_of_it() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    queried = {re.sub("_(bucket|sum|count)$", "", name) for text in (*expressions, *variables) for name in re.findall(r"\bray_\w+", text)}
    assert queried - {"ray_job"} == EXPORTED
    stages = {stage for text in expressions for some in re.findall(r'stage=~"([^"]+)"', text) for stage in some.split("|")}
    assert stages == set(get_args(metrics.Stage))
    assert all(text.count("(") == text.count(")") and 'ray_job=~"$job"' in text for text in expressions)
