"""Law: tiled equals whole. Whatever the noise and wherever it is cut, and in whatever order the blocks are put together, the objects are those of
one trace of the whole, and those are what GDAL's tracer and scipy's labels say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio.features
import scipy.ndimage
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geopixel.compiling import compiled
from geopixel.polygonize import OBJECTS, PARTS, merge, stitch, trace_block

DIAGONAL = np.kron(np.eye(4, dtype=bool), np.ones((2, 2), bool))
"""Squares that touch at corners only, some of them where four blocks of 4 meet."""
NESTED = np.zeros((11, 11), bool)
for inset in range(0, 6):
    NESTED[inset : 11 - inset, inset : 11 - inset] = inset % 2 == 0
PINCHED = ~np.pad(np.kron(np.eye(3, dtype=bool), np.ones((2, 2), bool)), 2)
"""One object over all blocks; its holes touch at corners, one of them on a seam."""


CHECKERBOARD = np.indices((9, 9)).sum(0) % 2 == 0
"""Pixels of many objects that touch at corners."""
LACE = np.pad(np.indices((7, 7)).sum(0) % 2 == 0, 1, constant_values=True)
"""One object whose holes touch each other and the outer ring at corners: four edges meet at nearly every vertex."""


def rasters() -> st.SearchStrategy[np.ndarray]:
    """Of any shape and density."""
    shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))
    dense = st.tuples(shapes, st.integers(1, 9), st.integers(0, 2**32 - 1)).map(lambda drawn: np.random.default_rng(drawn[2]).random(drawn[0]) * 10 < drawn[1])
    return dense | shapes.flatmap(lambda shape: arrays(bool, shape))


def levels_of(mask: np.ndarray) -> np.ndarray:
    return (np.arange(mask.size) * 7 % 251).astype(np.uint8).reshape(mask.shape)


def normalised(polygons: np.ndarray) -> list[bytes]:
    return sorted(shapely.to_wkb(shapely.normalize(polygons)))


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
    return stitch(pa.concat_tables(parts))


def trace_whole(mask: np.ndarray, levels: np.ndarray, left: int, top: int) -> pa.Table:
    """One trace with an empty rim, so that nothing touches an edge."""
    rim = ((0, 0), (1, 1), (1, 1))
    table = trace_block(np.pad(mask, rim), np.pad(levels, rim), left=left - 1, top=top - 1)
    assert not any(table["open"].to_pylist())
    return table.select(OBJECTS.names).sort_by([("prompt", "ascending"), ("row", "ascending"), ("column", "ascending")])


@settings(max_examples=35, deadline=None)
@given(masks(), st.sampled_from([2, 3, 4, 7]), st.integers(-9, 9), st.integers(-9, 9))
@example(DIAGONAL, 4, 0, 0)
@example(DIAGONAL, 4, -4, 4)
@example(NESTED, 2, 0, 0)
@example(NESTED, 4, -5, 3)
@example(PINCHED, 4, 0, 0)
@example(PINCHED, 2, 1, -1)
@example(np.ones((12, 12), bool), 3, -6, 0)
@example(CHECKERBOARD, 3, 0, 0)
@example(LACE, 3, 0, 0)
@example(~LACE, 4, 1, 0)
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


@settings(max_examples=150, deadline=None)
@given(rasters())
@example(np.ones((13, 17), bool))
@example(np.zeros((3, 4), bool))
@example(np.arange(40)[None] % 3 > 0)
@example(np.arange(40)[:, None] % 3 > 0)
@example(CHECKERBOARD)
@example(LACE)
@example(~LACE)
@example(NESTED)
@example(DIAGONAL)
@example(PINCHED)
def test_polygons_are_those_of_gdal(mask: np.ndarray) -> None:
    levels = levels_of(mask)
    table = trace_block(mask[None], levels[None], left=0, top=0)
    polygons = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    theirs = [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)]
    assert normalised(polygons) == normalised(np.array(theirs, dtype=object))
    assert shapely.is_valid(polygons).all()
    labels, count = scipy.ndimage.label(mask)
    every = range(1, count + 1)
    assert table["pixels"].to_pylist() == scipy.ndimage.sum_labels(mask, labels, every).tolist()
    assert table["confidence_sum"].to_pylist() == scipy.ndimage.sum_labels(levels.astype(np.int64), labels, every).tolist()
    rim = np.pad(np.zeros(np.maximum(np.array(mask.shape) - 2, 0), bool), 1, constant_values=True)[: mask.shape[0], : mask.shape[1]]
    assert table["open"].to_pylist() == [label in labels[rim] for label in every]


@settings(max_examples=40, deadline=None)
@given(rasters())
@example(LACE)
@example(NESTED)
def test_a_polygon_is_written_the_one_way(mask: np.ndarray) -> None:
    """Rings start at their topmost, of these leftmost vertex; the outer one turns left on a map, holes right, in order of their first vertices."""
    table = trace_block(mask[None], levels_of(mask)[None], left=-5, top=7)
    places = list(zip(table["row"].to_pylist(), table["column"].to_pylist(), strict=True))
    assert places == sorted(places)
    for polygon, (row, column) in zip(shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False)), places, strict=True):
        rings = [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]
        starts = [(y, x) for x, y in (ring[0] for ring in rings)]
        assert starts == [min((y, x) for x, y in ring) for ring in rings]
        assert starts[0] == (row, column)
        assert starts[1:] == sorted(starts[1:])
        on_a_map = [shapely.LinearRing(ring * (1, -1)).is_ccw for ring in rings]
        assert on_a_map == [True] + [False] * len(polygon.interiors)


@settings(max_examples=80, deadline=None)
@given(rasters(), st.data())
@example(LACE, None)
def test_parts_are_put_together_in_any_order(mask: np.ndarray, data: st.DataObject | None) -> None:
    """Blocks of any size, merged in groups of any size, whether they are neighbours or not."""
    levels = levels_of(mask)
    height, width = mask.shape
    rows, columns = (sorted({0, size, *(data.draw(st.sets(st.integers(0, size), max_size=4)) if data else (3, 4, 7))}) for size in (height, width))
    parts = [
        trace_block(mask[None, top:bottom, left:right], levels[None, top:bottom, left:right], left=left, top=top)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    if data:
        parts = data.draw(st.permutations(parts))
    while len(parts) > 1:
        few = data.draw(st.integers(2, len(parts))) if data else 2
        parts = [*parts[few:], merge(pa.concat_tables(parts[:few]))]
    assert stitch(parts[0]).equals(stitch(trace_block(mask[None], levels[None], left=0, top=0)))


def test_a_raster_with_everything_in_it() -> None:
    """Long runs of 1, of 0 and of no answer, noise of every density, at any offset and width: as GDAL says, whole or in blocks."""
    rng = np.random.default_rng(1)
    mask = np.concatenate([(rng.random((60, 301)) < share).astype(np.uint8) for share in (0.02, 0.3, 0.59, 0.9)])
    mask[30:150, 40:90] = 1
    mask[100:200, 150:230] = 255
    mask = np.kron(mask, np.ones((2, 3), np.uint8))
    levels = levels_of(mask)
    for view in (np.s_[:, :], np.s_[:, 8:], np.s_[3:, 1:-2], np.s_[::2, ::-1]):
        here, there = mask[view], levels[view]
        whole = stitch(trace_block(here[None], there[None], left=0, top=0))
        theirs = [shapely.geometry.shape(shape) for shape, value in rasterio.features.shapes(here, mask=here == 1, connectivity=4)]
        assert normalised(shapely.from_wkb(whole["geometry"].to_numpy(zero_copy_only=False))) == normalised(np.array(theirs, dtype=object))
        assert trace_tiled(here[None], there[None], 96, 0, 0).equals(whole)


def test_parts_that_overlap_are_refused() -> None:
    mask = np.ones((1, 4, 4), np.uint8)
    one, other = trace_block(mask, mask, left=0, top=0), trace_block(mask, mask, left=3, top=0)
    for parts in ([one, one], [one, other], [trace_block(mask[:, 1:3, 1:3], mask[:, 1:3, 1:3], left=1, top=1), one]):
        with pytest.raises(ValueError, match="overlap"):
            stitch(pa.concat_tables(parts))


def test_what_has_no_place_in_a_cache_iscompiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", names)  # of no file that a cache could lie beside
    assert compiled(names["double"])(21) == 42


def test_nothing_gives_an_empty_table() -> None:
    nothing = np.zeros((2, 8, 8), np.uint8)
    assert stitch(trace_block(nothing, nothing, left=0, top=0)).equals(OBJECTS.empty_table())


def test_no_answer_is_no_object() -> None:
    mask = np.full((1, 4, 4), 255, np.uint8)
    mask[0, 1, 2] = 1
    table = trace_block(mask, mask, left=-4, top=8)
    assert table.select(["row", "column", "pixels"]).to_pylist() == [{"row": 9, "column": -2, "pixels": 1}]


def test_bad_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        trace_block(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), left=0, top=0)
    with pytest.raises(ValueError, match="float64"):
        trace_block(np.zeros((1, 4, 4)), np.zeros((1, 4, 4), np.uint8), left=0, top=0)


def planes_of(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Scenes, an edge and scores of a raster, (2, 3) of them, each for a sixth of it."""
    rng = np.random.default_rng(3)
    scores = np.array([[[0.25, np.nan, 0.5], [0.75, 1, 0]]], np.float32)
    return {"scene": rng.integers(0, 4, shape).astype(np.uint16), "edge": rng.random(shape) < 0.1, "scores": scores}


def cut_by_hand(mask: np.ndarray, square: int, left: int, top: int) -> list[tuple[np.ndarray, tuple[int, int] | None]]:
    """The objects of a raster as (height, width) bool, in reading order, with the first pixel (row, column) of the whole where they are cut."""
    labels, count = scipy.ndimage.label(mask)
    rows, columns = np.indices(mask.shape) + np.array([top, left])[:, None, None]
    found: list[tuple[np.ndarray, tuple[int, int] | None]] = []
    for label in range(1, count + 1):
        whole = labels == label
        first = tuple((np.argwhere(whole)[0] + (top, left)).tolist())
        if max(np.ptp(rows[whole]), np.ptp(columns[whole])) < square:
            found.append((whole, None))
            continue
        squares = np.stack((rows // square, columns // square))
        for one in np.unique(squares[:, whole], axis=1).T:
            pieces, several = scipy.ndimage.label(whole & (squares == one[:, None, None]).all(axis=0))
            found += [(pieces == piece, first) for piece in range(1, several + 1)]
    return sorted(found, key=lambda each: np.argwhere(each[0])[0].tolist())


@settings(max_examples=60, deadline=None)
@given(masks(), st.sampled_from([1, 2, 3, 6]), st.sampled_from([6, 12]), st.integers(-9, 9), st.integers(-9, 9), st.booleans())
@example(NESTED, 2, 6, 0, 0, True)
@example(np.ones((12, 12), bool), 3, 6, -6, 1, False)
@example(LACE, 3, 6, 2, 0, True)
def test_what_is_larger_than_a_square_is_cut_by_squares(mask: np.ndarray, size: int, square: int, left: int, top: int, in_a_tree: bool) -> None:
    """Whatever the blocks; and what is known of the pieces is what is known of their pixels."""
    planes = planes_of(mask.shape)
    height, width = mask.shape
    parts = []
    for y in range(top // size * size, top + height, size):
        for x in range(left // size * size, left + width, size):
            window = slice(max(y - top, 0), y + size - top), slice(max(x - left, 0), x + size - left)
            some = {name: np.ascontiguousarray(planes[name][window]) for name in ("scene", "edge")}
            block = trace_block(mask[window][None], levels_of(mask)[window][None], left=max(x, left), top=max(y, top), **some)
            parts.append(block)
    if in_a_tree:
        parts = [merge(pa.concat_tables(parts[: len(parts) // 2]), square), merge(pa.concat_tables(parts[len(parts) // 2 :]), square)]
    objects = stitch(pa.concat_tables(parts), square)
    expected = cut_by_hand(mask, square, left, top)
    assert len(objects) == len(expected)
    for one, (pixels, whole) in zip(objects.to_pylist(), expected, strict=True):
        theirs = [shapely.geometry.shape(shape) for shape, _ in rasterio.features.shapes(pixels.astype(np.uint8), mask=pixels, connectivity=4)]
        moved = shapely.transform(theirs, lambda points: points + (left, top))
        assert normalised(shapely.from_wkb([one["geometry"]])) == normalised(moved)
        assert (one["whole_row"], one["whole_column"]) == (whole or (None, None))
        assert (one["pixels"], one["confidence_sum"]) == (pixels.sum(), levels_of(mask)[pixels].sum())
        assert one["scenes"] == np.unique(planes["scene"][pixels]).tolist()
        assert one["touches_edge"] == planes["edge"][pixels].any()


@settings(max_examples=30, deadline=None)
@given(masks(12, 12))
def test_the_score_is_that_of_the_first_pixel(mask: np.ndarray) -> None:
    scores = planes_of(mask.shape)["scores"]
    halves = [(mask[None, :, part], scores[:, :, share]) for part, share in ((slice(0, 4), slice(0, 1)), (slice(4, 12), slice(1, 3)))]
    for parts in (
        [trace_block(mask[None], levels_of(mask)[None], left=0, top=0, scores=scores)],
        [trace_block(half, levels_of(half), left=4 * index, top=0, scores=share) for index, (half, share) in enumerate(halves)],
    ):
        for one in stitch(pa.concat_tables(parts)).to_pylist():
            score = scores[0, one["row"] // 6, one["column"] // 4]
            assert one["score"] == (None if np.isnan(score) else score)


def test_bad_planes_are_refused() -> None:
    mask = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="scene is uint16"):
        trace_block(mask, mask, left=0, top=0, scene=np.zeros((4, 5), np.uint16))
    with pytest.raises(ValueError, match="edge is bool"):
        trace_block(mask, mask, left=0, top=0, edge=mask[0])
