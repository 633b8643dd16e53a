"""Blends the stored predictions of tiles into blocks of the output raster and writes a block as whole Zarr v3 shards, overviews
included. A block is made from the tiles that touch it and from nothing else, so any task can make it, in any order, again and again
with equal bytes. Knows nothing of how a prediction came about, nor of polygons."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio.features
import shapely
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import CRS
from shapely import Geometry
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.errors import ZarrUserWarning

from geopixel.errors import RunConflictError
from geopixel.storage import Folder
from geopixel.types import ABSENT, BLOCK_SIZE, CLOUDED, CONFIDENCE_LEVELS, HALO, LOGIT_SCALE, NO_SCENE, STATUS_CODES, Block, Tile, TilePrediction

MASKS = "masks.zarr"
NONE = 255
"""In mask and confidence: there is no answer here (outside, no data, cloud, failed)."""
OVERVIEWS = (2, 4, 8, 16)
"""Reductions of the pyramid; each divides BLOCK_SIZE, so a block is one shard of every level too."""

_CHUNK = 512
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    # No _FillValue on mask and status: readers that know CF would turn the small integers into floats.
    "mask": {"long_name": "prompt is here", "flag_values": [0, 1, NONE], "flag_meanings": "absent present no_answer"},
    "confidence": {"long_name": "probability of the prompt", "scale_factor": 1 / CONFIDENCE_LEVELS, "_FillValue": NONE},
    "status": {"long_name": "state of the tile", "flag_values": list(STATUS_CODES.values()), "flag_meanings": " ".join(STATUS_CODES)},
}
_CONVENTIONS = [
    {
        "uuid": uuid,
        "name": name,
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
    }
    for name, uuid in {
        "multiscales": "d35379db-88df-4056-af3a-620245f8e347",
        "proj": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "spatial": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    }.items()
]


@dataclass(frozen=True, slots=True)
class BlockMosaic:
    """What a block says: BLOCK_SIZE x BLOCK_SIZE pixels, row 0 in the north."""

    mask: np.ndarray
    """(prompts, BLOCK_SIZE, BLOCK_SIZE) uint8; 1: the prompt is here, 0: it is not, NONE: no answer."""
    confidence: np.ndarray
    """(prompts, BLOCK_SIZE, BLOCK_SIZE) uint8; probability in steps of 1 / CONFIDENCE_LEVELS, NONE: no answer."""
    status: np.ndarray
    """(BLOCK_SIZE, BLOCK_SIZE) uint8; STATUS_CODES of the tile whose core owns the pixel."""

    def __post_init__(self) -> None:
        shape = (BLOCK_SIZE, BLOCK_SIZE)
        if self.status.shape != shape or self.mask.shape[1:] != shape or self.mask.shape != self.confidence.shape:
            raise ValueError(f"a block is {shape}, got mask {self.mask.shape}, confidence {self.confidence.shape}, status {self.status.shape}")


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
    status = block_status(block, tiles, predictions, area)
    answered = (status == STATUS_CODES["ok"]) | (status == STATUS_CODES["empty"])
    mask = np.full((prompts, *status.shape), NONE, np.uint8)
    confidence = mask.copy()
    if answered.any():
        for prompt in range(prompts):
            probability = blend(block, tiles, predictions, prompt)
            np.greater_equal(probability, threshold, out=mask[prompt], where=answered, casting="unsafe")
            probability *= CONFIDENCE_LEVELS
            np.rint(probability, out=confidence[prompt], where=answered, casting="unsafe")
    return BlockMosaic(mask, confidence, status)


def blend(block: Block, tiles: Iterable[Tile], predictions: Mapping[str, TilePrediction], prompt: int) -> np.ndarray:
    """Probability of one prompt over a block: (BLOCK_SIZE, BLOCK_SIZE) float32, NaN where no tile answers.

    Each tile that is ok or empty is weighted by its core convolved with a box of 2 * HALO pixels. Those weights sum to one wherever all
    neighbours answer, whatever their sizes; where one does not, dividing by the sum keeps its neighbours' edges from darkening.
    Tiles are added in one fixed order, so that equal input gives equal bytes.
    """
    total = np.zeros((BLOCK_SIZE, BLOCK_SIZE), np.float32)
    weights = np.zeros_like(total)
    for tile in sorted(tiles, key=_order):
        prediction = predictions.get(tile.id)
        if prediction is None or prediction.state not in ("ok", "empty"):
            continue
        edge = tile.size + 2 * HALO
        rows, tile_rows = _span(tile.top - HALO, edge, block.top)
        columns, tile_columns = _span(tile.left - HALO, edge, block.left)
        weight = tile_weights(tile.size)[tile_rows, None] * tile_weights(tile.size)[None, tile_columns]
        weights[rows, columns] += weight
        if prediction.logits is not None and (prediction.logits[prompt] != ABSENT).any():
            weight *= _sigmoid(upsample(prediction.logits[prompt], edge, tile_rows, tile_columns))
            total[rows, columns] += weight
    with np.errstate(invalid="ignore"):
        return np.divide(total, weights, out=total)


def tile_weights(size: int) -> np.ndarray:
    """Blending weight of a tile along one axis, (size + 2 * HALO,) float32 at pixel centres: the indicator of its core convolved with a box
    of 2 * HALO. It rises from 0 at HALO before the core's edge to 1 at HALO behind it. All values are multiples of 1 / (4 * HALO): sums are exact."""
    edge = size + 2 * HALO
    centre = np.arange(edge, dtype=np.float32) + np.float32(0.5)
    return np.minimum(np.minimum(centre, edge - centre) / (2 * HALO), 1)


def upsample(logits: np.ndarray, edge: int, rows: slice, columns: slice) -> np.ndarray:
    """The window [rows, columns] of stored logits (h, w) int8 stretched to edge x edge pixels, as float32 logits.

    Bilinear between pixel centres, edges clamped: torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
    """
    values = logits.astype(np.float32) / np.float32(LOGIT_SCALE)
    low, high, fraction = _taps(logits.shape[1], edge, columns)
    values = values[:, low] * (1 - fraction) + values[:, high] * fraction
    low, high, fraction = _taps(logits.shape[0], edge, rows)
    return values[low] * (1 - fraction)[:, None] + values[high] * fraction[:, None]


def block_status(block: Block, tiles: Iterable[Tile], predictions: Mapping[str, TilePrediction], area: Geometry) -> np.ndarray:
    """What becomes of every pixel of a block: (BLOCK_SIZE, BLOCK_SIZE) uint8 STATUS_CODES. area: in the grid's CRS."""
    status = np.full((BLOCK_SIZE, BLOCK_SIZE), STATUS_CODES["outside"], np.uint8)
    for tile in tiles:
        rows, tile_rows = _span(tile.top, tile.size, block.top)
        columns, tile_columns = _span(tile.left, tile.size, block.left)
        if tile.decided is not None:
            status[rows, columns] = STATUS_CODES[tile.decided]
            continue
        prediction = predictions[tile.id]
        status[rows, columns] = STATUS_CODES[prediction.state]
        if prediction.scene is not None:
            core = prediction.scene[HALO:-HALO, HALO:-HALO][tile_rows, tile_columns]
            status[rows, columns][core == NO_SCENE] = STATUS_CODES["nodata"]
            status[rows, columns][core == CLOUDED] = STATUS_CODES["cloud"]
    if not shapely.contains_properly(area, block.geobox.extent.geom):
        outside = rasterio.features.geometry_mask([area], status.shape, block.geobox.affine)
        status[outside] = STATUS_CODES["outside"]
    return status


def create_mosaic(folder: Folder, blocks: Iterable[Block], prompts: Sequence[str]) -> None:
    """Makes masks.zarr over the bounding range of the blocks, every pixel still without an answer; one that is there and equal stays as it is.

    Root: mask and confidence (prompt, y, x), status (y, x), CF coordinates; overview/2 ... overview/16 hold the same, coarser. xarray shows
    confidence as 0..1 with NaN for no answer, or the stored levels with mask_and_scale=False. Call it once, before any write_block.
    Raises RunConflictError where another mosaic is there, ValueError where there is no block.
    """
    blocks = list(blocks)
    if not blocks:
        raise ValueError("a mosaic needs at least one block, got none")
    geobox = _bounding(blocks)
    store = folder.zarr(MASKS)
    attributes = _spatial_attributes(geobox) | {
        "multiscales": {"layout": [{"asset": f"overview/{factor}"} | _placement(geobox.zoom_out(factor)) for factor in OVERVIEWS]},
    }
    if folder.exists(f"{MASKS}/zarr.json"):
        root: Any = zarr.open_group(store, mode="r")
        # The consolidated metadata is written last: without it a mosaic was never finished and nothing can have been written to it.
        if root.metadata.consolidated_metadata is not None:
            found = {name: root.attrs.get(name) for name in attributes}, list(root["prompt"][:])
            if found != (attributes, list(prompts)):
                raise RunConflictError(f"{MASKS} in {folder.url} has other prompts or another extent: {found[1]}, {found[0].get('spatial:bbox')}")
            return
    with warnings.catch_warnings():
        # Said of consolidated metadata ("not in the v3 specification yet": who cannot read it loses only speed) and of folders left empty by overwriting.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.create_group(store, overwrite=True).create_group("overview")
        _create_level(store, "", geobox, prompts, BLOCK_SIZE, attributes)
        for factor in OVERVIEWS:
            coarse = geobox.zoom_out(factor)
            _create_level(store, f"overview/{factor}", coarse, prompts, BLOCK_SIZE // factor, _spatial_attributes(coarse))
        zarr.consolidate_metadata(store)


def write_block(folder: Folder, block: Block, mosaic: BlockMosaic) -> None:
    """Writes a block: exactly one shard per prompt, array and level of masks.zarr, whole. Raises ValueError where the block is not of this mosaic."""
    root: Any = zarr.open_group(folder.zarr(MASKS), mode="r+")
    resolution, _, left, _, _, top = root.attrs["spatial:transform"]
    column, row = block.left - round(left / resolution), block.top - round(-top / resolution)
    prompts, height, width = root["mask"].shape
    if column % BLOCK_SIZE or row % BLOCK_SIZE or not (0 <= column < width and 0 <= row < height) or block.grid.resolution != resolution:
        raise ValueError(f"block {block.id} at {block.grid.resolution} is not one of the {height} x {width} pixels at {root.attrs['spatial:bbox']}")
    if len(mosaic.mask) != prompts:
        raise ValueError(f"the mosaic has {prompts} prompts, block {block.id} has {len(mosaic.mask)}")
    for name in _ATTRIBUTES:
        values = getattr(mosaic, name)
        planes = [((), values)] if name == "status" else [((prompt,), plane) for prompt, plane in enumerate(values)]
        for index, plane in planes:
            for factor in (1, *OVERVIEWS):
                if factor > 1:
                    plane = plane[::2, ::2] if name == "status" else _halve(plane)
                array = root[name if factor == 1 else f"overview/{factor}/{name}"]
                array[(*index, *(slice(first // factor, (first + BLOCK_SIZE) // factor) for first in (row, column)))] = plane


def _order(tile: Tile) -> tuple[int, int, int]:
    return tile.size, tile.row, tile.column


def _span(first: int, length: int, block_first: int) -> tuple[slice, slice]:
    """Where pixels [first, first + length) overlap a block, along one axis: as a slice of the block and as a slice of those pixels."""
    start = max(first, block_first)
    stop = max(start, min(first + length, block_first + BLOCK_SIZE))
    return slice(start - block_first, stop - block_first), slice(start - first, stop - first)


def _taps(count: int, edge: int, window: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of window, of edge pixels over count samples: the sample before, the one after, and how far it is between them."""
    position = np.clip((np.arange(window.start, window.stop) + 0.5) * (count / edge) - 0.5, 0, count - 1)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, count - 1), (position - low).astype(np.float32)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    np.exp(np.negative(logits, out=logits), out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def _halve(plane: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (h / 2, w / 2): the mean of those of four pixels that have an answer, half rounded up; NONE where none has.
    For a mask that is the majority, and a tie is present."""
    quarters = [plane[row::2, column::2] for row in (0, 1) for column in (0, 1)]
    count, total = np.zeros((2, *quarters[0].shape), np.uint16)
    for quarter in quarters:
        answered = quarter != NONE
        count += answered
        total += quarter * answered
    return np.where(count == 0, NONE, (2 * total + count) // np.maximum(2 * count, 1)).astype(np.uint8)


def _bounding(blocks: Sequence[Block]) -> GeoBox:
    if len({block.grid for block in blocks}) > 1:
        raise ValueError(f"the blocks of a mosaic share one grid, got {({block.grid for block in blocks})}")
    left, right = min(block.left for block in blocks), max(block.left for block in blocks) + BLOCK_SIZE
    top, bottom = min(block.top for block in blocks), max(block.top for block in blocks) + BLOCK_SIZE
    return blocks[0].grid.geobox(left, top, right - left, bottom - top)


def _placement(geobox: GeoBox) -> dict[str, Any]:
    return {"spatial:shape": list(geobox.shape), "spatial:transform": list(geobox.affine)[:6]}


def _spatial_attributes(geobox: GeoBox) -> dict[str, Any]:
    crs = CRS(str(geobox.crs))
    authority = crs.to_authority()
    place = {"proj:code": ":".join(authority)} if authority else {"proj:wkt2": crs.to_wkt()}
    extent = {"spatial:dimensions": ["y", "x"], "spatial:bbox": list(geobox.boundingbox.bbox)}
    return place | extent | _placement(geobox) | {"zarr_conventions": _CONVENTIONS}


def _create_level(store: Store, path: str, geobox: GeoBox, prompts: Sequence[str], shard: int, attributes: dict[str, Any]) -> None:
    # StringDType is stored as Zarr's "string"; fixed-length unicode has no Zarr v3 specification.
    names = np.array(list(prompts), dtype=np.dtypes.StringDType())
    xr.Dataset(coords={**xr_coords(geobox), "prompt": names}).to_zarr(store, group=path or None, mode="a", zarr_format=3, consolidated=False)
    group = zarr.open_group(store, path=path, mode="r+")
    group.attrs.update(attributes)
    chunk = min(_CHUNK, shard)
    for name, described in _ATTRIBUTES.items():
        banded = name != "status"
        group.create_array(
            name,
            shape=(len(prompts), *geobox.shape) if banded else tuple(geobox.shape),
            shards=(1, shard, shard) if banded else (shard, shard),
            chunks=(1, chunk, chunk) if banded else (chunk, chunk),
            dimension_names=("prompt", "y", "x") if banded else ("y", "x"),
            dtype=np.uint8,
            fill_value=NONE if banded else STATUS_CODES["outside"],
            compressors=[ZstdCodec(level=1)],
            attributes=described | {"grid_mapping": "spatial_ref"},
        )
