"""Assignment against one pair at a time, by hand, and against what a read without it finds."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from geopixel import assignment
from geopixel.assignment import SAG, assign_sources
from geopixel.raster import only, scenes_near
from geopixel.types import BLOCK_SIZE, HALO, Asset, Grid, Scene, Source

GRID = Grid("EPSG:32645", 0.5)
EDGE = BLOCK_SIZE
BACK = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True).transform


def footprint(west: float, north: float, width: float, height: float, turn: float) -> shapely.Polygon:
    """A rectangle, turned, of pixels of the grid, as a polygon in degrees with corners only."""
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    x, y = (corners + [west, north]).T * [[GRID.resolution], [-GRID.resolution]]
    return shapely.Polygon(np.stack(BACK(x, y), axis=-1))


PLACE = np.array([244, -1490])
"""Column and row about which the tests' squares and footprints lie."""
near = st.floats(-4 * EDGE, 12 * EDGE)
footprints = st.lists(
    st.builds(lambda x, y, *rest: footprint(*(PLACE * EDGE + [x, y]), *rest), near, near, *[st.floats(100, 9 * EDGE)] * 2, st.floats(0, 3)), max_size=12
)
squares = st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40).map(lambda places: PLACE + sorted(places))


def scenes_of(shapes: list[shapely.Polygon]) -> list[Scene]:
    """Two sources a scene."""
    sources = [Source(str(i), shape, (Asset("x", (1, 2, 3)),)) for i, shape in enumerate(shapes)]
    return [Scene("c", "2020-01-01", tuple(sources[i : i + 2])) for i in range(0, len(sources), 2)]


@settings(max_examples=25)
@given(squares, footprints)
def test_every_square_gets_the_sources_near_it(places: np.ndarray, shapes: list[shapely.Polygon]) -> None:
    assigned = assign_sources(scenes_of(shapes), GRID, places, EDGE)
    project = Transformer.from_crs("EPSG:4326", GRID.crs, always_xy=True).transform
    scale = [GRID.resolution, -GRID.resolution]
    pixels = [shapely.transform(shapely.segmentize(shape, 1e-3), lambda p: np.stack(project(*p.T), axis=-1) / scale) for shape in shapes]
    for column, row in places * EDGE:
        square = shapely.box(column - HALO, row - HALO, column + EDGE + HALO, row + EDGE + HALO)
        expected = [i for i, shape in enumerate(pixels) if shape.distance(square) <= SAG * np.hypot(*np.subtract(shape.bounds[2:], shape.bounds[:2]))]
        assert assigned.at(column + 17, row + EDGE - 1).tolist() == expected


@settings(max_examples=8)
@given(squares, footprints)
def test_whoever_asks_all_sources_finds_no_other_that_touches(places: np.ndarray, shapes: list[shapely.Polygon]) -> None:
    scenes = scenes_of(shapes)
    assigned = assign_sources(scenes, GRID, places, EDGE)
    for column, row in places * EDGE:
        geobox = GRID.geobox(column - HALO, row - HALO, EDGE + 2 * HALO, EDGE + 2 * HALO)
        extent = geobox.geographic_extent.geom
        among = only(scenes, assigned.at(column, row))
        found = {source.item for scene in among for source in scene.sources}
        assert {s.item for scene in scenes_near(scenes, geobox) for s in scene.sources if s.footprint.intersects(extent)} <= found


def test_squares_grow_where_there_were_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    places = PLACE + np.stack([np.arange(16)] * 2, axis=-1)
    scenes = scenes_of([footprint(*(PLACE * EDGE + 10_000 * i), 20_000, 30_000, 0.3) for i in range(5)])
    fine = assign_sources(scenes, GRID, places, EDGE)
    monkeypatch.setattr(assignment, "MAX_PAIRS", 12)
    coarse = assign_sources(scenes, GRID, places, EDGE)
    assert (fine.edge, len(fine.key)) == (EDGE, 16)
    assert coarse.edge > EDGE
    assert 0 < len(coarse.source) <= 20
    for column, row in (places * EDGE).tolist():
        assert set(fine.at(column, row)) <= set(coarse.at(column, row))


def test_squares_are_compared_in_parts_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    places = PLACE + np.stack(np.meshgrid(range(8), range(8)), axis=-1).reshape(-1, 2)
    scenes = scenes_of([footprint(*(PLACE * EDGE + [9_000 * i, 0]), 20_000, 30_000, 0.3) for i in range(5)])
    whole = assign_sources(scenes, GRID, places, EDGE)
    monkeypatch.setattr(assignment, "SQUARES_AT_ONCE", 7)
    parts = assign_sources(scenes, GRID, places, EDGE)
    for name in ("key", "first", "source"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert (np.diff(whole.key) > 0).all()


def test_a_footprint_that_the_crs_cannot_hold_may_be_anywhere() -> None:
    assigned = assign_sources(scenes_of([shapely.box(-100, 40, -99, 41), shapely.box(-180, -90, 180, 90)]), GRID, PLACE + [[0, 0], [7, 7]], EDGE)
    assert [assigned.at(*(PLACE + i) * EDGE).tolist() for i in (0, 7)] == [[1], [1]]
    with pytest.raises(KeyError, match="was not assigned"):
        assigned.at(0, 0)


def test_no_sources_and_no_squares_are_no_matter() -> None:
    assert assign_sources([], GRID, PLACE[None], EDGE).at(*PLACE * EDGE).tolist() == []
    assert not len(assign_sources(scenes_of([footprint(*PLACE * EDGE, 100, 100, 0)]), GRID, np.zeros((0, 2), int), EDGE).key)
