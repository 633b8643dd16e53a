"""Oracles of the area: shapely for what polygons make together, pyproj for places in other CRSs, the closed formula of an
ellipsoidal zone for square kilometres."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from shapely import Geometry

from geopixel.aoi import area_km2, read_area

SQUARE = shapely.box(85.5, 27.6, 85.6, 27.7)


def quiet(line: str) -> None:
    raise AssertionError(f"warned: {line}")


def refusal(text: str | Path) -> str:
    with pytest.raises(ValueError, match="^area ") as refused:
        read_area(str(text), quiet)
    message = str(refused.value)
    assert "\n" not in message
    return message


def save(path: Path, *geometries: Geometry | None, crs: int | None = 4326, **options: str) -> Path:
    frame = geopandas.GeoDataFrame(geometry=list(geometries), crs=crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **options)
    return path


@pytest.mark.parametrize("text", ["85.5,27.6,85.6,27.7", "85.5 27.6 85.6 27.7", " 85.5, 27.6, 85.6, 27.7 ", SQUARE.wkt, f"\n{shapely.force_3d(SQUARE).wkt}"])
def test_a_box_and_wkt(text: str) -> None:
    area = read_area(text, quiet)
    assert area.equals(SQUARE)
    assert not area.has_z


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".parquet"])
@pytest.mark.parametrize("crs", [4326, 4269, 32645, 3857])
def test_the_same_area_from_any_file_and_crs(tmp_path: Path, suffix: str, crs: int) -> None:
    # Curved where the CRS is not geographic: many vertices, so that the oracle's straight steps are short.
    drawn = shapely.transform(shapely.segmentize(SQUARE, 0.002), Transformer.from_crs(4326, crs, always_xy=True).transform, interleaved=False)
    area = read_area(str(save(tmp_path / f"a{suffix}", drawn, crs=crs)), quiet)
    assert area.is_valid
    assert shapely.hausdorff_distance(area, SQUARE) < 1e-8


def test_a_straight_edge_in_utm_stays_where_it_was(tmp_path: Path) -> None:
    drawn = shapely.box(300_000, 3_000_000, 350_000, 3_050_000)
    area = read_area(str(save(tmp_path / "a.gpkg", drawn, crs=32645)), quiet)
    back = shapely.transform(shapely.segmentize(area, 0.01), Transformer.from_crs(4326, 32645, always_xy=True).transform, interleaved=False)
    assert shapely.hausdorff_distance(back, drawn, densify=0.01) < 0.1  # metres; four corners alone are 49 m off


def test_all_layers_and_features_are_joined(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gpkg", shapely.box(0, 0, 2, 1), shapely.box(1, 0, 3, 1), layer="one")
    save(path, shapely.box(5, 5, 6, 6), layer="two")
    pyogrio.write_dataframe(pd.DataFrame({"no": ["geometry"]}), path, layer="three", append=True)
    area = read_area(str(path), quiet)
    assert area.equals(shapely.union_all([shapely.box(0, 0, 3, 1), shapely.box(5, 5, 6, 6)]))


@given(st.lists(st.tuples(*[st.integers(-20, 20)] * 4), min_size=1, max_size=6))
def test_union_of_boxes_is_that_of_their_cells(corners: list[tuple[int, int, int, int]]) -> None:
    """Degree cells counted on a raster: overlap counts once, whether the parts come valid or not."""
    boxes, cells = [], np.zeros((40, 40), bool)
    for a, b, c, d in corners:
        west, east, south, north = min(a, b), max(a, b), min(c, d), max(c, d)
        if west < east and south < north:
            boxes.append(shapely.box(west, south, east, north))
            cells[south + 20 : north + 20, west + 20 : east + 20] = True
    if boxes:
        area = read_area(shapely.MultiPolygon(boxes).wkt, lambda line: None)
        assert area.is_valid
        assert area.area == pytest.approx(cells.sum())


def test_a_box_across_the_antimeridian_is_two() -> None:
    area = read_area("179,-1,-178,1", quiet)
    assert area.equals(shapely.union_all([shapely.box(179, -1, 180, 1), shapely.box(-180, -1, -178, 1)]))
    assert area_km2(area) == pytest.approx(area_km2(read_area("10,-1,13,1", quiet)))
    assert read_area("179,-1,-180,1", quiet).equals(shapely.box(179, -1, 180, 1))


def test_an_area_across_the_antimeridian_is_cut(tmp_path: Path) -> None:
    """100 km x 100 km on the 180th meridian, in the projected CRS of Fiji."""
    x, y = Transformer.from_crs(4326, 3460, always_xy=True).transform(180, -17)
    area = read_area(str(save(tmp_path / "a.parquet", shapely.box(x - 50_000, y - 50_000, x + 50_000, y + 50_000), crs=3460)), quiet)
    assert len(shapely.get_parts(area)) == 2
    assert area_km2(area) == pytest.approx(10_000, rel=0.001)
    assert area.contains(shapely.Point(179.8, -17))
    assert not area.intersects(shapely.Point(0, -17))


def test_an_area_around_a_pole(tmp_path: Path) -> None:
    area = read_area(str(save(tmp_path / "a.gpkg", shapely.box(-1e5, -1e5, 1e5, 1e5), crs=3031)), quiet)
    assert area.bounds[:2] == (-180, -90)
    assert area_km2(area) == pytest.approx(200**2, rel=0.1)  # the projection is true to scale at 71 S


@pytest.mark.parametrize("wkt", ["POLYGON((170 40,-170 40,-170 50,170 50,170 40))", "POLYGON((170 40,190 40,190 50,170 50,170 40))"])
def test_an_edge_across_the_antimeridian_goes_the_short_way_and_is_told(wkt: str) -> None:
    said: list[str] = []
    area = read_area(wkt, said.append)
    assert "cut at the antimeridian" in said[0]
    assert area.equals(shapely.union_all([shapely.box(170, 40, 180, 50), shapely.box(-180, 40, -170, 50)]))
    band = "POLYGON((-180 40,180 40,180 50,-180 50,-180 40))"
    assert read_area(band, quiet).bounds == (-180, 40, 180, 50)


@pytest.mark.parametrize(
    ("wkt", "reason", "expected"),
    [
        ("POLYGON((0 0,2 2,2 0,0 2,0 0))", "Self-intersection[1 1]", 2.0),
        ("MULTIPOLYGON(((0 0,2 0,2 2,0 2,0 0)),((1 0,3 0,3 2,1 2,1 0)))", "Self-intersection", 6.0),
        ("POLYGON((0 0,4 0,4 4,2 4,2 -1,6 -1,6 3,0 3,0 0))", "Self-intersection", 24.0),
        ("POLYGON((0 0,4 0,4 4,0 4,0 0),(5 5,6 5,6 6,5 5))", "Hole lies outside shell", None),
    ],
)
def test_invalid_geometry_is_repaired_and_told(wkt: str, reason: str, expected: float | None) -> None:
    said: list[str] = []
    area = read_area(wkt, said.append)
    assert len(said) == 1
    assert reason in said[0]
    assert area.is_valid
    assert expected is None or area.area == expected


def test_an_open_ring_is_closed_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}')
    said: list[str] = []
    assert read_area(str(path), said.append).equals(shapely.box(0, 0, 1, 1))
    assert len(said) == 1


def test_parts_without_area_are_left_out_and_told() -> None:
    said: list[str] = []
    area = read_area(f"GEOMETRYCOLLECTION(POINT(0 0),GEOMETRYCOLLECTION({SQUARE.wkt},LINESTRING(0 0,1 1)))", said.append)
    assert area.equals(SQUARE)
    assert said == [line for line in said if "left out 2 of 3 parts" in line]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("missing.geojson", "'missing.geojson' is no file"),
        ("", "'' is no file"),
        ("town " * 2000, "..."),
        ("1,2,3", "four numbers"),
        ("0,0,nan,1", "longitude nan"),
        ("0,0,inf,1", "longitude inf"),
        ("0,1,1,1", "has no area"),
        ("1,0,1,1", "has no area"),
        ("0,2,1,1", "has no area"),
        ("180,0,-180,1", "has no area"),
        ("190,0,200,1", "longitude 190"),
        ("27,-95,28,-91", "latitude -95"),
        ("POINT(1 1)", "has no area: it holds Point"),
        ("LINESTRING(0 0,1 1)", "has no area: it holds LineString"),
        ("POLYGON((0 0,1 1,2 2,0 0))", "has no area: it holds Polygon"),
        ("POLYGON EMPTY", "no features"),
        ("POLYGON((0 0,1 0", "not readable as WKT"),
        ("CURVEPOLYGON(CIRCULARSTRING(0 0,1 1,2 0,1 -1,0 0))", "not readable as WKT"),
        ("POLYGON((0 0,1 0,nan 1,0 0))", "not finite"),
        ("POLYGON((170 0,390 0,390 9,170 0))", "longitude 390"),
    ],
)
def test_what_is_no_area_is_refused(text: str, reason: str) -> None:
    assert reason in refusal(text)


def test_files_that_hold_no_area_are_refused(tmp_path: Path) -> None:
    for name, content, reason in [
        ("empty.geojson", "", "is an empty file"),
        ("garbage.geojson", "hello", "cannot be read"),
        ("cut.geojson", '{"type": "Polygon", "coord', "cannot be read"),
        ("garbage.parquet", "hello", "cannot be read"),
        ("none.geojson", '{"type": "FeatureCollection", "features": []}', "no features"),
        ("null.geojson", '{"type": "Feature", "geometry": null, "properties": {}}', "no features"),
        ("nan.geojson", '{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 1], [0, 0]]]}', "not finite"),
    ]:
        (tmp_path / name).write_text(content)
        message = refusal(tmp_path / name)
        assert reason in message
        assert name in message
    assert "is no file" in refusal(tmp_path)
    pd.DataFrame({"no": ["geometry"]}).to_parquet(tmp_path / "plain.parquet")
    assert "cannot be read" in refusal(tmp_path / "plain.parquet")
    assert "has no area" in refusal(save(tmp_path / "points.gpkg", shapely.Point(1, 1)))
    assert "cannot be brought from" in refusal(save(tmp_path / "far.parquet", shapely.box(1e30, 1e30, 2e30, 2e30), crs=32645))


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_file_without_crs_is_refused(tmp_path: Path) -> None:
    assert "no coordinate reference system" in refusal(save(tmp_path / "a.gpkg", SQUARE, crs=None))
    assert "no coordinate reference system" in refusal(save(tmp_path / "a.parquet", SQUARE, crs=None))
    undefined = save(tmp_path / "b.gpkg", SQUARE)
    with sqlite3.connect(undefined) as tables:  # -1: undefined Cartesian (GeoPackage 1.4, table 3)
        tables.execute("UPDATE gpkg_geometry_columns SET srs_id = -1")
        tables.execute("UPDATE gpkg_contents SET srs_id = -1")
    assert "no coordinate reference system" in refusal(undefined)


def zone_km2(south: float, north: float, width: float) -> float:
    """Area of the WGS 84 ellipsoid between two parallels, width in degrees (Snyder 1987, USGS Professional Paper 1395, eq. 3-12)."""
    a, e = 6378.137, math.sqrt(0.0066943799901413165)

    def q(latitude: float) -> float:
        s = math.sin(math.radians(latitude))
        return (1 - e * e) * (s / (1 - e * e * s * s) - math.log((1 - e * s) / (1 + e * s)) / (2 * e))

    return a * a / 2 * (q(north) - q(south)) * math.radians(width)


@given(st.floats(-179, 179), st.floats(-89, 89), st.floats(0.01, 170), st.floats(0.01, 80))
def test_square_kilometres_of_a_box(west: float, south: float, width: float, height: float) -> None:
    east, north = min(west + width, 180), min(south + height, 90)
    assert area_km2(shapely.box(west, south, east, north)) == pytest.approx(zone_km2(south, north, east - west), rel=1e-5)


def test_square_kilometres_do_not_depend_on_winding_and_leave_holes_out() -> None:
    whole, hole = shapely.box(0, 0, 4, 4), shapely.box(1, 1, 2, 2)
    pierced = shapely.Polygon(whole.exterior, [hole.exterior])
    assert area_km2(pierced) == pytest.approx(area_km2(whole) - area_km2(hole))
    assert area_km2(pierced.reverse()) == pytest.approx(area_km2(pierced))


@pytest.mark.parametrize(("country", "km2"), [("CHE", 41_285), ("LSO", 30_355), ("NZL", 268_021), ("FJI", 18_272)])
def test_country_outlines(shared: Path, country: str, km2: float) -> None:
    """Areas as the countries publish them; the outlines are drawn at 1:10 million."""
    area = read_area(str(shared / f"aoi/{country}.geojson"), quiet)
    assert area.is_valid
    assert area_km2(area) == pytest.approx(km2, rel=0.05)


def test_antimeridian_cases_are_read_or_refused(shared: Path) -> None:
    """Wild polygons across the antimeridian and around poles: a valid area or a ValueError, nothing else."""
    read = 0
    for path in sorted((shared / "aoi/antimeridian/input").glob("*.json")):
        try:
            area = read_area(str(path), lambda line: None)
        except ValueError:
            continue
        read += 1
        assert area.is_valid, path
        assert area_km2(area) > 0, path
    assert read > 20
