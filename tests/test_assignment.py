import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from geopixel import assignment
from geopixel.assignment import SAG, assign_footprints
from geopixel.types import HALO, TILE_SIZES, Grid, Tile, Tiles

GRID = Grid("EPSG:32645", 0.5)
EDGE = TILE_SIZES[-1]
BACK = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True).transform


def footprint(west: float, north: float, width: float, height: float, turn: float) -> shapely.Polygon:
    """A rectangle, turned, of pixels of the grid, as a polygon in degrees with corners only."""
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    x, y = (corners + [west, north]).T * [[GRID.resolution], [-GRID.resolution]]
    return shapely.Polygon(np.stack(BACK(x, y), axis=-1))


PLACE = (244 * EDGE, -1490 * EDGE)
"""Pixels: column and row about which the tests' tiles and footprints lie."""
near = st.floats(-4 * EDGE, 12 * EDGE)
footprints = st.lists(
    st.builds(
        lambda x, y, *rest: footprint(PLACE[0] + x, PLACE[1] + y, *rest), near, near, st.floats(100, 9 * EDGE), st.floats(100, 9 * EDGE), st.floats(0, 3)
    ),
    max_size=12,
)
places = st.tuples(st.sampled_from(TILE_SIZES), st.integers(0, 31), st.integers(0, 31))


def tile(size: int, column: int, row: int) -> Tile:
    return Tile(GRID, size, PLACE[0] // size + column, PLACE[1] // size + row)


def by_hand(tiles: Tiles, shapes: list[shapely.Polygon], edge: int) -> dict[str, list[int]]:
    """Of each tile the footprints near its square, one pair at a time."""
    project = Transformer.from_crs("EPSG:4326", GRID.crs, always_xy=True).transform
    pixels = [
        shapely.transform(shapely.segmentize(shape, 1e-3), lambda p: np.stack(project(*p.T), axis=-1) / [GRID.resolution, -GRID.resolution]) for shape in shapes
    ]
    found = {}
    for one in tiles:
        left, top = one.left // edge * edge, one.top // edge * edge
        square = shapely.box(left - HALO, top - HALO, left + edge + HALO, top + edge + HALO)
        found[one.id] = [i for i, shape in enumerate(pixels) if shape.distance(square) <= SAG * np.hypot(*np.subtract(shape.bounds[2:], shape.bounds[:2]))]
    return found


@settings(max_examples=40, deadline=None)
@given(st.sets(places, min_size=1, max_size=40), footprints)
def test_every_square_gets_the_footprints_near_it(values: set[tuple[int, int, int]], shapes: list[shapely.Polygon]) -> None:
    tiles = Tiles.of([tile(*value) for value in sorted(values)])
    found = {one.id: indices.tolist() for some, indices in assign_footprints(tiles, shapes) for one in some}
    assert found == by_hand(tiles, shapes, EDGE)


@pytest.mark.parametrize(("gap", "assigned"), [(HALO - 1, [0, 1, 2, 3]), (HALO + 4, [])])
def test_footprints_count_that_only_the_halo_reaches(gap: int, assigned: list[int]) -> None:
    """Their margin is 1.4 pixels."""
    beyond = [(-gap - 100, 500), (EDGE + gap, 500), (500, -gap - 100), (500, EDGE + gap)]
    shapes = [footprint(PLACE[0] + x, PLACE[1] + y, 100, 100, 0) for x, y in beyond]
    neighbours = [tile(4096, 0, 0), *(tile(4096, x, y) for x, y in ((-9, -9), (9, 9)))]  # what lies among the squares is theirs alone to lose
    assert [indices.tolist() for _, indices in assign_footprints(Tiles.of(neighbours), shapes)] == [assigned, [], []]


def test_a_plans_squares_come_once_and_hold_their_tiles() -> None:
    tiles = Tiles.of([tile(2048, 2 * x + dx, dy) for x in range(3) for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1))])
    assigned = assign_footprints(tiles, [footprint(*PLACE, 100, 100, 0)])
    assert len(assigned) == len(list(assigned)) == 3
    assert [one for some, _ in assigned for one in some] == list(tiles)
    for some, _ in assigned:
        assert len(set(zip((some.left // EDGE).tolist(), (some.top // EDGE).tolist(), strict=True))) == 1


def test_squares_grow_where_there_were_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiles.of([tile(512, 8 * i, 8 * i) for i in range(16)])  # a diagonal enters squares of any size once
    shapes = [footprint(PLACE[0] + 10_000 * i, PLACE[1] + 10_000 * i, 20_000, 30_000, 0.3) for i in range(5)]
    fine = {one.id: set(indices.tolist()) for some, indices in assign_footprints(tiles, shapes) for one in some}
    monkeypatch.setattr(assignment, "MAX_PAIRS", 12)
    coarse = assign_footprints(tiles, shapes)
    assert 0 < len(coarse.footprint) <= 12
    assert len(coarse) < 16
    assert all(fine[one.id] <= set(indices.tolist()) for some, indices in coarse for one in some)


def test_pairs_are_tested_in_parts_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiles.of([tile(4096, x, y) for y in range(8) for x in range(8)])
    shapes = [footprint(PLACE[0] + 9_000 * i, PLACE[1], 20_000, 30_000, 0.3) for i in range(5)]
    whole = assign_footprints(tiles, shapes)
    monkeypatch.setattr(assignment, "PAIRS_AT_ONCE", 7)
    parts = assign_footprints(tiles, shapes)
    np.testing.assert_array_equal(parts.footprint, whole.footprint)
    np.testing.assert_array_equal(parts.first_footprint, whole.first_footprint)


def test_a_footprint_that_the_crs_cannot_hold_may_be_anywhere() -> None:
    tiles = Tiles.of([tile(1024, 0, 0), tile(1024, 30, 30)])
    world = shapely.box(-180, -90, 180, 90)
    far = shapely.box(-100, 40, -99, 41)
    assert [indices.tolist() for _, indices in assign_footprints(tiles, [far, world])] == [[1], [1]]


def test_no_footprints_and_no_tiles_are_no_matter() -> None:
    tiles = Tiles.of([tile(1024, 0, 0)])
    assert [indices.tolist() for _, indices in assign_footprints(tiles, [])] == [[]]
    assert list(assign_footprints(tiles[:0], [footprint(*PLACE, 100, 100, 0)])) == []
