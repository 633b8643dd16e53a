"""Turns masks into exact polygons: every 4-connected object of a mask becomes one polygon along its pixels' edges, holes kept. Blocks are
traced one by one; objects that cross from one into another are put together afterwards, and come out as if they had never been cut. Works
in pixels of the grid, counted from the CRS origin (x: column, y: row, growing southwards); knows nothing of CRSs, metres or prompts' names.

How: each row of a mask is a list of runs, each run has two sides, one pixel high. Left sides point down, right sides up, so an object lies to
the left of its border as one walks it on a map. Where two rows meet, every side is linked to the one that follows it; a ring is what
one walks from side to side. Parts of objects are put together the same way: their outlines give back their runs, runs that meet become
one, and the runs are traced anew. So nothing can depend on how a mask was cut, nor on the order in which parts are put together.

The one way to write a polygon: vertices at corners only. Every ring starts at its topmost, of these its leftmost vertex. The outer ring
comes first and turns counter-clockwise on a map (y growing downwards); holes turn clockwise and follow in reading order of their first
vertices. A ring does not touch itself: where two pixels of one object meet at a corner only, a hole ends there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

PARTS = pa.schema(
    [
        ("prompt", pa.int16()),  # index into the prompts of the run
        ("row", pa.int64()),  # of the object's first pixel in reading order: no other object of the prompt has it
        ("column", pa.int64()),
        ("pixels", pa.int64()),
        ("confidence_sum", pa.int64()),  # over those pixels, in stored levels: integers, so that sums do not depend on their order
        ("touches_edge", pa.bool_()),  # of its block: there may be more of it next door
        ("geometry", pa.large_binary()),  # WKB polygon in pixels of the grid, written the one way
    ]
)
_WORD = 8
"""Pixels that are looked at together."""
_ALL_OBJECT, _ALL_NONE = np.uint64(0x0101010101010101), np.uint64(0xFFFFFFFFFFFFFFFF)
"""A word of ones, and one of 255."""
_BYTE_ORDER, _POLYGON = int(sys.byteorder == "little"), 3
_HEADER, _COUNT, _POINT = 9, 4, 16
"""Bytes of WKB: byte order, type and number of rings of a polygon; number of points of a ring; x and y."""


def trace_block(mask: np.ndarray, confidence: np.ndarray, *, left: int, top: int) -> pa.Table:
    """The 4-connected objects of a block, as PARTS, in order of prompt, row and column.

    mask: (prompts, height, width) uint8 or bool; 1 is object, every other value is not. confidence: the same shape, uint8 levels.
    left, top: the block's first pixel column and row on the grid.
    """
    if mask.shape != confidence.shape or mask.ndim != 3:
        raise ValueError(f"mask and confidence are both (prompts, height, width), got {mask.shape} and {confidence.shape}")
    if mask.dtype not in (np.uint8, np.bool_) or confidence.dtype != np.uint8:
        raise ValueError(f"mask is uint8 or bool and confidence uint8, got {mask.dtype} and {confidence.dtype}")
    tables = [_trace(*planes, prompt, left, top) for prompt, planes in enumerate(zip(mask.view(np.uint8), confidence, strict=True))]
    return pa.concat_tables([PARTS.empty_table(), *tables])


def merge(parts: pa.Table) -> pa.Table:
    """Puts together the PARTS of some blocks: PARTS again, in no particular order, to be merged on with those of other blocks.

    Blocks of any size, which do not overlap; in any order and grouping: stitch(merge(a + b) + c) is stitch(a + merge(b + c)). What has touched
    the edge of its block goes on counting as such. Raises ValueError where parts overlap.
    """
    objects, rows = _put_together(parts)
    return objects.take(pa.array(rows))


def stitch(parts: pa.Table) -> pa.Table:
    """Puts the PARTS of all blocks together: PARTS again, one row per object, in order of prompt, row and column; nothing touches an edge.

    What comes out equals a trace of the whole raster in one piece, vertex for vertex. Raises ValueError where parts overlap.
    """
    objects, rows = _put_together(parts)
    order = np.lexsort([objects[name].to_numpy()[rows] for name in ("column", "row", "prompt")])
    objects = objects.take(pa.array(rows[order]))
    return objects.set_column(PARTS.get_field_index("touches_edge"), PARTS.field("touches_edge"), pa.array(np.zeros(len(objects), bool)))


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled when it is first called, and kept beside the package or in the user's cache; anew in each process where neither can be written."""
    try:
        return numba.njit(function, cache=True)
    except RuntimeError:  # numba finds no place for its cache
        return numba.njit(function)


def _trace(mask: np.ndarray, confidence: np.ndarray, prompt: int, left: int, top: int) -> pa.Table:
    height, width = mask.shape
    if width % _WORD or mask.ctypes.data % _WORD or mask.strides[0] % _WORD or mask.strides[1] != 1:
        padded = np.zeros((height, -(-width // _WORD) * _WORD), np.uint8)
        padded[:, :width] = mask
        mask = padded
    sides, first = _scan(mask, mask.view(np.uint64))
    owner, starts = _connect(sides, first)
    row, column = _first_pixels(sides, first, starts, left, top)
    pixels, confidence_sum, touches_edge = _measure(sides, first, owner, len(starts), confidence)
    columns = {"row": row, "column": column, "pixels": pixels, "confidence_sum": confidence_sum, "touches_edge": touches_edge}
    return _table(prompt, columns, _write(sides, first, owner, len(starts), left, top))


def _put_together(parts: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The parts followed by the objects that the open ones make, and the rows to keep: those objects, and the parts that touch no edge."""
    parts = parts.combine_chunks()  # a column of hundreds of chunks is slow to filter
    pieces = parts.filter(parts["touches_edge"])
    objects = [_join(prompt, pieces.filter(pc.equal(pieces["prompt"], prompt))) for prompt in pc.unique(pieces["prompt"]).to_pylist()]
    every = pa.concat_tables([parts, *objects])
    return every, np.concatenate((np.flatnonzero(~parts["touches_edge"].to_numpy()), np.arange(len(parts), len(every))))


def _join(prompt: int, pieces: pa.Table) -> pa.Table:
    """The objects that the pieces, all of one prompt, make. Every one of them has touched an edge."""
    geometry = pieces["geometry"].combine_chunks()
    offsets = np.frombuffer(geometry.buffers()[1], np.int64)[geometry.offset : geometry.offset + len(geometry) + 1]
    sides, first, left, top = _read(np.frombuffer(geometry.buffers()[2], np.uint8), offsets)
    if not len(first):
        raise ValueError(f"parts overlap: some pixel of prompt {prompt} is in two of them")
    owner, starts = _connect(sides, first)
    row, column = _first_pixels(sides, first, starts, left, top)
    # The runs of a part are inside runs of the object that it has become part of: its first pixel tells which one.
    part = _owner_at(sides, first, owner, pieces["row"].to_numpy() - top, pieces["column"].to_numpy() - left)
    # Sums of integers below 2 ** 53 are exact in bincount's float64.
    sums = {name: np.bincount(part, pieces[name].to_numpy(), len(starts)).astype(np.int64) for name in ("pixels", "confidence_sum")}
    columns = {"row": row, "column": column, **sums, "touches_edge": np.ones(len(starts), bool)}
    return _table(prompt, columns, _write(sides, first, owner, len(starts), left, top))


def _first_pixels(sides: np.ndarray, first: np.ndarray, starts: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    row = np.searchsorted(first, 2 * starts.astype(np.int64), side="right") - 1
    return row + top, sides[2 * starts] + np.int64(left)


def _table(prompt: int, columns: Mapping[str, np.ndarray], geometry: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    content, offsets = geometry
    count = len(offsets) - 1
    wkb = pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    arrays = {**columns, "prompt": np.full(count, prompt), "geometry": wkb}
    return pa.table([pa.array(arrays[field.name], field.type) for field in PARTS], schema=PARTS)


# What follows is compiled. Shared words: sides (2 * runs,) int32: columns at which the runs, in reading order, begin (even index: a left side)
# and end (odd index: a right side), runs of a row apart from each other. first (height + 1,) int64: index of the first side of every row.
# owner (runs,) int32: the number of the object that a run belongs to, objects in reading order of their first pixels.


@_compiled
def _scan(pixels: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
            for column in range(_WORD * word, _WORD * (word + 1)):
                if (pixels[row, column] == 1) != inside:
                    inside = not inside
                    sides[count] = column
                    count += 1
        if inside:
            sides[count] = width
            count += 1
        first[row + 1] = count
    return sides[:count].copy(), first


@_compiled
def _connect(sides: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


@_compiled
def _measure(
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


@_compiled
def _link(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


@_compiled
def _copy(source: np.ndarray, source_at: int, target: np.ndarray, target_at: int, count: int) -> None:
    for byte in range(count):  # quicker than slices, which are made to be views
        target[target_at + byte] = source[source_at + byte]


@_compiled
def _write(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, count: int, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """WKB of every object: bytes, and the offsets at which objects begin and end."""
    following, vertices, rings = _link(sides, first, owner, count)
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
        _copy(number_bytes, 0, content, at + 1, _COUNT)
        number[0] = rings[each]
        _copy(number_bytes, 0, content, at + 5, _COUNT)
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
                _copy(point_bytes, 0, content, at, _POINT)
                at += _POINT
            side = start
            y = row + (start & 1)
            while following[side] >= 0:
                y += 1 - 2 * (side & 1)
                after = following[side]
                following[side] = -1
                if sides[after] != sides[side]:
                    point[0], point[1] = left + sides[side], top + y
                    _copy(point_bytes, 0, content, at, _POINT)
                    point[0] = left + sides[after]
                    _copy(point_bytes, 0, content, at + _POINT, _POINT)
                    at += 2 * _POINT
                side = after
            if start & 1:
                point[0], point[1] = left + sides[start], top + row
                _copy(point_bytes, 0, content, at, _POINT)
                at += _POINT
            number[0] = (at - begin - _COUNT) // _POINT
            _copy(number_bytes, 0, content, begin, _COUNT)
            cursor[each] = at
    return content, offsets


@_compiled
def _read(content: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Sides and first of the pixels inside polygons that _write wrote, the column they are counted from and the row they begin with.

    first is empty where polygons overlap. Takes time in proportion to sides, rows and columns: edges are put in order by counting.
    """
    # Vertical edges: column, row of the upper end, rows, and 1 for a right side.
    column, begin, length, kind = _vertical_edges(content, offsets)
    left, top = column.min(), begin.min()
    order = _order(column - left)
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


@_compiled
def _vertical_edges(content: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Column, first row, rows, and 0 for a left or 1 for a right side, of every vertical edge of polygons that _write wrote."""
    capacity = (offsets[-1] - offsets[0]) // (2 * _POINT)  # every other edge is vertical
    column, begin, length = np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty(capacity, np.int32)
    kind = np.empty(capacity, np.uint8)
    number, point = np.empty(1, np.uint32), np.empty(2, np.float64)
    number_bytes, point_bytes = number.view(np.uint8), point.view(np.uint8)
    count = 0
    for each in range(len(offsets) - 1):
        at = offsets[each] + _HEADER
        while at < offsets[each + 1]:
            _copy(content, at, number_bytes, 0, _COUNT)
            at += _COUNT
            _copy(content, at, point_bytes, 0, _POINT)
            x, y = point[0], point[1]
            for _ in range(1, number[0]):
                at += _POINT
                _copy(content, at, point_bytes, 0, _POINT)
                if point[0] == x:
                    column[count] = x
                    begin[count] = min(y, point[1])
                    length[count] = abs(y - point[1])
                    kind[count] = y > point[1]
                    count += 1
                x, y = point[0], point[1]
            at += _POINT
    return column[:count], begin[:count], length[:count], kind[:count]


@_compiled
def _order(values: np.ndarray) -> np.ndarray:
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


@_compiled
def _owner_at(sides: np.ndarray, first: np.ndarray, owner: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The objects that pixels belong to."""
    found = np.empty(len(rows), np.int32)
    for index in range(len(rows)):
        low, high = first[rows[index]], first[rows[index] + 1]
        found[index] = owner[(low + np.searchsorted(sides[low:high], columns[index], side="right") - 1) // 2]
    return found
