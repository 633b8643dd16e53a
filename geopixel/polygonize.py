"""Turns masks into exact polygons: every 4-connected object of a mask becomes one polygon along its pixels' edges, holes kept. Blocks are
traced one by one; objects that cross from one into another are put together afterwards, and come out as if they had never been cut. Works
in pixels of the grid, counted from the CRS origin (x: column, y: row, growing southwards); knows nothing of CRSs, metres or prompts' names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import rasterio.features
import scipy.ndimage
import shapely
from affine import Affine
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geopixel.types import BLOCK_SIZE

PARTS = pa.schema(
    [
        ("prompt", pa.int16()),  # index into the prompts of the run
        ("row", pa.int64()),  # of the object's first pixel in reading order: no other object of the prompt has it
        ("column", pa.int64()),
        ("pixels", pa.int64()),
        ("confidence_sum", pa.int64()),  # over those pixels, in stored levels: integers, so that sums do not depend on their order
        ("touches_edge", pa.bool_()),  # of its block: there may be more of it next door
        ("geometry", pa.binary()),  # WKB polygon in pixels of the grid
    ]
)


def trace_block(mask: np.ndarray, confidence: np.ndarray, *, left: int, top: int) -> pa.Table:
    """The 4-connected objects of a block, as PARTS.

    mask: (prompts, height, width) uint8 or bool; 1 is object, every other value is not. confidence: the same shape, uint8 levels.
    left, top: the block's first pixel column and row on the grid.
    """
    if mask.shape != confidence.shape or mask.ndim != 3:
        raise ValueError(f"mask and confidence are both (prompts, height, width), got {mask.shape} and {confidence.shape}")
    tables = [_trace(plane == 1, levels, prompt, left, top) for prompt, (plane, levels) in enumerate(zip(mask, confidence, strict=True))]
    return pa.concat_tables([PARTS.empty_table(), *tables])


def stitch(parts: pa.Table, *, block_size: int = BLOCK_SIZE) -> pa.Table:
    """Puts the PARTS of all blocks together: PARTS again, one row per object, in order of prompt, row and column.

    block_size: edges of blocks are multiples of it. What comes out equals a trace of the whole raster in one piece, vertex for vertex.
    """
    if not parts.num_rows:
        return PARTS.empty_table()
    columns = {name: parts[name].to_numpy() for name in PARTS.names if name != "geometry"}
    polygons = shapely.from_wkb(parts["geometry"].to_numpy(zero_copy_only=False))
    count, group = _connect(polygons, columns["prompt"], columns["touches_edge"], block_size)

    order = np.lexsort((columns["column"], columns["row"], group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    firsts = order[starts]  # each group's part with the first pixel in reading order
    members = np.split(order, starts[1:])
    merged = np.array([polygons[few[0]] if len(few) == 1 else shapely.union_all(polygons[few]) for few in members], dtype=object)
    assert (shapely.get_type_id(merged) == shapely.GeometryType.POLYGON).all(), "parts that share an edge make one polygon"

    objects = {name: columns[name][firsts] for name in ("prompt", "row", "column")}
    for name in ("pixels", "confidence_sum"):
        # Sums of integers below 2 ** 53 are exact in bincount's float64.
        objects[name] = np.bincount(group, weights=columns[name], minlength=count).astype(np.int64)
    final = np.lexsort((objects["column"], objects["row"], objects["prompt"]))
    table = {name: values[final] for name, values in objects.items()}
    return _table(canonical(merged)[final], **table, touches_edge=np.zeros(count, bool))


def canonical(polygons: np.ndarray) -> np.ndarray:
    """The one way to write each rectilinear polygon: vertices at corners only, rings starting at their lowest x, holes in order.

    polygons: (n,) shapely polygons, valid, edges along the axes. The rings of a 4-connected object that meet at a vertex are the same however they were
    made: a ring of a valid polygon does not touch itself, which leaves one way to pair the four edges there. Outer rings turn clockwise
    where y points up, hence counter-clockwise once rows have become northings.
    """
    if not len(polygons):
        return polygons
    kind, vertices, (rings, shells) = shapely.to_ragged_array(polygons)
    rings, shells = rings.astype(np.intp), shells.astype(np.intp)
    before, after = np.arange(len(vertices)) - 1, np.arange(len(vertices)) + 1
    # A ring is closed: its last vertex repeats its first. The neighbours of the first are the last but one and the second.
    before[rings[:-1]] = rings[1:] - 2
    straight = ((vertices == vertices[before]) & (vertices == vertices[after % len(vertices)])).any(axis=1)
    corner = ~straight
    corner[rings[1:] - 1] = False
    lengths = np.add.reduceat(corner, rings[:-1], dtype=np.intp)
    ends = np.cumsum(lengths)
    closed = np.insert(np.flatnonzero(corner), ends, np.flatnonzero(corner)[ends - lengths])
    offsets = np.concatenate(([0], np.cumsum(lengths + 1)))
    return shapely.normalize(shapely.from_ragged_array(kind, vertices[closed], (offsets, shells)))


def _trace(mask: np.ndarray, levels: np.ndarray, prompt: int, left: int, top: int) -> pa.Table:
    labels, count = scipy.ndimage.label(mask)
    inside = labels[mask]
    polygons = np.empty(count, dtype=object)
    for shape, label in rasterio.features.shapes(labels, mask=mask, connectivity=4, transform=Affine.translation(left, top)):
        shell, *holes = shape["coordinates"]
        polygons[int(label) - 1] = shapely.Polygon(shell, holes)
    polygons = canonical(polygons)
    column, row = _first_pixels(polygons)
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    height, width = mask.shape
    return _table(
        polygons,
        prompt=np.full(count, prompt),
        row=row,
        column=column,
        pixels=np.bincount(inside, minlength=count + 1)[1:],
        confidence_sum=np.bincount(inside, weights=levels[mask], minlength=count + 1)[1:].astype(np.int64),
        touches_edge=(bounds == (left, top, left + width, top + height)).any(axis=1),
    )


def _table(polygons: np.ndarray, **columns: np.ndarray) -> pa.Table:
    arrays = {**columns, "geometry": shapely.to_wkb(polygons)}
    return pa.table([pa.array(arrays[field.name], field.type) for field in PARTS], schema=PARTS)


def _first_pixels(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of each polygon's first pixel in reading order: the leftmost vertex of its topmost edge is that pixel's corner."""
    vertices, index = shapely.get_coordinates(polygons, return_index=True)
    row = np.full(len(polygons), np.inf)
    np.minimum.at(row, index, vertices[:, 1])
    topmost = vertices[:, 1] == row[index]
    column = np.full(len(polygons), np.inf)
    np.minimum.at(column, index[topmost], vertices[topmost, 0])
    return column.astype(np.int64), row.astype(np.int64)


def _connect(polygons: np.ndarray, prompt: np.ndarray, touches_edge: np.ndarray, block_size: int) -> tuple[int, np.ndarray]:
    """How many objects there are, and which of them each part belongs to: parts of a prompt that share a pixel's edge across a seam are one."""
    open_parts = np.flatnonzero(touches_edge)
    edges = _seam_edges(polygons[open_parts], block_size)
    part = open_parts[edges[:, 0]]
    keys = np.column_stack((prompt[part], edges[:, 1:]))
    order = np.lexsort(keys.T)
    # A pixel's edge borders two pixels, hence at most two parts of one prompt: equal keys come in pairs.
    same = (keys[order][1:] == keys[order][:-1]).all(axis=1)
    one, other = part[order][:-1][same], part[order][1:][same]
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(polygons), len(polygons)))
    return connected_components(graph, directed=False)


def _seam_edges(polygons: np.ndarray, block_size: int) -> np.ndarray:
    """Every edge of a pixel on a seam that a polygon runs along: (n, 4) integers (polygon, axis, seam, position).

    axis 0: the seam is a column and the edge runs from row position to the next; axis 1: rows and columns changed over.
    """
    rings, owner = shapely.get_rings(polygons, return_index=True)
    vertices, ring = shapely.get_coordinates(rings, return_index=True)
    vertices = vertices.astype(np.int64)
    found = [np.empty((0, 4), np.int64)]
    for axis in (0, 1):
        seam, along = vertices[:, axis], vertices[:, 1 - axis]
        on_seam = np.flatnonzero((ring[1:] == ring[:-1]) & (seam[1:] == seam[:-1]) & (seam[1:] % block_size == 0))
        start, stop = np.sort(np.stack((along[on_seam], along[on_seam + 1])), axis=0)
        length = stop - start
        step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        polygon = owner[ring[on_seam]]
        found.append(np.column_stack([np.repeat(polygon, length), np.full(len(step), axis), np.repeat(seam[on_seam], length), np.repeat(start, length) + step]))
    return np.concatenate(found)
