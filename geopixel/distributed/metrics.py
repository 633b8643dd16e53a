"""What a run tells Prometheus, through Ray's own metrics: tiles by state, seconds by stage, how busy the model is, bytes read. Ray exports them on every
node under the same names with `ray_` before them; cluster/grafana.json draws them. Knows receipts and clocks; nothing of where tiles run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from geopixel.types import TileReceipt

Stage = Literal["plan", "read", "predict", "store", "block", "publish"]
"""read, predict and store are of a tile, block of one block, plan and publish of a whole run."""

TILES, BYTES, SECONDS, BUSY = "geopixel_tiles_total", "geopixel_read_bytes_total", "geopixel_stage_seconds", "geopixel_model_busy_share"
BOUNDARIES = [0.01 * 2.5**step for step in range(13)]
"""Seconds, 0.01 to 600: a tile on a GPU takes a fifth of one, publishing a country minutes. Ray keeps no more than the bucket of what was observed: counts are
exact, the sum is of the buckets' middles."""


def count_tile(receipt: TileReceipt) -> None:
    """A tile that is stored. Called by the driver, which outlives its workers: so the tiles by state are those of the ledger."""
    _tiles().inc(tags={"state": receipt.state})
    if receipt.read_bytes:
        _bytes().inc(receipt.read_bytes)
    observe("read", receipt.read_seconds)
    if receipt.backend:
        observe("predict", receipt.predict_seconds)


def watch_model(receipts: Sequence[TileReceipt], worked: float, since: float) -> None:
    """What a worker with the model did with its last tiles. worked: seconds from pictures to stored answers; what of them is not the model's is
    observed as store: most of the storing hides behind the model. since: seconds from the end of the tiles before to the end of these, waiting for
    pictures included."""
    busy = sum(receipt.predict_seconds for receipt in receipts)
    _busy().set(busy / since)
    for _ in receipts:
        observe("store", (worked - busy) / len(receipts))


def observe(stage: Stage, seconds: float) -> None:
    _seconds().observe(seconds, tags={"stage": stage})


@contextmanager
def observed(stage: Stage) -> Iterator[None]:
    """Observes how long the block takes."""
    began = time.monotonic()
    yield
    observe(stage, time.monotonic() - began)


# Made when a process first needs them: a metric belongs to the Ray that is up by then. They tell its jobs apart, as its logs do.


@cache
def _tiles() -> Counter:
    return Counter(TILES, "Tiles that are stored, by state", ("ray_job", "state")).set_default_tags(_job())


@cache
def _bytes() -> Counter:
    return Counter(BYTES, "Bytes of imagery read, as they are stored", ("ray_job",)).set_default_tags(_job())


@cache
def _seconds() -> Histogram:
    told = "Seconds: of a tile (read, predict, store), a block (block), a run (plan, publish)"
    return Histogram(SECONDS, told, BOUNDARIES, ("ray_job", "stage")).set_default_tags(_job())


@cache
def _busy() -> Gauge:
    told = "Share of its time, since the tiles before its last ones, that a worker spent in the model"
    return Gauge(BUSY, told, ("ray_job",)).set_default_tags(_job())


def _job() -> dict[str, str]:
    return {"ray_job": ray.get_runtime_context().get_job_id()}
