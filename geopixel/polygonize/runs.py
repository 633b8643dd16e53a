"""The compiled heart of the tracer: runs of a mask, their sides linked to rings, rings written as WKB and read back. Knows arrays of one plane;
nothing of tables, prompts or blocks.

Shared words: sides (2 * runs,) int32: columns at which the runs, in reading order, begin (even index: a left side) and end (odd index: a
right side), runs of a row apart from each other. first (height + 1,) int64: index of the first side of every row. owner (runs,) int32: the
number of the object that a run belongs to, objects in reading order of their first pixels.
"""

from __future__ import annotations

import sys

import numpy as np

from geopixel.compiling import compiled, get_double, get_uint32, put

WORD = 8
"""Pixels that are looked at together."""
_ALL_OBJECT, _ALL_NONE = np.uint64(0x0101010101010101), np.uint64(0xFFFFFFFFFFFFFFFF)
"""A word of ones, and one of 255."""
_BYTE_ORDER, _POLYGON = int(sys.byteorder == "little"), 3
_HEADER, _COUNT, _POINT = 9, 4, 16
"""Bytes of WKB: byte order, type and number of rings of a polygon; number of points of a ring; x and y."""


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
    sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int, confidence: np.ndarray, scene: np.ndarray, edge: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, sum of confidence, whether a pixel lies on an edge and whether one is on the raster's rim, of every object; and every scene that an
    object has pixels of, as object << 16 | scene, some of them more than once. scene and edge: empty where all pixels are of scene 0 and no edge."""
    pixels, total = np.zeros(count, np.int64), np.zeros(count, np.int64)
    on_edge, on_rim = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    last = np.full(count, -1, np.int32)
    seen = np.empty(count + 1, np.int64)
    told = 0
    height, width = confidence.shape
    for row in range(height):
        for run in range(first[row] // 2, first[row + 1] // 2):
            start, stop, each = sides[2 * run], sides[2 * run + 1], owner[run]
            pixels[each] += stop - start
            levels = np.int64(0)
            for column in range(start, stop):
                levels += confidence[row, column]
            total[each] += levels
            on_rim[each] |= start == 0 or stop == width or row == 0 or row == height - 1
            if edge.size:
                for column in range(start, stop):
                    on_edge[each] |= edge[row, column]
            if not scene.size:
                stop = start + 1
            for column in range(start, stop):
                here = scene[row, column] if scene.size else 0
                if here != last[each]:
                    last[each] = here
                    if told == len(seen):
                        seen = np.concatenate((seen, np.empty_like(seen)))
                    seen[told] = np.int64(each) << 16 | here
                    told += 1
    return pixels, total, on_edge, on_rim, seen[:told]


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
def write(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """WKB of every object: bytes, and the offsets at which objects begin and end."""
    following, vertices, rings = link(sides, first, owner, count)
    offsets = np.zeros(count + 1, np.int64)
    offsets[1:] = np.cumsum(_HEADER + rings * (_COUNT + _POINT) + vertices * _POINT)
    content = np.empty(offsets[-1], np.uint8)
    cursor = offsets[:-1].copy()
    for each in range(count):
        content[cursor[each]] = _BYTE_ORDER
        put(content, cursor[each] + 1, np.uint32(_POLYGON))
        put(content, cursor[each] + 5, np.uint32(rings[each]))
        cursor[each] += _HEADER
    for row in range(len(first) - 1):
        for start in range(first[row], first[row + 1]):
            if following[start] < 0:
                continue
            # The first side of its ring: a left side is left of an object's first pixel, a right side left of the first pixel of a hole.
            each = owner[start // 2]
            begin = cursor[each]
            at = begin + _COUNT
            if start & 1 == 0:
                at = _put_point(content, at, left + sides[start], top + row)
            side = start
            y = row + (start & 1)
            while following[side] >= 0:
                y += 1 - 2 * (side & 1)
                after = following[side]
                following[side] = -1
                if sides[after] != sides[side]:
                    at = _put_point(content, at, left + sides[side], top + y)
                    at = _put_point(content, at, left + sides[after], top + y)
                side = after
            if start & 1:
                at = _put_point(content, at, left + sides[start], top + row)
            put(content, begin, np.uint32((at - begin - _COUNT) // _POINT))
            cursor[each] = at
    return content, offsets


@compiled
def _put_point(content: np.ndarray, at: int, x: int, y: int) -> int:
    put(content, at, np.float64(x))
    put(content, at + _POINT // 2, np.float64(y))
    return at + _POINT


@compiled
def read(content: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Sides and first of the pixels inside polygons that write wrote, the column they are counted from and the row they begin with.

    first is empty where polygons overlap. Takes time in proportion to sides, rows and columns: edges are put in order by counting.
    """
    # Vertical edges: column, row of the upper end, rows, and 1 for a right side.
    column, begin, length, kind, _ = edges(content, offsets, 1)
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
def bounds(content: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(4, polygons): least column and row, greatest column and row, of polygons that write wrote."""
    found = np.empty((4, len(offsets) - 1), np.int64)
    for each in range(len(offsets) - 1):
        start = offsets[each] + _HEADER + _COUNT
        left, top = get_double(content, start), get_double(content, start + 8)
        right, bottom = left, top
        for at in range(start, start + _POINT * get_uint32(content, start - _COUNT), _POINT):  # of the outer ring
            x, y = get_double(content, at), get_double(content, at + 8)
            left, right, bottom = min(left, x), max(right, x), max(bottom, y)
        found[0, each], found[1, each], found[2, each], found[3, each] = left, top, right, bottom
    return found


@compiled
def edges(content: np.ndarray, offsets: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The edges along an axis (1: vertical, 0: horizontal) of polygons that write wrote: the line that each lies on (column or row), where it
    begins on it, its length, 0 or 1 for one side of an object or the other (vertical: 0 left, 1 right), and the number of its polygon."""
    capacity = (offsets[-1] - offsets[0]) // (2 * _POINT)  # every other edge
    line, begin, length = np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty(capacity, np.int32)
    kind, polygon = np.empty(capacity, np.uint8), np.empty(capacity, np.int32)
    count, half = 0, _POINT // 2
    for each in range(len(offsets) - 1):
        at = offsets[each] + _HEADER
        while at < offsets[each + 1]:
            end = at + _COUNT + _POINT * get_uint32(content, at)
            at += _COUNT
            across, along = get_double(content, at + half * (1 - axis)), get_double(content, at + half * axis)
            for point in range(at + _POINT, end, _POINT):
                new_across, new_along = get_double(content, point + half * (1 - axis)), get_double(content, point + half * axis)
                if new_across == across:
                    line[count] = across
                    begin[count] = min(along, new_along)
                    length[count] = abs(along - new_along)
                    kind[count] = along > new_along
                    polygon[count] = each
                    count += 1
                across, along = new_across, new_along
            at = end
    return line[:count], begin[:count], length[:count], kind[:count], polygon[:count]


@compiled
def meet(
    order: np.ndarray, line: np.ndarray, begin: np.ndarray, length: np.ndarray, kind: np.ndarray, polygon: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of polygons that share some length of an edge, one on either side of it. order: what sorts the edges by line, kind and begin."""
    one, other = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    count = start = 0
    while start < len(order):
        middle = start
        while middle < len(order) and line[order[middle]] == line[order[start]] and kind[order[middle]] == 0:
            middle += 1
        end = middle
        while end < len(order) and line[order[end]] == line[order[start]]:
            end += 1
        low, high = start, middle
        while low < middle and high < end:
            a, b = order[low], order[high]
            if begin[a] < begin[b] + length[b] and begin[b] < begin[a] + length[a]:
                one[count], other[count] = polygon[a], polygon[b]
                count += 1
            if begin[a] + length[a] < begin[b] + length[b]:
                low += 1
            else:
                high += 1
        start = end
    return one[:count], other[:count]


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
