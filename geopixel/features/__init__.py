"""From stitched objects to a table of features that any GIS opens: outlines in longitude and latitude, attributes, GeoParquet. Keeps the parts of
each block at rest in between, with a note of what they were made from, so that a run that is resumed knows which blocks are still good.
Knows nothing of rasters, models or how polygons are traced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from pyproj import CRS

from geopixel.errors import DamagedError
from geopixel.features.outlines import Outline, draw
from geopixel.features.rings import CRS84, Rings, curve, join, measure, project
from geopixel.storage import Folder
from geopixel.types import CONFIDENCE_LEVELS, Block, Grid, Scene, Source

__all__ = [
    "FEATURES",
    "ROWS_PER_GROUP",
    "SCHEMA",
    "Origin",
    "Outline",
    "build_features",
    "encode",
    "in_order",
    "load_parts",
    "parts_path",
    "parts_states",
    "store_parts",
]

FEATURES = "features.parquet"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of grid, prompt, scenes and first pixel: equal for the same object in every run
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),  # the model's own words for it where it has any, else the prompt
        pa.field("score", pa.float32(), nullable=False),  # mean probability over its pixels, 0..1
        pa.field("mask_score", pa.float32()),  # the model's own estimate of how well the mask fits, 0..1, in the tile of its first pixel
        pa.field("area_m2", pa.float64(), nullable=False),  # of the outline as it is here, on the WGS 84 ellipsoid, holes left out
        pa.field("perimeter_m", pa.float64(), nullable=False),  # of the outer ring
        pa.field("scene_ids", pa.list_(pa.string()), nullable=False),  # STAC items that its pixels are of
        pa.field("datetime", pa.timestamp("ms", tz="UTC"), nullable=False),  # of the newest of these items
        pa.field("gsd_m", pa.float32(), nullable=False),  # ground sample distance of that item, else of the map's pixels
        pa.field("model", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("touches_edge", pa.bool_(), nullable=False),  # a pixel of it lies beside one without an answer: there may be more of it
        pa.field("part_of", pa.string()),  # id of what it was cut from: all parts of an endless thing have the same; null: it is whole
        pa.field("geometry", pa.binary(), nullable=False),  # WKB, OGC:CRS84, outer rings counter-clockwise
        pa.field("bbox", pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")]), nullable=False),
    ]
)
"""The columns of features.parquet."""
ROWS_PER_GROUP = 10_000
"""Small enough that a bounding box prunes: features lie along a Hilbert curve."""

_STATES = b"geopixel:states"
_FEW = ["prompt", "phrase", "model", "weights_sha256", "run_id", "scene_ids.list.element", "datetime", "gsd_m", "mask_score", "touches_edge"]
"""Columns whose values repeat."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the features of a run have in common."""

    grid: Grid
    scenes: Sequence[Scene]
    """All that the run looked at; objects count their items through the sources of them, in order."""
    metres_per_pixel: float
    model: str
    weights_sha256: str
    run_id: str


def store_parts(folder: Folder, block: Block, parts: pa.Table, states: str) -> None:
    """Keeps the traced parts of a block. states: fingerprint of what they were made from, as parts_states gives it back."""
    sink = BytesIO()
    pq.write_table(parts.replace_schema_metadata({_STATES: states}), sink, compression="zstd")
    folder.put(parts_path(block), sink.getvalue())


def parts_states(folder: Folder, block: Block) -> str | None:
    """The fingerprint that the parts of a block were stored with; None where there are none that can be read."""
    try:
        return _read_parts(folder, block).schema.metadata[_STATES].decode()
    except (FileNotFoundError, DamagedError):
        return None


def load_parts(folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """The parts of all blocks as one table. Raises FileNotFoundError for a block that has none stored, DamagedError for one whose parts cannot be
    read, ValueError where there is no block."""
    tables = [_read_parts(folder, block).replace_schema_metadata() for block in blocks]
    if not tables:
        raise ValueError("parts are loaded for at least one block, got none")
    return pa.concat_tables(tables)


def build_features(objects: pa.Table, outlines: Mapping[str, Outline], origin: Origin) -> pa.Table:
    """The objects of all prompts as a table of SCHEMA, along a Hilbert curve over their bounds, those at one place in reading order.

    objects: as stitching gives them, in order of prompt: prompt (index), row and column of the first pixel, pixels, confidence_sum, scenes,
    score, touches_edge, whole_row and whole_column, geometry (WKB in pixels of the grid). outlines: how those of every prompt are drawn, in
    order of the prompts. A feature that crosses the antimeridian is cut there, into a MultiPolygon.
    """
    objects = objects.append_column("part_of", _part_of(objects, list(outlines), origin))
    drawn, objects = _draw(objects, list(outlines.values()), origin)
    lonlat = Rings(project(drawn.points, origin.grid), drawn.rings, drawn.polygons)
    ring_area, ring_length = measure(lonlat)
    area, length = np.add.reduceat(ring_area, lonlat.polygons[:-1]) if len(lonlat) else ring_area, ring_length[lonlat.polygons[:-1]]
    bounds = lonlat.bounds

    smallest = np.array([outline.min_area for outline in outlines.values()])[objects["prompt"].to_numpy()]
    place = curve((bounds[:, 0] + bounds[:, 2]) / 2, (bounds[:, 1] + bounds[:, 3]) / 2)
    order = np.argsort(place, kind="stable")
    order = order[area[order] >= smallest[order]]
    bounds = bounds[order]
    columns = _describe(objects.take(pa.array(order)), list(outlines), origin)
    columns |= {
        "area_m2": pa.array(area[order]),
        "perimeter_m": pa.array(length[order]),
        "geometry": _geometry(lonlat, order, bounds),
        "bbox": pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], fields=list(SCHEMA.field("bbox").type)),
    }
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def in_order(features: pa.Table) -> pa.Table:
    """A table of SCHEMA along the curve of build_features; those at one place as they were."""
    west, south, east, north = (pc.struct_field(features["bbox"], name).to_numpy() for name in ("xmin", "ymin", "xmax", "ymax"))
    return features.take(pa.array(np.argsort(curve((west + east) / 2, (south + north) / 2), kind="stable")))


def encode(features: pa.Table, said: Mapping[str, str] | None = None) -> bytes:
    """A table of SCHEMA as GeoParquet 1.1: zstd, the bounding box of every row as its covering. Equal tables make equal bytes. said: metadata of the
    file besides."""
    sink = BytesIO()
    pq.write_table(
        features.replace_schema_metadata({"geo": json.dumps(_geo(features)), **(said or {})}),
        sink,
        compression="zstd",
        use_dictionary=_FEW,
        row_group_size=ROWS_PER_GROUP,
    )
    return sink.getvalue()


def _read_parts(folder: Folder, block: Block) -> pa.Table:
    path = parts_path(block)
    data = folder.get(path)
    try:
        return pq.read_table(BytesIO(data))
    except (OSError, ValueError) as error:
        raise DamagedError(folder.url, path, str(error).splitlines()[0]) from error


def parts_path(block: Block) -> str:
    """Where the parts of a block are: without that file the block is made anew."""
    return f"parts/{block.id}.parquet"


def _draw(objects: pa.Table, outlines: Sequence[Outline], origin: Origin) -> tuple[Rings, pa.Table]:
    """Outlines in pixels, and the objects that have one."""
    traced = Rings.from_wkb(objects["geometry"].combine_chunks())
    objects = objects.drop_columns("geometry")
    if not any(outline.fill_holes or outline.simplify or outline.orthogonalize for outline in outlines):
        return traced, objects
    prompt = objects["prompt"].to_numpy()
    first = np.stack((objects["column"].to_numpy(), objects["row"].to_numpy()), axis=1)
    is_part = objects["whole_row"].is_valid().to_numpy()
    drawn, kept = [], []
    for index, outline in enumerate(outlines):
        rows = np.flatnonzero(prompt == index)
        rings, left = draw(traced.take(rows), outline, origin.grid, origin.metres_per_pixel, first[rows], is_part[rows])
        drawn.append(rings)
        kept.append(rows[left])
    return join(drawn), objects.take(pa.array(np.concatenate(kept)))


def _describe(objects: pa.Table, prompts: Sequence[str], origin: Origin) -> dict[str, pa.Array]:
    """The attributes that no outline is needed for, in the order of the objects."""
    sources = [(source, scene) for scene in origin.scenes for source in scene.sources]
    items = _items(origin)
    instants = np.array([_instant(source, scene) for source, scene in sources], dtype="datetime64[ms]")
    distances = np.array([source.gsd or origin.metres_per_pixel for source, _ in sources], np.float32)

    sets, of_set = _distinct(objects["scenes"].combine_chunks())  # objects are many, sets of scenes few
    newest = np.array([each[np.argmax(instants[each])] for each in sets], np.int64)[of_set]
    prompt = objects["prompt"].to_numpy()
    groups = [_group(origin.grid, name, items[each]) for name in prompts for each in sets]
    group = pa.array(groups, pa.string()).take(pa.array(prompt.astype(np.int64) * len(sets) + of_set))
    named = pa.array(prompts, pa.string()).take(pa.array(prompt))
    return {
        "id": _id(group, objects["column"].combine_chunks(), objects["row"].combine_chunks()),
        "prompt": named,
        "phrase": named,
        "score": pa.array((objects["confidence_sum"].to_numpy() / (CONFIDENCE_LEVELS * objects["pixels"].to_numpy())).astype(np.float32)),
        "mask_score": objects["score"].combine_chunks(),
        "scene_ids": pa.array([sorted(items[each]) for each in sets], pa.list_(pa.string())).take(pa.array(of_set)),
        "datetime": pa.array(instants[newest], pa.timestamp("ms", tz="UTC")),
        "gsd_m": pa.array(distances[newest]),
        **{name: pa.repeat(pa.scalar(getattr(origin, name), pa.string()), len(objects)) for name in ("model", "weights_sha256", "run_id")},
        "touches_edge": objects["touches_edge"].combine_chunks(),
        "part_of": objects["part_of"].combine_chunks(),
    }


def _items(origin: Origin) -> np.ndarray:
    return np.array([source.item for scene in origin.scenes for source in scene.sources], dtype=object)


def _instant(source: Source, scene: Scene) -> np.datetime64:
    """When an item was taken, in UTC; where it does not say, the day's beginning."""
    instant = datetime.fromisoformat(source.datetime or scene.day)
    return np.datetime64(instant.astimezone(UTC).replace(tzinfo=None) if instant.tzinfo else instant, "ms")


def _distinct(lists: pa.ListArray) -> tuple[list[np.ndarray], np.ndarray]:
    """The different lists of uint16, and which of them each is."""
    values, offsets = lists.flatten().to_numpy(), lists.offsets.to_numpy()
    raw = [None, pa.py_buffer((2 * (offsets - offsets[0])).astype(np.int32)), pa.py_buffer(np.ascontiguousarray(values))]
    encoded = pa.BinaryArray.from_buffers(pa.binary(), len(lists), raw).dictionary_encode()
    return [np.frombuffer(each, np.uint16) for each in encoded.dictionary.to_pylist()], encoded.indices.to_numpy()


def _group(grid: Grid, prompt: str, items: Iterable[str]) -> str:
    """What objects whose ids differ by their first pixel alone have in common."""
    told = json.dumps([grid.crs, grid.resolution, prompt, sorted(items)])
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def _id(group: pa.Array, column: pa.Array, row: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(group, column.cast(pa.string()), row.cast(pa.string()), "_")


def _part_of(objects: pa.Table, prompts: Sequence[str], origin: Origin) -> pa.Array:
    """The id that the whole would have; null for objects that are whole."""
    items = _items(origin)
    cut = objects.filter(objects["whole_row"].is_valid()).select(["prompt", "whole_column", "whole_row", "scenes"]).to_pylist()
    wholes: dict[tuple[int, int, int], set[int]] = {}
    for part in cut:
        wholes.setdefault((part["prompt"], part["whole_column"], part["whole_row"]), set()).update(part["scenes"])
    groups = {whole: _group(origin.grid, prompts[whole[0]], items[list(scenes)]) for whole, scenes in wholes.items()}
    ids = [f"{groups[part['prompt'], part['whole_column'], part['whole_row']]}_{part['whole_column']}_{part['whole_row']}" for part in cut]
    nothing = pa.nulls(len(objects), pa.string())
    return pc.replace_with_mask(nothing, objects["whole_row"].is_valid().combine_chunks(), pa.array(ids, pa.string()))


def _geometry(lonlat: Rings, order: np.ndarray, bounds: np.ndarray) -> pa.ChunkedArray:
    """WKB in this order, of those that cross the antimeridian cut there. bounds: in this order too. In chunks: one could hold 2 GB only."""
    wkb = lonlat.to_wkb(order)
    if (crossing := _crosses(bounds)).any():
        wkb = pc.replace_with_mask(wkb, pa.array(crossing), _cut_at_antimeridian(lonlat.take(order[crossing]).to_shapely()))
    chunks = [wkb[start : start + ROWS_PER_GROUP].cast(pa.binary()) for start in range(0, len(wkb), ROWS_PER_GROUP)]
    return pa.chunked_array(chunks, pa.binary())


def _cut_at_antimeridian(polygons: np.ndarray) -> pa.LargeBinaryArray:
    across = shapely.transform(polygons, lambda points: np.where(points < (0, -90), points + (360, 0), points))
    east, west = (shapely.intersection(across, shapely.box(low, -90, low + 180, 90)) for low in (0, 180))
    halves = [shapely.get_parts([one, shapely.transform(other, lambda points: points - (360, 0))]) for one, other in zip(east, west, strict=True)]
    cut = [shapely.orient_polygons(shapely.MultiPolygon(list(parts))) for parts in halves]
    return pa.array(shapely.to_wkb(cut), pa.large_binary())


def _crosses(bounds: np.ndarray) -> np.ndarray:
    """Wider than half the world: it is the short way round that is meant."""
    return bounds[:, 2] - bounds[:, 0] > 180


def _geo(features: pa.Table) -> dict[str, Any]:
    """The metadata of a GeoParquet 1.1 file."""
    sides = [pc.struct_field(features["bbox"], name) for name in ("xmin", "ymin", "xmax", "ymax")]
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": CRS(CRS84).to_json_dict(),
        "orientation": "counterclockwise",
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
    }
    if len(features):
        column["bbox"] = [pc.min(sides[0]).as_py(), pc.min(sides[1]).as_py(), pc.max(sides[2]).as_py(), pc.max(sides[3]).as_py()]
        if _crosses(np.stack([side.to_numpy() for side in sides], axis=1)).any():
            column["geometry_types"].append("MultiPolygon")
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
