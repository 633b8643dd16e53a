"""A tile's picture: the scenes read onto the tile's own GeoBox. Knows tiles; how files are read is raster's business."""

from __future__ import annotations

from collections.abc import Sequence

from geopixel.raster import read_scenes
from geopixel.types import Scene, Tile, TileImage


def read_tile(tile: Tile, scenes: Sequence[Scene]) -> TileImage:
    """Core and halo of the tile as (height, width, 3) uint8 colours and a (height, width) bool mask, True where observed.

    Ground that no scene covers is not valid, which is no error. Raises ReadError for a file that cannot be read.
    """
    rgb, valid = read_scenes(scenes, tile.geobox)
    return TileImage(tile, rgb, valid)
