"""Laws: the weights of any tiling sum to one; what two tiles agree on is what the blend says; a block is the same whoever its neighbours are."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401  registers the .odc accessor
import pytest
import shapely
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geopixel.errors import RunConflictError
from geopixel.mosaic import (
    CONFIDENCE_LEVELS,
    MASKS,
    NONE,
    BlockMosaic,
    _halve,
    blend,
    blocks_of,
    create_mosaic,
    mosaic_block,
    tile_weights,
    upsample,
    write_block,
)
from geopixel.storage import Folder
from geopixel.types import ABSENT, BLOCK_SIZE, HALO, LOGIT_SCALE, NO_SCENE, STATUS_CODES, TILE_SIZES, Block, Grid, Tile, TilePrediction

GRID = Grid("EPSG:32645", 0.5)
EVERYWHERE = shapely.box(-1e7, -1e7, 1e7, 1e7)


def prediction(tile: Tile, logit: np.ndarray | None, valid: np.ndarray | None = None) -> TilePrediction:
    """logit: (prompts, h, w) int8; None: the tile is empty."""
    scene = np.zeros(tile.geobox.shape, np.uint16) if valid is None else np.where(valid, 0, NO_SCENE).astype(np.uint16)
    return TilePrediction(tile.id, "empty" if logit is None else "ok", logit, scene, None if logit is None else np.ones(len(logit), np.float32))


def constant(tile: Tile, *levels: int) -> TilePrediction:
    return prediction(tile, np.stack([np.full((4, 4), level, np.int8) for level in levels]))


@st.composite
def quadtrees(draw: st.DrawFn, size: int = 2048, column: int = 0, row: int = 0) -> list[Tile]:
    if size == TILE_SIZES[0] or not draw(st.booleans()):
        return [Tile(GRID, size, column, row)]
    return [tile for dx in (0, 1) for dy in (0, 1) for tile in draw(quadtrees(size // 2, 2 * column + dx, 2 * row + dy))]


@settings(max_examples=8, deadline=None)
@given(quadtrees())
def test_weights_of_any_tiling_sum_to_exactly_one(tiles: list[Tile]) -> None:
    total = np.zeros((2048 + 2 * HALO,) * 2, np.float32)
    for tile in tiles:
        weight = tile_weights(tile.size)
        total[tile.top :, tile.left :][: len(weight), : len(weight)] += weight[:, None] * weight
    # Within HALO of the outer edge the tiles beyond it are missing.
    assert (total[2 * HALO : -2 * HALO, 2 * HALO : -2 * HALO] == 1).all()


def test_weight_is_the_core_convolved_with_a_box() -> None:
    core = np.zeros(512 + 4 * HALO)
    core[2 * HALO : -2 * HALO] = 1
    # At pixel centres the box of 2 HALO covers half a pixel at either end.
    box = np.r_[0.5, np.ones(2 * HALO - 1), 0.5] / (2 * HALO)
    np.testing.assert_array_equal(tile_weights(512), np.convolve(core, box, mode="same")[HALO:-HALO])


@settings(max_examples=20, deadline=None)
@given(arrays(np.int8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-127, 127)), st.data())
def test_upsample_is_torchs_bilinear(logits: np.ndarray, data: st.DataObject) -> None:
    edge = data.draw(st.integers(9, 80))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, edge), st.integers(0, edge))))
    whole = torch.nn.functional.interpolate(torch.from_numpy(logits)[None, None].float() / LOGIT_SCALE, (edge, edge), mode="bilinear", align_corners=False)
    window = upsample(logits, edge, slice(start, stop), slice(0, edge))
    np.testing.assert_allclose(window, whole[0, 0, start:stop].numpy(), atol=1e-4)


def test_a_ramp_joins_two_answers_and_a_hole_leaves_no_dark_seam() -> None:
    block, west, east = Block(GRID, 0, 0), Tile(GRID, 2048, 0, 0), Tile(GRID, 1024, 2, 0)
    said = {west.id: constant(west, 127), east.id: constant(east, ABSENT)}
    row = blend(block, [east, west], said, 0)[500]
    assert row[2048 - HALO - 1] == pytest.approx(1, abs=1e-6)
    assert row[2048 + HALO] == 0
    np.testing.assert_allclose(np.diff(row[2048 - HALO : 2048 + HALO]), -1 / (2 * HALO), atol=1e-6)
    failed = said | {east.id: TilePrediction(east.id, "failed", reason="unreadable")}
    row = blend(block, [east, west], failed, 0)[500]
    np.testing.assert_allclose(row[: 2048 + HALO], 1, atol=1e-6)
    assert np.isnan(row[2048 + HALO])


def test_pixels_are_answered_by_the_tile_that_owns_them() -> None:
    block = Block(GRID, 0, 0)
    ok, empty, failed, cloud = Tile(GRID, 1024, 0, 0), Tile(GRID, 1024, 1, 0), Tile(GRID, 1024, 0, 1), Tile(GRID, 1024, 1, 1, "cloud")
    valid = np.ones(ok.geobox.shape, bool)
    valid[: HALO + 100] = False
    said = {
        ok.id: prediction(ok, np.full((2, 4, 4), 127, np.int8), valid),
        empty.id: prediction(empty, None),
        failed.id: TilePrediction(failed.id, "failed", reason="unreadable"),
    }
    area = shapely.box(10.3, -1000, 1000, 0)  # the left edge leaves out centres of columns 0..20
    mosaic = mosaic_block(block, [ok, empty, failed, cloud], lambda tile: said[tile.id], prompts=2, threshold=0.5, area=area)
    expected = np.zeros((BLOCK_SIZE, BLOCK_SIZE), np.uint8)
    expected[100:1024, :1024] = STATUS_CODES["ok"]
    expected[:100, :1024] = STATUS_CODES["nodata"]
    expected[:1024, 1024:2048] = STATUS_CODES["empty"]
    expected[1024:2048, :1024] = STATUS_CODES["failed"]
    expected[1024:2048, 1024:2048] = STATUS_CODES["cloud"]
    expected[:, :21] = expected[2000:] = expected[:, 2000:] = STATUS_CODES["outside"]
    np.testing.assert_array_equal(mosaic.status, expected)
    answered = np.isin(expected, [STATUS_CODES["ok"], STATUS_CODES["empty"]])
    for prompt in range(2):
        np.testing.assert_array_equal(mosaic.mask[prompt] != NONE, answered)
        np.testing.assert_array_equal(mosaic.confidence[prompt] != NONE, answered)
    assert mosaic.mask[0, 500, [500, 1023, 1024, 1500]].tolist() == [1, 1, 0, 0]
    assert mosaic.confidence[1, 500, [500, 1024, 1500]].tolist() == [CONFIDENCE_LEVELS, 16, 0]


def test_blocks_agree_at_their_seam_and_order_does_not_matter() -> None:
    tiles = [Tile(GRID, 2048, column, 0) for column in (0, 1)] + [Tile(GRID, 1024, column, row) for column in (4, 5) for row in (0, 1)]
    rng = np.random.default_rng(0)
    said = {tile.id: prediction(tile, rng.integers(-127, 128, (1, 16, 16), np.int8)) for tile in tiles}
    blocks = blocks_of(tiles)
    assert [block.id for block in blocks] == ["0_0", "1_0"]
    west, east = (blend(block, near, said, 0) for block, near in blocks.items())
    np.testing.assert_array_equal(west, blend(Block(GRID, 0, 0), tiles[::-1], said, 0))
    # Smooth across the seam: neighbours differ no more there than the ramps make them differ elsewhere.
    assert np.abs(west[:2048, -1] - east[:2048, 0]).max() <= 1.5 * np.abs(np.diff(west[:2048, -HALO:], axis=1)).max()


@settings(max_examples=20, deadline=None)
@given(quadtrees(), st.integers(-3, 3), st.integers(-3, 3))
def test_blocks_of_finds_what_touches(tree: list[Tile], dx: int, dy: int) -> None:
    tiles = [Tile(GRID, tile.size, tile.column + dx * 2048 // tile.size, tile.row + dy * 2048 // tile.size) for tile in tree]
    outside = Tile(GRID, 512, 1000, 1000, "outside")
    blocks = blocks_of([*tiles, outside])
    for block in blocks:
        extent = block.geobox.extent.geom
        assert {tile.id for tile in blocks[block]} == {tile.id for tile in tiles if extent.intersection(tile.geobox.extent.geom).area > 0}
    assert {block.id for block in blocks} == {f"{tile.left // BLOCK_SIZE}_{tile.top // BLOCK_SIZE}" for tile in tiles}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, BlockMosaic]:
    """Two diagonal blocks, the second written."""
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    create_mosaic(folder, [Block(GRID, -1, 2), Block(GRID, 0, 3)], ["building", "swimming pool"])
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.choice(np.array([0, 1, NONE], np.uint8), (2, 64, 64)), 64, 1), 64, 2)
    confidence = np.where(mask == NONE, NONE, mask * 20).astype(np.uint8)
    mosaic = BlockMosaic(mask, confidence, np.where(mask[0] == NONE, 3, 1).astype(np.uint8))
    write_block(folder, Block(GRID, 0, 3), mosaic)
    return folder, mosaic


def test_the_store_opens_in_xarray_without_a_warning(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # odc-geo's own, with newer affine
        root = xr.open_zarr(folder.zarr(MASKS))
        coarse = xr.open_dataset(f"{folder.url}/{MASKS}", engine="zarr", group="overview/8")
        assert root.odc.geobox == GRID.geobox(-BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)
        assert coarse.mask.odc.geobox == root.odc.geobox.zoom_out(8)
        assert root.mask.odc.crs == GRID.crs
    assert root.prompt.values.tolist() == ["building", "swimming pool"]
    assert folder.get_json(f"{MASKS}/prompt/zarr.json")["data_type"] == "string", "fixed-length unicode is not in the v3 specification"
    assert root.mask.dtype == root.status.dtype == np.uint8
    place = {"y": slice(BLOCK_SIZE, None), "x": slice(BLOCK_SIZE, None)}
    np.testing.assert_array_equal(root.mask.isel(place), mosaic.mask)
    np.testing.assert_array_equal(root.status.isel(place), mosaic.status)
    np.testing.assert_array_equal(root.confidence.isel(place), np.where(mosaic.confidence == NONE, np.nan, mosaic.confidence / 32))
    assert (root.mask.isel(y=0, x=0) == NONE).all()
    assert root.status.isel(y=0, x=0) == STATUS_CODES["outside"]
    # The random squares are 64 wide: every coarse pixel lies in one of them.
    np.testing.assert_array_equal(coarse.mask[:, 512:, 512:], mosaic.mask[:, ::8, ::8])
    np.testing.assert_array_equal(coarse.status[512:, 512:], mosaic.status[::8, ::8])


def test_a_block_is_one_shard_per_array_and_level_and_equal_bytes_again(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    before = {path: folder.get(path) for path in folder.list(MASKS)}
    shards = [path for path in before if "/c/" in path and path.split("/c/")[0].rsplit("/", 1)[-1] in ("mask", "confidence", "status")]
    assert len(shards) == 5 * (2 + 2 + 1)
    assert all(path.endswith("/1/1") for path in shards)
    array = zarr.open_group(folder.zarr(MASKS), mode="r")["mask"]
    assert (array.shards, array.chunks) == ((1, BLOCK_SIZE, BLOCK_SIZE), (1, 512, 512))
    write_block(folder, Block(GRID, 0, 3), mosaic)
    create_mosaic(folder, [Block(GRID, 0, 3), Block(GRID, -1, 2)], ["building", "swimming pool"])
    assert {path: folder.get(path) for path in folder.list(MASKS)} == before


def test_an_unfinished_mosaic_is_made_anew_and_another_one_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    create_mosaic(folder, [Block(GRID, 0, 3)], ["building"])
    with pytest.raises(RunConflictError, match="building"):
        create_mosaic(folder, [Block(GRID, 0, 3)], ["road"])
    with pytest.raises(RunConflictError):
        create_mosaic(folder, [Block(GRID, 0, 3), Block(GRID, 1, 3)], ["building"])
    root = folder.get_json(f"{MASKS}/zarr.json")
    del root["consolidated_metadata"]
    folder.put_json(f"{MASKS}/zarr.json", root)
    create_mosaic(folder, [Block(GRID, 5, 5), Block(GRID, 6, 5)], ["road"])
    assert xr.open_zarr(folder.zarr(MASKS)).mask.shape == (1, BLOCK_SIZE, 2 * BLOCK_SIZE)


def test_a_block_of_another_mosaic_is_refused(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    for block in (Block(GRID, 1, 3), Block(GRID, 0, 1), Block(Grid(GRID.crs, 0.25), 0, 3)):
        with pytest.raises(ValueError, match=f"block {block.id}"):
            write_block(folder, block, mosaic)
    with pytest.raises(ValueError, match="2 prompts"):
        write_block(folder, Block(GRID, 0, 3), BlockMosaic(mosaic.mask[:1], mosaic.confidence[:1], mosaic.status))


def test_overviews_average_only_what_was_answered() -> None:
    quads = np.array([[0, 1, 0, 0], [1, NONE, 0, 1], [NONE, NONE, 0, 1], [NONE, NONE, 1, 0]], np.uint8)
    assert _halve(quads).tolist() == [[1, 0], [NONE, 1]]
