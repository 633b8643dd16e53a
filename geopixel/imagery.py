"""A tile's picture: the scenes read onto the tile's own GeoBox. Knows tiles; how files are read is raster's business."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geopixel.raster import read_origins
from geopixel.types import Scene, Tile, TileImage


def read_tile(tile: Tile, scenes: Sequence[Scene], among: np.ndarray | None = None) -> TileImage:
    """Core and halo of the tile: its colours, and which item each pixel is from.

    among: (k,) indexes of the only sources that may touch it, where they are known, counted as in TileImage.scene.
    Ground that no scene covers is not valid, which is no error. Raises ReadError for a file that cannot be read.
    """
    return TileImage(tile, *read_origins(scenes, tile.geobox, among))
