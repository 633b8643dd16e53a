"""Law: tiled equals whole. Whatever the noise and wherever it is cut, the objects of all blocks stitched are those of one trace of the whole,
and those are what GDAL's tracer and scipy's labels say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import rasterio.features
import scipy.ndimage
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geopixel.polygonize import PARTS, canonical, stitch, trace_block

DIAGONAL = np.kron(np.eye(4, dtype=bool), np.ones((2, 2), bool))
"""Squares that touch at corners only, some of them where four blocks of 4 meet."""
NESTED = np.zeros((11, 11), bool)
for inset in range(0, 6):
    NESTED[inset : 11 - inset, inset : 11 - inset] = inset % 2 == 0
PINCHED = ~np.pad(np.kron(np.eye(3, dtype=bool), np.ones((2, 2), bool)), 2)
"""One object over all blocks; its holes touch at corners, one of them on a seam."""


def masks(height: int = 11, width: int = 9) -> st.SearchStrategy[np.ndarray]:
    noise = arrays(bool, (height, width))
    dense = arrays(np.uint8, (height, width), elements=st.integers(0, 3)).map(lambda values: values > 0)
    return noise | dense


def trace_tiled(mask: np.ndarray, levels: np.ndarray, size: int, left: int, top: int) -> pa.Table:
    """mask (prompts, h, w) whose pixel (0, 0) is (left, top) on the grid, cut where the grid's blocks are cut."""
    _, height, width = mask.shape
    parts = [PARTS.empty_table()]
    for y in range(top // size * size, top + height, size):
        for x in range(left // size * size, left + width, size):
            window = (slice(None), slice(max(y - top, 0), y + size - top), slice(max(x - left, 0), x + size - left))
            block = np.zeros((len(mask), size, size), np.uint8)
            inside = mask[window]
            dy, dx = max(top - y, 0), max(left - x, 0)
            block[:, dy : dy + inside.shape[1], dx : dx + inside.shape[2]] = inside
            confidence = np.zeros_like(block)
            confidence[:, dy : dy + inside.shape[1], dx : dx + inside.shape[2]] = levels[window]
            parts.append(trace_block(block, confidence, left=x, top=y))
    return stitch(pa.concat_tables(parts), block_size=size)


def trace_whole(mask: np.ndarray, levels: np.ndarray, left: int, top: int) -> pa.Table:
    """One trace with an empty rim, so that nothing touches an edge."""
    rim = ((0, 0), (1, 1), (1, 1))
    table = trace_block(np.pad(mask, rim), np.pad(levels, rim), left=left - 1, top=top - 1)
    assert not any(table["touches_edge"].to_pylist())
    return table.sort_by([("prompt", "ascending"), ("row", "ascending"), ("column", "ascending")])


@settings(max_examples=35, deadline=None)
@given(masks(), st.sampled_from([2, 3, 4, 7]), st.integers(-9, 9), st.integers(-9, 9))
@example(DIAGONAL, 4, 0, 0)
@example(DIAGONAL, 4, -4, 4)
@example(NESTED, 2, 0, 0)
@example(NESTED, 4, -5, 3)
@example(PINCHED, 4, 0, 0)
@example(PINCHED, 2, 1, -1)
@example(np.ones((12, 12), bool), 3, -6, 0)
@example(np.indices((9, 9)).sum(0) % 2 == 0, 3, 0, 0)
def test_tiled_equals_whole(mask: np.ndarray, size: int, left: int, top: int) -> None:
    levels = np.arange(mask.size, dtype=np.uint64).reshape(mask.shape).astype(np.uint8) % 33
    stack, both = np.stack([mask, mask.T if mask.shape[0] == mask.shape[1] else ~mask]), np.stack([levels, levels])
    assert trace_tiled(stack, both, size, left, top).equals(trace_whole(stack, both, left, top))


@settings(max_examples=60, deadline=None)
@given(masks())
@example(NESTED)
@example(PINCHED)
def test_a_trace_is_exact(mask: np.ndarray) -> None:
    levels = np.arange(mask.size, dtype=np.int64).reshape(mask.shape).astype(np.uint8)
    table = trace_block(mask[None].astype(np.uint8), levels[None], left=0, top=0)
    polygons = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert shapely.is_valid(polygons).all()
    labels, count = scipy.ndimage.label(mask)
    assert len(polygons) == count
    assert shapely.area(polygons).tolist() == table["pixels"].to_pylist() == np.bincount(labels.ravel(), minlength=count + 1)[1:].tolist()
    assert table["confidence_sum"].to_pylist() == [int(levels[labels == label].sum()) for label in range(1, count + 1)]
    for polygon, row, column in zip(polygons, table["row"].to_pylist(), table["column"].to_pylist(), strict=True):
        burnt = rasterio.features.rasterize([polygon], mask.shape).astype(bool)
        label = labels[row, column]
        np.testing.assert_array_equal(burnt, labels == label)
        assert tuple(np.argwhere(burnt)[0]) == (row, column)
        for ring in (polygon.exterior, *polygon.interiors):
            steps = np.diff(shapely.get_coordinates(ring), axis=0)
            assert ((steps != 0).sum(axis=1) == 1).all(), "edges run along the axes"
            assert ((steps[:, 0] != 0) != (np.roll(steps[:, 0], 1) != 0)).all(), "every vertex is a corner"


@settings(max_examples=50, deadline=None)
@given(masks())
def test_canonical_form_does_not_depend_on_how_a_polygon_is_written(mask: np.ndarray) -> None:
    shapes = [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)]
    polygons = np.array(shapes, dtype=object)
    rewritten = shapely.reverse(shapely.segmentize(polygons, 1))
    assert canonical(rewritten).tolist() == canonical(polygons).tolist()
    assert shapely.equals(canonical(polygons), polygons).all()


def test_nothing_gives_an_empty_table() -> None:
    nothing = np.zeros((2, 8, 8), np.uint8)
    assert stitch(trace_block(nothing, nothing, left=0, top=0), block_size=8).equals(PARTS.empty_table())


def test_no_answer_is_no_object() -> None:
    mask = np.full((1, 4, 4), 255, np.uint8)
    mask[0, 1, 2] = 1
    table = trace_block(mask, mask, left=-4, top=8)
    assert table.select(["row", "column", "pixels"]).to_pylist() == [{"row": 9, "column": -2, "pixels": 1}]


def test_a_mask_without_a_prompt_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        trace_block(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), left=0, top=0)
