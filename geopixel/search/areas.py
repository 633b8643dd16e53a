"""Areas as a search needs them: cut where they cross the antimeridian or hold a pole, and in parts that fit into a request. Pure geometry in
EPSG:4326, longitude first."""

from __future__ import annotations

import antimeridian
import numpy as np
import shapely
from shapely import Geometry, MultiPolygon, Polygon

WORLD = shapely.box(-180, -90, 180, 90)
MAX_VERTICES = 500
"""Of one request: about 20 kB of JSON. Servers limit bodies (nginx: 1 MB) and take seconds to index an outline of a country."""
SIMPLIFIED = 0.01
"""Degrees, about 1 km, that the outline of a large area moves before it is sent; what is found is held against the area itself."""


def cut_at_antimeridian(geometry: Geometry) -> Geometry:
    """Polygons within -180..180 that cover the same ground: an edge of more than 180 degrees of longitude goes the short way round, longitudes
    beyond 180 go on, and a ring around a pole holds it. Edges are straight in degrees. What needs no cut is returned as it is.

    Raises ValueError where the cut polygons would not be valid (rings that cross themselves over a pole).
    """
    if not isinstance(geometry, Polygon | MultiPolygon) or geometry.is_empty or not _crosses(geometry):
        return geometry
    fix = antimeridian.fix_multi_polygon if isinstance(geometry, MultiPolygon) else antimeridian.fix_polygon
    try:
        cut = shapely.make_valid(fix(geometry, fix_winding=True, great_circle=False))  # type: ignore[operator]
    except (ValueError, IndexError) as error:
        raise ValueError(f"a polygon cannot be cut at the antimeridian: {' '.join(str(error).split())}") from error
    parts = [part for part in shapely.get_parts(cut) if isinstance(part, Polygon | MultiPolygon) and part.area > 0]
    cut = shapely.union_all(parts)
    if cut.is_empty or not shapely.covers(WORLD, cut):
        raise ValueError(f"a polygon cannot be cut at the antimeridian: it reaches {shapely.bounds(geometry).tolist()}")
    return cut


def _crosses(geometry: Geometry) -> bool:
    """Whether longitudes leave -180..180, or an edge is longer than 180 degrees; one of 360 is the edge of a band around the Earth."""
    coordinates, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(geometry)), return_index=True)
    if np.abs(coordinates[:, 0]).max() > 180:
        return True
    edges = np.abs(np.diff(coordinates[:, 0]))[np.diff(ring) == 0]
    return bool(((edges > 180) & (edges < 360)).any())


def search_parts(area: Geometry) -> list[Geometry]:
    """Polygons of at most MAX_VERTICES points and 180 degrees each that together cover the area and at most about 2 * SIMPLIFIED degrees around it."""
    area = cut_at_antimeridian(area)
    if shapely.get_num_coordinates(area) > MAX_VERTICES:
        # Simplifying moves an outline by up to SIMPLIFIED: grown by twice as much before, it still holds all of the area.
        area = shapely.intersection(shapely.simplify(shapely.buffer(area, 2 * SIMPLIFIED, quad_segs=2), SIMPLIFIED), WORLD)
    return _halved(area)


def _halved(area: Geometry) -> list[Geometry]:
    """Cut across the longer side until every part is small enough. One with land on both sides of the antimeridian is not: its box is the Earth's."""
    west, south, east, north = area.bounds
    if shapely.get_num_coordinates(area) <= MAX_VERTICES and east - west <= 180:
        return [area]
    x, y = (west + east) / 2, (south + north) / 2
    halves = [(west, south, x, north), (x, south, east, north)] if east - west > north - south else [(west, south, east, y), (west, y, east, north)]
    parts = [shapely.intersection(area, shapely.box(*half)) for half in halves]
    solid = [shapely.union_all([each for each in shapely.get_parts(part) if each.area > 0]) for part in parts]
    return [small for part in solid if not part.is_empty for small in _halved(part)]
