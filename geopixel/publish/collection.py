"""Many runs as one STAC Collection: their items become its members. Knows items as they are stored; nothing of how runs belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import pystac

from geopixel.publish.item import ITEM, PARQUET
from geopixel.storage import Folder

COLLECTION = "collection.json"
UP = "../../../" + COLLECTION
"""From an item of a run to its collection: two folders between them, of the cell and of the run."""


def join_collection(folder: Folder, collection: str) -> None:
    """Makes the item of a run folder a member of the collection three folders above it."""
    item = folder.get_json(ITEM)
    links = [link for link in item["links"] if link["rel"] not in ("root", "parent", "collection")]
    links += [{"rel": rel, "href": UP, "type": "application/json"} for rel in ("root", "parent", "collection")]
    folder.put_json(ITEM, item | {"collection": collection, "links": links})


def store_collection(folder: Folder, name: str, title: str, members: Sequence[str], tables: Mapping[str, str]) -> None:
    """Writes collection.json, a STAC 1.1 Collection. members: paths of the run folders, below this one. tables: GeoParquet files or globs of them,
    below this folder, and their titles. Raises ValueError where there is no member."""
    if not members:
        raise ValueError("a collection has at least one member, got none")
    items = [folder.get_json(f"{member}/{ITEM}") for member in members]
    bounds = [item["bbox"] for item in items]
    west, south, east, north = (pick(bound[side] for bound in bounds) for side, pick in enumerate((min, min, max, max)))
    times = [[_time(item["properties"][name]) for item in items] for name in ("start_datetime", "end_datetime")]
    extent = pystac.Extent(pystac.SpatialExtent([[west, south, east, north]]), pystac.TemporalExtent([[min(times[0]), max(times[1])]]))
    collection = pystac.Collection(name, f"{title}: {len(members)} cells, each a map of its own", extent, title=title)
    for path, table in tables.items():
        collection.add_asset(path, pystac.Asset(f"./{path}", table, media_type=PARQUET, roles=["data"]))
    for member in members:
        collection.add_link(pystac.Link("item", f"./{member}/{ITEM}", media_type=pystac.MediaType.GEOJSON))
    stored = collection.to_dict(include_self_link=False)
    stored["links"] = [link for link in stored["links"] if link["rel"] != "root"] + [{"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"}]
    folder.put_json(COLLECTION, stored)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
