"""masks.zarr: how the mosaic lies in Zarr v3, what it says of itself, and how a block is written into it with its overviews.

The root is the full resolution, overview/2 ... overview/16 are coarser. Conventions, as their texts stood at v0.1: CF (grid_mapping,
spatial_ref), and of github.com/zarr-conventions spatial, proj and multiscales. Transform and shape stand with each array and level, not with
the root, of which there are several: the later draft of spatial asks for that, v0.1 allows it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
import zarr
from obstore.exceptions import BaseError
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import CRS
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.errors import ZarrUserWarning

from geopixel.errors import RunConflictError, StorageError
from geopixel.mosaic.blend import NONE, BlockMosaic
from geopixel.mosaic.kernels import halve
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, CLOUDED, CONFIDENCE_LEVELS, NO_SCENE, STATUS_CODES, Block

MASKS = "masks.zarr"
OVERVIEWS = (2, 4, 8, 16)
"""Reductions of the pyramid; each divides BLOCK_SIZE, so a block is one shard of every level too."""

_CHUNK = 512


@dataclass(frozen=True, slots=True)
class _Layer:
    """An array of every level, a field of BlockMosaic by the same name."""

    dtype: type[np.generic]
    fill: int
    by_prompt: bool
    resampling: str
    """How a level is made from the one below it, in the words of the multiscales convention. nearest: the north-western of four pixels, the
    same one in status and scene."""
    attributes: dict[str, Any]

    @property
    def dimensions(self) -> tuple[str, ...]:
        return ("prompt", "y", "x") if self.by_prompt else ("y", "x")


_LAYERS = {
    # No _FillValue but on confidence: readers that know CF would turn the small integers into floats.
    "mask": _Layer(
        np.uint8, NONE, True, "mode", {"long_name": "prompt is here", "flag_values": [0, 1, NONE], "flag_meanings": "absent present no_answer"}
    ),
    "confidence": _Layer(
        np.uint8, NONE, True, "average", {"long_name": "probability of the prompt", "scale_factor": 1 / CONFIDENCE_LEVELS, "_FillValue": NONE}
    ),
    "status": _Layer(
        np.uint8,
        STATUS_CODES["outside"],
        False,
        "nearest",
        {"long_name": "state of the tile", "flag_values": list(STATUS_CODES.values()), "flag_meanings": " ".join(STATUS_CODES)},
    ),
    "scene": _Layer(
        np.uint16,
        NO_SCENE,
        False,
        "nearest",
        {"long_name": "index of the item seen here", "flag_values": [CLOUDED, NO_SCENE], "flag_meanings": "cloud no_scene"},
    ),
}
_DECLARED = {
    name: {
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
}


def create_mosaic(folder: Folder, blocks: Iterable[Block], prompts: Sequence[str], items: Sequence[str], *, shards: bool = True) -> bool:
    """Makes masks.zarr over the bounding range of the blocks, every pixel still without an answer; one that is there and equal stays as it is.
    Returns whether it was made: no block is in it then.

    Root: mask and confidence (prompt, y, x), status and scene (y, x), CF coordinates, prompt and item as strings; scene counts items.
    overview/2 ... overview/16 hold the same, coarser. xarray shows confidence as 0..1 with NaN for no answer, or the stored levels with
    mask_and_scale=False. shards: a block is one file of an array and level; else every chunk is one, for readers without sharding.
    Call it once, before any write_block. Raises RunConflictError where another mosaic is there, ValueError where there is no block,
    StorageError where it cannot be written.
    """
    blocks = list(blocks)
    if not blocks:
        raise ValueError("a mosaic needs at least one block, got none")
    geobox = _bounding(blocks)
    attributes = _group_attributes(geobox) | {"multiscales": {"layout": _layout(geobox)}, "zarr_conventions": list(_DECLARED.values())}
    with folder.reached():
        return _create(folder, geobox, attributes, prompts, items, shards=shards)


def _create(folder: Folder, geobox: GeoBox, attributes: dict[str, Any], prompts: Sequence[str], items: Sequence[str], *, shards: bool) -> bool:
    store = folder.zarr(MASKS)
    if folder.exists(f"{MASKS}/zarr.json"):
        root: Any = zarr.open_group(store, mode="r")
        # The consolidated metadata is written last: without it a mosaic was never finished and nothing can have been written to it.
        if root.metadata.consolidated_metadata is not None:
            found = {name: root.attrs.get(name) for name in attributes}, list(root["prompt"][:]), root["mask"].shards is not None
            if found != (attributes, list(prompts), shards):
                raise RunConflictError(f"{MASKS} in {folder.url} has other prompts, shards or extent: {found[1]}, {found[0].get('spatial:bbox')}")
            return False
    with warnings.catch_warnings():
        # Said of consolidated metadata ("not in the v3 specification yet": who cannot read it loses only speed) and of folders left empty by overwriting.
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.create_group(store, overwrite=True).create_group("overview")
        for factor in (1, *OVERVIEWS):
            coarse = geobox if factor == 1 else geobox.zoom_out(factor)
            names: dict[str, Sequence[str]] = {"prompt": prompts} | ({"item": items} if factor == 1 else {})
            _create_level(store, _path(factor), coarse, names, BLOCK_SIZE // factor, shards=shards)
        zarr.open_group(store, mode="r+").attrs.update(attributes)
        zarr.consolidate_metadata(store)
    return True


def write_block(folder: Folder, block: Block, mosaic: BlockMosaic) -> None:
    """Writes a block: exactly one shard per prompt, array and level of masks.zarr, whole. Raises ValueError where the block is not of this mosaic,
    StorageError where it cannot be written."""
    with folder.reached(), _codec_pipeline():
        root: Any = zarr.open_group(folder.zarr(MASKS), mode="r+")
        for path, place, plane in _planes(root, block, mosaic):
            try:
                root[path][place] = plane
            except RuntimeError as error:  # as zarrs says whatever its store says
                raise StorageError(f"cannot reach or write {folder.url}: {str(error).splitlines()[0]}") from error


def unlike_block(folder: Folder, block: Block, mosaic: BlockMosaic) -> list[str]:
    """What of a block is not stored as write_block would store it, in words: arrays of any level with other values, or that cannot be decoded.
    Raises StorageError where masks.zarr cannot be opened."""
    with folder.reached():
        root: Any = zarr.open_group(folder.zarr(MASKS), mode="r")
    found = []
    for path, place, plane in _planes(root, block, mosaic):
        try:
            if wrong := int((root[path][place] != plane).sum()):
                found.append(f"{path} is wrong at {wrong} pixels")
        except (OSError, RuntimeError, ValueError, BaseError) as error:  # of checksums, of zstd, of the store
            found.append(f"{path} cannot be read ({str(error).splitlines()[0]})")
    return found


def _planes(root: Any, block: Block, mosaic: BlockMosaic) -> Iterator[tuple[str, tuple[int | slice, ...], np.ndarray]]:
    """What a block is in the mosaic: for each shard the array's path, its place in the array and its values."""
    row, column = _corner(root, block)
    prompts = root["mask"].shape[0]
    if len(mosaic.mask) != prompts:
        raise ValueError(f"the mosaic has {prompts} prompts, block {block.id} has {len(mosaic.mask)}")
    for name, layer in _LAYERS.items():
        values = getattr(mosaic, name)
        first: list[tuple[int, ...]] = [(prompt,) for prompt in range(prompts)] if layer.by_prompt else [()]
        planes = [(index, values[index]) for index in first]
        for factor in (1, *OVERVIEWS):
            if factor > 1:
                planes = [(index, halve(plane, NONE) if layer.by_prompt else plane[::2, ::2]) for index, plane in planes]
            window = tuple(slice(start // factor, (start + BLOCK_SIZE) // factor) for start in (row, column))
            for index, plane in planes:
                yield _path(factor, name), (*index, *window), plane


def digest_block(folder: Folder, block: Block) -> str:
    """SHA-256 over the files that a block is stored in; one that is not there counts as empty. Raises StorageError where masks.zarr cannot be opened."""
    digest = hashlib.sha256()
    with folder.reached():
        root: Any = zarr.open_group(folder.zarr(MASKS), mode="r")
    row, column = _corner(root, block)
    for name, factor in product(_LAYERS, (1, *OVERVIEWS)):
        array = root[_path(factor, name)]
        *prompts, height, width = array.shards or array.chunks  # of a file
        spans = [range(start // factor // size, (start + BLOCK_SIZE) // factor // size) for start, size in ((row, height), (column, width))]
        for place in product(*(range(array.shape[0]) for _ in prompts), *spans):
            with suppress(FileNotFoundError):
                digest.update(folder.get(f"{MASKS}/{array.path}/{array.metadata.encode_chunk_key(place)}"))
            digest.update(b"\0")
    return digest.hexdigest()


def _corner(root: Any, block: Block) -> tuple[int, int]:
    """Row and column of the mosaic at which a block begins. Raises ValueError where it is not of this mosaic."""
    resolution, _, left, _, _, top = root["mask"].attrs["spatial:transform"]
    column, row = block.left - round(left / resolution), block.top - round(-top / resolution)
    _, height, width = root["mask"].shape
    if column % BLOCK_SIZE or row % BLOCK_SIZE or not (0 <= column < width and 0 <= row < height) or block.grid.resolution != resolution:
        raise ValueError(f"block {block.id} at {block.grid.resolution} is not one of the {height} x {width} pixels at {root.attrs['spatial:bbox']}")
    return row, column


@contextmanager
def _codec_pipeline() -> Iterator[None]:
    """zarrs, where it is installed, encodes whole shards about three times as fast as zarr-python; a task has one core, so one thread."""
    path = "zarrs.ZarrsCodecPipeline" if find_spec("zarrs") else "zarr.core.codec_pipeline.BatchedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": path, "threading.max_workers": 1}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Successfully reconstructed a store")  # zarrs has connections of its own
        yield


def _path(factor: int, name: str = "") -> str:
    return "/".join(part for part in ("" if factor == 1 else f"overview/{factor}", name) if part)


def _bounding(blocks: Sequence[Block]) -> GeoBox:
    if len({block.grid for block in blocks}) > 1:
        raise ValueError(f"the blocks of a mosaic share one grid, got {({block.grid for block in blocks})}")
    left, right = min(block.left for block in blocks), max(block.left for block in blocks) + BLOCK_SIZE
    top, bottom = min(block.top for block in blocks), max(block.top for block in blocks) + BLOCK_SIZE
    return blocks[0].grid.geobox(left, top, right - left, bottom - top)


def _layout(geobox: GeoBox) -> list[dict[str, Any]]:
    """Every array at every level, and which it was made from: levels of one array only may be resampled alike."""
    entries: list[dict[str, Any]] = []
    for name, layer in _LAYERS.items():
        for finer, factor in zip((None, 1, *OVERVIEWS), (1, *OVERVIEWS), strict=False):
            placed = {"asset": _path(factor, name)} | _placement(geobox.zoom_out(factor))
            step = [float(2 if finer and dimension in ("y", "x") else 1) for dimension in layer.dimensions]
            origin = {"derived_from": _path(finer, name), "resampling_method": layer.resampling} if finer else {}
            entries.append(placed | origin | {"transform": {"scale": step, "translation": [0.0] * len(step)}})
    return entries


def _placement(geobox: GeoBox) -> dict[str, Any]:
    return {"spatial:shape": list(geobox.shape), "spatial:transform": list(geobox.affine)[:6]}


def _crs_attributes(geobox: GeoBox) -> dict[str, Any]:
    crs = CRS(str(geobox.crs))
    authority = crs.to_authority()
    return {"proj:code": ":".join(authority)} if authority else {"proj:wkt2": crs.to_wkt()}


def _group_attributes(geobox: GeoBox) -> dict[str, Any]:
    extent = {"spatial:dimensions": ["y", "x"], "spatial:bbox": list(geobox.boundingbox.bbox)}
    return _crs_attributes(geobox) | extent | {"zarr_conventions": [_DECLARED["proj"], _DECLARED["spatial"]]}


def _create_level(store: Store, path: str, geobox: GeoBox, names: dict[str, Sequence[str]], shard: int, *, shards: bool) -> None:
    # StringDType is stored as Zarr's "string"; fixed-length unicode has no Zarr v3 specification.
    texts = {name: np.array(list(values), dtype=np.dtypes.StringDType()) for name, values in names.items()}
    xr.Dataset(coords=xr_coords(geobox) | texts).to_zarr(store, group=path or None, mode="a", zarr_format=3, consolidated=False)
    group = zarr.open_group(store, path=path, mode="r+")
    group.attrs.update(_group_attributes(geobox))
    placed = _crs_attributes(geobox) | _placement(geobox) | {"spatial:dimensions": ["y", "x"], "zarr_conventions": [_DECLARED["proj"], _DECLARED["spatial"]]}
    chunk = min(_CHUNK, shard)
    for name, layer in _LAYERS.items():
        first: tuple[int, ...] = (1,) if layer.by_prompt else ()
        group.create_array(
            name,
            shape=(*([len(names["prompt"])] if layer.by_prompt else []), *geobox.shape),
            shards=(*first, shard, shard) if shards else None,
            chunks=(*first, chunk, chunk),
            dimension_names=layer.dimensions,
            dtype=layer.dtype,
            fill_value=layer.fill,
            compressors=[ZstdCodec(level=1)],
            attributes=layer.attributes | placed | {"grid_mapping": "spatial_ref"},
        )
