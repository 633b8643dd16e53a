"""The cost of a plan, counted tile by tile."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from geopixel.cost import BLOCK, PAGE_BYTES, RASTER_BYTES, PlanCost, bytes_to_read, estimate_cost
from geopixel.types import DECISIONS, HALO, TILE_SIZES, Grid, Tile, Tiles

GRID = Grid("EPSG:32645", 0.5)


@st.composite
def plans(draw: st.DrawFn) -> Tiles:
    places = draw(st.lists(st.tuples(st.sampled_from(TILE_SIZES), st.integers(0, 3), st.integers(0, 3), st.sampled_from(list(DECISIONS.values()))), min_size=1))
    return Tiles.of([Tile(GRID, size, -4 * 4096 // size + x % (4096 // size), 7 * 4096 // size + y % (4096 // size), state) for size, x, y, state in places])


def survey() -> xr.Dataset:
    """Of the super-tile that the plans lie in, and a cell more on two sides."""
    stored = np.random.default_rng(0).random((10, 9)).astype(np.float32) * 1e5
    coords = {"y": np.arange(10) + 7 * 8 - 1, "x": np.arange(9) - 4 * 8}
    return xr.Dataset({"stored": (("y", "x"), stored)}, coords=coords, attrs={"bytes_read": 123})


FLOPS = {size: float(size) for size in TILE_SIZES}


@given(plans())
def test_cost_counts_what_will_be_read(tiles: Tiles) -> None:
    cost = estimate_cost(tiles, 3, survey(), flops=FLOPS, rates={"cpu": 1.0, "cuda": 10.0}, ground_sample_distance=0.9)
    read = [tile for tile in tiles if tile.decided is None]
    assert cost.to_read == len(read)
    assert cost.sizes == {size: sum(tile.size == size for tile in read) for size in sorted({tile.size for tile in read})}
    assert cost.decided == {state: n for state in ("cloud", "nodata", "outside") if (n := sum(tile.decided == state for tile in tiles))}
    assert cost.megapixels == pytest.approx(sum(np.prod(tile.geobox.shape) for tile in read) / 1e6)
    assert cost.km2 == pytest.approx(sum(np.prod(tile.core.shape) for tile in read) * 0.81 / 1e6)
    assert sum(cost.skipped_km2.values()) == pytest.approx(sum(tile.size**2 for tile in tiles if tile.decided) * 0.81 / 1e6)
    assert cost.device_hours["cpu"] == pytest.approx(sum(tile.size for tile in read) / 3600) == pytest.approx(10 * cost.device_hours["cuda"])
    assert cost.output_bytes == pytest.approx(PAGE_BYTES + sum(3 * 256 * 256 + 3 * RASTER_BYTES * tile.size**2 for tile in read), abs=1)
    assert cost.survey_bytes == 123
    assert PlanCost.from_json(json.loads(json.dumps(asdict(cost)))) == cost


@given(plans())
def test_bytes_are_those_of_the_cells_and_what_lies_around(tiles: Tiles) -> None:
    look = survey()
    expected = 0.0
    for tile in tiles:
        cells = look.stored.sel(x=slice(tile.left // 512, (tile.left + tile.size) // 512 - 1), y=slice(tile.top // 512, (tile.top + tile.size) // 512 - 1))
        assert cells.size == (tile.size // 512) ** 2
        expected += float(cells.sum()) * ((tile.size + 2 * HALO + BLOCK) / tile.size) ** 2
    assert bytes_to_read(tiles, look) == pytest.approx(expected, rel=1e-5)
