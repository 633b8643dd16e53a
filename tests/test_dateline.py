"""Cutting at the antimeridian is judged by unrolling: a ring whose longitudes are made continuous holds the points that its cut polygons hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from geopixel.aoi import read_area
from geopixel.dateline import WORLD, cut_at_antimeridian
from geopixel.tiling import plan_tiles, project_area
from geopixel.types import HALO, Grid

POLAR = {"both-poles", "extra-crossing", "issues-124", "issues-164", "issues-171", "north-pole", "south-pole", "latitude-band"}
"""Around the Earth: unrolled they do not close."""
REFUSED = {"force-north-pole", "overlap"}
"""Rings that would cross themselves once cut: the package wants to be told which pole is meant."""


def wound(degrees: np.ndarray) -> np.ndarray:
    """The same longitudes without jumps."""
    return np.unwrap(degrees, period=360)


def unrolled(polygon: shapely.Polygon) -> shapely.Geometry:
    """On the plane of all longitudes; its holes where they belong."""
    shell = shapely.get_coordinates(polygon.exterior)
    shell[:, 0] = wound(shell[:, 0])
    outer = shapely.make_valid(shapely.Polygon(shell))
    for ring in polygon.interiors:
        hole = shapely.get_coordinates(ring)
        hole[:, 0] = wound(hole[:, 0])
        for turn in (-360, 0, 360):
            outer = shapely.difference(outer, shapely.make_valid(shapely.Polygon(hole + (turn, 0))))
    return outer


def holds(polygons: list[shapely.Polygon], points: np.ndarray) -> np.ndarray:
    return np.any([shapely.contains_xy(unrolled(polygon), points[:, 0] + turn, points[:, 1]) for polygon in polygons for turn in (-360, 0, 360)], axis=0)


def cases(shared: Path) -> dict[str, shapely.Geometry]:
    read = {path.stem: json.loads(path.read_text()) for path in sorted((shared / "aoi/antimeridian/input").glob("*.json"))}
    return {name: shape(document.get("geometry", document)) for name, document in read.items()}


def test_the_awkward_polygons_are_cut_where_they_cross(shared: Path) -> None:
    points = np.random.default_rng(1).uniform((-180, -90), (180, 90), (20_000, 2))
    areas = {name: area for name, area in cases(shared).items() if "Polygon" in area.geom_type and name != "issues-182"}  # which crosses itself only
    assert len(areas) > 25
    for name, area in areas.items():
        if name in REFUSED:
            with pytest.raises(ValueError, match="cannot be cut"):
                cut_at_antimeridian(area)
            continue
        cut = cut_at_antimeridian(area)
        assert cut.is_valid, name
        assert shapely.covers(WORLD, cut), name
        assert cut_at_antimeridian(cut).equals(cut), name
        if name not in POLAR:
            parts = list(shapely.get_parts(area))
            near = np.concatenate([points, *(shapely.get_coordinates(part.exterior)[:1] + np.random.default_rng(2).normal(0, 8, (2000, 2)) for part in parts)])
            near = near[np.abs(near[:, 1]) < 90]
            near[:, 0] = (near[:, 0] + 180) % 360 - 180
            clear = shapely.distance(shapely.points(near), shapely.boundary(cut)) > 0.01
            assert np.array_equal(shapely.contains_xy(cut, near[clear, 0], near[clear, 1]), holds(parts, near[clear])), name


def test_rings_around_a_pole_hold_it(shared: Path) -> None:
    found = cases(shared)
    for name, inside, outside in [("north-pole", [(10, 89.9), (-179, 80)], [(0, 30)]), ("south-pole", [(10, -89.9), (179, -85)], [(0, -70)])]:
        cut = cut_at_antimeridian(found[name])
        assert all(shapely.contains_xy(cut, *point) for point in inside), name
        assert not any(shapely.contains_xy(cut, *point) for point in outside), name


@pytest.mark.parametrize("area", [WORLD, shapely.box(-180, 40, 180, 50), shapely.box(0, 0, 1, 1), shapely.Point(0, 0), shapely.box(-100, 0, 80, 1)])
def test_what_needs_no_cut_stays_as_it_is(area: shapely.Geometry) -> None:
    assert cut_at_antimeridian(area) is area


def test_what_was_cut_is_planned(shared: Path) -> None:
    """On both sides of the antimeridian, and near no other place: tiles lie where the cut area is."""
    grid = Grid("EPSG:3857", 20000.0)
    planned = 0
    for path in sorted((shared / "aoi/antimeridian/input").glob("*.json")):
        try:
            area = read_area(str(path), lambda line: None)
        except ValueError:  # lines, and what cannot be cut
            continue
        area = shapely.intersection(area, shapely.box(-180, -85, 180, 85))
        if area.is_empty:
            continue  # within five degrees of a pole: not on this map
        tiles = plan_tiles(area, grid, None, smallest_object=1e6, ground_sample_distance=20000.0, costs={512: 1.0})
        tiles = tiles[tiles.to_read]
        near = project_area(area, grid.crs).buffer(2 * HALO * 20000.0)
        shapely.prepare(near)
        assert len(tiles) > 0, path.name
        assert all(near.intersects(tile.core.extent.geom) for tile in tiles), path.name
        planned += 1
    assert planned > 20
