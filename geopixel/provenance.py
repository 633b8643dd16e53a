"""What the tiles of a block say of its pixels besides masks and where they were seen: where the answers end, and how well the model
thinks its masks fit. Knows tiles and their predictions; nothing of blending, polygons or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import rasterio.features
import shapely
from shapely import Geometry

from geopixel.types import BLOCK_SIZE, CLOUDED, HALO, NO_SCENE, TILE_SIZES, Block, Tile, TilePrediction

_CELL = TILE_SIZES[0]
"""Pixels: every cell of a block lies in one tile."""


@dataclass(frozen=True, slots=True, eq=False)
class Provenance:
    """Of the pixels of a block, row 0 in the north."""

    edge: np.ndarray
    """(BLOCK_SIZE, BLOCK_SIZE) bool: beside a pixel without an answer, be it in this block or the next: outside the area, not observed, failed."""
    scores: np.ndarray
    """(prompts, n, n) float32: the model's score of the mask that the tile which owns a cell of BLOCK_SIZE / n pixels has of a prompt; NaN: none."""


def trace_provenance(block: Block, tiles: Sequence[Tile], predictions: Mapping[str, TilePrediction], *, prompts: int, area: Geometry) -> Provenance:
    """tiles: those whose core or halo touches the block. predictions: of those among them that were looked at, by id. area: in the grid's CRS;
    a pixel is inside when its centre is."""
    edge = BLOCK_SIZE + 2  # a rim of one pixel of the neighbours
    scene = np.full((edge, edge), NO_SCENE, np.uint16)
    scores = np.full((prompts, BLOCK_SIZE // _CELL, BLOCK_SIZE // _CELL), np.nan, np.float32)
    for tile in tiles:
        prediction = predictions.get(tile.id)
        if prediction is None or prediction.scene is None:
            continue
        core = prediction.scene[HALO:-HALO, HALO:-HALO]
        rows, columns = tile.top - block.top, tile.left - block.left
        _paste(core, scene, rows + 1, columns + 1)
        if prediction.scores is not None:
            cells = tile.size // _CELL
            _paste(np.broadcast_to(prediction.scores[:, None, None], (prompts, cells, cells)), scores, rows // _CELL, columns // _CELL)
    answered = scene < CLOUDED
    rim = block.grid.geobox(block.left - 1, block.top - 1, edge, edge)
    if not shapely.contains_properly(area, rim.extent.geom):
        answered &= rasterio.features.geometry_mask([area], answered.shape, rim.affine, invert=True)
    beside = ~(answered[:-2, 1:-1] & answered[2:, 1:-1] & answered[1:-1, :-2] & answered[1:-1, 2:])
    return Provenance(beside, scores)


def _paste(source: np.ndarray, target: np.ndarray, row: int, column: int) -> None:
    """Source, (..., h, w), over target, (..., height, width), with its first pixel at row and column, which may be outside."""
    height, width = target.shape[-2:]
    top, left = max(row, 0), max(column, 0)
    bottom, right = max(top, min(row + source.shape[-2], height)), max(left, min(column + source.shape[-1], width))
    target[..., top:bottom, left:right] = source[..., top - row : bottom - row, left - column : right - column]
