"""Turns masks into exact polygons: every 4-connected object of a mask becomes one polygon along its pixels' edges, holes kept. Blocks are
traced one by one; objects that cross from one into another are put together afterwards, and come out as if they had never been cut. Works
in pixels of the grid, counted from the CRS origin (x: column, y: row, growing southwards); knows nothing of CRSs, metres or prompts' names.

How: each row of a mask is a list of runs, each run has two sides, one pixel high. Left sides point down, right sides up, so an object lies to
the left of its border as one walks it on a map. Where two rows meet, every side is linked to the one that follows it; a ring is what
one walks from side to side. Parts of objects are put together the same way: their outlines give back their runs, runs that meet become
one, and the runs are traced anew. So nothing can depend on how a mask was cut, nor on the order in which parts are put together.

What never ends (a network of roads) is cut by one rule: an object wider or higher than SQUARE pixels becomes one object for each of its
pieces in the squares of that size that are counted from the CRS origin, and each says which whole it is part of. So the rule knows nothing
of areas, tiles and blocks, and no more than a square's worth of an object is ever put together.

The one way to write a polygon: vertices at corners only. Every ring starts at its topmost, of these its leftmost vertex. The outer ring
comes first and turns counter-clockwise on a map (y growing downwards); holes turn clockwise and follow in reading order of their first
vertices. A ring does not touch itself: where two pixels of one object meet at a corner only, a hole ends there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geopixel.polygonize import runs
from geopixel.types import BLOCK_SIZE

SQUARE = 4 * BLOCK_SIZE
"""Pixels along the edge of the squares that larger objects are cut by. Whole blocks, so that what a block holds lies in one square."""

OBJECTS = pa.schema(
    [
        ("prompt", pa.int16()),  # index into the prompts of the run
        ("row", pa.int64()),  # of the object's first pixel in reading order: no other object of the prompt has it
        ("column", pa.int64()),
        ("pixels", pa.int64()),
        ("confidence_sum", pa.int64()),  # over those pixels, in stored levels: integers, so that sums do not depend on their order
        ("scenes", pa.list_(pa.uint16())),  # that its pixels are of, in order
        ("score", pa.float32()),  # of the mask that its first pixel is of; null where that has none
        ("touches_edge", pa.bool_()),  # a pixel of it lies beside one without an answer
        ("whole_row", pa.int64()),  # of the first pixel of the whole that it was cut from; null: it is whole
        ("whole_column", pa.int64()),
        ("geometry", pa.large_binary()),  # WKB polygon in pixels of the grid, written the one way
    ]
)
PARTS = OBJECTS.append(pa.field("open", pa.bool_()))
"""open: it touches the rim of its block, and there may be more of it next door. No part knows yet whether it is to be cut."""


def trace_block(
    mask: np.ndarray,
    confidence: np.ndarray,
    *,
    left: int,
    top: int,
    scene: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    edge: np.ndarray | None = None,
) -> pa.Table:
    """The 4-connected objects of a block, as PARTS, in order of prompt, row and column.

    mask: (prompts, height, width) uint8 or bool; 1 is object, every other value is not. confidence: the same shape, uint8 levels.
    left, top: the block's first pixel column and row on the grid. scene: (height, width) uint16, which scene a pixel is of; None: all are of
    scene 0. scores: (prompts, rows, columns) float32 of the masks, each for an equal share of the block, NaN or None: they have none.
    edge: (height, width) bool, True beside pixels without an answer; None: there are none.
    """
    if mask.shape != confidence.shape or mask.ndim != 3:
        raise ValueError(f"mask and confidence are both (prompts, height, width), got {mask.shape} and {confidence.shape}")
    if mask.dtype not in (np.uint8, np.bool_) or confidence.dtype != np.uint8:
        raise ValueError(f"mask is uint8 or bool and confidence uint8, got {mask.dtype} and {confidence.dtype}")
    for name, given, dtype in (("scene", scene, np.uint16), ("edge", edge, np.bool_)):
        if given is not None and (given.shape != mask.shape[1:] or given.dtype != dtype):
            raise ValueError(f"{name} is {np.dtype(dtype)} {mask.shape[1:]}, got {given.dtype} {given.shape}")
    scene = np.zeros((0, 0), np.uint16) if scene is None else scene
    edge = np.zeros((0, 0), bool) if edge is None else edge
    scores = np.full((len(mask), 1, 1), np.nan, np.float32) if scores is None else scores
    tables = [PARTS.empty_table()]
    for prompt, (plane, levels, shares) in enumerate(zip(mask.view(np.uint8), confidence, scores, strict=True)):
        tables.append(_trace(plane, levels, scene, edge, shares, prompt, left, top))
    return pa.concat_tables(tables)


def merge(parts: pa.Table, square: int = SQUARE) -> pa.Table:
    """Puts together, within each square, the PARTS of some blocks: PARTS again, in no particular order, to be merged on with those of others.

    Blocks of any size that lie in one square each and do not overlap; in any order and grouping: stitch(merge(a + b) + c) is
    stitch(a + merge(b + c)). What has touched the rim of its block goes on counting as such. Raises ValueError where parts overlap.
    """
    parts = parts.combine_chunks()  # a column of hundreds of chunks is slow to filter
    pieces = parts.filter(parts["open"])
    merged, _ = _join(pieces, _squares(pieces, square))
    return pa.concat_tables([parts.filter(pc.invert(parts["open"])), merged])


def rim(parts: pa.Table, window: tuple[int, int, int, int], square: int = SQUARE) -> pa.Table:
    """Of the PARTS of all blocks of a window, those that objects which touch its edge are made of, put together within each square: what stitch
    needs to join these objects with those of the windows around.

    window: pixels [left, right) x [top, bottom) as (left, top, right, bottom), edges at multiples of square.
    """
    pieces = parts.combine_chunks().filter(parts["open"])
    pieces, _ = _join(pieces, _squares(pieces, square))
    left, top, right, bottom = window
    keep = np.zeros(len(pieces), bool)
    for rows, label, bounds in _objects(pieces):
        at_edge = (bounds[0] <= left) | (bounds[1] <= top) | (bounds[2] >= right) | (bounds[3] >= bottom)
        keep[rows] = np.isin(label, label[at_edge])
    return pieces.filter(keep)


def stitch(parts: pa.Table, square: int = SQUARE) -> pa.Table:
    """Puts the PARTS of all blocks together: OBJECTS, in order of prompt, row and column.

    What comes out equals a trace of the whole raster in one piece, vertex for vertex, cut where it is larger than a square. The blocks are
    of any size and in any order, but each lies in one square. Raises ValueError where parts overlap.
    """
    parts = parts.combine_chunks()
    pieces = parts.filter(parts["open"])
    whole = _wholes(pieces, square)
    large = whole >= 0
    tables = [parts, _join_by_prompt(pieces.filter(~large)), _cut(pieces, whole, square)] if large.any() else [parts, _join_by_prompt(pieces)]
    every = pa.concat_tables(tables).select(OBJECTS.names)
    rows = np.concatenate((np.flatnonzero(~parts["open"].to_numpy()), np.arange(len(parts), len(every))))
    return every.take(pa.array(rows[_in_order(*(every[name].to_numpy()[rows] for name in ("prompt", "row", "column")))]))


def _trace(
    mask: np.ndarray, confidence: np.ndarray, scene: np.ndarray, edge: np.ndarray, scores: np.ndarray, prompt: int, left: int, top: int
) -> pa.Table:
    height, width = mask.shape
    if width % runs.WORD or mask.ctypes.data % runs.WORD or mask.strides[0] % runs.WORD or mask.strides[1] != 1:
        padded = np.zeros((height, -(-width // runs.WORD) * runs.WORD), np.uint8)
        padded[:, :width] = mask
        mask = padded
    sides, first = runs.scan(mask, mask.view(np.uint64))
    owner, starts = runs.connect(sides, first)
    row, column = _first_pixels(sides, first, starts, 0, 0)
    pixels, confidence_sum, touches_edge, is_open, seen = runs.measure(sides, first, owner, len(starts), confidence, scene, edge)
    columns = {
        "row": row + top,
        "column": column + left,
        "pixels": pixels,
        "confidence_sum": confidence_sum,
        "scenes": _scene_lists(seen, len(starts)),
        "score": pa.array(scores[row * scores.shape[0] // max(height, 1), column * scores.shape[1] // max(width, 1)], from_pandas=True),
        "touches_edge": touches_edge,
        "open": is_open,
    }
    return _table(prompt, columns, runs.write(sides, first, owner, len(starts), left, top))


def _join(pieces: pa.Table, group: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """The objects that the pieces, open PARTS, of each group make, as open PARTS, and for each of them a piece that it is made of.
    The pieces of a group are of one prompt."""
    order = np.argsort(group, kind="stable")
    bounds = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1)) if len(group) else np.zeros(1, np.int64)
    if len(bounds) > 2:
        pieces = pieces.take(pa.array(order))
    tables, members = [PARTS.empty_table()], [np.zeros(0, np.int64)]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        table, member = _join_group(pieces.slice(start, stop - start))
        tables.append(table)
        members.append(order[start + member])
    return pa.concat_tables(tables), np.concatenate(members)


def _join_group(pieces: pa.Table) -> tuple[pa.Table, np.ndarray]:
    prompt = pieces["prompt"][0].as_py()
    sides, first, left, top = runs.read(*_wkb(pieces))
    if not len(first):
        raise ValueError(f"parts overlap: some pixel of prompt {prompt} is in two of them")
    owner, starts = runs.connect(sides, first)
    row, column = _first_pixels(sides, first, starts, left, top)
    # The runs of a part are inside runs of the object that it has become part of: its first pixel tells which one.
    part = runs.owner_at(sides, first, owner, pieces["row"].to_numpy() - top, pieces["column"].to_numpy() - left)
    # Sums of integers below 2 ** 53 are exact in bincount's float64.
    sums = {name: np.bincount(part, pieces[name].to_numpy(), len(starts)).astype(np.int64) for name in ("pixels", "confidence_sum")}
    in_order = np.lexsort((pieces["column"].to_numpy(), pieces["row"].to_numpy(), part))
    member = in_order[np.searchsorted(part[in_order], np.arange(len(starts)))]  # the part that the object's first pixel is of
    scenes = pieces["scenes"].combine_chunks()
    seen = part[pc.list_parent_indices(scenes).to_numpy()].astype(np.int64) << 16 | scenes.flatten().to_numpy()
    columns = {
        "row": row,
        "column": column,
        **sums,
        "scenes": _scene_lists(seen, len(starts)),
        "score": pieces["score"].combine_chunks().take(pa.array(member)),
        "touches_edge": np.bincount(part, pieces["touches_edge"].to_numpy(), len(starts)) > 0,
        "open": np.ones(len(starts), bool),
    }
    return _table(prompt, columns, runs.write(sides, first, owner, len(starts), left, top)), member


def _join_by_prompt(pieces: pa.Table) -> pa.Table:
    return _join(pieces, pieces["prompt"].to_numpy())[0]


def _wholes(pieces: pa.Table, square: int) -> np.ndarray:
    """(pieces,) int64: for a piece of an object that is wider or higher than a square, the piece with that object's first pixel; else -1."""
    whole = np.full(len(pieces), -1, np.int64)
    if all((each == each[:1]).all() for each in (pieces[name].to_numpy() // square for name in ("row", "column"))):
        return whole
    for rows, label, bounds in _objects(pieces, square):
        some = pieces.take(pa.array(rows))
        order = np.lexsort((some["column"].to_numpy(), some["row"].to_numpy(), label))
        starts = np.searchsorted(label[order], np.arange(label.max() + 1))
        low, high = np.split(bounds[:, order], 2)
        size = np.maximum.reduceat(high, starts, axis=1) - np.minimum.reduceat(low, starts, axis=1)
        whole[rows] = np.where((size > square).any(axis=0), rows[order[starts]], -1)[label]
    return whole


def _objects(pieces: pa.Table, larger_than: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By prompt, of those whose pieces together are wider or higher than this: the rows of its pieces, the number of the object that each of them is
    of, and (4, pieces) their least column and row, greatest column and row."""
    prompts = pieces["prompt"].to_numpy()
    for prompt in np.unique(prompts):
        rows = np.flatnonzero(prompts == prompt)
        some = pieces if len(rows) == len(pieces) else pieces.take(pa.array(rows))
        content, offsets = _wkb(some)
        bounds = runs.bounds(content, offsets)
        low, high = np.split(bounds, 2)
        if (high.max(axis=1) - low.min(axis=1) <= larger_than).all():
            continue
        pairs = [_neighbours(*runs.edges(content, offsets, axis)) for axis in (0, 1)]
        one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        _, label = connected_components(coo_array((np.ones(len(one), bool), (one, other)), shape=(len(rows), len(rows))), directed=False)
        yield rows, label, bounds


def _neighbours(line: np.ndarray, begin: np.ndarray, length: np.ndarray, kind: np.ndarray, polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return runs.meet(np.lexsort((begin, kind, line)), line, begin, length, kind, polygon)


def _cut(pieces: pa.Table, whole: np.ndarray, square: int) -> pa.Table:
    """What large objects are in each square. whole: as _wholes gives it for the pieces."""
    rows = np.flatnonzero(whole >= 0)
    some = pieces.take(pa.array(rows))
    cut, member = _join(some, _squares(some, square))
    for name in ("row", "column"):
        cut = cut.set_column(PARTS.get_field_index(f"whole_{name}"), f"whole_{name}", pieces[name].take(pa.array(whole[rows][member])))
    return cut


def _squares(pieces: pa.Table, square: int) -> np.ndarray:
    """(pieces,) int64: one number for each prompt and square."""
    keys = np.stack((pieces["prompt"].to_numpy(), pieces["row"].to_numpy() // square, pieces["column"].to_numpy() // square))
    return np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)


def _in_order(prompt: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """What sorts by prompt, row and column: as lexsort, in one pass over one key."""
    if not len(prompt):
        return np.zeros(0, np.int64)
    row, column = row - row.min(), column - column.min()
    return np.argsort((prompt.astype(np.int64) * (row.max() + 1) + row) * (column.max() + 1) + column, kind="stable")


def _scene_lists(seen: np.ndarray, count: int) -> pa.Array:
    """seen: object << 16 | scene, in any order and number."""
    seen = np.unique(seen)
    offsets = np.searchsorted(seen, np.arange(count + 1, dtype=np.int64) << 16).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array((seen & 0xFFFF).astype(np.uint16)))


def _first_pixels(sides: np.ndarray, first: np.ndarray, starts: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    row = np.searchsorted(first, 2 * starts.astype(np.int64), side="right") - 1
    return row + top, sides[2 * starts] + np.int64(left)


def _wkb(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the geometries, and the offsets at which they begin and end."""
    geometry = table["geometry"].combine_chunks()
    return np.frombuffer(geometry.buffers()[2], np.uint8), _offsets(geometry)


def _offsets(geometry: pa.LargeBinaryArray) -> np.ndarray:
    return np.frombuffer(geometry.buffers()[1], np.int64)[geometry.offset : geometry.offset + len(geometry) + 1]


def _table(prompt: int, columns: Mapping[str, np.ndarray | pa.Array], geometry: tuple[np.ndarray, np.ndarray]) -> pa.Table:
    content, offsets = geometry
    wkb = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    nulls = pa.nulls(len(wkb), pa.int64())
    arrays = {**columns, "prompt": np.full(len(wkb), prompt), "whole_row": nulls, "whole_column": nulls, "geometry": wkb}
    return pa.table([pa.array(arrays[field.name], field.type) for field in PARTS], schema=PARTS)
