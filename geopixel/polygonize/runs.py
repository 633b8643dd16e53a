"""The compiled heart of the tracer: runs of a mask, their sides linked to rings, rings written as WKB and read back. Knows arrays of one plane;
nothing of tables, prompts or blocks.

Shared words: sides (2 * runs,) int32: columns at which the runs, in reading order, begin (even index: a left side) and end (odd index: a
right side), runs of a row apart from each other. first (height + 1,) int64: index of the first side of every row. owner (runs,) int32: the
number of the object that a run belongs to, objects in reading order of their first pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

WORD = 8
"""Pixels that are looked at together."""
_ALL_OBJECT, _ALL_NONE = np.uint64(0x0101010101010101), np.uint64(0xFFFFFFFFFFFFFFFF)
"""A word of ones, and one of 255."""
_BYTE_ORDER, _POLYGON = int(sys.byteorder == "little"), 3
_HEADER, _COUNT, _POINT = 9, 4, 16
"""Bytes of WKB: byte order, type and number of rings of a polygon; number of points of a ring; x and y."""


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled when it is first called, and kept beside the package or in the user's cache; anew in each process where neither can be written."""
    try:
        return numba.njit(function, cache=True)
    except RuntimeError:  # numba finds no place for its cache
        return numba.njit(function)


@compiled
def scan(pixels: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sides and first of a mask. words: the same pixels, eight at a time."""
    height, width = pixels.shape
    sides = np.empty(2 * width, np.int32)
    first = np.zeros(height + 1, np.int64)
    count = 0
    for row in range(height):
        if count + width + 1 > len(sides):
            more = np.empty(2 * len(sides), np.int32)
            more[:count] = sides[:count]
            sides = more
        inside = False
        for word in range(words.shape[1]):
            eight = words[row, word]
            if eight == _ALL_OBJECT if inside else (eight == 0 or eight == _ALL_NONE):
                continue
            for column in range(WORD * word, WORD * (word + 1)):
                if (pixels[row, column] == 1) != inside:
                    inside = not inside
                    sides[count] = column
                    count += 1
        if inside:
            sides[count] = width
            count += 1
        first[row + 1] = count
    return sides[:count].copy(), first


@compiled
def connect(sides: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The owner of every run, and the first run of every object. Runs of neighbouring rows are one object where they share a pixel's edge."""
    parent = np.arange(len(sides) // 2).astype(np.int32)
    for row in range(1, len(first) - 1):
        upper, lower = first[row - 1] // 2, first[row] // 2
        upper_end, lower_end = lower, first[row + 1] // 2
        while upper < upper_end and lower < lower_end:
            if sides[2 * upper] < sides[2 * lower + 1] and sides[2 * lower] < sides[2 * upper + 1]:
                one, other = upper, lower
                while parent[one] != one:
                    parent[one] = parent[parent[one]]
                    one = parent[one]
                while parent[other] != other:
                    parent[other] = parent[parent[other]]
                    other = parent[other]
                parent[max(one, other)] = min(one, other)  # so the root is an object's first run
            if sides[2 * upper + 1] < sides[2 * lower + 1]:
                upper += 1
            else:
                lower += 1
    starts = np.empty(len(parent), np.int32)
    count = 0
    for run in range(len(parent)):
        if parent[run] == run:
            starts[count] = run
            parent[run] = count
            count += 1
        else:
            parent[run] = parent[parent[run]]  # a run's parent comes before it and is numbered by now
    return parent, starts[:count].copy()


@compiled
def measure(
    sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int, confidence: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, sum of confidence, and whether it touches the raster's edge, of every object."""
    pixels, total, touches = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.bool_)
    height, width = confidence.shape
    for row in range(height):
        for run in range(first[row] // 2, first[row + 1] // 2):
            start, stop, each = sides[2 * run], sides[2 * run + 1], owner[run]
            pixels[each] += stop - start
            levels = np.int64(0)
            for column in range(start, stop):
                levels += confidence[row, column]
            total[each] += levels
            touches[each] |= start == 0 or stop == width or row == 0 or row == height - 1
    return pixels, total, touches


@compiled
def link(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The side that follows every side, and how many vertices and rings every object has.

    Between two rows, the sides in order of their columns bound, two by two, the stretches where one row is object and the other is not: each
    stretch is a horizontal edge, which links its two sides. Sides that go straight on bound no stretch.
    """
    following = np.empty(len(sides), np.int32)
    vertices, turns = np.zeros(count, np.int64), np.zeros(count, np.int64)  # turns: quarters to the left less quarters to the right
    for row in range(len(first)):
        upper, lower = first[max(row - 1, 0)], first[row]
        middle, end = lower, first[min(row + 1, len(first) - 1)]
        pending = swapped = np.int64(-1)
        while upper < middle or lower < end or swapped >= 0:
            if swapped >= 0:
                side, swapped = swapped, np.int64(-1)
            elif lower == end or (upper < middle and sides[upper] < sides[lower]):
                side = upper
                upper += 1
            elif upper == middle or sides[lower] < sides[upper]:
                side = lower
                lower += 1
            elif (upper ^ lower) & 1 == 0:
                if upper & 1:
                    following[lower] = upper
                else:
                    following[upper] = lower
                upper += 1
                lower += 1
                continue
            else:
                # Two pixels meet at a corner. Each keeps its own corner where they are of two objects: the run that ends goes first.
                # Of one object, they are passed one after the other, and what they enclose is another ring.
                side, swapped = (upper, lower) if (upper & 1 == 1) != (owner[upper // 2] == owner[lower // 2]) else (lower, upper)
                upper += 1
                lower += 1
            if pending < 0:
                pending = side
                continue
            one, other = pending, side
            pending = np.int64(-1)
            if (one < middle) == (one & 1 == 0):  # a left side of the upper row or a right side of the lower one ends here, and the edge goes right
                following[one] = other
            else:
                following[other] = one
            each = owner[one // 2]
            vertices[each] += 2
            if (one < middle) == (other < middle):  # there and back
                turns[each] += 2 - 4 * (one & 1)
    return following, vertices, 2 - turns // 4  # an outer ring makes four quarters to the left, a hole four to the right


@compiled
def copy(source: np.ndarray, source_at: int, target: np.ndarray, target_at: int, count: int) -> None:
    for byte in range(count):  # quicker than slices, which are made to be views
        target[target_at + byte] = source[source_at + byte]


@compiled
def write(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """WKB of every object: bytes, and the offsets at which objects begin and end."""
    following, vertices, rings = link(sides, first, owner, count)
    offsets = np.zeros(count + 1, np.int64)
    offsets[1:] = np.cumsum(_HEADER + rings * (_COUNT + _POINT) + vertices * _POINT)
    content = np.empty(offsets[-1], np.uint8)
    number, point = np.empty(1, np.uint32), np.empty(2, np.float64)
    number_bytes, point_bytes = number.view(np.uint8), point.view(np.uint8)
    cursor = offsets[:-1].copy()
    for each in range(count):
        at = cursor[each]
        content[at] = _BYTE_ORDER
        number[0] = _POLYGON
        copy(number_bytes, 0, content, at + 1, _COUNT)
        number[0] = rings[each]
        copy(number_bytes, 0, content, at + 5, _COUNT)
        cursor[each] += _HEADER
    for row in range(len(first) - 1):
        for start in range(first[row], first[row + 1]):
            if following[start] < 0:
                continue
            # The first side of its ring: a left side is left of an object's first pixel, a right side left of the first pixel of a hole.
            each = owner[start // 2]
            begin = cursor[each]
            at = begin + _COUNT
            point[0], point[1] = left + sides[start], top + row
            if start & 1 == 0:
                copy(point_bytes, 0, content, at, _POINT)
                at += _POINT
            side = start
            y = row + (start & 1)
            while following[side] >= 0:
                y += 1 - 2 * (side & 1)
                after = following[side]
                following[side] = -1
                if sides[after] != sides[side]:
                    point[0], point[1] = left + sides[side], top + y
                    copy(point_bytes, 0, content, at, _POINT)
                    point[0] = left + sides[after]
                    copy(point_bytes, 0, content, at + _POINT, _POINT)
                    at += 2 * _POINT
                side = after
            if start & 1:
                point[0], point[1] = left + sides[start], top + row
                copy(point_bytes, 0, content, at, _POINT)
                at += _POINT
            number[0] = (at - begin - _COUNT) // _POINT
            copy(number_bytes, 0, content, begin, _COUNT)
            cursor[each] = at
    return content, offsets


@compiled
def read(content: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Sides and first of the pixels inside polygons that write wrote, the column they are counted from and the row they begin with.

    first is empty where polygons overlap. Takes time in proportion to sides, rows and columns: edges are put in order by counting.
    """
    # Vertical edges: column, row of the upper end, rows, and 1 for a right side.
    column, begin, length, kind = vertical_edges(content, offsets)
    left, top = column.min(), begin.min()
    order = sorting(column - left)
    height = (begin + length).max() - top
    change = np.zeros(height + 1, np.int64)
    for edge in range(len(column)):
        change[begin[edge] - top] += 1
        change[begin[edge] + length[edge] - top] -= 1
    first = np.zeros(height + 1, np.int64)
    first[1:] = np.cumsum(np.cumsum(change)[:-1])
    free = first[:-1].copy()
    sides = np.empty(first[-1], np.int32)
    for edge in order:
        for row in range(begin[edge] - top, begin[edge] + length[edge] - top):
            sides[free[row]] = 2 * (column[edge] - left) + kind[edge]
            free[row] += 1

    # Where a run ends and the next one begins they are one run.
    count = 0
    for row in range(height):
        side, end = first[row], first[row + 1]
        first[row] = count
        while side < end:
            if side + 1 < end and sides[side] ^ 1 == sides[side + 1]:
                side += 2
                continue
            if sides[side] & 1 != count & 1:
                return sides[:0], first[:0], left, top
            sides[count] = sides[side] >> 1
            count += 1
            side += 1
    first[height] = count
    return sides[:count].copy(), first, left, top


@compiled
def vertical_edges(content: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Column, first row, rows, and 0 for a left or 1 for a right side, of every vertical edge of polygons that write wrote."""
    capacity = (offsets[-1] - offsets[0]) // (2 * _POINT)  # every other edge is vertical
    column, begin, length = np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty(capacity, np.int32)
    kind = np.empty(capacity, np.uint8)
    number, point = np.empty(1, np.uint32), np.empty(2, np.float64)
    number_bytes, point_bytes = number.view(np.uint8), point.view(np.uint8)
    count = 0
    for each in range(len(offsets) - 1):
        at = offsets[each] + _HEADER
        while at < offsets[each + 1]:
            copy(content, at, number_bytes, 0, _COUNT)
            at += _COUNT
            copy(content, at, point_bytes, 0, _POINT)
            x, y = point[0], point[1]
            for _ in range(1, number[0]):
                at += _POINT
                copy(content, at, point_bytes, 0, _POINT)
                if point[0] == x:
                    column[count] = x
                    begin[count] = min(y, point[1])
                    length[count] = abs(y - point[1])
                    kind[count] = y > point[1]
                    count += 1
                x, y = point[0], point[1]
            at += _POINT
    return column[:count], begin[:count], length[:count], kind[:count]


@compiled
def sorting(values: np.ndarray) -> np.ndarray:
    """What sorts integers from zero up, by counting."""
    free = np.zeros(values.max() + 2, np.int64)
    for value in values:
        free[value + 1] += 1
    free = np.cumsum(free)
    order = np.empty(len(values), np.int64)
    for index in range(len(values)):
        order[free[values[index]]] = index
        free[values[index]] += 1
    return order


@compiled
def owner_at(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The objects that pixels belong to."""
    found = np.empty(len(rows), np.int32)
    for index in range(len(rows)):
        low, high = first[rows[index]], first[rows[index] + 1]
        found[index] = owner[(low + np.searchsorted(sides[low:high], columns[index], side="right") - 1) // 2]
    return found
