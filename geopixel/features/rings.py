"""Many polygons as a few arrays: read from WKB, brought from the pixels of a grid to longitude and latitude, measured, and written as WKB
again, without an object for any of them. Knows coordinates; nothing of what the polygons are outlines of.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import shapely
from pyproj import Geod, Transformer

from geopixel.compiling import compiled, get_double, get_uint32, put
from geopixel.types import Grid

CRS84 = "OGC:CRS84"
PROJECTION_ERROR = 1e-9
"""Degrees, about 0.1 mm: how far a projected point may be from where PROJ puts it."""
LONG_EDGE = 1000.0
"""Metres. Rings with a longer edge are measured by GeographicLib, one by one; the others as measure says."""

_CELL = 4096
"""Pixels along the edge of the cells, counted from the CRS origin, in each of which a projection is a polynomial: the same for every run."""
_NODES = 4
"""Along the edge of a cell, where PROJ is asked. _weights is written for four."""
_HEADER, _COUNT, _POINT, _POLYGON, _BYTE_ORDER = 9, 4, 16, 3, int(sys.byteorder == "little")
"""Of WKB: bytes before the rings, before the points of a ring, and of a point; the code of a polygon, and of this machine's byte order."""
_ELLIPSOID = Geod(ellps="WGS84")
_A, _E2 = _ELLIPSOID.a, _ELLIPSOID.es
_E = math.sqrt(_E2)
_Q_POLE = 1 + (1 - _E2) / _E * math.atanh(_E)
"""Snyder (1987), Map Projections, formula 3-12: q of the pole; an ellipsoid's surface is 2 pi a^2 q."""


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Polygons, each an outer ring and the holes in it. Rings are closed: the first point is the last too."""

    points: np.ndarray
    """(n, 2) float64, x and y."""
    rings: np.ndarray
    """(rings + 1,) int64: where each begins and ends in points."""
    polygons: np.ndarray
    """(polygons + 1,) int64: where each begins and ends in rings, the outer one first."""

    @classmethod
    def from_wkb(cls, geometry: pa.LargeBinaryArray) -> Rings:
        """Polygons in this machine's byte order, none of them empty or null."""
        content = np.frombuffer(geometry.buffers()[2] or b"", np.uint8)
        return cls(*_read(content, np.frombuffer(geometry.buffers()[1], np.int64)[geometry.offset : geometry.offset + len(geometry) + 1]))

    @classmethod
    def from_shapely(cls, polygons: np.ndarray) -> Rings:
        """Polygons, as objects, none of them empty."""
        if not len(polygons):
            return cls(np.zeros((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))
        _, points, (rings, offsets) = shapely.to_ragged_array(polygons, include_z=False)
        return cls(points, rings.astype(np.int64), offsets.astype(np.int64))

    def to_shapely(self) -> np.ndarray:
        return shapely.from_ragged_array(shapely.GeometryType.POLYGON, self.points, (self.rings, self.polygons))

    def to_wkb(self, order: np.ndarray) -> pa.LargeBinaryArray:
        """The polygons of these indexes, in that order."""
        content, offsets = _write(self.points, self.rings, self.polygons, order)
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(order), [None, pa.py_buffer(offsets), pa.py_buffer(content)])

    def __len__(self) -> int:
        return len(self.polygons) - 1

    @property
    def outer(self) -> np.ndarray:
        """(rings,) bool: the first of its polygon."""
        outer = np.zeros(len(self.rings) - 1, bool)
        outer[self.polygons[:-1]] = True
        return outer

    @property
    def bounds(self) -> np.ndarray:
        """(polygons, 4) float64: least x and y, greatest x and y."""
        return _bounds(self.points, self.rings, self.polygons)

    def take(self, polygons: np.ndarray) -> Rings:
        """Those polygons, by their indexes, in that order."""
        rings, offsets = _take(self.polygons, polygons)
        points, starts = _take(self.rings, rings)
        return Rings(self.points[points], starts, offsets)

    def drop(self, holes: np.ndarray) -> Rings:
        """Without those rings, (rings,) bool, none of which is an outer one."""
        rings = np.flatnonzero(~holes)
        points, starts = _take(self.rings, rings)
        return Rings(self.points[points], starts, np.concatenate((np.zeros(1, np.int64), np.cumsum(~holes)))[self.polygons])


def join(parts: list[Rings]) -> Rings:
    """The polygons of all parts, one after the other."""

    def follow(offsets: list[np.ndarray]) -> np.ndarray:
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *map(np.diff, offsets)]))))

    points = np.concatenate([np.zeros((0, 2)), *(part.points for part in parts)])
    return Rings(points, follow([part.rings for part in parts]), follow([part.polygons for part in parts]))


def project(points: np.ndarray, grid: Grid) -> np.ndarray:
    """(n, 2) float64 columns and rows of a grid as longitude, -180 to 180, and latitude in CRS84, within PROJECTION_ERROR of what PROJ says.

    PROJ is asked at some points of every cell; between them a polynomial of third degree in column and row (Lagrange) is ten times quicker,
    and as smooth as projections are. Where one is not (its pole, its rim), PROJ is asked for every point of the cell.
    """
    to_lonlat = Transformer.from_crs(grid.crs, CRS84, always_xy=True)

    def ask(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        longitude, latitude = to_lonlat.transform(columns * grid.resolution, rows * -grid.resolution)
        return np.stack((longitude, latitude), axis=-1)

    if not len(points):
        return points
    cell, cells = _cells(points)
    nodes = np.linspace(0, 1, _NODES)
    between = (nodes[1:] + nodes[:-1]) / 2
    values, truth = (ask(*_spread(cells, shares)) for shares in (nodes, between))
    values[..., 0] -= 360 * np.rint((values[..., 0] - values[:, :1, :1, 0]) / 360)  # across the antimeridian without a step
    inner = _basis(between)
    off = np.abs(np.einsum("ri,cj,kijx->krcx", inner, inner, values) - truth)
    off[..., 0] = np.minimum(off[..., 0], np.abs(360 - off[..., 0]))
    smooth = np.nan_to_num(off, nan=np.inf).max(axis=(1, 2, 3)) < PROJECTION_ERROR
    projected = _interpolate(points, cell, cells, values)
    if not smooth.all():
        rough = ~smooth[cell]
        projected[rough] = ask(*points[rough].T)
    return projected


def measure(lonlat: Rings) -> tuple[np.ndarray, np.ndarray]:
    """Signed area in m2, positive where a ring turns counter-clockwise, and length in metres of every ring on the WGS 84 ellipsoid, its edges
    geodesics: within 1e-6 of what GeographicLib (Karney 2013) says, or 1e-3 m2, which is as good as its sums are.

    Area: of spherical triangles on the sphere of equal surface, at authalic latitudes (Snyder 1987, 3-11 and 3-12), on which geodesics of up to
    LONG_EDGE are great circles but for 1e-8 of the area that they enclose. Length: by the radii of curvature in the middle of every edge.
    """
    area, length, longest = _measure(lonlat.points, lonlat.rings)
    for ring in np.flatnonzero(longest > LONG_EDGE):
        x, y = lonlat.points[lonlat.rings[ring] : lonlat.rings[ring + 1]].T
        area[ring], length[ring] = _ELLIPSOID.polygon_area_perimeter(x, y)
    return area, length


def curve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Place on a Hilbert curve over the world, (n,) uint64. Degrees; equal places in every run."""
    steps = np.uint64(1) << np.uint64(_ORDER)
    return _hilbert(*(np.clip((value + 180) / 360 * steps, 0, steps - np.uint64(1)).astype(np.uint64) for value in (x, y)))


_ORDER = 24
"""Of the curve: its steps are of two metres."""


def _take(offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of items that have many members each: the members of those chosen, and the offsets of these."""
    sizes = np.diff(offsets)[chosen]
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    return np.repeat(offsets[chosen] - ends[:-1], sizes) + np.arange(ends[-1]), ends


def _spread(cells: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows, (cells, n, n), of points at these shares of the height and width of every cell."""
    rows, columns = np.meshgrid(shares, shares, indexing="ij")
    return (cells[:, 0, None, None] + columns) * _CELL, (cells[:, 1, None, None] + rows) * _CELL


def _basis(shares: np.ndarray) -> np.ndarray:
    """(n, _NODES) Lagrange's polynomials at shares of a cell's edge, with nodes at 0, 1/3, 2/3 and 1."""
    return np.array([_weights(3 * share) for share in shares.tolist()])


def _cells(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of each point's cell, (n,) int64, and the cells, (k, 2) int64 column and row."""
    column, row = np.floor(points[:, 0] / _CELL).astype(np.int64), np.floor(points[:, 1] / _CELL).astype(np.int64)
    left, top = column.min(), row.min()
    width = column.max() - left + 1
    key = (row - top) * width + column - left
    present = np.zeros((row.max() - top + 1) * width, bool)
    present[key] = True
    keys = np.flatnonzero(present)
    number = np.cumsum(present) - 1
    return number[key], np.stack((keys % width + left, keys // width + top), axis=1)


@compiled
def _interpolate(points: np.ndarray, cell: np.ndarray, cells: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.empty_like(points)
    for point in range(len(points)):
        k = cell[point]
        # In thirds of a cell, so that the nodes are at 0, 1, 2 and 3.
        u, v = 3 * (points[point, 0] / _CELL - cells[k, 0]), 3 * (points[point, 1] / _CELL - cells[k, 1])
        across = _weights(u)
        down = _weights(v)
        x = y = 0.0
        for i in range(_NODES):
            row_x = row_y = 0.0
            for j in range(_NODES):
                row_x += across[j] * values[k, i, j, 0]
                row_y += across[j] * values[k, i, j, 1]
            x += down[i] * row_x
            y += down[i] * row_y
        if x < -180 or x > 180:
            x -= 360 * math.floor((x + 180) / 360)
        found[point, 0], found[point, 1] = x, y
    return found


@compiled
def _weights(u: float) -> tuple[float, float, float, float]:
    a, b, c = u - 1, u - 2, u - 3
    return -a * b * c / 6, u * b * c / 2, -u * a * c / 2, u * a * b / 6


@compiled
def _measure(points: np.ndarray, rings: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, length and longest edge of every ring. Angles of edges up to LONG_EDGE are small: their functions are short series."""
    count = len(rings) - 1
    area, length, longest = np.zeros(count), np.zeros(count), np.zeros(count)
    for ring in range(count):
        sine_before = half_before = 0.0
        for point in range(rings[ring], rings[ring + 1]):
            sine = math.sin(math.radians(points[point, 1]))
            q = (1 - _E2) * sine * (1 / (1 - _E2 * sine * sine) + _atanh_ratio(_E2 * sine * sine)) / _Q_POLE
            half = q / (1 + math.sqrt(max(0.0, 1 - q * q)))  # tan(beta / 2), beta the authalic latitude: sin(beta) = q / q_pole
            if point > rings[ring]:
                # Over the antimeridian both count from there: their difference, near 360, would be rounded by much of a small ring.
                half_turn = 180 * np.rint((points[point, 0] - points[point - 1, 0]) / 360)
                turn = (points[point, 0] - half_turn) - (points[point - 1, 0] + half_turn)
                across, down = math.radians(turn), math.radians(points[point, 1] - points[point - 1, 1])
                area[ring] -= _atan(_tan(across / 2) * (half + half_before) / (1 + half * half_before))
                middle = (sine + sine_before) / (2 - down * down / 4)  # sine of the latitude half way: over twice cos(down / 2)
                w = 1 - _E2 * middle * middle
                east, north = across * math.sqrt(max(0.0, 1 - middle * middle)), down * (1 - _E2) / w
                edge = _A * math.sqrt((east * east + north * north) / w)
                length[ring] += edge
                longest[ring] = max(longest[ring], edge)
            sine_before, half_before = sine, half
        area[ring] *= _A * _A * _Q_POLE
    return area, length, longest


@compiled
def _atanh_ratio(square: float) -> float:
    """atanh(x) / x by x squared, to the last bit up to the eccentricity of the Earth."""
    return 1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square * (1 / 11 + square / 13)))))


@compiled
def _tan(x: float) -> float:
    return x * (1 + x * x / 3) if abs(x) < 2e-4 else math.tan(x)


@compiled
def _atan(x: float) -> float:
    return x * (1 - x * x / 3) if abs(x) < 2e-4 else math.atan(x)


@compiled
def _hilbert(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Place of cells of a square of 2 ** _ORDER of them on Hilbert's curve (Skilling 2004 for two dimensions)."""
    found = np.empty(len(x), np.uint64)
    one = np.uint64(1)
    for index in range(len(x)):
        a, b, place = x[index], y[index], np.uint64(0)
        step = one << np.uint64(_ORDER - 1)
        while step > 0:
            right, up = (a & step) > 0, (b & step) > 0
            place += step * step * np.uint64((3 if right else 0) ^ (1 if up else 0))
            if not up:
                if right:
                    a, b = (step - one) - (a & (step - one)), (step - one) - (b & (step - one))
                a, b = b, a
            step >>= one
        found[index] = place
    return found


@compiled
def _bounds(points: np.ndarray, rings: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    found = np.empty((len(polygons) - 1, 4))
    for polygon in range(len(polygons) - 1):
        outer = polygons[polygon]
        left = right = points[rings[outer], 0]
        bottom = top = points[rings[outer], 1]
        for point in range(rings[outer], rings[outer + 1]):
            x, y = points[point, 0], points[point, 1]
            left, right, bottom, top = min(left, x), max(right, x), min(bottom, y), max(top, y)
        found[polygon, 0], found[polygon, 1], found[polygon, 2], found[polygon, 3] = left, bottom, right, top
    return found


@compiled
def _read(content: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    polygons = np.zeros(len(offsets), np.int64)
    for each in range(len(offsets) - 1):
        polygons[each + 1] = polygons[each] + get_uint32(content, offsets[each] + _HEADER - _COUNT)
    rings = np.zeros(polygons[-1] + 1, np.int64)
    ring = 0
    for each in range(len(offsets) - 1):
        at = offsets[each] + _HEADER
        while at < offsets[each + 1]:
            size = get_uint32(content, at)
            rings[ring + 1] = rings[ring] + size
            ring += 1
            at += _COUNT + _POINT * size
    points = np.empty((rings[-1], 2))
    ring = 0
    for each in range(len(offsets) - 1):
        at = offsets[each] + _HEADER
        while at < offsets[each + 1]:
            at += _COUNT
            for point in range(rings[ring], rings[ring + 1]):
                points[point, 0], points[point, 1] = get_double(content, at), get_double(content, at + _POINT // 2)
                at += _POINT
            ring += 1
    return points, rings, polygons


@compiled
def _write(points: np.ndarray, rings: np.ndarray, polygons: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(order) + 1, np.int64)
    for index, each in enumerate(order):
        first, last = polygons[each], polygons[each + 1]
        offsets[index + 1] = offsets[index] + _HEADER + _COUNT * (last - first) + _POINT * (rings[last] - rings[first])
    content = np.empty(offsets[-1], np.uint8)
    for index, each in enumerate(order):
        at = offsets[index]
        content[at] = _BYTE_ORDER
        put(content, at + 1, np.uint32(_POLYGON))
        put(content, at + 5, np.uint32(polygons[each + 1] - polygons[each]))
        at += _HEADER
        for ring in range(polygons[each], polygons[each + 1]):
            put(content, at, np.uint32(rings[ring + 1] - rings[ring]))
            at += _COUNT
            for point in range(rings[ring], rings[ring + 1]):
                put(content, at, points[point, 0])
                put(content, at + _POINT // 2, points[point, 1])
                at += _POINT
    return content, offsets
