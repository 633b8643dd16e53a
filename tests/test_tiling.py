from functools import cache

import numpy as np
import pytest
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from shapely import Geometry, box

from geopixel.tiling import (
    CELL_SIZE,
    DETAIL_BUDGET,
    SUPER_SIZE,
    SUPERS_AT_ONCE,
    best_size,
    choose_grid,
    ground_sample_distance,
    plan_tiles,
    smallest_object,
    survey_cells,
)
from geopixel.types import BLOCK_SIZE, HALO, TILE_SIZES, Asset, Grid, Scene, Source, Tile, Tiles

GRID = Grid("EPSG:32645", 2.0)
CELLS_PER_SUPER = SUPER_SIZE // CELL_SIZE
SEED_SIZE = 61
ANY_SIZE = dict.fromkeys(TILE_SIZES, 1.0)
"""Costs of a model that takes a tile of any size, and each for the same."""
BEST = [(70.0, 4096), (40.0, 2048), (20.0, 1024), (1.0, 512)]
"""Metres of the smallest object, and the tile that shows it at 1 m a pixel."""


@cache
def _pattern() -> np.ndarray:
    """(3, SEED_SIZE, SEED_SIZE) valid, cloud and detail that repeat over the plane: a ground that does not know who asks."""
    random = np.random.default_rng(3)
    valid = random.choice([0, 0, 0.01, 0.4, 1], (SEED_SIZE, SEED_SIZE))
    valid[:20, 8:32] = 0  # whole squares without data, full of cloud and full of detail
    cloud = np.where(valid > 0, random.random((SEED_SIZE, SEED_SIZE)), np.nan)
    cloud[:, 36:48] += 0.7
    detail = np.where(valid > 0, random.random((SEED_SIZE, SEED_SIZE)) * DETAIL_BUDGET / 2, np.nan)
    detail[48:] *= 4
    return np.stack([valid, cloud, detail]).astype(np.float32)


def ground(cells: tuple[int, int, int, int]) -> xr.Dataset:
    column0, row0, column1, row1 = cells
    x, y = np.arange(column0, column1), np.arange(row0, row1)
    values = _pattern()[:, y[:, None] % SEED_SIZE, x % SEED_SIZE]
    return xr.Dataset({name: (("y", "x"), v) for name, v in zip(("valid", "cloud", "detail"), values, strict=True)}, coords={"x": x, "y": y})


def plan(area: Geometry, grid: Grid = GRID, metres: float = 20.0, distance: float = 1.0, max_cloud: float | None = 0.7) -> Tiles:
    survey = ground(survey_cells(area, grid))
    return plan_tiles(area, grid, survey, smallest_object=metres, ground_sample_distance=distance, costs=ANY_SIZE, max_cloud=max_cloud)


def pixels(area: Geometry, grid: Grid = GRID) -> Geometry:
    """The area in pixels of the grid, projected point by point: the small areas of these tests have no long edges but those made dense here."""
    project = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform
    dense = shapely.segmentize(area, 0.01)
    return shapely.transform(dense, lambda p: np.stack(project(p[:, 0], p[:, 1]), axis=-1) / grid.resolution * [1, -1])


def square(tile_size: int, column: int, row: int, margin: int) -> Geometry:
    low = np.array([column, row]) * tile_size - margin
    return box(*low, *(low + tile_size + 2 * margin))


@st.composite
def areas(draw: st.DrawFn) -> Geometry:
    """Stars of 3 to 9 corners around a place, some with a hole or a second part, up to about 15 km wide."""
    count = draw(st.integers(3, 9))
    radii = np.array(draw(st.lists(st.floats(0.002, 0.07), min_size=count, max_size=count)))
    angles = np.arange(count) / count * 2 * np.pi
    centre = [85.5 + draw(st.floats(-0.05, 0.05)), 27.6 + draw(st.floats(-0.05, 0.05))]
    star = shapely.Polygon(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    other = box(centre[0] + 0.01, centre[1] + 0.01, centre[0] + draw(st.floats(0.011, 0.1)), centre[1] + draw(st.floats(0.011, 0.03)))
    return draw(st.sampled_from([star, star.union(other), star.difference(other)]).filter(lambda shape: shape.area > 0))


def oracle(area: Geometry, best: int, max_cloud: float | None) -> set[tuple[int, int, int, str | None]]:
    """The rules, one super-tile and one tile at a time, by plain recursion on (size, column, row)."""
    shape = pixels(area)
    found = set()

    def decide(size: int, column: int, row: int) -> str | None:
        """The state of the square, None: read it; split: neither."""
        index = np.arange(size // CELL_SIZE)
        k = len(index)
        valid, cloud, detail = _pattern()[:, (row * k + index[:, None]) % SEED_SIZE, (column * k + index) % SEED_SIZE].astype(float)
        seen = valid > 0
        if not shape.intersects(square(size, column, row, HALO)):
            return "outside"
        if not seen.any():
            return "nodata"
        if max_cloud is not None and (cloud[seen] > max_cloud).all():
            return "cloud"
        if size > best or size > CELL_SIZE and (valid * detail)[seen].sum() > DETAIL_BUDGET:
            return "split"
        return "cloud" if max_cloud is not None and np.average(cloud[seen], weights=valid[seen]) > max_cloud else None

    def descend(size: int, column: int, row: int) -> None:
        decided = decide(size, column, row)
        if decided != "split":
            found.add((size, column, row, decided))
            return
        for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
            descend(size // 2, 2 * column + dx, 2 * row + dy)

    left, top, right, bottom = (int(v // SUPER_SIZE) for v in shape.bounds)
    for column in range(left - 1, right + 2):
        for row in range(top - 1, bottom + 2):
            if shape.intersects(square(SUPER_SIZE, column, row, HALO)):
                descend(SUPER_SIZE, column, row)
    return found


@settings(max_examples=30, deadline=None)
@given(areas(), st.sampled_from(BEST), st.sampled_from([None, 0.3, 0.7]))
def test_plan_is_what_the_rules_say(area: Geometry, size: tuple[float, int], max_cloud: float | None) -> None:
    metres, best = size
    tiles = plan(area, metres=metres, max_cloud=max_cloud)
    assert {(tile.size, tile.column, tile.row, tile.decided) for tile in tiles} == oracle(area, best, max_cloud)
    assert len(tiles) == len({tile.id for tile in tiles})


@settings(max_examples=30, deadline=None)
@given(areas(), st.sampled_from(BEST), st.sampled_from([0.25, 1.0, 2.0]))
def test_without_a_survey_the_tiles_are_all_squares_that_the_area_touches(area: Geometry, size: tuple[float, int], resolution: float) -> None:
    metres, best = size
    grid = Grid(GRID.crs, resolution)
    tiles = plan_tiles(area, grid, None, smallest_object=metres, ground_sample_distance=1.0, costs=ANY_SIZE)
    shape = pixels(area, grid)
    shapely.prepare(shape)
    left, top, right, bottom = (int(v // best) for v in shape.bounds)
    columns, rows = (at.ravel() for at in np.meshgrid(np.arange(left - 1, right + 2), np.arange(top - 1, bottom + 2)))
    halo = shapely.box(columns * best - HALO, rows * best - HALO, (columns + 1) * best + HALO, (rows + 1) * best + HALO)
    touched = shapely.intersects(shape, halo)
    assert {(tile.size, tile.column, tile.row) for tile in tiles[tiles.to_read]} == {
        (best, column, row) for column, row in zip(columns[touched].tolist(), rows[touched].tolist(), strict=True)
    }
    assert {tile.decided for tile in tiles} <= {None, "outside"}


def test_a_plan_does_not_know_how_many_supertiles_are_planned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    area = box(85.4, 27.5, 85.6, 27.7)
    whole = plan(area)
    assert SUPERS_AT_ONCE > 3
    monkeypatch.setattr("geopixel.tiling.SUPERS_AT_ONCE", 3)
    assert plan(area) == whole


@settings(max_examples=30, deadline=None)
@given(areas(), st.sampled_from(BEST))
def test_cores_are_disjoint_and_cover_every_supertile_and_every_pixel_of_the_area(area: Geometry, size: tuple[float, int]) -> None:
    column0, row0, column1, row1 = survey_cells(area, GRID)
    assert [v % CELLS_PER_SUPER for v in (column0, row0, column1, row1)] == [0] * 4
    times = np.zeros((row1 - row0, column1 - column0), int)
    outside = times.astype(bool)
    for tile in plan(area, metres=size[0]):
        k = tile.size // CELL_SIZE
        at = np.s_[tile.row * k - row0 : (tile.row + 1) * k - row0, tile.column * k - column0 : (tile.column + 1) * k - column0]
        times[at] += 1
        outside[at] |= tile.decided == "outside"
    assert times.max() == 1
    supers = times.reshape(len(times) // CELLS_PER_SUPER, CELLS_PER_SUPER, -1, CELLS_PER_SUPER)
    assert (supers.all(axis=(1, 3)) == supers.any(axis=(1, 3))).all()
    shape = pixels(area)
    for row, column in np.ndindex(times.shape):
        if shape.intersects(square(CELL_SIZE, column0 + column, row0 + row, 0)):
            assert times[row, column] == 1
            assert not outside[row, column]


@settings(max_examples=30, deadline=None)
@given(areas(), st.sampled_from(BEST))
def test_cores_lie_in_their_tiles_on_multiples_of_their_size_and_in_one_block(area: Geometry, size: tuple[float, int]) -> None:
    tiles = plan(area, metres=size[0])
    for left, top, tile in zip(tiles.left.tolist(), tiles.top.tolist(), tiles, strict=True):
        assert (left % tile.size, top % tile.size) == (0, 0)
        assert (left // BLOCK_SIZE, top // BLOCK_SIZE) == ((left + tile.size - 1) // BLOCK_SIZE, (top + tile.size - 1) // BLOCK_SIZE)
        assert tile.geobox[HALO:-HALO, HALO:-HALO] == tile.core == GRID.geobox(left, top, tile.size, tile.size)


@settings(max_examples=30, deadline=None)
@given(areas(), areas())
def test_areas_that_overlap_give_equal_tiles_on_common_ground(one: Geometry, two: Geometry) -> None:
    def common(area: Geometry, other: Geometry) -> list[Tile]:
        shape = pixels(other)
        looked_at = (tile for tile in plan(area) if tile.decided != "outside")
        return [tile for tile in looked_at if shape.intersects(square(tile.size, tile.column, tile.row, HALO))]

    assert common(one, two) == common(two, one)
    part = one.intersection(two)  # the plan of a part is the restriction of the plan of the whole
    if part.area > 0:
        assert [tile for tile in plan(part) if tile.decided != "outside"] == common(one, part)


def test_tiles_that_only_see_the_area_in_their_halo_are_looked_at() -> None:
    grid = Grid("EPSG:3857", 1.0)
    back = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform
    for gap, tiles in ((HALO - 2, 4), (HALO + 2, 1)):  # a square that ends `gap` pixels before the corner of a super-tile
        west, south = back(8 * SUPER_SIZE + 1000, 9 * SUPER_SIZE + gap)
        east, north = back(9 * SUPER_SIZE - gap, 10 * SUPER_SIZE - 1000)
        assert len({(tile.left // SUPER_SIZE, tile.top // SUPER_SIZE) for tile in plan(box(west, south, east, north), grid)}) == tiles


def test_neighbours_are_near_in_the_order() -> None:
    tiles = [tile for tile in plan(box(85.4, 27.5, 85.6, 27.7)) if tile.decided != "outside"]
    steps = [np.hypot(a.left - b.left, a.top - b.top) / SUPER_SIZE for a, b in zip(tiles, tiles[1:], strict=False)]
    assert np.mean(steps) < 1
    supers = [(tile.left // SUPER_SIZE, tile.top // SUPER_SIZE) for tile in tiles]
    assert len(set(supers)) == 1 + sum(a != b for a, b in zip(supers, supers[1:], strict=False))  # no super-tile is entered twice


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:3857", "EPSG:4326", "EPSG:32718", "EPSG:2263"])
def test_any_crs_has_tiles_around_the_area(crs: str) -> None:
    lon, lat = {"EPSG:32718": (-75.0, -12.0), "EPSG:2263": (-74.0, 40.7)}.get(crs, (85.5, 27.6))
    grid = Grid(crs, 1e-5 if crs == "EPSG:4326" else 1.0)
    area = box(lon, lat, lon + 0.02, lat + 0.02)
    cores = shapely.union_all([tile.core.extent.to_crs("EPSG:4326").geom for tile in plan(area, grid, max_cloud=None) if tile.decided != "outside"])
    assert cores.buffer(1e-4).contains(area)
    assert cores.area < area.area + 4 * 0.02 * 0.06 + 4 * 0.06**2


def test_long_edges_stay_where_they_are_on_the_ground() -> None:
    west, south, east, north = area = (84.0, 27.5, 90.0, 27.51)
    column0, row0, column1, row1 = survey_cells(box(*area), GRID)
    project = Transformer.from_crs("EPSG:4326", GRID.crs, always_xy=True).transform
    along = np.linspace(west, east, 1001)
    x, y = project(np.concatenate([along, along]), np.repeat([south, north], 1001))
    for values, first, last in ((x, column0, column1), (-y, row0, row1)):
        cells = values / GRID.resolution / SUPER_SIZE
        margin = HALO / SUPER_SIZE
        assert first == CELLS_PER_SUPER * np.floor(cells.min() - margin)
        assert last == CELLS_PER_SUPER * np.floor(cells.max() + margin + 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"area": shapely.Polygon()}, "not empty"),
        ({"area": shapely.LineString([(85, 27), (86, 28)])}, "LineString"),
        ({"area": box(176.9, -0.1, 177.1, 0.1)}, "does not fit into EPSG:32645"),
        ({"survey": ground((0, 0, 4, 4))}, "must hold all"),
        ({"survey": ground((0, 0, 4, 4)).isel(x=[0, 2])}, "consecutive along x"),
        ({"survey": ground((0, 0, 4, 4)) * 100}, "0 to 100"),
        ({"max_cloud": 20}, "got 20"),
        ({"smallest_object": 0.0}, "must be positive"),
        ({"costs": {}}, "must take tiles of 512 pixels"),
        ({"costs": {512: 1.0, 700: 1.0}}, "700"),
    ],
)
def test_a_wrong_argument_is_refused_and_named(change: dict, told: str) -> None:
    area = box(85.5, 27.6, 85.51, 27.61)
    arguments = {"area": area, "grid": GRID, "survey": ground(survey_cells(area, GRID)), "smallest_object": 8.0, "ground_sample_distance": 1.0}
    arguments |= {"costs": ANY_SIZE} | change
    with pytest.raises(ValueError, match=told):
        plan_tiles(**arguments)


@pytest.mark.parametrize(
    ("metres", "distance", "size"), [(8, 0.1, 4096), (8, 0.2, 2048), (8, 0.3, 1024), (5, 0.3, 512), (4, 0.3, 512), (12, 0.6, 1024), (40, 10, 512)]
)
def test_the_smallest_object_spans_four_cells_of_the_mask(metres: float, distance: float, size: int) -> None:
    assert best_size(metres, distance, 256, ANY_SIZE) == size
    spans = {s: metres / ((s + 128) * distance / 256) >= 4 for s in TILE_SIZES}
    assert spans[size] or size == 512
    assert not any(spans[s] for s in TILE_SIZES if s > size)


@pytest.mark.parametrize(
    ("costs", "size"),
    [
        ({512: 1.0, 1024: 1.0, 2048: 1.0}, 2048),  # 4096 does not fit the model
        ({512: 1.0, 1024: 2.0, 2048: 8.0, 4096: 32.0}, 4096),  # no dearer than its quarters
        ({512: 1.0, 1024: 2.0, 2048: 8.0, 4096: 33.0}, 2048),
        ({512: 1.0, 1024: 4.1, 2048: 16.5, 4096: 70.0}, 512),
        ({512: 1.0}, 512),
    ],
)
def test_the_tile_sits_on_the_steps_of_the_models_cost(costs: dict[int, float], size: int) -> None:
    assert best_size(1000.0, 1.0, 256, costs) == size


def test_ground_without_data_or_under_clouds_makes_few_tiles() -> None:
    area = box(85.4, 27.5, 85.6, 27.7)
    survey = ground(survey_cells(area, GRID))
    for name, values, decided in (("valid", 0.0, "nodata"), ("cloud", 0.9, "cloud")):
        same = survey.assign({"valid": survey.valid * 0 + 1} | {name: survey.valid * 0 + values})
        tiles = plan_tiles(area, GRID, same, smallest_object=1.0, ground_sample_distance=1.0, costs=ANY_SIZE, max_cloud=0.5)
        assert {tile.decided for tile in tiles} == {decided}
        assert set(tiles.size.tolist()) == {SUPER_SIZE}


@pytest.mark.parametrize(
    ("prompts", "metres"),
    [
        (["building"], 8),
        (["buildings", "Trees"], 4),
        (["all Swimming Pools."], 5),
        (["lorries and buses"], 6),
        (["water"], 20),
        (["the road without cars"], 4),
        (["solar panels"], 2),
        (["people"], 2),
        (["libraries"], 8),
        (["carpet"], 8),
        (["crops", "forests"], 40),
        (["bare soil"], 40),
        (["soil"], 8),
    ],
)
def test_prompts_name_the_smallest_object(prompts: list[str], metres: float) -> None:
    assert smallest_object(prompts) == metres


def test_no_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        smallest_object([])


@pytest.mark.parametrize(
    ("crs", "resolution", "lat"),
    [
        ("EPSG:3857", 0.5, 60.0),
        ("EPSG:3857", 0.5, -33.0),
        ("EPSG:32618", 0.5, 41.0),
        ("EPSG:4326", 5e-6, 60.0),
        ("EPSG:2263", 1.0, 41.0),
        ("EPSG:3413", 2.0, 60.0),
    ],
)
def test_ground_sample_distance_squared_is_the_area_of_a_pixel(crs: str, resolution: float, lat: float) -> None:
    grid, at = Grid(crs, resolution), box(-74.1, lat - 0.1, -73.9, lat + 0.1)
    forward = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = forward.transform(-74.0, lat)
    half = 50 * resolution  # 100 x 100 pixels, measured on the ellipsoid
    corners = forward.transform([x - half, x + half, x + half, x - half], [y - half, y - half, y + half, y + half], direction="INVERSE")
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(*corners)
    assert ground_sample_distance(grid, at) == pytest.approx(np.sqrt(area) / 100, rel=1e-4)


def scene(*sources: tuple[str | None, float | None, float | None], at: tuple[float, float] = (85.5, 27.6)) -> Scene:
    lon, lat = at
    footprint = box(lon - 0.1, lat - 0.1, lon + 0.1, lat + 0.1)
    return Scene("c", "2020-01-01", tuple(Source(str(i), footprint, (Asset("a.tif", (1, 2, 3)),), *source) for i, source in enumerate(sources)))


@pytest.mark.parametrize(
    ("scenes", "crs", "resolution", "expected"),
    [
        ([scene(("EPSG:32645", 0.6, 0.6), ("EPSG:32645", 0.3, 0.3), ("EPSG:32644", 0.1, 0.1))], None, None, Grid("EPSG:32645", 0.3)),
        ([scene(("EPSG:32645", 0.6, None)), scene(("EPSG:32644", 0.5, None))], None, None, Grid("EPSG:32644", 0.5)),
        ([scene(("EPSG:4326", 1e-5, None), ("EPSG:4326", 1e-5, None), ("EPSG:3857", 0.1492910708693671, None))], None, None, Grid("EPSG:3857", 0.149291)),
        ([scene((None, None, 0.3))], None, None, Grid("EPSG:32645", 0.3)),
        ([scene((None, None, 0.3), at=(-70.0, -33.0))], None, None, Grid("EPSG:32719", 0.3)),
        ([scene((None, None, 0.3), at=(0.0, 60.0))], "epsg:3857", None, Grid("EPSG:3857", 0.6)),
        ([scene(("EPSG:3857", 0.6, None), at=(85.5, 60.0))], "EPSG:32645", None, Grid("EPSG:32645", 0.3)),
        ([scene(("EPSG:32645", 0.3, None))], None, 1.5, Grid("EPSG:32645", 1.5)),
        ([], "EPSG:2154", 0.2, Grid("EPSG:2154", 0.2)),
    ],
)
def test_the_grid_is_what_was_said_and_else_what_the_scenes_are(scenes: list[Scene], crs: str | None, resolution: float | None, expected: Grid) -> None:
    grid = choose_grid(scenes, crs, resolution)
    assert grid.crs == expected.crs
    assert grid.resolution == pytest.approx(expected.resolution, rel=5e-3 if scenes and scenes[0].sources[0].crs != grid.crs else 1e-9)


def test_a_gsd_makes_pixels_of_that_size_on_the_ground() -> None:
    for crs in ("EPSG:3857", "EPSG:4326", "EPSG:32645", "EPSG:24379"):
        scenes = [scene((None, None, 0.4))]
        grid = choose_grid(scenes, crs, None)
        assert ground_sample_distance(grid, scenes[0].sources[0].footprint) == pytest.approx(0.4, rel=5e-3)


@pytest.mark.parametrize(
    ("scenes", "crs", "resolution", "told"),
    [
        ([scene(("EPSG:32645", None, None))], None, None, "pass --resolution"),
        ([], None, 0.3, "pass --crs"),
        ([scene(("EPSG:32645", 0.3, None))], "EPSG:99999", None, "EPSG:99999"),
        ([scene(("EPSG:32645", 0.3, None))], "EPSG:4978", None, "EPSG:4978"),
        ([scene(("EPSG:32645", 0.3, None))], None, -1.0, "-1.0"),
    ],
)
def test_a_grid_that_nobody_knows_is_refused(scenes: list[Scene], crs: str | None, resolution: float | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        choose_grid(scenes, crs, resolution)
