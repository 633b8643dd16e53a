"""How the outlines of a prompt are drawn: as they were traced, or filled, simplified, squared. Knows polygons in pixels of a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from geopixel.features.rings import Rings, measure, project
from geopixel.features.squaring import square
from geopixel.types import Grid


@dataclass(frozen=True, slots=True)
class Outline:
    """What is asked for of one prompt; without any of it outlines are exact, along pixel edges."""

    min_area: float = 0.0
    """m2 on the ground. Smaller features, as they are drawn, are left out."""
    fill_holes: float = 0.0
    """m2 on the ground. Smaller holes are filled, with what lies in them."""
    simplify: float = 0.0
    """Metres: corners are left out while the triangles that they make are no larger than the square of this (Visvalingam and Whyatt)."""
    orthogonalize: bool = False
    """Right angles, along the main direction of each feature."""

    def __post_init__(self) -> None:
        for name in ("min_area", "fill_holes", "simplify"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def draw(traced: Rings, outline: Outline, grid: Grid, metres_per_pixel: float, first: np.ndarray, is_part: np.ndarray) -> tuple[Rings, np.ndarray]:
    """The features of one prompt as they shall be drawn, in pixels, and the indexes of those that are left: fewer where holes were filled.

    first: (n, 2) column and row of a pixel of each. is_part: (n,) bool, it was cut from something larger; such features share edges, and go
    on sharing them.
    """
    kept = np.arange(len(traced))
    if outline.fill_holes:
        traced, kept = _fill(traced, outline.fill_holes, grid, first)
    if outline.simplify:
        traced = _simplify(traced, outline.simplify / metres_per_pixel, is_part[kept])
    if outline.orthogonalize:
        polygons = traced.to_shapely()
        alone = ~is_part[kept]
        polygons[alone] = square(polygons[alone])
        traced = _one_way(polygons)
    return traced, kept


def _fill(traced: Rings, limit: float, grid: Grid, first: np.ndarray) -> tuple[Rings, np.ndarray]:
    holes = np.flatnonzero(~traced.outer)
    of_hole = Rings(traced.points, traced.rings, np.arange(len(traced.rings))).take(holes)  # every hole a polygon of its own
    area, _ = measure(Rings(project(of_hole.points, grid), of_hole.rings, of_hole.polygons))
    small = np.abs(area) < limit
    filled = np.zeros(len(traced.rings) - 1, bool)
    filled[holes[small]] = True
    islands, _ = shapely.STRtree(of_hole.take(np.flatnonzero(small)).to_shapely()).query(shapely.points(first + 0.5), predicate="within")
    kept = np.setdiff1d(np.arange(len(traced)), islands)
    return traced.drop(filled).take(kept), kept


def _simplify(traced: Rings, tolerance: float, is_part: np.ndarray) -> Rings:
    polygons = traced.to_shapely()
    # Neighbours along a cut have their own corners on the edge that they share. With a corner at every pixel they have the same ones.
    polygons[is_part] = shapely.segmentize(polygons[is_part], 1.0)
    return _one_way(shapely.coverage_simplify(polygons, tolerance) if len(polygons) else polygons)


def _one_way(polygons: np.ndarray) -> Rings:
    """With outer rings clockwise in pixels, which is counter-clockwise on a map."""
    return Rings.from_shapely(shapely.orient_polygons(polygons, exterior_cw=True))
