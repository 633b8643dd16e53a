"""What a run tells Prometheus, through Ray's own metrics: tiles by state, seconds by stage, how busy the model is, bytes read. Ray exports them on every
node under the same names with `ray_` before them; cluster/grafana.json draws them. Knows receipts and clocks; nothing of where tiles run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

from ray.util.metrics import Counter, Gauge, Histogram

from geopixel.types import TileReceipt

Stage = Literal["plan", "read", "predict", "store", "block", "publish"]
"""read, predict and store are of a tile, block of one block, plan and publish of a whole run."""

TILES, BYTES, SECONDS, BUSY = "geopixel_tiles_total", "geopixel_read_bytes_total", "geopixel_stage_seconds", "geopixel_model_busy_share"
BOUNDARIES = [0.01 * 2.5**step for step in range(13)]
"""Seconds, 0.01 to 600: a tile on a GPU takes a fifth of one, publishing a country minutes."""


def count_tile(run: str, receipt: TileReceipt) -> None:
    """A tile that is stored. Called by the driver, which outlives its workers: so the tiles by state are those of the ledger."""
    _tiles().inc(tags={"run": run, "state": receipt.state})
    if receipt.read_bytes:
        _bytes().inc(receipt.read_bytes, tags={"run": run})
    observe(run, "read", receipt.read_seconds)
    if receipt.backend:
        observe(run, "predict", receipt.predict_seconds)


def watch_model(run: str, *, busy: float, storing: float, since: float) -> None:
    """What a worker with the model did with its last tiles. busy, storing: seconds a tile in the model and putting its answer away; since: all seconds
    a tile since the tiles before, waiting for pictures included."""
    observe(run, "store", storing)
    _busy().set(busy / since if since else 0.0, tags={"run": run})


def observe(run: str, stage: Stage, seconds: float) -> None:
    _seconds().observe(seconds, tags={"run": run, "stage": stage})


@contextmanager
def observed(run: str, stage: Stage) -> Iterator[None]:
    """Observes how long the block takes."""
    began = time.monotonic()
    yield
    observe(run, stage, time.monotonic() - began)


# Made when a process first needs them: a metric belongs to the Ray that is up by then.


@cache
def _tiles() -> Counter:
    return Counter(TILES, "Tiles that are stored, by state", ("run", "state"))


@cache
def _bytes() -> Counter:
    return Counter(BYTES, "Bytes of imagery read, as they are stored", ("run",))


@cache
def _seconds() -> Histogram:
    return Histogram(SECONDS, "Seconds: of a tile (read, predict, store), a block (block), a run (plan, publish)", BOUNDARIES, ("run", "stage"))


@cache
def _busy() -> Gauge:
    return Gauge(BUSY, "Share of its time, since the tiles before its last ones, that a worker spent in the model", ("run",))
