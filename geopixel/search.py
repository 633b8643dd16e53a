"""STAC catalogs to Scenes: finds the items of an area and a time in an API or a static catalog, picks the files and bands that show their
colours, and groups them by collection and solar day. Knows metadata only: no pixel is read and no address is signed here."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pystac
import shapely
from pystac.stac_io import DefaultStacIO
from pystac.utils import make_absolute_href
from pystac_client import Client, ConformanceClasses
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely import Geometry
from shapely.geometry import mapping, shape
from urllib3 import Retry

from geopixel.errors import CatalogError, NoScenesError
from geopixel.types import Asset, Scene, Source

COLOURS = ("red", "green", "blue")
VISUAL_NAMES = ("visual", "image", "rgb")
"""Assets of these names are pictures by custom: Sentinel-2 of Earth Search and the Planetary Computer, its NAIP, OpenAerialMap."""
RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2")
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt")
OTHER_ROLES = {"thumbnail", "overview", "metadata", "data-mask", "cloud", "saturation"}
"""Roles of rasters that are no imagery (STAC best practices; Landsat's quality bands)."""

STRETCHES = {"sentinel-2-l2a": (0.0, 3000.0), "sentinel-2-c1-l2a": (1000.0, 4000.0), "sentinel-2-l1c": (0.0, 3000.0), "landsat-c2-l2": (7273.0, 18182.0)}
"""Raw values of reflectance 0 and 0.3 in the one-band files of a collection. Sentinel-2 Products Specification Document: value / 10000, and
(value - 1000) / 10000 from processing baseline 04.00 on, which is all of Collection 1; elsewhere baselines mix, so newer days look brighter
until a stretch is given. USGS Landsat Collection 2 Level-2 product guide: 0.0000275 value - 0.2."""

RETRY = Retry(total=5, connect=2, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None)
TIMEOUT = (10.0, 60.0)
"""Seconds to connect and to wait for an answer."""

Interval = tuple[dt.datetime | None, dt.datetime | None]
"""First and last instant; None: open."""


class _Files(DefaultStacIO):
    """Reads static catalogs as plain pystac objects (StacApiIO makes clients of them), over a connection that times out and tries again."""

    def __init__(self, connection: StacApiIO) -> None:
        super().__init__()
        self.connection = connection

    def read_text_from_href(self, href: str) -> str:
        return self.connection.read_text(href)


@dataclass(frozen=True, slots=True)
class _Found:
    item: pystac.Item
    collection: str
    footprint: Geometry
    defaults: Mapping[str, Mapping[str, Any]]
    """What the collection says of assets by name (item_assets)."""


def find_scenes(
    catalog: str,
    area: Geometry,
    *,
    collection: str | None = None,
    datetime: str | None = None,
    max_cloud: float | None = None,
    assets: Sequence[str] = (),
    bands: Sequence[int] = (),
    stretch: tuple[float, float] | None = None,
) -> list[Scene]:
    """The scenes of a catalog over an area: newest day first, then collections by name; inside a scene, items by id.

    catalog: URL or path of a STAC API's landing page, or of a static catalog or collection.
    area: polygons in EPSG:4326, longitude first.
    collection: needed for an API; None: all of a static catalog.
    datetime: as in the STAC API: 2020, 2020-06, 2020-06-01, 2020-06-01T10:00:00Z, a/b, ../b, a/..; None: any time.
    max_cloud: highest eo:cloud_cover in percent; items that do not say stay.
    assets: the one file that holds all colours, or three: red, green, blue; (): by name, role and common names.
    bands: one or three 1-based bands of a single file; (): by common names, else the first three.
    stretch: raw values shown as 0 and 255 where pixels are not 8-bit; None: what is known of the collection.

    Raises ValueError for an argument that does not fit the catalog (an unknown asset, say), CatalogError when the catalog cannot
    be read, NoScenesError when there is nothing.
    """
    interval = _interval(datetime)
    _check(area, max_cloud, assets, bands, stretch)
    shapely.prepare(area)
    try:
        found = [each for each in _candidates(catalog, area, collection, interval) if _wanted(each, area, interval, max_cloud)]
    except (OSError, APIError, pystac.STACError, pystac.STACTypeError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CatalogError(f"cannot read catalog {catalog}: {_reason(error)}") from error
    if not found:
        box = ", ".join(f"{value:.6g}" for value in area.bounds)
        cloud = "any cloud cover" if max_cloud is None else f"cloud cover <= {max_cloud:g} %"
        raise NoScenesError(f"no scenes: catalog {catalog}, collection {collection or 'any'}, dates {datetime or 'any'}, bbox ({box}), {cloud}")
    return _scenes(found, tuple(assets), tuple(bands), stretch)


def _check(area: Geometry, max_cloud: float | None, assets: Sequence[str], bands: Sequence[int], stretch: tuple[float, float] | None) -> None:
    if area.is_empty or not area.area > 0:
        raise ValueError(f"area must be polygons with an area, got {area.geom_type} of area {area.area:g}")
    if max_cloud is not None and not 0 <= max_cloud <= 100:
        raise ValueError(f"max_cloud must be a percentage from 0 to 100, got {max_cloud}")
    if len(assets) not in (0, 1, 3):
        raise ValueError(f"assets must be one file, or three for red, green, blue, got {list(assets)}")
    if bands and (len(bands) not in (1, 3) or min(bands) < 1):
        raise ValueError(f"bands must be one or three 1-based indexes, got {list(bands)}")
    if bands and len(assets) == 3:
        raise ValueError(f"bands choose within a single asset, got bands {list(bands)} with assets {list(assets)}")
    if stretch is not None and not stretch[0] < stretch[1]:
        raise ValueError(f"stretch must be a lower and a higher value, got {stretch}")


def _interval(text: str | None) -> Interval:
    if text is None:
        return None, None
    first, _, last = text.partition("/") if "/" in text else (text, "/", text)
    start, end = _period(first, text)[0], _period(last, text)[1]
    if text in ("", "..") or (start and end and start > end):
        raise ValueError(f"datetime must end after it starts, got {text!r}")
    return start, end


def _period(text: str, whole: str) -> Interval:
    """First and last instant of a year, a month, a day, or an instant."""
    if text in ("", ".."):
        return None, None
    try:
        if date := re.fullmatch(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?", text):
            year, month, day = (int(part) if part else 0 for part in date.groups())
            start = dt.datetime(year, month or 1, day or 1, tzinfo=dt.UTC)
            if day:
                following = start + dt.timedelta(days=1)
            else:
                following = start.replace(year=year + 1) if month in (0, 12) else start.replace(month=month + 1)
                following = following.replace(month=1) if month == 12 else following
            return start, following - dt.timedelta(microseconds=1)
        instant = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"datetime must be like 2020-06, 2020-06-01T10:00:00Z, a/b, ../b or a/.., got {whole!r}: {error}") from error
    instant = instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)
    return instant, instant


def _candidates(catalog: str, area: Geometry, collection: str | None, interval: Interval) -> Iterator[_Found]:
    """Items that may be wanted, of an API or a static catalog. Both are filtered again by the same rule: servers differ in what they support."""
    href = make_absolute_href(catalog)
    reader = StacApiIO(timeout=TIMEOUT, max_retries=RETRY)
    root = reader.read_json(href)
    kind = root.get("type", "Catalog") if isinstance(root, dict) else None
    if kind not in ("Catalog", "Collection") or "stac_version" not in root or "links" not in root:
        raise CatalogError(f"cannot read catalog {catalog}: it is not a STAC catalog, collection or API")
    if "conformsTo" in root:
        client = Client.open(href, stac_io=reader)
        if client.conforms_to(ConformanceClasses.ITEM_SEARCH):
            if collection is None:
                raise ValueError(f"collection must be named: {catalog} is an API with many")
            yield from _api_items(client, area, collection, interval)
            return
    top = (pystac.Collection if kind == "Collection" else pystac.Catalog).from_file(href, stac_io=_Files(reader))
    top.set_root(top)  # its own root link may lead to a catalog that is not there
    yield from _static_items(top, collection)


def _api_items(client: Client, area: Geometry, collection: str, interval: Interval) -> Iterator[_Found]:
    try:
        described = client.get_collection(collection)
    except (APIError, pystac.STACError):  # not there, or not described: the search will tell
        described = None
    posts = any(link.rel == "search" and link.extra_fields.get("method") == "POST" for link in client.links)
    place = {"intersects": mapping(_simplified(area))} if posts else {"bbox": area.bounds}  # an outline would not fit into an URL
    span = "/".join(_rfc3339(instant) for instant in interval) if any(interval) else None
    search = client.search(method="POST" if posts else "GET", collections=[collection], datetime=span, **place)
    for item in search.items():
        yield from _located(item, collection, described)


def _static_items(top: pystac.Catalog, collection: str | None) -> Iterator[_Found]:
    """Items below top, or of the collection of that id below top; where none has it, those that say they belong to it."""
    named = None
    if collection is not None:
        named = top if top.id == collection else top.get_child(collection, recursive=True)
    for container, _, items in (named or top).walk():
        for item in items:
            name = named.id if named else item.collection_id or container.id
            if collection in (None, name):
                yield from _located(item, name, container)


def _located(item: pystac.Item, collection: str, container: pystac.Catalog | None) -> Iterator[_Found]:
    """The item with its footprint and its collection's word; nothing where it is nowhere."""
    footprint = _footprint(item)
    if footprint is not None:
        assets = container.item_assets.items() if isinstance(container, pystac.Collection) else ()
        yield _Found(item, collection, footprint, {name: asset.to_dict() for name, asset in assets})


def _simplified(area: Geometry) -> Geometry:
    """An area that contains this one and fits into a request: coastlines have 100 000 points."""
    return area if shapely.get_num_coordinates(area) <= 500 else area.buffer(0.01).simplify(0.01)


def _rfc3339(instant: dt.datetime | None) -> str:
    return instant.astimezone(dt.UTC).isoformat().replace("+00:00", "Z") if instant else ".."


def _footprint(item: pystac.Item) -> Geometry | None:
    """EPSG:4326; the geometry, repaired where it crosses itself; else the bbox, in two where it crosses the antimeridian; else None."""
    if item.geometry:
        try:
            geometry = shapely.make_valid(shapely.force_2d(shape(item.geometry)))
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


def _wanted(each: _Found, area: Geometry, interval: Interval, max_cloud: float | None) -> bool:
    first, last = _times(each.item)
    start, end = interval
    cloud = each.item.properties.get("eo:cloud_cover")
    clear = max_cloud is None or cloud is None or cloud <= max_cloud
    return clear and (start is None or last >= start) and (end is None or first <= end) and bool(area.intersects(each.footprint))


def _times(item: pystac.Item) -> tuple[dt.datetime, dt.datetime]:
    common = item.common_metadata
    first, last = common.start_datetime or item.datetime, common.end_datetime or item.datetime or common.start_datetime
    if first is None or last is None:
        raise CatalogError(f"item {item.id} has neither datetime nor start_datetime")
    return tuple(time if time.tzinfo else time.replace(tzinfo=dt.UTC) for time in (first, last))  # type: ignore[return-value]


def _solar_day(each: _Found) -> dt.date:
    """UTC shifted by longitude / 15 hours, as odc-stac does: one pass of a satellite is one day, wherever midnight falls in Greenwich.

    A time of exactly midnight is a date whose hour nobody wrote down (NAIP): it stays.
    """
    instant = each.item.datetime or _times(each.item)[0]
    if instant.time() == dt.time():
        return instant.date()
    largest = max(shapely.get_parts(each.footprint), key=lambda part: part.area)  # the middle of two halves at the antimeridian is in Greenwich
    return (instant + dt.timedelta(hours=largest.centroid.x / 15)).date()


def _scenes(found: Sequence[_Found], assets: Sequence[str], bands: tuple[int, ...], stretch: tuple[float, float] | None) -> list[Scene]:
    days = {id(each): _solar_day(each) for each in found}

    def scene_key(each: _Found) -> tuple[int, str]:
        return -days[id(each)].toordinal(), each.collection

    scenes = []
    for (day, collection), group in groupby(sorted(found, key=lambda each: (*scene_key(each), each.item.id)), key=scene_key):
        items = list(group)
        names = [_colour_assets(each, assets) for each in items]
        sources = tuple(_source(each, chosen, bands) for each, chosen in zip(items, names, strict=True))
        scenes.append(Scene(collection, dt.date.fromordinal(-day).isoformat(), sources, _stretch(items[0], names[0], stretch)))
    return scenes


def _colour_assets(each: _Found, wanted: Sequence[str]) -> Sequence[str]:
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


def _bands(each: _Found, name: str) -> list[dict[str, Any]]:
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


def _source(each: _Found, names: Sequence[str], bands: tuple[int, ...]) -> Source:
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
    taken = each.item.datetime.isoformat() if each.item.datetime else None
    return Source(each.item.id, each.footprint, assets, code, resolution, None if gsd is None else float(gsd), datetime=taken)


def _asset(each: _Found, name: str, wanted: tuple[int, ...]) -> Asset:
    asset, bands = each.item.assets[name], _bands(each, name)
    if bands and wanted and max(wanted) > len(bands):
        raise ValueError(f"bands must be from 1 to {len(bands)} in asset {name} of item {each.item.id}, got {list(wanted)}")
    indexes = wanted or _colour_bands([_common_name(band) for band in bands])
    nodata = bands[indexes[0] - 1].get("nodata") if bands else None
    nodata = asset.extra_fields.get("nodata") if nodata is None else nodata
    return Asset(asset.get_absolute_href() or asset.href, indexes, None if nodata is None else float(nodata))


def _colour_bands(names: Sequence[str]) -> tuple[int, ...]:
    """1-based bands to show: red, green, blue wherever they are stored; grey of one or two; else the first three."""
    if set(COLOURS) <= set(names):
        return tuple(names.index(colour) + 1 for colour in COLOURS)
    return (1,) if len(names) in (1, 2) else (1, 2, 3)


def _stretch(each: _Found, names: Sequence[str], given: tuple[float, float] | None) -> tuple[float, float] | None:
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


def _reason(error: BaseException) -> str:
    """The error and what is at its root, on one line."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__  # type: ignore[assignment]
    parts = [f"{type(error).__name__}: {error}"] + ([] if str(root) in str(error) else [str(root)])
    return " ".join(": ".join(parts).split())
