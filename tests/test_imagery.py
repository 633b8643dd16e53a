"""A tile's picture against rasterio on the same pixels of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.windows import Window

from geopixel.errors import ReadError
from geopixel.imagery import read_tile
from geopixel.types import HALO, Asset, Grid, Scene, Source, Tile

GRID = Grid("EPSG:3857", 0.5)


def scene_of(path: Path) -> Scene:
    return Scene("aerial", "2020-06-01", (Source("item", shapely.box(-180, -90, 180, 90), (Asset(str(path), (1, 2, 3)),)),))


def test_a_tile_is_its_core_and_halo_and_black_where_nothing_was_seen(tmp_path: Path) -> None:
    tile = Tile(GRID, 512, 3, -4)
    pixels = np.random.default_rng(0).integers(1, 255, (3, 300, 700)).astype(np.uint8)
    place = GRID.geobox(tile.left - 200, tile.top + 100, 700, 300)
    path = tmp_path / "file.tif"
    with rasterio.open(path, "w", driver="GTiff", width=700, height=300, count=3, dtype="uint8", crs=GRID.crs, transform=place.transform) as file:
        file.write(pixels)
    with rasterio.open(path) as file:
        edge = 512 + 2 * HALO
        window = Window(200 - HALO, -100 - HALO, edge, edge)
        expected = file.read(window=window, boundless=True, fill_value=0)

    image = read_tile(tile, [scene_of(path)])

    assert image.tile == tile
    np.testing.assert_array_equal(image.rgb, np.moveaxis(expected, 0, -1))
    np.testing.assert_array_equal(image.valid, expected.any(axis=0))
    assert 0 < image.valid.sum() < image.valid.size


def test_a_tile_without_scenes_is_empty_and_one_with_a_broken_file_is_an_error(tmp_path: Path) -> None:
    tile = Tile(GRID, 1024, 0, 0)
    assert not read_tile(tile, []).valid.any()
    with pytest.raises(ReadError, match="missing.tif"):
        read_tile(tile, [scene_of(tmp_path / "missing.tif")])
