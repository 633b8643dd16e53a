"""Items as a table: STAC GeoParquet (https://github.com/stac-utils/stac-geoparquet), written so that a run can be repeated without its catalog
and read as a catalog of its own. A row is an item; what their collections say of them stands in the file's metadata."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from stac_geoparquet.arrow import parse_stac_items_to_arrow, stac_table_to_items, to_parquet

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""

METADATA = b"stac-geoparquet"
DATES = ("created", "updated", "expires", "published", "unpublished")
"""Properties that the format keeps as times (besides those of the observation)."""
GEOMETRIES = ("geometry", "bbox", "proj:geometry")
"""Fields that the format keeps as shapes."""


def write_items(items: Sequence[Mapping[str, Any]], collections: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A Parquet file of STAC items (JSON values), a row each, in their order; collections by id.

    A column has one type: where items disagree on what a field is (81 and "81"), it becomes text. Dates that are none are left out.
    """
    plain = json.loads(json.dumps(items))
    for item in plain:
        item["properties"] = {name: value for name, value in item["properties"].items() if name != "collection" and _storable(name, value)}
    reader = parse_stac_items_to_arrow(_agreed(plain))
    with TemporaryDirectory() as folder:  # the library writes to paths only
        path = Path(folder, "items.parquet")
        to_parquet(reader, path, collections=collections, compression="zstd")
        return path.read_bytes()


def read_items(source: bytes | str, bounds: Bounds, collection: str | None) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The items (JSON values) of a file, or of the bytes of one, whose bounding box touches bounds, in their order; and its collections by id."""
    opened = pa.BufferReader(source) if isinstance(source, bytes) else source
    schema = pq.read_schema(opened)
    said = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    collections = {each["id"]: each for each in [*said.get("collections", {}).values(), *filter(None, [said.get("collection")])] if "id" in each}
    if missing := {"id", "geometry", "assets"} - set(schema.names):
        raise KeyError(f"it is no STAC GeoParquet: a column {min(missing)!r} is missing")
    if isinstance(opened, pa.BufferReader):
        opened.seek(0)
    table = pq.read_table(opened, filters=_filter(schema, bounds, collection))
    return [json.loads(json.dumps(item, default=str)) for item in stac_table_to_items(table)], collections


def _filter(schema: pa.Schema, bounds: Bounds, collection: str | None) -> pc.Expression | None:
    """Lets whole row groups be left unread. A box that crosses the antimeridian has its west east of its east."""
    wanted: list[pc.Expression] = []
    if collection is not None and "collection" in schema.names:
        wanted.append(pc.field("collection") == collection)
    if "bbox" in schema.names and pa.types.is_struct(schema.field("bbox").type):
        west, south, east, north = bounds
        xmin, ymin, xmax, ymax = (pc.field("bbox", name) for name in ("xmin", "ymin", "xmax", "ymax"))
        across = (xmin > xmax) & ((xmin <= east) | (xmax >= west))
        wanted.append(((xmin <= east) & (xmax >= west) | across) & (ymin <= north) & (ymax >= south))
    return wanted[0] & wanted[-1] if wanted else None


def _storable(name: str, value: Any) -> bool:
    if name not in DATES:
        return True
    try:
        return dt.datetime.fromisoformat(value).tzinfo is not None
    except (ValueError, TypeError):
        return False


def _agreed(values: list[Any]) -> list[Any]:
    """The same JSON values, so that those at the same place are all of one kind: text where they were not. Empty objects, which no column
    can hold, become null."""
    kinds = {_kind(value) for value in values if value is not None}
    if len(kinds) > 1:
        return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    if kinds == {"object"}:
        names = list(dict.fromkeys(name for value in values if value for name in value))
        rows: list[Any] = [{} if value else None for value in values]
        for name in names:
            places = [index for index, value in enumerate(values) if value and name in value]
            column = [values[index][name] for index in places]
            for index, value in zip(places, column if name in GEOMETRIES else _agreed(column), strict=True):
                rows[index][name] = value
        return rows
    if kinds == {"list"}:
        flat = iter(_agreed([element for value in values if value for element in value]))
        return [None if value is None else [next(flat) for _ in value] for value in values]
    return values


def _kind(value: Any) -> str:
    kinds = {bool: "truth", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds[type(value)]
