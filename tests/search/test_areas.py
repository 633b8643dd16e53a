"""Parts of an area are judged by what they must cover and may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shapely

from geopixel.aoi import read_area
from geopixel.dateline import WORLD
from geopixel.search.areas import MAX_VERTICES, search_parts
from geopixel.tiling import plan_tiles
from geopixel.types import Grid

OUTLINES = ["CHE", "FJI", "FRA", "IDN", "LSO", "MCO", "NPL", "NZL", "PHL", "TZA", "UZB", "VAT"]

@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_is_searched_in_parts_that_cover_it_and_little_else(shared: Path, name: str) -> None:
    area = read_area(str(shared / "aoi" / f"{name}.geojson"), warn=lambda _: None)
    parts = search_parts(area)
    assert max(shapely.get_num_coordinates(parts)) <= MAX_VERTICES
    assert all(len(json.dumps(shapely.geometry.mapping(part))) < 50_000 for part in parts)
    assert len(parts) <= 1 + shapely.get_num_coordinates(area) / MAX_VERTICES
    whole = shapely.union_all(parts)
    assert shapely.covers(whole, area)
    assert shapely.covers(WORLD, whole)
    assert shapely.area(shapely.difference(whole, shapely.buffer(area, 0.05))) < 1e-9
    west, _, east, _ = shapely.bounds(parts).T
    assert (east - west).max() <= 180, "no part goes round the Earth because the area lies on both sides of the antimeridian"


def test_a_coarse_outline_is_one_request() -> None:
    area = shapely.box(0, 0, 30, 40)
    assert search_parts(area) == [area]


@pytest.mark.parametrize("name", OUTLINES)
def test_what_is_searched_for_an_outline_holds_all_that_is_planned_for_it(shared: Path, name: str) -> None:
    """On the world's grid of 300 m in EPSG:3857: the tiles to be read are the same for the outline and for its parts inside the outline."""
    area = read_area(str(shared / "aoi" / f"{name}.geojson"), warn=lambda _: None)
    grid, costs = Grid("EPSG:3857", 300.0), {512: 1.0}
    tiles = plan_tiles(area, grid, None, smallest_object=1e5, ground_sample_distance=300.0, costs=costs)
    tiles = tiles[tiles.to_read]
    searched = set()
    for part in search_parts(area):
        planned = plan_tiles(part, grid, None, smallest_object=1e5, ground_sample_distance=300.0, costs=costs)
        searched |= set(planned[planned.to_read])
    assert len(tiles) > 0
    assert set(tiles) <= searched
