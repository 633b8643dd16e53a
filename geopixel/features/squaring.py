"""Right angles for the outlines of buildings: each outline is turned to its own main direction, its edges are sorted into along and across,
and every stretch of one kind becomes one straight wall, placed so that it encloses as much as the stretch did. Knows polygons; no places."""

from __future__ import annotations

import math

import numpy as np
import shapely

from geopixel.compiling import compiled
from geopixel.features.rings import Rings

STEPS = 1.0
"""Pixels that an outline may stray from a straight wall: the steps of a slanted one stray up to 0.7."""
SHORTEST = 3.0
"""Pixels. Shorter walls are taken for noise."""
ALIKE = 0.75
"""Intersection over union with the outline as it was, from which on the right-angled one takes its place."""


def square(polygons: np.ndarray) -> np.ndarray:
    """Polygons in pixels with right angles, in the same order. One that has none (a round one), or would overlap with another or become
    invalid, stays as it is."""
    if not len(polygons):
        return polygons
    whole, simple = Rings.from_shapely(polygons), Rings.from_shapely(shapely.simplify(polygons, STEPS))
    # Of a small building the steps of the pixels hide where its walls run: its narrowest rectangle is the second guess.
    tried = []
    for angles in (_main_directions(simple.points, simple.rings, simple.polygons), _rectangle_directions(polygons)):
        squared = Rings(*_square(whole.points, whole.rings, whole.polygons, simple.points, simple.rings, simple.polygons, angles)).to_shapely()
        tried.append((squared, _alike(squared, polygons)))
    (squared, alike), (other_squared, other_alike) = tried
    better = other_alike > alike
    squared, good = np.where(better, other_squared, squared), np.maximum(alike, other_alike) >= ALIKE
    while True:
        drawn = np.where(good, squared, polygons)
        one, other = shapely.STRtree(drawn).query(drawn, predicate="intersects")
        both = np.flatnonzero((one < other) & (good[one] | good[other]))
        overlap = both[shapely.area(shapely.intersection(drawn[one[both]], drawn[other[both]])) > 0]
        if not len(overlap):
            return drawn
        good[one[overlap]] = good[other[overlap]] = False


def _alike(squared: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair; 0 where the first is not valid."""
    valid = shapely.is_valid(squared)
    union = shapely.area(shapely.union(polygons, np.where(valid, squared, polygons)))
    return np.where(valid, (shapely.area(squared) + shapely.area(polygons)) / union - 1, 0)


def _rectangle_directions(polygons: np.ndarray) -> np.ndarray:
    """Radians of a side of the smallest rectangle around each polygon."""
    points, index = shapely.get_coordinates(shapely.oriented_envelope(polygons), return_index=True)
    first = np.searchsorted(index, np.arange(len(polygons)))
    return np.arctan2(*(points[first + 1] - points[first]).T[::-1])


@compiled
def _main_directions(corners: np.ndarray, rings: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Radians of the main direction of each polygon: the mean over the edges of its outer ring, of four times their direction, by the square of
    their length."""
    angles = np.empty(len(polygons) - 1)
    for polygon in range(len(angles)):
        east = north = 0.0
        outer = polygons[polygon]
        for corner in range(rings[outer], rings[outer + 1] - 1):
            x, y = corners[corner + 1, 0] - corners[corner, 0], corners[corner + 1, 1] - corners[corner, 1]
            weight, angle = x * x + y * y, 4 * math.atan2(y, x)
            east += weight * math.cos(angle)
            north += weight * math.sin(angle)
        angles[polygon] = math.atan2(north, east) / 4
    return angles


@compiled
def _square(
    points: np.ndarray,
    rings: np.ndarray,
    polygons: np.ndarray,
    corners: np.ndarray,
    corner_rings: np.ndarray,
    corner_polygons: np.ndarray,
    angles: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """corners: some of the points, in order, ring by ring. A ring that has no four walls stays as it is, a hole that lost its corners goes."""
    found, found_rings, found_polygons = np.empty((len(points), 2)), np.zeros(len(rings), np.int64), np.zeros(len(polygons), np.int64)
    count = ring_count = 0
    for polygon in range(len(polygons) - 1):
        cosine, sine = math.cos(angles[polygon]), math.sin(angles[polygon])
        for ring in range(polygons[polygon], polygons[polygon + 1]):
            whole = points[rings[ring] : rings[ring + 1]]
            turned = np.empty_like(whole)
            turned[:, 0], turned[:, 1] = whole[:, 0] * cosine + whole[:, 1] * sine, whole[:, 1] * cosine - whole[:, 0] * sine
            drawn = whole
            same = corner_polygons[polygon] + ring - polygons[polygon]
            if same < corner_polygons[polygon + 1]:
                walls = _walls(whole, turned, corners[corner_rings[same] : corner_rings[same + 1]])
                if len(walls):
                    drawn = np.empty_like(walls)
                    drawn[:, 0], drawn[:, 1] = walls[:, 0] * cosine - walls[:, 1] * sine, walls[:, 0] * sine + walls[:, 1] * cosine
            if count + len(drawn) > len(found):
                found = np.concatenate((found, np.empty((len(found) + len(drawn), 2))))
            found[count : count + len(drawn)] = drawn
            count += len(drawn)
            ring_count += 1
            found_rings[ring_count] = count
        found_polygons[polygon + 1] = ring_count
    return found[:count], found_rings, found_polygons


@compiled
def _walls(whole: np.ndarray, turned: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """A closed ring of walls along and across, in turned coordinates; empty where there are less than four."""
    size, nothing = len(corners) - 1, np.empty((0, 2))
    place = np.empty(size + 1, np.int64)
    at = 0
    for corner in range(size):  # the first of them may be anywhere on the ring
        passed = 0
        while whole[at, 0] != corners[corner, 0] or whole[at, 1] != corners[corner, 1]:
            at = at + 1 if at + 2 < len(whole) else 0
            passed += 1
            if passed > len(whole):
                return nothing
        place[corner] = at
    place[size] = place[0]

    # Stretches of edges of one kind, each from a corner to a corner. The first begins where the kind changes.
    kind = np.empty(size, np.bool_)
    for edge in range(size):
        step = turned[place[edge + 1]] - turned[place[edge]]
        kind[edge] = abs(step[0]) >= abs(step[1])
    start = 0
    while start < size and kind[start] == kind[start - 1]:
        start += 1
    if start == size:
        return nothing
    begin, along = np.empty(size, np.int64), np.empty(size, np.bool_)
    count = 0
    for step in range(size):
        edge = (start + step) % size
        if kind[edge] != kind[edge - 1]:
            begin[count], along[count] = place[edge], kind[edge]
            count += 1

    # The shortest stretch goes over to its neighbours, until none is short.
    while count > 4:
        shortest, least = -1, SHORTEST
        for stretch in range(count):
            step = turned[begin[(stretch + 1) % count]] - turned[begin[stretch]]
            length = abs(step[0] if along[stretch] else step[1])
            if length < least:
                shortest, least = stretch, length
        if shortest < 0:
            break
        kept, left = np.empty(size, np.int64), 0
        for stretch in range(count):
            if stretch != shortest and stretch != (shortest + 1) % count:
                kept[left] = stretch
                left += 1
        for stretch in range(left):
            begin[stretch], along[stretch] = begin[kept[stretch]], along[kept[stretch]]
        count = left
    if count < 4:
        return nothing

    # Where a wall stands: the mean of the outline across it. So it encloses what the outline enclosed.
    stand = np.empty(count)
    for stretch in range(count):
        axis = 0 if along[stretch] else 1
        here, end = begin[stretch], begin[(stretch + 1) % count]
        area = extent = 0.0
        while here != end:
            after = here + 1 if here + 2 < len(whole) else 0
            step = turned[after, axis] - turned[here, axis]
            area += step * (turned[after, 1 - axis] + turned[here, 1 - axis]) / 2
            extent += step
            here = after
        if abs(extent) < 1e-9:
            return nothing
        stand[stretch] = area / extent
    walls = np.empty((count + 1, 2))
    for stretch in range(count):
        before = stand[stretch - 1]
        walls[stretch, 0], walls[stretch, 1] = (before, stand[stretch]) if along[stretch] else (stand[stretch], before)
    walls[count] = walls[0]
    return walls
