from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import box

from geopixel.types import (
    BLOCK_SIZE,
    HALO,
    STATES,
    STATUS_CODES,
    TILE_SIZES,
    Asset,
    Block,
    Grid,
    Scene,
    Source,
    Tile,
    TileImage,
    TilePrediction,
    Tiles,
)

GRID = Grid("EPSG:32645", 0.5)
FOOTPRINT = box(85, 27, 86, 28)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.integers(1, 300), st.integers(1, 300))
def test_geobox_counts_pixels_from_the_origin_southwards(column: int, row: int, width: int, height: int) -> None:
    geobox = GRID.geobox(column, row, width, height)
    assert geobox.shape == (height, width)
    assert geobox.boundingbox == (column * 0.5, -(row + height) * 0.5, (column + width) * 0.5, -row * 0.5)
    x, y = geobox.pix2wld(0.5, 0.5)  # the centre of the first pixel lies in the pixel that the formulas of Grid name
    assert (np.floor(x / 0.5), np.floor(-y / 0.5)) == (column, row)


@given(st.sampled_from(TILE_SIZES), st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_tile_reads_its_core_and_a_halo(size: int, column: int, row: int) -> None:
    tile = Tile(GRID, size, column, row)
    assert tile.core == GRID.geobox(column * size, row * size, size, size)
    assert tile.geobox.shape == (size + 2 * HALO, size + 2 * HALO)
    assert tile.geobox[HALO:-HALO, HALO:-HALO] == tile.core


def test_block_is_aligned_to_every_tile_size() -> None:
    block = Block(GRID, -3, 2)
    assert (block.left, block.top, block.id) == (-3 * BLOCK_SIZE, 2 * BLOCK_SIZE, "-3_2")
    assert block.geobox == GRID.geobox(-3 * BLOCK_SIZE, 2 * BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE)
    assert all(BLOCK_SIZE % size == 0 for size in TILE_SIZES)


def test_every_state_has_its_own_status_code_and_unplanned_ground_is_outside() -> None:
    assert set(STATUS_CODES) == set(STATES)
    assert len(set(STATUS_CODES.values())) == len(STATES)
    assert STATUS_CODES["outside"] == 0


def test_tile_ids_are_unique() -> None:
    tiles = [Tile(GRID, size, column, row) for size in TILE_SIZES for column in (-12, -1, 0, 1, 12) for row in (-2, 2)]
    assert len({tile.id for tile in tiles}) == len(tiles)


@given(
    st.lists(
        st.tuples(st.sampled_from(TILE_SIZES), st.integers(-(2**20), 2**20), st.integers(-9, 9), st.sampled_from([None, "outside", "nodata", "cloud"])),
        min_size=1,
    )
)
def test_columns_hold_the_tiles_that_they_were_made_of(values: list[tuple]) -> None:
    tiles = [Tile(GRID, *value) for value in values]
    columns = Tiles.of(tiles)
    assert list(columns) == tiles == [columns[i] for i in range(len(columns))]
    assert (columns.left.tolist(), columns.top.tolist()) == ([tile.left for tile in tiles], [tile.top for tile in tiles])
    assert list(columns[columns.to_read]) == [tile for tile in tiles if tile.decided is None]
    assert list(columns[1:3]) == tiles[1:3]
    assert columns[-1] == tiles[-1]
    assert Tiles.of(columns) is columns
    assert columns == Tiles.of(tiles)
    assert columns != columns[:-1]
    assert columns != Tiles.of([Tile(Grid(GRID.crs, 0.6), *value) for value in values])


def test_columns_are_refused_where_they_cannot_be_tiles() -> None:
    good = Tiles.of([Tile(GRID, 512, 1, 2), Tile(GRID, 1024, 1, 2, "cloud")])
    for name, values, told in (
        ("size", np.array([512, 700], np.int16), "700"),
        ("decided", np.array([255, 1], np.uint8), "got 1"),
        ("row", np.zeros(2), "float64"),
        ("column", np.zeros(3, np.int32), r"\(3,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            replace(good, **{name: values})
    with pytest.raises(ValueError, match="0 grids"):
        Tiles.of([])
    with pytest.raises(ValueError, match="2 grids"):
        Tiles.of([Tile(GRID, 512, 0, 0), Tile(Grid(GRID.crs, 0.6), 512, 0, 0)])


def test_scene_is_named_by_collection_and_day() -> None:
    assert Scene("naip", "2020-06-01", (Source("a", FOOTPRINT, (Asset("a.tif", (1, 2, 3)),)),)).id == "naip/2020-06-01"


def test_bands_may_come_from_several_assets() -> None:
    Source("a", FOOTPRINT, tuple(Asset(f"{band}.tif", (1,)) for band in "rgb"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Asset("a.tif", ()), r"\(\)"),
        (lambda: Asset("a.tif", (0,)), r"\(0,\)"),
        (lambda: Source("item7", FOOTPRINT, (Asset("a.tif", (1, 2)),)), "2 for item item7"),
        (lambda: Grid("EPSG:32645", 0.0), "0.0"),
        (lambda: Grid("EPSG:32645", float("nan")), "nan"),
        (lambda: Tile(GRID, 700, 0, 0), "700"),
        (lambda: Tile(GRID, 512, 0, 0, "ok"), "ok"),
        (lambda: TilePrediction("t", "outside"), "outside"),
        (lambda: TilePrediction("t", "ok", scene=np.ones((2, 2), np.uint16)), "state ok for tile t"),
        (lambda: TilePrediction("t", "failed", scene=np.ones((2, 2), np.uint16)), "state failed for tile t"),
        (lambda: TilePrediction("t", "empty"), "state empty for tile t"),
        (lambda: TilePrediction("t", "empty", np.zeros((1, 2, 2), np.int8), np.ones((2, 2), np.uint16)), "state empty for tile t"),
    ],
)
def test_a_wrong_value_is_refused_and_named(make, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_tile_image_has_the_shape_of_its_tile() -> None:
    tile = Tile(GRID, 512, 0, 0)
    rgb, scene = np.zeros((640, 640, 3), np.uint8), np.zeros((640, 640), np.uint16)
    TileImage(tile, rgb, scene)
    for bad_rgb, bad_scene in ((rgb[1:], scene), (rgb.astype(float), scene), (rgb, scene[1:]), (rgb, scene.astype(np.uint8))):
        with pytest.raises(ValueError, match="must be"):
            TileImage(tile, bad_rgb, bad_scene)
