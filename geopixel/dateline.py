"""Polygons that cross the antimeridian or hold a pole, cut so that they lie within -180..180 degrees. A leaf: pure geometry in EPSG:4326, longitude
first; the cutting itself is the antimeridian package's."""

from __future__ import annotations

import antimeridian
import numpy as np
import shapely
from shapely import Geometry, MultiPolygon, Polygon

WORLD = shapely.box(-180, -90, 180, 90)


def cut_at_antimeridian(geometry: Geometry) -> Geometry:
    """Polygons within -180..180 that cover the same ground: an edge of more than 180 degrees of longitude goes the short way round, longitudes
    beyond 180 go on, and a ring around a pole holds it. Edges are straight in degrees. What needs no cut is returned as it is.

    Raises ValueError where the cut polygons would not be valid (rings that cross themselves, some that graze a pole).
    """
    if not isinstance(geometry, Polygon | MultiPolygon) or geometry.is_empty or not _crosses(geometry):
        return geometry
    fix = antimeridian.fix_multi_polygon if isinstance(geometry, MultiPolygon) else antimeridian.fix_polygon
    try:
        cut = fix(geometry, fix_winding=True, great_circle=False)  # type: ignore[operator]
    except (ValueError, IndexError) as error:
        raise ValueError(f"a polygon cannot be cut at the antimeridian: {' '.join(str(error).split())}") from error
    if not (shapely.is_valid(cut) and shapely.covers(WORLD, cut)):
        reason = shapely.is_valid_reason(cut)
        raise ValueError(f"a polygon cannot be cut at the antimeridian: what it encloses is not clear ({reason}); cut it at 180 degrees, and at the poles")
    return cut


def _crosses(geometry: Geometry) -> bool:
    """Whether longitudes leave -180..180, or an edge is longer than 180 degrees; one of 360 is the edge of a band around the Earth."""
    coordinates, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(geometry)), return_index=True)
    if np.abs(coordinates[:, 0]).max() > 180:
        return True
    edges = np.abs(np.diff(coordinates[:, 0]))[np.diff(ring) == 0]
    return bool(((edges > 180) & (edges < 360)).any())
