"""Which files and bands of an item show its colours, and what is said of their pixels: common names, nodata, the stretch of a collection. Knows
the words of items and collections only; no file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pystac

from geopixel.search.found import Found
from geopixel.types import Asset, Source

COLOURS = ("red", "green", "blue")
VISUAL_NAMES = ("visual", "image", "rgb")
"""Assets of these names are pictures by custom: Sentinel-2 of Earth Search and the Planetary Computer, its NAIP, OpenAerialMap."""
RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2")
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
OTHER_ROLES = {"thumbnail", "overview", "metadata", "data-mask", "cloud", "saturation"}
"""Roles of rasters that are no imagery (STAC best practices; Landsat's quality bands)."""

STRETCHES = {"sentinel-2-l2a": (0.0, 3000.0), "sentinel-2-c1-l2a": (1000.0, 4000.0), "sentinel-2-l1c": (0.0, 3000.0), "landsat-c2-l2": (7273.0, 18182.0)}
"""Raw values of reflectance 0 and 0.3 in the one-band files of a collection. Sentinel-2 Products Specification Document: value / 10000, and
(value - 1000) / 10000 from processing baseline 04.00 on, which is all of Collection 1; elsewhere baselines mix, so newer days look brighter
until a stretch is given. USGS Landsat Collection 2 Level-2 product guide: 0.0000275 value - 0.2."""


def colour_assets(each: Found, wanted: Sequence[str]) -> Sequence[str]:
    """The names of the one or three assets that show the item in colours."""
    offered = each.item.assets
    for name in wanted:
        if name not in offered:
            raise ValueError(f"no asset {name!r} in item {each.item.id} of {each.collection}: it has {', '.join(sorted(offered))}")
    if wanted:
        return wanted
    rasters = sorted((name for name, asset in offered.items() if _is_raster(asset)), key=lambda name: (offered[name].media_type == "image/jp2", name))
    colours = {name: [_common_name(band) for band in _bands(each, name)] for name in rasters}
    pictures = [name for name in VISUAL_NAMES if name in rasters]
    pictures += [name for name in rasters if "visual" in (offered[name].roles or ())]
    pictures += [name for name in rasters if set(COLOURS) <= set(colours[name])]
    if pictures:
        return pictures[:1]
    single = {colour: [name for name in rasters if ([name] if colours[name] in ([], [""]) else colours[name]) == [colour]] for colour in COLOURS}
    if all(single.values()):
        return [single[colour][0] for colour in COLOURS]
    if len(rasters) == 1:
        return rasters
    raise ValueError(f"assets must be named: which of item {each.item.id} of {each.collection} hold the colours? It has {', '.join(sorted(offered))}")


def _is_raster(asset: pystac.Asset) -> bool:
    if OTHER_ROLES & set(asset.roles or ()):
        return False
    if asset.media_type:
        return asset.media_type.startswith(RASTER_TYPES)
    return PurePosixPath(urlsplit(asset.href).path).suffix.lower() in RASTER_SUFFIXES


def _bands(each: Found, name: str) -> list[dict[str, Any]]:
    """What is said of the asset's bands, in stored order: by the collection, then by the item; STAC 1.1 bands and the older extensions alike."""
    bands: list[dict[str, Any]] = []
    for said in (each.defaults.get(name, {}), each.item.assets[name].extra_fields):
        for key in ("bands", "eo:bands", "raster:bands"):
            for index, band in enumerate(said.get(key) or []):
                if index == len(bands):
                    bands.append({})
                bands[index].update(band if isinstance(band, dict) else {})
    return bands


def _common_name(band: Mapping[str, Any]) -> str:
    return str(band.get("eo:common_name") or band.get("common_name") or band.get("name") or "").lower()


def source(each: Found, names: Sequence[str], bands: tuple[int, ...]) -> Source:
    if bands and len(names) == 3:
        raise ValueError(f"bands choose within a single asset, item {each.item.id} of {each.collection} has its colours in {', '.join(names)}: name one")
    assets = tuple(_asset(each, name, (1,) if len(names) == 3 else bands) for name in names)
    first = each.item.assets[names[0]].extra_fields
    said = {**each.item.properties, **{key: value for key, value in first.items() if value is not None}}
    code = said.get("proj:code") or (f"EPSG:{said['proj:epsg']}" if said.get("proj:epsg") else None)
    transform = said.get("proj:transform")
    resolution = sqrt(abs(transform[0] * transform[4] - transform[1] * transform[3])) if transform else None
    gsd = next((band[key] for band in _bands(each, names[0])[:1] for key in ("gsd", "spatial_resolution") if band.get(key)), None)
    gsd = first.get("gsd") or gsd or said.get("gsd")
    cloud = each.item.properties.get("eo:cloud_cover")
    return Source(
        item=each.item.id,
        footprint=each.footprint,
        assets=assets,
        crs=code,
        resolution=resolution,
        gsd=None if gsd is None else float(gsd),
        href=each.item.get_self_href(),
        cloud_cover=None if cloud is None else float(cloud),
    )


def _asset(each: Found, name: str, wanted: tuple[int, ...]) -> Asset:
    asset, bands = each.item.assets[name], _bands(each, name)
    if bands and wanted and max(wanted) > len(bands):
        raise ValueError(f"bands must be from 1 to {len(bands)} in asset {name} of item {each.item.id}, got {list(wanted)}")
    indexes = wanted or _colour_bands([_common_name(band) for band in bands])
    nodata = bands[indexes[0] - 1].get("nodata") if bands else None
    nodata = asset.extra_fields.get("nodata") if nodata is None else nodata
    return Asset(asset.get_absolute_href() or asset.href, indexes, None if nodata is None else float(nodata), each.access)


def _colour_bands(names: Sequence[str]) -> tuple[int, ...]:
    """1-based bands to show: red, green, blue wherever they are stored; grey of one or two; else the first three."""
    if set(COLOURS) <= set(names):
        return tuple(names.index(colour) + 1 for colour in COLOURS)
    return (1,) if len(names) in (1, 2) else (1, 2, 3)


def stretch_of(each: Found, names: Sequence[str], given: tuple[float, float] | None) -> tuple[float, float] | None:
    """By the pixel type, the caller, the collection's name, its statistics, in this order; never by the item's own statistics."""
    types = {band.get("data_type", each.item.assets[name].extra_fields.get("data_type")) for name in names for band in _bands(each, name)}
    if types == {"uint8"}:
        return None
    if given is not None:
        return given
    if each.collection in STRETCHES:
        return STRETCHES[each.collection] if len(names) == 3 else None  # the files of these that hold all colours are 8-bit
    said = [each.defaults.get(name, {}) for name in names]
    bands = [band for asset in said for band in asset.get("raster:bands") or asset.get("bands") or []]
    statistics = [band["statistics"] for band in bands if "maximum" in band.get("statistics", {}) and "minimum" in band["statistics"]]
    if not statistics:
        return None
    low, high = min(float(band["minimum"]) for band in statistics), max(float(band["maximum"]) for band in statistics)
    return (low, high) if low < high else None
