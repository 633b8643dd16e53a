"""From stitched polygons to a table of features that any GIS opens: geometry on the ground, attributes, GeoParquet. Keeps the parts of each
block at rest in between, with a note of what they were made from, so that a run that is resumed knows which blocks are still good.
Knows nothing of rasters, models or how polygons are traced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from io import BytesIO

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import Geod, Transformer

from geopixel.storage import Folder
from geopixel.types import CONFIDENCE_LEVELS, Block, Grid, Scene

FEATURES = "features.parquet"
SCHEMA = {
    "feature_id": "str",  # of grid, prompt and first pixel: the same object has the same id in every run
    "prompt": "str",
    "area_m2": "float64",  # on the WGS 84 ellipsoid, holes left out
    "perimeter_m": "float64",  # of the outer ring
    "confidence": "float64",  # mean probability over the pixels, 0..1
    "pixels": "int64",
    "first_day": "datetime64[ms]",  # of the scenes seen
    "last_day": "datetime64[ms]",
}
"""The columns of features.parquet besides geometry, which are polygons along pixel edges in the grid's CRS, outer rings counter-clockwise."""
ROWS_PER_GROUP = 10_000
"""Small enough that a bounding box prunes: features lie along a Hilbert curve."""

_ELLIPSOID = Geod(ellps="WGS84")
_STATES = b"geopixel:states"


def store_parts(folder: Folder, block: Block, parts: pa.Table, states: str) -> None:
    """Keeps the traced parts of a block. states: fingerprint of what they were made from, as parts_states gives it back."""
    sink = BytesIO()
    pq.write_table(parts.replace_schema_metadata({_STATES: states}), sink, compression="zstd")
    folder.put(_parts_path(block), sink.getvalue())


def parts_states(folder: Folder, block: Block) -> str | None:
    """The fingerprint that the parts of a block were stored with; None where there are none."""
    try:
        stored = folder.get(_parts_path(block))
    except FileNotFoundError:
        return None
    return pq.read_schema(BytesIO(stored)).metadata[_STATES].decode()


def load_parts(folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """The parts of all blocks as one table. Raises FileNotFoundError for a block that has none stored, ValueError where there is no block."""
    tables = [pq.read_table(BytesIO(folder.get(_parts_path(block)))).replace_schema_metadata() for block in blocks]
    if not tables:
        raise ValueError("parts are loaded for at least one block, got none")
    return pa.concat_tables(tables)


def build_features(
    objects: pa.Table, grid: Grid, prompts: Sequence[str], scenes: Sequence[Scene], *, min_area: float
) -> tuple[gpd.GeoDataFrame, dict[str, int]]:
    """The objects of all prompts as one frame of SCHEMA, and the pixels that min_area left out, by prompt.

    objects: stitched parts: prompt (index), row and column of the first pixel, pixels, confidence_sum, geometry (WKB in pixels of the grid).
    min_area: m2 on the ground; smaller objects are left out.
    Order: along a Hilbert curve over the features' bounds, then by id.
    """
    if not min_area >= 0:
        raise ValueError(f"min_area must not be negative, got {min_area}")
    if not scenes:
        raise ValueError("features come from at least one scene, got none")
    prompt, pixels = objects["prompt"].to_numpy(), objects["pixels"].to_numpy()
    geometry = _on_the_ground(shapely.from_wkb(objects["geometry"].to_numpy(zero_copy_only=False)), grid)
    area, perimeter = _measure(geometry, grid)
    names = np.array(prompts, dtype=object)[prompt]
    frame = gpd.GeoDataFrame(
        {
            "feature_id": [
                _feature_id(grid, *each) for each in zip(names, objects["column"].to_pylist(), objects["row"].to_pylist(), strict=True)
            ],
            "prompt": names,
            "area_m2": area,
            "perimeter_m": perimeter,
            "confidence": objects["confidence_sum"].to_numpy() / (CONFIDENCE_LEVELS * pixels),
            "pixels": pixels,
            "first_day": np.datetime64(min(scene.day for scene in scenes)),
            "last_day": np.datetime64(max(scene.day for scene in scenes)),
        },
        geometry=gpd.GeoSeries(geometry, crs=grid.crs),
    ).astype(SCHEMA)
    small = area < min_area
    dropped = {name: int(pixels[small & (prompt == index)].sum()) for index, name in enumerate(prompts)}
    return _along_a_curve(frame[~small]), dropped


def store_features(folder: Folder, features: gpd.GeoDataFrame) -> None:
    """Writes features.parquet: GeoParquet 1.1, zstd, with a bounding box per row. Equal frames make equal bytes."""
    sink = BytesIO()
    features.to_parquet(sink, index=False, compression="zstd", write_covering_bbox=True, schema_version="1.1.0", row_group_size=ROWS_PER_GROUP)
    folder.put(FEATURES, sink.getvalue())


def _parts_path(block: Block) -> str:
    return f"parts/{block.id}.parquet"


def _on_the_ground(polygons: np.ndarray, grid: Grid) -> np.ndarray:
    return shapely.transform(polygons, lambda pixels: pixels * (grid.resolution, -grid.resolution))


def _measure(polygons: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Geodesic area in m2 and perimeter of the outer ring in metres, after Karney (2013)."""
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    lonlat = shapely.transform(polygons, to_degrees.transform, interleaved=False)
    measured = np.array([_ELLIPSOID.geometry_area_perimeter(polygon) for polygon in lonlat]).reshape(-1, 2)
    return measured[:, 0], measured[:, 1]


def _feature_id(grid: Grid, prompt: str, column: int, row: int) -> str:
    return hashlib.blake2b(f"{grid.crs} {grid.resolution!r} {column} {row} {prompt}".encode(), digest_size=10).hexdigest()


def _along_a_curve(features: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    if len(features):  # bounds of nothing are no bounds
        order = np.lexsort((features["feature_id"].to_numpy(dtype=str), features.hilbert_distance().to_numpy()))
        features = features.iloc[order]
    return features.reset_index(drop=True)
