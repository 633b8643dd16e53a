"""captions.parquet: what the model says of every tile that was looked at, each phrase tied to the features that its mask covers. Knows texts,
masks and features; nothing of the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import log
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio.features
import shapely
from PIL import Image

from geopixel.publish.backdrop import ID
from geopixel.storage import Folder
from geopixel.types import HALO, LOGIT_SCALE, Description, Tile

CAPTIONS = "captions.parquet"
PHRASES = pa.list_(pa.struct([("phrase", pa.string()), ("start", pa.int32()), ("feature_ids", pa.list_(pa.string()))]))
"""The column phrases: each phrase, where it begins in the caption (characters), and the ids of the features that it names."""
COVERED = 0.5
"""A phrase names the features of which at least this share of the area inside the tile's core lies in the phrase's mask."""
MARKER = re.compile(r"(?:<p>\s*(?P<phrase>(?:(?!\[SEG\]|</?p>).)*?)\s*</p>(?P<tied>\s*\[SEG\])?|(?P<bare>\[SEG\])|</?p>)(?:\s+(?=[.,;:!?]))?", re.DOTALL)
"""What the model marks in an answer: a phrase, tied to the mask that follows it, or a mask without one. The tokenizer puts spaces around markers."""

_ROWS_PER_GROUP = 10_000
_THREADS = 8


def store_captions(
    folder: Folder, tiles: Sequence[Tile], describe: Callable[[Tile], Description | None], features: gpd.GeoDataFrame, *, threshold: float
) -> None:
    """Writes captions.parquet: GeoParquet 1.1 in longitude and latitude, a row for each of the tiles, in their order: tile_id, caption (the text
    without markers), phrases (PHRASES) and the tile's core.

    tiles: those that were looked at, of one grid. describe: what was stored of a tile; None, an empty caption: it has no description.
    features: column ID and geometry in any CRS. threshold: probability from which on a pixel belongs to a phrase's mask.
    """
    found = features[[ID, "geometry"]].to_crs(tiles[0].grid.crs) if tiles else features
    index = found.sindex if tiles else None

    def row(tile: Tile) -> tuple[str, list[dict[str, Any]]]:
        described = describe(tile)
        if described is None:
            return "", []
        near = found.iloc[np.sort(index.query(tile.core.extent.geom, predicate="intersects"))]  # type: ignore[union-attr]
        return tie_phrases(tile, described, near, threshold)

    with ThreadPoolExecutor(_THREADS) as pool:
        rows = list(pool.map(row, tiles))
    cores = gpd.GeoDataFrame(geometry=[tile.core.extent.geom for tile in tiles], crs=tiles[0].grid.crs if tiles else "OGC:CRS84")
    placed = BytesIO()
    cores.to_crs("OGC:CRS84").to_parquet(placed, index=False, write_covering_bbox=True, schema_version="1.1.0")
    places = pq.read_table(placed)
    columns = {
        "tile_id": pa.array([tile.id for tile in tiles], pa.string()),
        "caption": pa.array([caption for caption, _ in rows], pa.string()),
        "phrases": pa.array([phrases for _, phrases in rows], PHRASES),  # nested, which pandas does not know
    }
    table = pa.table(columns | {name: places[name] for name in places.column_names}).replace_schema_metadata({"geo": places.schema.metadata[b"geo"]})
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    folder.put(CAPTIONS, sink.getvalue())


def tie_phrases(tile: Tile, described: Description, features: gpd.GeoDataFrame, threshold: float) -> tuple[str, list[dict[str, Any]]]:
    """The caption without markers, and its phrases as PHRASES has them. features: column ID and geometry in the CRS of the tile's grid."""
    pixels = [_pixels(tile, shape) for shape in features.geometry]
    named, masks = [], iter(_masks(tile, described, threshold))
    caption, end = "", 0
    for match in MARKER.finditer(described.text):
        caption = _joined(caption, described.text[end : match.start()])
        end = match.end()
        mask = next(masks) if match["tied"] or match["bare"] else None
        if match["phrase"]:
            ids = [] if mask is None else [name for name, (window, own) in zip(features[ID], pixels, strict=True) if _is_covered(own, mask[window])]
            named.append({"phrase": match["phrase"], "start": len(caption), "feature_ids": ids})
            caption += match["phrase"]
    return _joined(caption, described.text[end:]), named


def _joined(caption: str, more: str) -> str:
    """A marker without a phrase leaves two spaces where it stood."""
    return caption + (more.lstrip(" ") if caption.endswith(" ") else more)


def _is_covered(own: np.ndarray, mask: np.ndarray) -> bool:
    count = int(own.sum())
    return count > 0 and int((own & mask).sum()) >= COVERED * count


def _pixels(tile: Tile, shape: shapely.Geometry) -> tuple[tuple[slice, slice], np.ndarray]:
    """The pixels of the core whose centres lie in the shape: a window of the core (rows, columns), and (rows, columns) bool within it."""
    size, resolution = tile.size, tile.grid.resolution
    west, south, east, north = shape.bounds
    left, right = (min(max(0, edge), size) for edge in (int(west // resolution) - tile.left, int(-(-east // resolution)) - tile.left))
    top, bottom = (min(max(0, edge), size) for edge in (int(-north // resolution) - tile.top, int(-(south // resolution)) - tile.top))
    window = slice(top, bottom), slice(left, right)
    if top >= bottom or left >= right:
        return window, np.zeros((bottom - top, right - left), np.bool_)
    own = rasterio.features.rasterize([shape], (bottom - top, right - left), transform=tile.core[window].affine, dtype=np.uint8)
    return window, own.astype(np.bool_)


def _masks(tile: Tile, described: Description, threshold: float) -> Iterator[np.ndarray]:
    """The mask of every [SEG] over the core, (size, size) bool, interpolated as the masks of prompts are."""
    edge, inner = tile.size + 2 * HALO, slice(HALO, HALO + tile.size)
    least = log(threshold / (1 - threshold)) * LOGIT_SCALE
    for logits in described.logits:
        whole = np.asarray(Image.fromarray(logits.astype(np.float32)).resize((edge, edge), Image.Resampling.BILINEAR))
        yield whole[inner, inner] >= least
