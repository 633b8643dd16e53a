"""What the workers of a submission did, added up receipt by receipt: a driver keeps sums, for a country has a receipt for each of millions of tiles."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from geopixel.types import TileReceipt


@dataclass(slots=True)
class Work:
    """The sums so far."""

    tiles: int = 0
    read_bytes: int = 0
    read_seconds: float = 0.0
    predict_seconds: float = 0.0
    worker_seconds: float = 0.0
    """Of the workers that have the model: see TileReceipt."""
    busy_seconds: float = 0.0
    """Of these, in the model."""
    computed_with: set[str] = field(default_factory=set)

    def add(self, receipt: TileReceipt) -> None:
        self.tiles += 1
        self.read_bytes += receipt.read_bytes
        self.read_seconds += receipt.read_seconds
        self.predict_seconds += receipt.predict_seconds
        if receipt.worker_seconds:
            self.worker_seconds += receipt.worker_seconds
            self.busy_seconds += receipt.predict_seconds
        if receipt.backend:
            self.computed_with.add(receipt.backend)

    @property
    def busy(self) -> float | None:
        """Of the workers' time, the share that the model took; None where nobody measured it."""
        return self.busy_seconds / self.worker_seconds if self.worker_seconds else None

    def submission(self, clock: Mapping[str, float]) -> dict[str, Any]:
        """What this submission took until now, for run.json. clock: when its stages began, in order (time.monotonic)."""
        began = list(clock.items())
        ended = [*(begin for _, begin in began[1:]), time.monotonic()]
        return {
            "tiles_looked_at": self.tiles,
            "seconds": {stage: round(end - begin, 3) for (stage, begin), end in zip(began, ended, strict=True)},
            "worker_seconds": {
                "read": round(self.read_seconds, 3),
                "predict": round(self.predict_seconds, 3),
                "with_model": round(self.worker_seconds, 3),
            },
            "read_bytes": self.read_bytes,
            "computed_with": sorted(self.computed_with),
        }
