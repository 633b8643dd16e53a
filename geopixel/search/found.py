"""One item as a search finds it: where it is, when it was taken, and what its collection says of its files. Pure: reads what the item says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pystac
import shapely
from shapely import Geometry
from shapely.geometry import shape

from geopixel.dateline import cut_at_antimeridian
from geopixel.errors import CatalogError
from geopixel.types import Access


@dataclass(frozen=True, slots=True)
class Found:
    item: pystac.Item
    """Its asset addresses absolute."""
    collection: str
    footprint: Geometry
    """EPSG:4326, cut at the antimeridian."""
    described: Mapping[str, Any]
    """Its collection, as JSON values without links; {} where the catalog has none."""
    access: Access = "plain"

    @property
    def defaults(self) -> Mapping[str, Mapping[str, Any]]:
        """What the collection says of assets by name."""
        return self.described.get("item_assets") or {}


def footprint(item: pystac.Item) -> Geometry | None:
    """EPSG:4326; the geometry, repaired where it crosses itself and cut where it crosses the antimeridian; else the bbox; else None."""
    if item.geometry:
        try:
            geometry = shapely.make_valid(cut_at_antimeridian(shapely.force_2d(shape(item.geometry))))
        except (shapely.errors.ShapelyError, ValueError, TypeError, KeyError, AttributeError):
            geometry = shapely.Point()
        if not geometry.is_empty:
            return geometry
    if not item.bbox:
        return None
    (west, south), (east, north) = item.bbox[:2], item.bbox[len(item.bbox) // 2 :][:2]
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.union_all([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def times(item: pystac.Item) -> tuple[dt.datetime, dt.datetime]:
    """First and last instant."""
    common = item.common_metadata
    first, last = common.start_datetime or item.datetime, common.end_datetime or item.datetime or common.start_datetime
    if first is None or last is None:
        raise CatalogError(f"item {item.id} has neither datetime nor start_datetime")
    return tuple(time if time.tzinfo else time.replace(tzinfo=dt.UTC) for time in (first, last))  # type: ignore[return-value]


def solar_day(each: Found) -> dt.date:
    """UTC shifted by longitude / 15 hours, as odc-stac does: one pass of a satellite is one day, wherever midnight falls in Greenwich.

    A time of exactly midnight is a date whose hour nobody wrote down (NAIP): it stays.
    """
    instant = each.item.datetime or times(each.item)[0]
    if instant.time() == dt.time():
        return instant.date()
    largest = max(shapely.get_parts(each.footprint), key=lambda part: part.area)  # the middle of two halves at the antimeridian is in Greenwich
    return (instant + dt.timedelta(hours=largest.centroid.x / 15)).date()
