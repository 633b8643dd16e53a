"""An item and what of it shows its colours, as the Source that a run keeps: where it is, how fine, how cloudy. Knows the words of items only."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from geopixel.profiles import Shown, said_of_bands
from geopixel.search.found import Found
from geopixel.types import Source


def source(each: Found, shown: Shown) -> Source:
    name = shown.names[0]
    first = each.item.assets[name].extra_fields
    said = {**each.item.properties, **{key: value for key, value in first.items() if value is not None}}
    code = said.get("proj:code") or (f"EPSG:{said['proj:epsg']}" if said.get("proj:epsg") else None)
    transform = said.get("proj:transform")
    resolution = sqrt(abs(transform[0] * transform[4] - transform[1] * transform[3])) if transform else None
    bands = said_of_bands(each.item, each.defaults, name)[:1]
    gsd = next((band[key] for band in bands for key in ("gsd", "spatial_resolution") if band.get(key)), None)
    gsd = first.get("gsd") or gsd or said.get("gsd")
    cloud = each.item.properties.get("eo:cloud_cover")
    quality = shown.quality
    return Source(
        item=each.item.id,
        footprint=each.footprint,
        assets=tuple(replace(asset, access=each.access) for asset in shown.assets),
        crs=code,
        resolution=resolution,
        gsd=None if gsd is None else float(gsd),
        href=each.item.get_self_href(),
        datetime=each.item.datetime.isoformat() if each.item.datetime else None,
        cloud_cover=None if cloud is None else float(cloud),
        quality=None if quality is None else replace(quality, asset=replace(quality.asset, access=each.access)),
    )
