"""What a plan will cost, known before it runs, and what a run did cost, in the same words. Pure arithmetic over the columns of a plan: knows
nothing of files, models or prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from geopixel.types import DECISIONS, HALO, TILE_SIZES, State, Tile, Tiles

BLOCK = 512
"""Pixels along an edge of the blocks that COGs are usually stored in: a tile reads all that it touches."""
RASTER_BYTES = 0.15
"""Of the published rasters, a pixel and prompt, compressed and with overviews: 0.14 on the demo's scenes."""

PAGE_BYTES = 2_500_000
"""Of the page and the picture of a run, whatever its area."""


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan will cost."""

    sizes: dict[int, int]
    """Tiles to read, by size."""
    decided: dict[State, int]
    """Tiles that are never read, by the state that the plan gave them."""
    km2: float
    """Ground in the cores of the tiles to read."""
    skipped_km2: dict[State, float]
    """... and of those that are never read, by their state."""
    megapixels: float
    """To read, cores and halos."""
    read_bytes: int
    """Stored bytes to read, about; the survey's own are in survey_bytes."""
    survey_bytes: int
    device_hours: dict[str, float]
    """Of the model on one device, by its kind: cpu, cuda."""
    output_bytes: int
    """Of logits, if every tile holds something, rasters and the page."""

    @property
    def to_read(self) -> int:
        return sum(self.sizes.values())

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlanCost:
        """Of asdict that went through JSON, where keys are text."""
        return cls(**{**values, "sizes": {int(size): count for size, count in values["sizes"].items()}})


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run did cost, all its submissions together."""

    sizes: dict[int, int]
    """Tiles looked at, by size."""
    km2: float
    """Ground in their cores."""
    not_seen_km2: dict[State, float]
    """Ground in the cores of all other tiles and of those that showed nothing, by their state."""
    read_bytes: int
    """Stored bytes, without the survey's."""
    model_hours: float
    """Of the model on its devices, summed."""
    output_bytes: int
    """In the run folder."""
    on_gpu: bool = False
    """Else the devices of model_hours are CPU cores."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Spent:
        """Of asdict that went through JSON."""
        return cls(**{**values, "sizes": {int(size): count for size, count in values["sizes"].items()}})


def estimate_cost(
    tiles: Sequence[Tile],
    prompts: int,
    survey: xr.Dataset | None,
    *,
    flops: Mapping[int, float],
    rates: Mapping[str, float],
    ground_sample_distance: float,
    mask_size: int = 256,
) -> PlanCost:
    """What reading and predicting the tiles costs. survey: of survey_scenes, for the bytes; None: they count as none. flops: of the model for a
    tile of a size and all prompts. rates: operations a second, by kind of device. ground_sample_distance: metres per pixel."""
    plan = Tiles.of(tiles)
    read = plan[plan.to_read]
    sizes = dict(zip(*(values.tolist() for values in np.unique(read.size, return_counts=True)), strict=True))
    decided = {state: int((plan.decided == code).sum()) for code, state in DECISIONS.items() if state is not None}
    skipped = {state: square_km(plan[plan.decided == code], ground_sample_distance) for code, state in DECISIONS.items() if state is not None}
    operations = sum(count * flops[size] for size, count in sizes.items())
    pixels = sum(count * size**2 for size, count in sizes.items())
    return PlanCost(
        sizes=sizes,
        decided={state: count for state, count in sorted(decided.items()) if count},
        km2=square_km(read, ground_sample_distance),
        skipped_km2={state: skipped[state] for state, count in sorted(decided.items()) if count},
        megapixels=sum(count * (size + 2 * HALO) ** 2 for size, count in sizes.items()) / 1e6,
        read_bytes=0 if survey is None else round(bytes_to_read(read, survey)),
        survey_bytes=0 if survey is None else int(survey.attrs["bytes_read"]),
        device_hours={device: operations / rate / 3600 for device, rate in rates.items()},
        output_bytes=len(read) * prompts * mask_size**2 + round(pixels * prompts * RASTER_BYTES) + PAGE_BYTES,
    )


def bytes_to_read(tiles: Tiles, survey: xr.Dataset) -> float:
    """About the stored bytes of the blocks that reading the tiles touches: of the survey's `stored`, with the halo and BLOCK around it."""
    cell = TILE_SIZES[0]
    column0, row0 = int(survey.x[0]), int(survey.y[0])
    stored = survey["stored"].transpose("y", "x").to_numpy().astype(np.float64)
    total = np.pad(stored.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))  # of all cells above and to the left
    size = tiles.size.astype(np.int64)
    left, top = tiles.left // cell - column0, tiles.top // cell - row0
    right, bottom = left + size // cell, top + size // cell
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return float((inside * ((size + 2 * HALO + BLOCK) / size) ** 2).sum())


def square_km(tiles: Tiles, ground_sample_distance: float) -> float:
    """Of their cores."""
    return float((tiles.size.astype(np.float64) ** 2).sum()) * ground_sample_distance**2 / 1e6
