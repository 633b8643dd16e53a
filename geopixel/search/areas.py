"""Areas as a search needs them: in parts that fit into a request. Pure geometry in EPSG:4326, longitude first."""

from __future__ import annotations

import shapely
from shapely import Geometry

from geopixel.dateline import WORLD, cut_at_antimeridian

MAX_VERTICES = 500
"""Of one request: about 20 kB of JSON. Servers limit bodies (nginx: 1 MB) and take seconds to index an outline of a country."""
SIMPLIFIED = 0.01
"""Degrees, about 1 km, that the outline of a large area moves before it is sent; what is found is held against the area itself."""


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
