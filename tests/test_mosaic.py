"""Laws: the weights of any tiling sum to one; what two tiles agree on is what the blend says; a block is the same whoever its neighbours are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401  registers the .odc accessor
import pytest
import rasterio
import shapely
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from geopixel.errors import RunConflictError
from geopixel.mosaic import (
    MASKS,
    NONE,
    OVERVIEWS,
    BlockMosaic,
    blend,
    blocks_of,
    create_mosaic,
    mosaic_block,
    pieces_of,
    tile_weights,
    write_block,
    write_cog,
)
from geopixel.mosaic.kernels import halve
from geopixel.storage import Folder
from geopixel.types import (
    ABSENT,
    BLOCK_SIZE,
    CLOUDED,
    CONFIDENCE_LEVELS,
    HALO,
    LOGIT_SCALE,
    NO_SCENE,
    STATUS_CODES,
    TILE_SIZES,
    Block,
    Grid,
    Tile,
    TilePrediction,
)

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


def blended(block: Block, tiles: Sequence[Tile], said: Mapping[str, TilePrediction]) -> np.ndarray:
    return blend(pieces_of(block, tiles, said), 0, slice(0, BLOCK_SIZE))


@settings(max_examples=8, deadline=None)
@given(arrays(np.int8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(-127, 127)), st.integers(-1, 1), st.integers(0, 7))
def test_a_tile_alone_is_torchs_bilinear_and_sigmoid(logits: np.ndarray, row: int, column: int) -> None:
    """Also where the block's edge cuts it: weights divide out where no neighbour answers."""
    tile, block = Tile(GRID, 512, column, row), Block(GRID, 0, 0)
    edge = 512 + 2 * HALO
    whole = torch.nn.functional.interpolate(torch.from_numpy(logits)[None, None].double() / LOGIT_SCALE, (edge, edge), mode="bilinear", align_corners=False)
    margin, strip = 512 + HALO, slice(100, 1100)
    expected = np.full((2 * margin + 1100, 2 * margin + BLOCK_SIZE), np.nan)
    expected[tile.top - HALO + margin :, tile.left - HALO + margin :][:edge, :edge] = torch.sigmoid(whole[0, 0]).numpy()
    found = blend(pieces_of(block, [tile], {tile.id: prediction(tile, logits[None])}), 0, strip)
    np.testing.assert_allclose(found, expected[margin + 100 : margin + 1100, margin : margin + BLOCK_SIZE], atol=1e-6)


def test_a_ramp_joins_two_answers_and_a_hole_leaves_no_dark_seam() -> None:
    block, west, east = Block(GRID, 0, 0), Tile(GRID, 2048, 0, 0), Tile(GRID, 1024, 2, 0)
    said = {west.id: constant(west, 127), east.id: constant(east, ABSENT)}
    row = blended(block, [east, west], said)[500]
    assert row[2048 - HALO - 1] == pytest.approx(1, abs=1e-6)
    assert row[2048 + HALO] == 0
    np.testing.assert_allclose(np.diff(row[2048 - HALO : 2048 + HALO]), -1 / (2 * HALO), atol=1e-6)
    failed = said | {east.id: TilePrediction(east.id, "failed", reason="unreadable")}
    row = blended(block, [east, west], failed)[500]
    np.testing.assert_allclose(row[: 2048 + HALO], 1, atol=1e-6)
    assert np.isnan(row[2048 + HALO])


def test_pixels_are_answered_by_the_tile_that_owns_them() -> None:
    block = Block(GRID, 0, 0)
    ok, empty, failed, cloud = Tile(GRID, 1024, 0, 0), Tile(GRID, 1024, 1, 0), Tile(GRID, 1024, 0, 1), Tile(GRID, 1024, 1, 1, "cloud")
    scene = np.full(ok.geobox.shape, 3, np.uint16)
    scene[: HALO + 100] = NO_SCENE
    scene[HALO + 100 : HALO + 200] = CLOUDED
    scene[:, HALO + 800 :] = 7
    said = {
        ok.id: TilePrediction(ok.id, "ok", np.full((2, 4, 4), 127, np.int8), scene, np.ones(2, np.float32)),
        empty.id: prediction(empty, None),
        failed.id: TilePrediction(failed.id, "failed", reason="unreadable"),
    }
    area = shapely.box(10.3, -1000, 1000, 0)  # the left edge leaves out centres of columns 0..20
    mosaic = mosaic_block(block, [ok, empty, failed, cloud], lambda tile: said[tile.id], prompts=2, threshold=0.5, area=area)
    expected = np.zeros((BLOCK_SIZE, BLOCK_SIZE), np.uint8)
    expected[:1024, :1024] = STATUS_CODES["ok"]
    expected[:100, :800] = STATUS_CODES["nodata"]
    expected[100:200, :800] = STATUS_CODES["cloud"]
    expected[:1024, 1024:2048] = STATUS_CODES["empty"]
    expected[1024:2048, :1024] = STATUS_CODES["failed"]
    expected[1024:2048, 1024:2048] = STATUS_CODES["cloud"]
    expected[:, :21] = expected[2000:] = expected[:, 2000:] = STATUS_CODES["outside"]
    np.testing.assert_array_equal(mosaic.status, expected)
    seen = np.full_like(mosaic.scene, NO_SCENE)
    seen[:1024, :800], seen[:1024, 800:1024], seen[:1024, 1024:2048], seen[1024:2000, 1024:2000] = 3, 7, 0, CLOUDED
    seen[:100, :800], seen[100:200, :800] = NO_SCENE, CLOUDED
    seen[expected == STATUS_CODES["outside"]] = NO_SCENE
    np.testing.assert_array_equal(mosaic.scene, seen)
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
    west, east = (blended(block, near, said) for block, near in blocks.items())
    np.testing.assert_array_equal(west, blended(Block(GRID, 0, 0), tiles[::-1], said))
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


ITEMS = [f"naip/item-{number}" for number in range(9)]
PROMPTS = ["building", "swimming pool"]
BLOCKS = [Block(GRID, -1, 2), Block(GRID, 0, 3)]


def random_mosaic(prompts: int = 2) -> BlockMosaic:
    """Squares of 64 pixels: every coarse pixel lies in one of them."""
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 1, NONE], np.uint8), (prompts, 64, 64))
    confidence = np.where(mask == NONE, NONE, mask * 20)
    status = np.where(mask[0] == NONE, STATUS_CODES["nodata"], STATUS_CODES["ok"])
    scene = np.where(mask[0] == NONE, NO_SCENE, rng.integers(0, 9, (64, 64)))
    values = mask, confidence.astype(np.uint8), status.astype(np.uint8), scene.astype(np.uint16)
    return BlockMosaic(*(plane.repeat(64, -2).repeat(64, -1) for plane in values))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, BlockMosaic]:
    """Two diagonal blocks, the second written."""
    folder, mosaic = Folder(str(tmp_path_factory.mktemp("run"))), random_mosaic()
    create_mosaic(folder, BLOCKS, PROMPTS, ITEMS)
    write_block(folder, BLOCKS[1], mosaic)
    return folder, mosaic


PLACE = {"y": slice(BLOCK_SIZE, None), "x": slice(BLOCK_SIZE, None)}
"""Where the second block lies."""


def test_the_store_opens_in_xarray_and_odc_geo_without_a_warning(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # odc-geo's own, with newer affine
        root = xr.open_zarr(folder.zarr(MASKS), chunks=None)
        coarse = xr.open_dataset(f"{folder.url}/{MASKS}", engine="zarr", group="overview/8")
        assert root.odc.geobox == GRID.geobox(-BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)
        assert coarse.mask.odc.geobox == root.odc.geobox.zoom_out(8)
        assert root.mask.odc.crs == GRID.crs
    assert root.prompt.values.tolist() == PROMPTS
    assert folder.get_json(f"{MASKS}/prompt/zarr.json")["data_type"] == "string", "fixed-length unicode is not in the v3 specification"
    assert root.mask.dtype == root.status.dtype == np.uint8
    np.testing.assert_array_equal(root.mask.isel(PLACE), mosaic.mask)
    np.testing.assert_array_equal(root.status.isel(PLACE), mosaic.status)
    np.testing.assert_array_equal(root.scene.isel(PLACE), mosaic.scene)
    np.testing.assert_array_equal(root.confidence.isel(PLACE), np.where(mosaic.confidence == NONE, np.nan, mosaic.confidence / 32))
    y, x = np.argwhere(mosaic.scene < 9)[0]
    assert root["item"].values[root.scene.isel(PLACE)[y, x]] == ITEMS[mosaic.scene[y, x]]
    assert (root.mask.isel(y=0, x=0) == NONE).all()
    assert root.status.isel(y=0, x=0) == STATUS_CODES["outside"]
    assert root.scene.isel(y=0, x=0) == NO_SCENE
    for name in ("mask", "status", "scene"):
        np.testing.assert_array_equal(coarse[name][..., 512:, 512:], getattr(mosaic, name)[..., ::8, ::8])


def test_the_store_opens_in_rioxarray_with_its_crs_and_exact_transform(stored: tuple[Folder, BlockMosaic]) -> None:
    pytest.importorskip("rioxarray")
    folder, _ = stored
    geobox = GRID.geobox(-BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)
    for factor in (1, *OVERVIEWS):
        data = xr.open_zarr(folder.zarr(MASKS), group=f"overview/{factor}" if factor > 1 else None)
        for name in ("mask", "confidence", "status", "scene"):
            assert data[name].rio.crs == GRID.crs
            assert tuple(data[name].rio.transform())[:6] == tuple(geobox.zoom_out(factor).affine)[:6]


def test_the_store_opens_in_gdal(stored: tuple[Folder, BlockMosaic]) -> None:
    """By its conventions alone: spatial, proj and, for the overviews, multiscales."""
    gdal = pytest.importorskip("osgeo.gdal", reason="no GDAL with its own bindings at hand")
    if int(gdal.VersionInfo()) < 3130000:
        pytest.skip(f"GDAL {gdal.__version__} reads neither shards nor the conventions, 3.13 does")
    folder, mosaic = stored
    group = gdal.OpenEx(f"{folder.url}/{MASKS}", gdal.OF_MULTIDIM_RASTER).GetRootGroup()
    for name in ("mask", "status", "scene"):
        array = group.OpenMDArray(name)
        assert array.GetSpatialRef().GetAuthorityCode(None) == GRID.crs.split(":")[1]
        assert array.GetOverviewCount() == len(OVERVIEWS)
        classic = array.AsClassicDataset(array.GetDimensionCount() - 1, array.GetDimensionCount() - 2)
        assert classic.GetGeoTransform() == (-BLOCK_SIZE / 2, 0.5, 0, -BLOCK_SIZE, 0, -0.5)
        expected = getattr(mosaic, name)
        np.testing.assert_array_equal(classic.ReadAsArray(BLOCK_SIZE, BLOCK_SIZE).reshape(expected.shape), expected)


def test_the_store_keeps_the_conventions_that_it_declares(stored: tuple[Folder, BlockMosaic]) -> None:
    zarr_cm = pytest.importorskip("zarr_cm")
    folder, _ = stored
    document = folder.get_json(f"{MASKS}/zarr.json")
    nodes = {"": document} | document["consolidated_metadata"]["metadata"]
    assert zarr_cm.detect_revisions(document["attributes"]) == {"multiscales": "r2", "proj": "r3", "spatial": "r3"}
    zarr_cm.multiscales.validate_group_metadata(document)
    placed = [path for path, node in nodes.items() if "zarr_conventions" in node["attributes"]]
    assert len(placed) == 5 + 5 * 4
    for path in placed:
        zarr_cm.spatial.validate_node_metadata(nodes[path])
        zarr_cm.proj.validate_node_metadata(nodes[path])
    levels = document["attributes"]["multiscales"]["layout"]
    assert len(levels) == 5 * 4
    for level in levels:
        node, attributes = nodes[level["asset"]], nodes[level["asset"]]["attributes"]
        assert len(level["transform"]["scale"]) == len(node["shape"])
        assert level["spatial:shape"] == attributes["spatial:shape"] == list(node["shape"][-2:])
        assert level["spatial:transform"] == attributes["spatial:transform"]
        if "derived_from" in level:
            assert [int(s * n) for s, n in zip(level["transform"]["scale"], node["shape"], strict=True)] == nodes[level["derived_from"]]["shape"]


def test_a_block_is_one_shard_per_array_and_level_and_equal_bytes_again(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    before = {path: folder.get(path) for path in folder.list(MASKS)}
    shards = [path for path in before if "/c/" in path and path.split("/c/")[0].rsplit("/", 1)[-1] in ("mask", "confidence", "status", "scene")]
    assert len(shards) == 5 * (2 + 2 + 1 + 1)
    assert all(path.endswith("/1/1") for path in shards)
    array = zarr.open_group(folder.zarr(MASKS), mode="r")["mask"]
    assert (array.shards, array.chunks) == ((1, BLOCK_SIZE, BLOCK_SIZE), (1, 512, 512))
    write_block(folder, BLOCKS[1], mosaic)
    create_mosaic(folder, BLOCKS[::-1], PROMPTS, ITEMS)
    assert {path: folder.get(path) for path in folder.list(MASKS)} == before


def test_either_codec_pipeline_and_no_shards_hold_equal_arrays(stored: tuple[Folder, BlockMosaic], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only without zarrs is there but one pipeline: then this compares the layouts alone."""
    folder, mosaic = stored
    expected = xr.open_zarr(folder.zarr(MASKS), mask_and_scale=False, chunks=None)
    for name, with_zarrs in (("chunks", True), ("shards", False)):
        if not with_zarrs:
            monkeypatch.setattr("geopixel.mosaic.store.find_spec", lambda name: None)
        other = Folder(str(tmp_path / name))
        create_mosaic(other, BLOCKS, PROMPTS, ITEMS, shards=name == "shards")
        write_block(other, BLOCKS[1], mosaic)
        found = xr.open_zarr(other.zarr(MASKS), mask_and_scale=False, chunks=None)
        assert found.attrs == expected.attrs
        for layer in ("mask", "confidence", "status", "scene"):
            np.testing.assert_array_equal(found[layer].isel(PLACE), expected[layer].isel(PLACE))
    assert len(Folder(str(tmp_path / "chunks")).list(f"{MASKS}/status/c")) == 64
    with pytest.raises(RunConflictError, match="shards"):
        create_mosaic(Folder(str(tmp_path / "chunks")), BLOCKS, PROMPTS, ITEMS)


def test_an_unfinished_mosaic_is_made_anew_and_another_one_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    create_mosaic(folder, [Block(GRID, 0, 3)], ["building"], ITEMS)
    with pytest.raises(RunConflictError, match="building"):
        create_mosaic(folder, [Block(GRID, 0, 3)], ["road"], ITEMS)
    with pytest.raises(RunConflictError):
        create_mosaic(folder, [Block(GRID, 0, 3), Block(GRID, 1, 3)], ["building"], ITEMS)
    root = folder.get_json(f"{MASKS}/zarr.json")
    del root["consolidated_metadata"]
    folder.put_json(f"{MASKS}/zarr.json", root)
    create_mosaic(folder, [Block(GRID, 5, 5), Block(GRID, 6, 5)], ["road"], ITEMS)
    assert xr.open_zarr(folder.zarr(MASKS)).mask.shape == (1, BLOCK_SIZE, 2 * BLOCK_SIZE)


def test_a_block_of_another_mosaic_is_refused(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    for block in (Block(GRID, 1, 3), Block(GRID, 0, 1), Block(Grid(GRID.crs, 0.25), 0, 3)):
        with pytest.raises(ValueError, match=f"block {block.id}"):
            write_block(folder, block, mosaic)
    with pytest.raises(ValueError, match="2 prompts"):
        write_block(folder, BLOCKS[1], random_mosaic(prompts=1))


def test_a_cog_is_the_mask_of_its_prompt(stored: tuple[Folder, BlockMosaic]) -> None:
    folder, mosaic = stored
    path = write_cog(folder, 1)
    assert path == "cog/1-swimming-pool.tif"
    with rasterio.open(f"{folder.url}/{path}") as cog:
        assert cog.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (cog.crs, cog.nodata, cog.descriptions, cog.block_shapes) == (GRID.crs, NONE, ("swimming pool",), [(512, 512)])
        assert GeoBox(cog.shape, cog.transform, GRID.crs) == GRID.geobox(-BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE, 2 * BLOCK_SIZE)
        np.testing.assert_array_equal(cog.read(1, window=Window(BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE)), mosaic.mask[1])
        assert (cog.read(1, window=Window(0, 0, BLOCK_SIZE, BLOCK_SIZE)) == NONE).all()
        assert len(cog.overviews(1)) >= 4
        np.testing.assert_array_equal(cog.read(1, out_shape=(1024, 1024))[512:, 512:], mosaic.mask[1, ::8, ::8])
    (Path(folder.url) / path).unlink()


@given(arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda n: (2 * n[0], 2 * n[1])), elements=st.sampled_from([0, 1, 2, 31, 32, NONE])))
def test_overviews_average_only_what_was_answered(plane: np.ndarray) -> None:
    quads = plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2).swapaxes(1, 2).reshape(-1, 4).tolist()
    answers = [[value for value in quad if value != NONE] for quad in quads]
    expected = [floor(Fraction(sum(some), len(some)) + Fraction(1, 2)) if some else NONE for some in answers]
    assert halve(plane, NONE).ravel().tolist() == expected


def test_a_mask_of_four_pixels_is_their_majority_and_a_tie_is_present() -> None:
    quads = np.array([[0, 1, 0, 0], [1, NONE, 0, 1], [NONE, NONE, 0, 1], [NONE, NONE, 1, 0]], np.uint8)
    assert halve(quads, NONE).tolist() == [[1, 0], [NONE, 1]]
