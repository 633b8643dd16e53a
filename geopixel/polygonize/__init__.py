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

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geopixel.polygonize import runs

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


def _trace(mask: np.ndarray, confidence: np.ndarray, prompt: int, left: int, top: int) -> pa.Table:
    height, width = mask.shape
    if width % runs.WORD or mask.ctypes.data % runs.WORD or mask.strides[0] % runs.WORD or mask.strides[1] != 1:
        padded = np.zeros((height, -(-width // runs.WORD) * runs.WORD), np.uint8)
        padded[:, :width] = mask
        mask = padded
    sides, first = runs.scan(mask, mask.view(np.uint64))
    owner, starts = runs.connect(sides, first)
    row, column = _first_pixels(sides, first, starts, left, top)
    pixels, confidence_sum, touches_edge = runs.measure(sides, first, owner, len(starts), confidence)
    columns = {"row": row, "column": column, "pixels": pixels, "confidence_sum": confidence_sum, "touches_edge": touches_edge}
    return _table(prompt, columns, runs.write(sides, first, owner, len(starts), left, top))


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
    sides, first, left, top = runs.read(np.frombuffer(geometry.buffers()[2], np.uint8), offsets)
    if not len(first):
        raise ValueError(f"parts overlap: some pixel of prompt {prompt} is in two of them")
    owner, starts = runs.connect(sides, first)
    row, column = _first_pixels(sides, first, starts, left, top)
    # The runs of a part are inside runs of the object that it has become part of: its first pixel tells which one.
    part = runs.owner_at(sides, first, owner, pieces["row"].to_numpy() - top, pieces["column"].to_numpy() - left)
    # Sums of integers below 2 ** 53 are exact in bincount's float64.
    sums = {name: np.bincount(part, pieces[name].to_numpy(), len(starts)).astype(np.int64) for name in ("pixels", "confidence_sum")}
    columns = {"row": row, "column": column, **sums, "touches_edge": np.ones(len(starts), bool)}
    return _table(prompt, columns, runs.write(sides, first, owner, len(starts), left, top))


def _first_pixels(sides: np.ndarray, first: np.ndarray, starts: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    row = np.searchsorted(first, 2 * starts.astype(np.int64), side="right") - 1
    return row + top, sides[2 * starts] + np.int64(left)


def _table(prompt: int, columns: Mapping[str, np.ndarray], geometry: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    content, offsets = geometry
    count = len(offsets) - 1
    wkb = pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    arrays = {**columns, "prompt": np.full(count, prompt), "geometry": wkb}
    return pa.table([pa.array(arrays[field.name], field.type) for field in PARTS], schema=PARTS)
