"""What the tiles say of a block: their probabilities blended over the overlaps, thresholded, and what became of every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import rasterio.features
import shapely
from shapely import Geometry

from geopixel.mosaic.kernels import add_tile, add_weights, quantise
from geopixel.types import ABSENT, BLOCK_SIZE, CLOUDED, CONFIDENCE_LEVELS, HALO, LOGIT_SCALE, NO_SCENE, STATUS_CODES, Block, Tile, TilePrediction

NONE = 255
"""In mask and confidence: there is no answer here (outside, no data, cloud, failed)."""

_STRIP = 256
"""Rows that are blended together: what is summed then stays in the processor's cache, and memory does not grow with the block."""


@dataclass(frozen=True, slots=True)
class BlockMosaic:
    """What a block says: BLOCK_SIZE x BLOCK_SIZE pixels, row 0 in the north."""

    mask: np.ndarray
    """(prompts, BLOCK_SIZE, BLOCK_SIZE) uint8; 1: the prompt is here, 0: it is not, NONE: no answer."""
    confidence: np.ndarray
    """(prompts, BLOCK_SIZE, BLOCK_SIZE) uint8; probability in steps of 1 / CONFIDENCE_LEVELS, NONE: no answer."""
    status: np.ndarray
    """(BLOCK_SIZE, BLOCK_SIZE) uint8; STATUS_CODES of the tile whose core owns the pixel."""
    scene: np.ndarray
    """(BLOCK_SIZE, BLOCK_SIZE) uint16; which item the pixel was seen in, as TilePrediction has it, by the tile whose core owns the pixel."""

    def __post_init__(self) -> None:
        shape = (BLOCK_SIZE, BLOCK_SIZE)
        if {self.status.shape, self.scene.shape, self.mask.shape[1:]} != {shape} or self.mask.shape != self.confidence.shape:
            raise ValueError(
                f"a block is {shape}, got mask {self.mask.shape}, confidence {self.confidence.shape}, status {self.status.shape}, scene {self.scene.shape}"
            )


def blocks_of(tiles: Iterable[Tile]) -> dict[Block, list[Tile]]:
    """Every block that the core of a tile lies in, in order, with the tiles whose core or halo touches it; tiles outside the area count for nothing."""
    owned: set[Block] = set()
    touching: dict[Block, list[Tile]] = {}
    for tile in sorted((tile for tile in tiles if tile.decided != "outside"), key=_order):
        owned.add(Block(tile.grid, tile.left // BLOCK_SIZE, tile.top // BLOCK_SIZE))
        for row in range((tile.top - HALO) // BLOCK_SIZE, (tile.top + tile.size + HALO - 1) // BLOCK_SIZE + 1):
            for column in range((tile.left - HALO) // BLOCK_SIZE, (tile.left + tile.size + HALO - 1) // BLOCK_SIZE + 1):
                touching.setdefault(Block(tile.grid, column, row), []).append(tile)
    return {block: touching[block] for block in sorted(owned, key=lambda block: (block.row, block.column))}


def mosaic_block(
    block: Block, tiles: Sequence[Tile], load: Callable[[Tile], TilePrediction], *, prompts: int, threshold: float, area: Geometry
) -> BlockMosaic:
    """Blends what the tiles say of a block.

    tiles: those that touch the block, as blocks_of gives them; load is asked once for each that is not decided.
    threshold: probability from which on a prompt counts as present. area: in the grid's CRS; a pixel is inside when its centre is.
    A pixel has an answer where the tile that owns it is ok or empty and saw it: a failed tile is a hole with clean edges, not a blur.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    predictions = {tile.id: load(tile) for tile in sorted(tiles, key=_order) if tile.decided is None}
    for prediction in predictions.values():
        if prediction.logits is not None and len(prediction.logits) != prompts:
            raise ValueError(f"tile {prediction.tile_id} answers {len(prediction.logits)} prompts, the run has {prompts}")
    status, scene = status_and_scene(block, tiles, predictions, area)
    answered = (status == STATUS_CODES["ok"]) | (status == STATUS_CODES["empty"])
    mask, confidence = np.full((2, prompts, *status.shape), NONE, np.uint8)
    if answered.any():
        pieces = pieces_of(block, tiles, predictions)
        rules = np.float32(threshold), np.float32(CONFIDENCE_LEVELS), np.uint8(NONE)
        for first in range(0, BLOCK_SIZE, _STRIP):
            strip = slice(first, first + _STRIP)
            for prompt in range(prompts):
                quantise(*_sums(pieces, prompt, strip), answered[strip], *rules, mask[prompt, strip], confidence[prompt, strip])
    return BlockMosaic(mask, confidence, status, scene)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a tile that answers says of a block: all but the rows, which blend cuts."""

    top: int
    """Row of the block that the tile's halo begins at; negative where that is above."""
    columns: slice
    """Of the block."""
    tile_columns: slice
    """The same, counted from where the tile's halo begins."""
    edge: int
    """Pixels of core and halo."""
    logits: np.ndarray | None
    """As TilePrediction has them; None: the tile is empty."""
    present: tuple[bool, ...]
    """By prompt; False: the logits are ABSENT."""


def pieces_of(block: Block, tiles: Iterable[Tile], predictions: Mapping[str, TilePrediction]) -> list[Piece]:
    """The pieces of the tiles that are ok or empty, in one fixed order."""
    pieces = []
    for tile in sorted(tiles, key=_order):
        prediction = predictions.get(tile.id)
        if prediction is not None and prediction.state in ("ok", "empty"):
            edge = tile.size + 2 * HALO
            columns = _span(tile.left - HALO, edge, block.left)
            present = () if prediction.logits is None else tuple(bool((logits != ABSENT).any()) for logits in prediction.logits)
            pieces.append(Piece(tile.top - HALO - block.top, *columns, edge, prediction.logits, present))
    return pieces


def blend(pieces: Iterable[Piece], prompt: int, strip: slice) -> np.ndarray:
    """Probability of one prompt over a strip of a block's rows: (rows, BLOCK_SIZE) float32, NaN where no tile answers.

    Each tile counts by its core convolved with a box of 2 * HALO pixels. Those weights sum to one wherever all neighbours answer, whatever
    their sizes; where one does not, dividing by the sum keeps its neighbours' edges from darkening. Stored logits are stretched to the
    tile bilinearly between pixel centres, edges clamped, as torch.nn.functional.interpolate(mode="bilinear", align_corners=False) does,
    then made probabilities. Tiles are added in one fixed order, so that equal input gives equal bytes.
    """
    total, weights = _sums(pieces, prompt, strip)
    with np.errstate(invalid="ignore"):
        return np.divide(total, weights, out=total)


def _sums(pieces: Iterable[Piece], prompt: int, strip: slice) -> tuple[np.ndarray, np.ndarray]:
    """Of weighted probabilities and of weights, both (rows, BLOCK_SIZE) float32."""
    total, weights = np.zeros((2, strip.stop - strip.start, BLOCK_SIZE), np.float32)
    for piece in pieces:
        rows, tile_rows = _span(piece.top, piece.edge, strip.start, len(total))
        if rows.start == rows.stop:
            continue
        place, columns = (rows.start, piece.columns.start), piece.tile_columns
        along = tile_weights(piece.edge - 2 * HALO)
        add_weights(weights, place, along[tile_rows], along[columns])
        if piece.logits is not None and piece.present[prompt]:
            (row_low, row_fraction), (column_low, column_fraction) = (_taps(count, piece.edge) for count in piece.logits.shape[1:])
            vertical = row_low[tile_rows], row_fraction[tile_rows], along[tile_rows]
            horizontal = column_low[columns], column_fraction[columns], along[columns]
            add_tile(total, place, piece.logits[prompt], np.float32(1 / LOGIT_SCALE), vertical, horizontal)
    return total, weights


@cache
def tile_weights(size: int) -> np.ndarray:
    """Blending weight of a tile along one axis, (size + 2 * HALO,) float32 at pixel centres: the indicator of its core convolved with a box
    of 2 * HALO. It rises from 0 at HALO before the core's edge to 1 at HALO behind it. All values are multiples of 1 / (4 * HALO): sums are exact."""
    edge = size + 2 * HALO
    centre = np.arange(edge, dtype=np.float32) + np.float32(0.5)
    return np.minimum(np.minimum(centre, edge - centre) / (2 * HALO), 1)


def status_and_scene(block: Block, tiles: Iterable[Tile], predictions: Mapping[str, TilePrediction], area: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """What becomes of every pixel of a block, and where it was seen: (BLOCK_SIZE, BLOCK_SIZE) uint8 STATUS_CODES and uint16 index of the
    item, counted through the sources of all scenes in order; CLOUDED or NO_SCENE where there is none. area: in the grid's CRS."""
    status = np.full((BLOCK_SIZE, BLOCK_SIZE), STATUS_CODES["outside"], np.uint8)
    scene = np.full(status.shape, NO_SCENE, np.uint16)
    for tile in tiles:
        rows, tile_rows = _span(tile.top, tile.size, block.top)
        columns, tile_columns = _span(tile.left, tile.size, block.left)
        prediction = predictions.get(tile.id)
        state = tile.decided if prediction is None else prediction.state
        assert state is not None, "a tile that is not decided has a prediction"
        status[rows, columns] = STATUS_CODES[state]
        if prediction is not None and prediction.scene is not None:
            core = prediction.scene[HALO:-HALO, HALO:-HALO][tile_rows, tile_columns]
            scene[rows, columns] = core
            status[rows, columns][core == NO_SCENE] = STATUS_CODES["nodata"]
            status[rows, columns][core == CLOUDED] = STATUS_CODES["cloud"]
        elif state == "cloud":
            scene[rows, columns] = CLOUDED
    if not shapely.contains_properly(area, block.geobox.extent.geom):
        outside = rasterio.features.geometry_mask([area], status.shape, block.geobox.affine)
        status[outside] = STATUS_CODES["outside"]
        scene[outside] = NO_SCENE
    return status, scene


def _order(tile: Tile) -> tuple[int, int, int]:
    return tile.size, tile.row, tile.column


def _span(first: int, length: int, block_first: int, block_length: int = BLOCK_SIZE) -> tuple[slice, slice]:
    """Where pixels [first, first + length) overlap a block (or part of one), along one axis: as a slice of the block and of those pixels."""
    start = max(first, block_first)
    stop = max(start, min(first + length, block_first + block_length))
    return slice(start - block_first, stop - block_first), slice(start - first, stop - first)


@cache
def _taps(count: int, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of edge pixels over count samples along an axis: the sample before it, and how far it is to the next one."""
    position = np.clip((np.arange(edge) + 0.5) * (count / edge) - 0.5, 0, count - 1)
    low = position.astype(np.uint32)
    return low, (position - low).astype(np.float32)
