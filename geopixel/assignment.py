"""Which footprints may have pixels on which tiles, for thousands of footprints and millions of tiles: by square of the grid, so that a worker
gets a square's tiles with the few footprints near it, and tells them apart itself. Pure geometry: knows nothing of scenes, files or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from pyproj import Transformer
from shapely import Geometry

from geopixel.types import HALO, TILE_SIZES, Grid, Tiles

MAX_PAIRS = 500_000
"""Pairs of a square and a footprint, at most, before any is tested: with more, squares are made larger. Bounds the memory, whatever is assigned."""
SAG = 0.01
"""The edges of a footprint are straight in degrees, those of its raster in its CRS: they part by up to 1 % of their length."""
STEPS = 4
"""Parts that an edge as long as a footprint's diagonal is cut into to be projected: what is left of its bend is a sixteenth."""
PAIRS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Assignment:
    """Footprints by square, as columns. Square i holds the tiles first_tile[i] to first_tile[i + 1] - 1 and the footprints in
    footprint[first_footprint[i] : first_footprint[i + 1]], in their order."""

    tiles: Tiles
    first_tile: np.ndarray
    """(n + 1,) int64."""
    first_footprint: np.ndarray
    """(n + 1,) int64."""
    footprint: np.ndarray
    """(m,) int32 index of a footprint."""

    def __len__(self) -> int:
        return len(self.first_tile) - 1

    def __iter__(self) -> Iterator[tuple[Tiles, np.ndarray]]:
        """Of each square its tiles and (k,) int32 footprints."""
        for i in range(len(self)):
            yield self.tiles[self.first_tile[i] : self.first_tile[i + 1]], self.footprint[self.first_footprint[i] : self.first_footprint[i + 1]]


def assign_footprints(tiles: Tiles, footprints: Sequence[Geometry] | np.ndarray) -> Assignment:
    """Assigns to every square with tiles the footprints (EPSG:4326) that are as near to it, halo included, as SAG of their own diagonal.

    Squares are as large as the largest tile, or larger by a power of two (see MAX_PAIRS). Tiles that follow each other in one square are
    kept together: in the order of a plan, all of them. A footprint that the CRS of the grid cannot hold may be anywhere: it is assigned to all.
    """
    shapes, margin = _to_pixels(np.asarray(footprints, object), tiles.grid)
    edge = TILE_SIZES[-1]
    while True:
        first_tile, squares = _turns(tiles, edge)
        first, last = _spans(shapes, margin, squares, edge)
        counts = np.maximum(last - first + 1, 0).prod(axis=1)
        if counts.sum() <= max(MAX_PAIRS, len(shapes)):
            break
        edge *= 2
    near, footprint = _near(shapes, margin, first, last, counts, edge)
    return Assignment(tiles, first_tile, *_by_square(squares, near, footprint))


def _turns(tiles: Tiles, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the tiles enter a square of this edge, and behind the last: (n + 1,) int64; and (n, 2) column and row of those squares."""
    columns, rows = tiles.left // edge, tiles.top // edge
    turns = np.flatnonzero((columns[1:] != columns[:-1]) | (rows[1:] != rows[:-1])) + 1
    first_tile = np.concatenate([[0], turns, [len(tiles)]]) if len(tiles) else np.zeros(1, np.int64)
    return first_tile, np.stack([columns[first_tile[:-1]], rows[first_tile[:-1]]], axis=-1)


def _to_pixels(footprints: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(n,) footprints in pixels of the grid, prepared, and (n,) float64 how near is near enough; where the CRS cannot hold one, None and infinity."""
    transformer = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    shapes = shapely.segmentize(footprints, _diagonals(footprints) / STEPS)
    scale = np.array([grid.resolution, -grid.resolution])
    shapes = shapely.transform(shapes, lambda lonlat: np.stack(transformer.transform(*lonlat.T), axis=-1) / scale)
    coordinates, of = shapely.get_coordinates(shapes, return_index=True)
    shapes[of[~np.isfinite(coordinates).all(axis=1)]] = None
    shapely.prepare(shapes)
    return shapes, np.where(shapely.is_missing(shapes), np.inf, SAG * _diagonals(shapes))


def _diagonals(shapes: np.ndarray) -> np.ndarray:
    west, south, east, north = shapely.bounds(shapes).reshape(-1, 4).T
    return np.hypot(east - west, north - south)


def _spans(shapes: np.ndarray, margin: np.ndarray, squares: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) first and last column and row of the squares of this edge that lie near the bounds of a footprint and among those given."""
    bounds = np.nan_to_num(shapely.bounds(shapes).reshape(-1, 4))
    reach = np.where(np.isinf(margin), np.abs(squares).max(initial=0) * 2.0 * edge, margin)[:, None] + HALO
    first = np.floor((bounds[:, :2] - reach) / edge).astype(np.int64)
    last = np.floor((bounds[:, 2:] + reach) / edge).astype(np.int64)
    if not len(squares):
        return first, first - 1
    return np.maximum(first, squares.min(axis=0)), np.minimum(last, squares.max(axis=0))


def _near(shapes: np.ndarray, margin: np.ndarray, first: np.ndarray, last: np.ndarray, counts: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """(m, 2) column and row of squares and (m,) the footprint that is near each."""
    footprint = np.repeat(np.arange(len(shapes), dtype=np.int32), counts)
    index = np.arange(len(footprint)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = (last - first + 1)[footprint, 0]
    squares = first[footprint] + np.stack([index % width, index // width], axis=-1)
    low = squares * float(edge) - HALO
    high = low + (edge + 2 * HALO)
    near = np.isinf(margin)[footprint]
    for part in (slice(at, at + PAIRS_AT_ONCE) for at in range(0, len(footprint), PAIRS_AT_ONCE)):
        boxes = shapely.box(low[part, 0], low[part, 1], high[part, 0], high[part, 1])
        near[part] |= shapely.dwithin(shapes[footprint[part]], boxes, margin[footprint[part]])
    return squares[near], footprint[near]


def _by_square(wanted: np.ndarray, squares: np.ndarray, footprint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """first_footprint and footprint of an Assignment whose squares are those wanted, in their order."""
    key, wanted_key = (at[:, 0] + (at[:, 1] << 32) for at in (squares, wanted))
    order = np.argsort(key, kind="stable")  # footprints of a square stay in their order
    key, footprint = key[order], footprint[order]
    start, stop = np.searchsorted(key, wanted_key, "left"), np.searchsorted(key, wanted_key, "right")
    counts = stop - start
    first = np.concatenate([[0], np.cumsum(counts)])
    return first, footprint[np.repeat(start - first[:-1], counts) + np.arange(first[-1])]
