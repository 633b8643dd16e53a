"""Which sources may have pixels on which squares of a grid, for thousands of footprints and hundreds of thousands of squares at once: what
reads a square is told the few sources near it, and asks none of the others. Pure geometry: opens nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from pyproj import Transformer

from geopixel.types import HALO, Grid, Scene

SAG = 0.01
"""The edges of a footprint are straight in degrees, those of its raster in its CRS: they part by up to 1 % of their length."""
STEPS = 4
"""Parts that an edge as long as a footprint's diagonal is cut into to be projected: what is left of its bend is a sixteenth."""
LARGE = 20.0
"""Degrees along the diagonal of a footprint from which on nobody vouches for its shape in another CRS: half the globe may come out inside out."""
SQUARES_AT_ONCE = 4096
"""Bounds the pairs of a square and a footprint that are compared together."""
MAX_PAIRS = 1_000_000
"""About the most that are kept: with more, squares are made larger by a power of two."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Sources by square, as columns: square i has the sources source[first[i] : first[i + 1]], ascending."""

    edge: int
    """Pixels along an edge of the squares: as asked for, or larger (see MAX_PAIRS)."""
    key: np.ndarray
    """(n,) int64, ascending: of the squares."""
    first: np.ndarray
    """(n + 1,) int64."""
    source: np.ndarray
    """(m,) int32, counted through the sources of all scenes in order."""

    def at(self, left: int, top: int) -> np.ndarray:
        """(k,) int32: the sources of the square that holds this pixel of the grid. Raises KeyError where it was not assigned."""
        wanted = _keys(np.array([[left // self.edge, top // self.edge]]))[0]
        index = int(np.searchsorted(self.key, wanted))
        if index == len(self.key) or self.key[index] != wanted:
            raise KeyError(f"the square of pixel ({left}, {top}) was not assigned")
        return self.source[self.first[index] : self.first[index + 1]]


def assign_sources(scenes: Sequence[Scene], grid: Grid, squares: np.ndarray, edge: int) -> Assignment:
    """Assigns to every square, (n, 2) column and row in squares of this edge from the CRS origin, the sources whose footprint is as near to it,
    HALO pixels around it included, as SAG of the footprint's own diagonal. A footprint that is LARGE, or that the CRS of the grid cannot hold, may be
    anywhere: it is assigned to all."""
    squares = squares.astype(np.int64).reshape(-1, 2)
    footprints = np.array([source.footprint for scene in scenes for source in scene.sources], object)
    shapes, margin = _to_pixels(footprints, grid)
    while _pairs(shapes, squares, edge) > max(MAX_PAIRS, 4 * len(shapes)):
        squares, edge = squares // 2, edge * 2
    squares = np.unique(squares[:, ::-1], axis=0)[:, ::-1]  # by row, then by column: as their keys
    anywhere = np.flatnonzero(shapely.is_missing(shapes))
    reach = shapely.bounds(shapes).reshape(-1, 4) + np.outer(margin + HALO, [-1, -1, 1, 1])
    tree = shapely.STRtree(shapely.box(*reach.T))  # boxes of missing shapes are empty: the tree leaves them out
    at, of = [], []
    for begin in range(0, len(squares), SQUARES_AT_ONCE):
        low = squares[begin : begin + SQUARES_AT_ONCE] * float(edge) - HALO
        boxes = shapely.box(*low.T, *(low + (edge + 2 * HALO)).T)
        square, source = tree.query(boxes)
        near = shapely.dwithin(shapes[source], boxes[square], margin[source])
        everywhere = np.repeat(np.arange(len(boxes)), len(anywhere))
        square, source = np.concatenate([square[near], everywhere]), np.concatenate([source[near], np.tile(anywhere, len(boxes))])
        order = np.lexsort((source, square))
        at.append(square[order] + begin)
        of.append(source[order].astype(np.int32))
    counts = np.bincount(np.concatenate([*at, np.zeros(0, np.int64)]), minlength=len(squares))
    first = np.concatenate([[0], np.cumsum(counts)])
    return Assignment(edge, _keys(squares), first, np.concatenate([*of, np.zeros(0, np.int32)]))


def _pairs(shapes: np.ndarray, squares: np.ndarray, edge: int) -> float:
    """How often, at most, a square among these lies on the bounds of a footprint."""
    if not len(squares):
        return 0
    bounds = shapely.bounds(shapes).reshape(-1, 4) / edge
    bounds = np.where(np.isnan(bounds), [-np.inf, -np.inf, np.inf, np.inf], bounds)
    low, high = np.maximum(bounds[:, :2], squares.min(axis=0)), np.minimum(bounds[:, 2:], squares.max(axis=0) + 1)
    return float(np.maximum(high - low + 1, 0).prod(axis=1).sum())


def _keys(squares: np.ndarray) -> np.ndarray:
    """(n,) int64 of (n, 2) column and row."""
    return squares[:, 0] + (squares[:, 1] << 32)


def _to_pixels(footprints: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(n,) footprints in pixels of the grid, prepared, and (n,) float64 how near is near enough; where the CRS cannot hold one, None and 0."""
    transformer = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    shapes = shapely.segmentize(footprints, _diagonals(footprints) / STEPS)
    scale = np.array([grid.resolution, -grid.resolution])
    shapes = shapely.transform(shapes, lambda lonlat: np.stack(transformer.transform(*lonlat.T), axis=-1) / scale)
    coordinates, of = shapely.get_coordinates(shapes, return_index=True)
    shapes[of[~np.isfinite(coordinates).all(axis=1)]] = None
    shapes[_diagonals(footprints) > LARGE] = None
    shapely.prepare(shapes)
    return shapes, np.nan_to_num(SAG * _diagonals(shapes))


def _diagonals(shapes: np.ndarray) -> np.ndarray:
    west, south, east, north = shapely.bounds(shapes).reshape(-1, 4).T
    return np.hypot(east - west, north - south)
