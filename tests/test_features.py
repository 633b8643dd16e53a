"""Laws: areas are those of the ground; the same object is the same row in every run; equal input gives equal bytes; nothing found is still a file;
neighbours that share an edge go on sharing it; and what the options draw is what they promise."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer
from shapely import affinity

from geopixel.features import ROWS_PER_GROUP, SCHEMA, Origin, Outline, build_features, encode, load_parts, parts_states, store_parts
from geopixel.features.rings import Rings, join, measure, project
from geopixel.features.squaring import square
from geopixel.polygonize import PARTS, stitch, trace_block
from geopixel.storage import Folder
from geopixel.types import CONFIDENCE_LEVELS, Asset, Block, Grid, Scene, Source

GRID = Grid("EPSG:32645", 0.5)
PROMPTS = ["building", "swimming pool"]
LEFT, TOP = 2 * 331_000, -2 * 3_050_000  # near the middle of the zone's west
RGB = (Asset("scene.tif", (1, 2, 3)),)
EARTH = shapely.box(-180, -90, 180, 90)
SCENES = (
    Scene("naip", "2021-07-02", (Source("new", EARTH, RGB, gsd=0.3, datetime="2021-07-02T18:00:00+02:00"), Source("dateless", EARTH, RGB))),
    Scene("naip", "2019-05-30", (Source("old", EARTH, RGB, datetime="2019-05-30T10:00:00Z"),)),
)
GEOD = Geod(ellps="WGS84")


def noise(share: float = 0.6, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.random((2, size, size)) < share).astype(np.uint8), rng.integers(0, CONFIDENCE_LEVELS + 1, (2, size, size), np.uint8)


def build(
    mask: np.ndarray, levels: np.ndarray, *, grid: Grid = GRID, left: int = LEFT, top: int = TOP, square: int = 16384, planes: Any = None, **outline: Any
) -> pa.Table:
    """The features of a mask whose first pixel is left and top, all prompts drawn alike. Where square is small, left and top are multiples of it."""
    corners = [(y, x) for y in range(0, mask.shape[1], square) for x in range(0, mask.shape[2], square)]
    windows = [np.s_[:, y : y + square, x : x + square] for y, x in corners]
    blocks = [
        trace_block(mask[window], levels[window], left=left + x, top=top + y, **(planes or {})) for window, (y, x) in zip(windows, corners, strict=True)
    ]
    objects = stitch(pa.concat_tables(blocks), square)
    origin = Origin(grid, SCENES, grid.resolution, "nano", "ab" * 32, "run-1")
    return build_features(objects, {prompt: Outline(**outline) for prompt in PROMPTS[: len(mask)]}, origin)


def polygons_of(features: pa.Table) -> np.ndarray:
    return shapely.from_wkb(features["geometry"].to_numpy(zero_copy_only=False))


def in_pixels(features: pa.Table, grid: Grid = GRID) -> np.ndarray:
    """The polygons, as pixels counted from LEFT and TOP, to a millionth of one."""
    back = Transformer.from_crs("OGC:CRS84", grid.crs, always_xy=True)

    def transform(points: np.ndarray) -> np.ndarray:
        x, y = back.transform(*points.T)
        return np.round(np.stack((x / grid.resolution - LEFT, -y / grid.resolution - TOP), axis=1), 5)

    return shapely.transform(polygons_of(features), transform)


def pixels_in(polygons: np.ndarray, size: int = 64) -> np.ndarray:
    """How many of the polygons the centre of each pixel lies in."""
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    pixel, _ = shapely.STRtree(polygons).query(shapely.points(columns.ravel(), rows.ravel()), predicate="within")
    return np.bincount(pixel, minlength=size * size).reshape(size, size)


def test_features_cover_the_mask_pixel_by_pixel() -> None:
    mask, levels = noise()
    features = build(mask, levels)
    assert features.schema == SCHEMA
    polygons = in_pixels(features)
    assert shapely.is_valid(polygons_of(features)).all()
    assert all(polygon.exterior.is_ccw for polygon in polygons_of(features))
    for index, prompt in enumerate(PROMPTS):
        of_prompt = features["prompt"].to_numpy(zero_copy_only=False) == prompt
        np.testing.assert_array_equal(pixels_in(polygons[of_prompt]), mask[index])
        for polygon, score in zip(polygons[of_prompt], features["score"].to_numpy()[of_prompt], strict=True):
            inside = pixels_in(np.array([polygon])) > 0
            assert score == pytest.approx(levels[index][inside].mean() / CONFIDENCE_LEVELS)


def test_areas_and_perimeters_are_those_of_geographiclib() -> None:
    mask, levels = noise()
    mask[0, 10:30, 10:30] = 1
    mask[0, 15:20, 15:20] = 0  # a hole
    features = build(mask, levels)
    measured = np.array([GEOD.geometry_area_perimeter(polygon) for polygon in polygons_of(features)])
    np.testing.assert_allclose(features["area_m2"], measured[:, 0], rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(features["perimeter_m"], measured[:, 1], rtol=1e-6)


@example(latitude=3.0, longitude=-180.0, size=1.0, turn=1.0, hole=False)
@settings(max_examples=40, deadline=None)
@given(st.floats(-80, 80), st.floats(-180, 180), st.floats(1, 3e5), st.floats(0, 90), st.booleans())
def test_measures_of_any_ring_are_those_of_geographiclib(latitude: float, longitude: float, size: float, turn: float, hole: bool) -> None:
    """Anywhere, over the antimeridian too, and of any size."""
    degrees = size / 111_000
    corners = shapely.get_coordinates(affinity.rotate(shapely.box(0, 0, degrees, degrees / 3), turn, origin=(0, 0)))
    corners[:, 0] = (corners[:, 0] / np.cos(np.radians(latitude)) + longitude + 180) % 360 - 180
    corners[:, 1] = np.clip(corners[:, 1] + latitude, -89, 89)
    corners = corners[:: -1 if hole else 1]
    area, length = measure(Rings(corners, np.array([0, 5]), np.array([0, 1])))
    expected = GEOD.polygon_area_perimeter(*corners.T)
    np.testing.assert_allclose((area[0], length[0]), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("latitude", [-70, 0, 28, 60, 85])
@pytest.mark.parametrize("size", [3, 30, 500])
def test_small_areas_are_those_of_an_equal_area_map(latitude: float, size: float) -> None:
    """GeographicLib is good to 1e-4 m2 only, which is much of a small roof."""
    house = affinity.rotate(shapely.box(20, latitude, 20 + size / 111_000 / np.cos(np.radians(latitude)), latitude + size / 111_000), 30)
    laea = Transformer.from_crs("OGC:CRS84", f"+proj=laea +lat_0={latitude} +lon_0=20 +ellps=WGS84", always_xy=True)
    expected = shapely.transform(house, laea.transform, interleaved=False).area
    assert measure(Rings.from_shapely(np.array([house])))[0][0] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("crs", "resolution", "x", "y"),
    [
        ("EPSG:32645", 0.3, 331_000, 3_050_000),
        ("EPSG:32733", 10, 800_000, 1_500_000),
        ("EPSG:3857", 0.6, 1.1e6, 9e6),
        ("EPSG:4326", 1e-5, 179.97, 70),
        ("EPSG:2056", 0.25, 2.6e6, 1.2e6),
        ("EPSG:3413", 10, -1.5e6, 1e6),
        ("EPSG:3413", 10, 0, 0),  # the pole: no polynomial there
        ("EPSG:32601", 0.5, 160_000, 7.5e6),
    ],
)
def test_points_are_where_proj_puts_them(crs: str, resolution: float, x: float, y: float) -> None:
    points = np.random.default_rng(0).integers(-6000, 6000, (3000, 2)) + np.floor([x / resolution, -y / resolution])
    expected = np.stack(Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(*(points * (resolution, -resolution)).T), axis=1)
    off = np.abs(project(points, Grid(crs, resolution)) - expected)
    off[:, 0] = np.minimum(off[:, 0], 360 - off[:, 0])
    assert off.max() < 1e-9
    np.testing.assert_array_equal(project(points[:5], Grid(crs, resolution)), project(points, Grid(crs, resolution))[:5])  # whatever else is asked


def test_rings_go_to_wkb_and_back() -> None:
    mask, levels = noise(0.8)
    geometry = stitch(trace_block(mask, levels, left=3, top=-4))["geometry"].combine_chunks()
    rings = Rings.from_wkb(geometry)
    assert rings.to_wkb(np.arange(len(rings))).equals(geometry)
    assert rings.to_wkb(np.array([4, 0])).equals(geometry.take(pa.array([4, 0])))
    polygons = rings.to_shapely()
    np.testing.assert_array_equal(polygons, shapely.from_wkb(geometry.to_numpy(zero_copy_only=False)))
    np.testing.assert_array_equal(rings.bounds, shapely.bounds(polygons))
    some = np.array([4, 0, 2])
    np.testing.assert_array_equal(join([rings.take(some), rings]).to_shapely(), np.concatenate((polygons[some], polygons)))
    assert shapely.equals(rings.drop(~rings.outer).to_shapely(), shapely.polygons(shapely.get_exterior_ring(polygons))).all()


def test_what_is_known_of_a_feature() -> None:
    """Its items, the newest of them, the model's score, and whether there may be more of it."""
    mask = np.zeros((1, 4, 12), np.uint8)
    mask[0, 1:3, 0:3] = mask[0, 1:3, 4:7] = mask[0, 1:3, 8:11] = 1
    scene = np.zeros((4, 12), np.uint16)
    scene[:, 5:] = 2
    scene[:, 9:] = 1
    edge = np.zeros((4, 12), bool)
    edge[2, 0] = True
    scores = np.array([[[0.5, np.nan, 0.25]]], np.float32)
    features = build(mask, mask, planes={"scene": scene, "edge": edge, "scores": scores}).to_pylist()
    features.sort(key=lambda one: one["bbox"]["xmin"])
    assert [one["scene_ids"] for one in features] == [["new"], ["new", "old"], ["dateless", "old"]]
    taken = datetime(2021, 7, 2, 16, tzinfo=UTC)
    assert [one["datetime"] for one in features] == [taken, taken, datetime(2021, 7, 2, tzinfo=UTC)]
    assert [one["gsd_m"] for one in features] == [pytest.approx(0.3), pytest.approx(0.3), 0.5]
    assert [one["mask_score"] for one in features] == [0.5, None, 0.25]
    assert [one["touches_edge"] for one in features] == [True, False, False]
    for one in features:
        assert (one["prompt"], one["phrase"], one["model"], one["weights_sha256"], one["run_id"]) == ("building", "building", "nano", "ab" * 32, "run-1")
        assert one["part_of"] is None


def test_small_features_are_left_out() -> None:
    mask, levels = noise(0.5)
    every, large = build(mask, levels), build(mask, levels, min_area=2)
    assert large.equals(every.filter(pa.array(every["area_m2"].to_numpy() >= 2)))
    assert 0 < len(large) < len(every)
    with pytest.raises(ValueError, match="min_area must not be negative, got -1"):
        build(mask, levels, min_area=-1)


def test_ids_are_unique_and_the_same_in_another_run() -> None:
    mask, levels = noise()
    features = build(mask, levels)
    assert len(set(features["id"].to_pylist())) == len(features)
    rim = ((0, 0), (0, 0), (10, 10))
    assert build(np.pad(mask, rim), np.pad(levels, rim), left=LEFT - 10).equals(features)
    for other in (
        build(mask, levels, grid=Grid("EPSG:32644", 0.5)),
        build(mask, levels, planes={"scene": np.ones(mask.shape[1:], np.uint16)}),  # another day's
    ):
        assert set(other["id"].to_pylist()).isdisjoint(features["id"].to_pylist())


def test_parts_of_an_endless_thing_have_its_id() -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, :, 30:34] = mask[0, 20:24, :] = 1
    mask[0, 0:5, 0:5] = 1
    features = build(mask, mask, left=32 * (LEFT // 32), top=32 * (TOP // 32), square=32).to_pylist()
    parts = [one for one in features if one["part_of"] is not None]
    assert (len(features), len(parts)) == (5, 4)
    places = {tuple(map(int, reversed(one["id"].split("_")[1:]))): one["id"] for one in parts}
    assert {one["part_of"] for one in parts} == {places[min(places)]}, "the part that the first pixel is in"
    assert shapely.union_all(polygons_of(pa.Table.from_pylist(parts, SCHEMA))).geom_type == "Polygon"


@pytest.mark.parametrize("share", [0, 0.6], ids=["nothing found", "noise"])
def test_geoparquet_round_trip(tmp_path: Path, share: float) -> None:
    features = build(*noise(share))
    stored = encode(features)
    assert pq.read_table(BytesIO(stored)).replace_schema_metadata().equals(features)
    loaded = gpd.read_parquet(BytesIO(stored))
    assert loaded.crs == "OGC:CRS84"
    assert len(loaded) == len(features)
    np.testing.assert_array_equal(shapely.bounds(loaded.geometry.to_numpy()), [list(box.values()) for box in features["bbox"].to_pylist()] or np.zeros((0, 4)))
    assert encode(build(*noise(share))) == stored


def test_a_box_reads_few_row_groups(tmp_path: Path) -> None:
    mask = (np.indices((150, 150)).sum(0) % 2)[None].repeat(2, 0).astype(np.uint8)
    features = build(mask, mask)
    (tmp_path / "features.parquet").write_bytes(encode(features))
    metadata = pq.ParquetFile(tmp_path / "features.parquet").metadata
    assert metadata.num_row_groups == -(-len(features) // ROWS_PER_GROUP) == 3
    every = gpd.read_parquet(tmp_path / "features.parquet")
    west, south, east, north = every.total_bounds
    box = (west, north - (north - south) / 10, west + (east - west) / 10, north)
    columns = [metadata.row_group(0).column(index).path_in_schema for index in range(metadata.num_columns)]
    xmin, ymin, xmax, ymax = (columns.index(f"bbox.{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    touched = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        low, high = ([group.column(side).statistics.min for side in (xmin, ymin)], [group.column(side).statistics.max for side in (xmax, ymax)])
        touched += low[0] <= box[2] and low[1] <= box[3] and high[0] >= box[0] and high[1] >= box[1]
    assert touched == 1
    assert len(gpd.read_parquet(tmp_path / "features.parquet", bbox=box)) == every.intersects(shapely.box(*box)).sum()


def test_what_crosses_the_antimeridian_is_cut_there() -> None:
    grid = Grid("EPSG:32601", 10)
    left, top = (round(value) for value in Transformer.from_crs("OGC:CRS84", grid.crs, always_xy=True).transform(179.99, 65))
    mask = np.ones((1, 8, 200), np.uint8)
    features = build(mask, mask, grid=grid, left=left // 10, top=-top // 10)
    (polygon,) = polygons_of(features)
    assert polygon.geom_type == "MultiPolygon"
    assert polygon.is_valid
    assert all(part.exterior.is_ccw for part in polygon.geoms)
    sides = sorted((part.bounds[0], part.bounds[2]) for part in polygon.geoms)
    assert sides[0][0] == -180
    assert sides[1][1] == 180
    assert sides[0][1] < -179.9 < 179.9 < sides[1][0]
    assert sum(GEOD.geometry_area_perimeter(part)[0] for part in polygon.geoms) == pytest.approx(features["area_m2"][0].as_py(), rel=1e-5)
    loaded = gpd.read_parquet(BytesIO(encode(features)))
    assert loaded.geometry.iloc[0].equals(polygon)


def test_small_holes_are_filled_with_what_lies_in_them() -> None:
    mask = np.ones((1, 40, 40), np.uint8)
    mask[0, 5:15, 5:15] = 0  # 25 m2, an island of 4 m2 in it
    mask[0, 8:12, 8:12] = 1
    mask[0, 20:24, 20:24] = 0  # 4 m2
    mask[0, 30:39, 30:39] = 0  # 20 m2, an island of 1 m2 in it
    mask[0, 33:35, 33:35] = 1
    levels = np.ones_like(mask)
    areas = [sorted(round(area, 1) for area in build(mask, levels, fill_holes=limit)["area_m2"].to_pylist()) for limit in (0, 5, 22, 30)]
    scale = build(np.ones_like(mask), levels)["area_m2"][0].as_py() / 400
    assert areas == [[round(area * scale, 1) for area in each] for each in ([1, 4, 350.75], [1, 4, 354.75], [4, 375], [400])]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3))
def test_simplified_neighbours_share_their_edges(seed: int, tolerance: float) -> None:
    """What was cut apart has no gap and no overlap at the cut, and nothing overlaps anywhere; what is left lies near what was there."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((1, 16, 16)) < 0.62, np.ones((1, 4, 4), np.uint8)) * (rng.random((1, 64, 64)) < 0.97)
    mask = mask.astype(np.uint8)
    exact = build(mask, mask, left=32 * (LEFT // 32), top=32 * (TOP // 32), square=32)
    drawn = build(mask, mask, left=32 * (LEFT // 32), top=32 * (TOP // 32), square=32, simplify=tolerance)
    assert sorted(drawn["id"].to_pylist()) == sorted(exact["id"].to_pylist())
    before, after = in_pixels(exact), in_pixels(drawn)
    assert shapely.is_valid(after).all()
    if tolerance > 1.5:  # three pixels: corners at the ends of shared edges, which neighbours need, are outnumbered
        assert shapely.get_num_coordinates(after).sum() < shapely.get_num_coordinates(before).sum()
    assert shapely.area(after).sum() == pytest.approx(shapely.area(shapely.union_all(after, grid_size=1e-4)), abs=0.5)
    # A cut leaves no sliver: as many pieces as there were wholes, before and after.
    pieces = [shapely.get_parts(shapely.union_all(shapely.buffer(each, 1e-3))) for each in (before, after)]
    assert len(pieces[1]) <= len(pieces[0])
    holes = [shapely.get_num_interior_rings(each).sum() for each in pieces]
    assert holes[1] <= holes[0]


def burn(polygon: shapely.Geometry, size: int) -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    return shapely.contains_xy(polygon, columns, rows)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 90), st.floats(14, 50), st.floats(14, 50), st.booleans())
@example(51.0, 14.0, 14.0, False)  # so small that the steps of the pixels hide where its walls run
def test_buildings_get_right_angles(turn: float, width: float, height: float, is_an_l: bool) -> None:
    """The outline of a raster building is turned back into the building: four or six walls, nearer to the truth than the pixels."""
    truth = shapely.box(0, 0, width, height)
    if is_an_l:
        truth = truth.difference(shapely.box(width / 2, height / 2, width, height))
    truth = affinity.translate(affinity.rotate(truth, turn), 25, 25)
    traced = stitch(trace_block(burn(truth, 100)[None], np.ones((1, 100, 100), np.uint8), left=0, top=0))
    pixels = shapely.from_wkb(traced["geometry"].to_numpy(zero_copy_only=False))
    drawn = square(pixels)[np.argmax(shapely.area(pixels))]
    steps = np.diff(shapely.get_coordinates(drawn), axis=0)
    assert np.abs((steps * np.roll(steps, 1, axis=0)).sum(axis=1)).max() < 1e-6 * shapely.area(drawn) or len(steps) > 12
    assert shapely.area(shapely.intersection(drawn, truth)) / shapely.area(shapely.union(drawn, truth)) > 0.85


def test_squares_of_noise_do_not_overlap_and_what_has_no_corners_stays() -> None:
    mask, levels = noise(0.45)
    polygons = polygons_of(stitch(trace_block(mask[:1], levels[:1], left=0, top=0)))
    drawn = square(polygons)
    assert shapely.is_valid(drawn).all()
    assert shapely.area(drawn).sum() == pytest.approx(shapely.area(shapely.union_all(drawn)))
    disc = shapely.Point(0, 0).buffer(30, quad_segs=64)
    assert len(square(np.array([], dtype=object))) == 0
    assert shapely.area(square(np.array([disc]))[0]) == pytest.approx(disc.area, rel=0.1)


def test_parts_keep_what_they_were_made_from(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    one, other = Block(GRID, -3, 7), Block(GRID, 0, 0)
    assert parts_states(folder, one) is None
    mask, levels = noise(size=16)
    parts = trace_block(mask, levels, left=one.left, top=one.top)
    store_parts(folder, one, parts, "512_1_2 ok, 512_1_3 failed")
    store_parts(folder, other, PARTS.empty_table(), "512_9_9 nodata")
    assert parts_states(folder, one) == "512_1_2 ok, 512_1_3 failed"
    assert load_parts(folder, [one, other]).equals(parts)
    with pytest.raises(FileNotFoundError):
        load_parts(folder, [Block(GRID, 5, 5)])
    stored = folder.list("parts")
    before = [folder.get(path) for path in stored]
    store_parts(folder, one, pa.Table.from_batches(parts.to_batches()), "512_1_2 ok, 512_1_3 failed")
    assert [folder.get(path) for path in stored] == before
