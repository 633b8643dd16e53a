"""STAC catalogs to Scenes: finds the items of an area and a time in an API, a static catalog or a STAC GeoParquet file, picks the files and bands that
show their colours, chooses the scenes that are worth reading, and groups them by collection and solar day. Knows metadata only: no pixel is
read and no address is signed here."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import cql2
import pyarrow as pa
import pystac
from pystac_client.exceptions import APIError
from shapely import Geometry

from geopixel.access import Hosts
from geopixel.dateline import cut_at_antimeridian
from geopixel.errors import CatalogError, NoScenesError, root_cause
from geopixel.profiles import Shown, load_profiles, show
from geopixel.search.catalog import Interval, Query, find_items
from geopixel.search.choice import Candidate, Rule, choose
from geopixel.search.colours import source
from geopixel.search.found import Found, solar_day
from geopixel.search.table import write_items
from geopixel.storage import Folder
from geopixel.types import Access, Scene, Source

SCENES = "scenes.parquet"
MAX_ITEMS = 50_000
UNREADABLE = (OSError, APIError, pystac.STACError, pystac.STACTypeError, pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)
"""What the libraries raise for a catalog that is none."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a search came to."""

    scenes: tuple[Scene, ...]
    items: tuple[Mapping[str, Any], ...]
    """The STAC items of the scenes' sources, scene by scene and source by source, as JSON values: addresses absolute and never signed."""
    collections: Mapping[str, Mapping[str, Any]]
    """Their collections by id, as far as the catalog has them."""


def find_scenes(catalog: str, area: Geometry, **wanted: Any) -> list[Scene]:
    """The scenes of search_catalog, which says what may be wanted and what is raised."""
    return list(search_catalog(catalog, area, **wanted).scenes)


def search_catalog(
    catalog: str,
    area: Geometry,
    *,
    collection: str | None = None,
    datetime: str | None = None,
    max_cloud: float | None = None,
    filter: str | None = None,
    choose_by: Rule = "newest",
    per_cell: int | None = None,
    access: Access | None = None,
    allow_hosts: Sequence[str] = (),
    max_items: int = MAX_ITEMS,
    assets: Sequence[str] = (),
    bands: Sequence[int] = (),
    stretch: tuple[float, float] | None = None,
    profile: str | None = None,
) -> Findings:
    """The scenes of a catalog over an area in the order of the rule. By the rule newest that is: newest day first, then collections by name; inside
    a scene, items by id. By the others, items that follow one another and are of one collection and day are a scene.

    catalog: URL or path of a STAC API's landing page, of a static catalog or collection, or of a STAC GeoParquet file (*.parquet).
    area: polygons in EPSG:4326, longitude first; an edge of more than 180 degrees crosses the antimeridian.
    collection: needed for an API; None: all of a static catalog.
    datetime: as in the STAC API: 2020, 2020-06, 2020-06-01, 2020-06-01T10:00:00Z, a/b, ../b, a/..; None: any time.
    max_cloud: highest eo:cloud_cover in percent; items that do not say stay.
    filter: CQL2 of the items' properties, JSON or text; items without a property that it asks for are left out.
    choose_by, per_cell: see choice.choose; per_cell None: all scenes.
    access: how files are opened; None: the Planetary Computer's signatures for its items, else plainly.
    allow_hosts: see access.Hosts. max_items: more than these are refused.
    assets: the one file that holds all colours, or three: red, green, blue; (): by name, role and common names.
    bands: one or three 1-based bands of a single file; (): by common names, else the first three.
    stretch: raw values shown as 0 and 255 where pixels are not 8-bit; None: what is known of the collection.
    profile: TOML that goes before the shipped profiles, see profiles.Profile.

    Raises ValueError for an argument that does not fit the catalog (an unknown asset, say) and for more items than allowed, CatalogError when
    the catalog cannot be read or leads where it may not, NoScenesError when there is nothing.
    """
    interval = _interval(datetime)
    _check(area, max_cloud, assets, bands, stretch)
    profiles = load_profiles(profile)
    area = cut_at_antimeridian(area)
    query = Query(catalog, area, collection, interval, max_cloud, parse_filter(filter), access, tuple(allow_hosts), max_items)
    try:
        found = find_items(query)
    except UNREADABLE as error:
        raise CatalogError(f"cannot read catalog {catalog}: {_reason(error)}") from error
    hosts = Hosts(catalog, tuple(allow_hosts))
    options: dict[str, Any] = {"assets": tuple(assets), "bands": tuple(bands), "stretch": stretch}
    shown = [show(each.item, each.collection, each.defaults, profiles, **options) for each in found]
    findings = _findings(found, shown, area, choose_by, per_cell, hosts)
    if not findings.scenes:  # or those that were found touch the area only
        box = ", ".join(f"{value:.6g}" for value in area.bounds)
        cloud = "any cloud cover" if max_cloud is None else f"cloud cover <= {max_cloud:g} %"
        said = "" if filter is None else f", filter {filter}"
        raise NoScenesError(f"no scenes: catalog {catalog}, collection {collection or 'any'}, dates {datetime or 'any'}, bbox ({box}), {cloud}{said}")
    return findings


def store_scenes(folder: Folder, findings: Findings) -> None:
    """Writes scenes.parquet, STAC GeoParquet: a row for every source of the scenes, in their order. It is a catalog: the same search of it finds
    the same scenes."""
    folder.put(SCENES, write_items(findings.items, findings.collections))


def parse_filter(text: str | None) -> cql2.Expr | None:
    """CQL2, JSON or text. Raises ValueError where it is neither."""
    if text is None:
        return None
    try:
        expression = cql2.Expr(text)
        expression.validate()
    except Exception as error:  # cql2's own kinds and jsonschema's
        raise ValueError(f"filter must be CQL2, JSON or text, such as 'view:off_nadir < 20', got {text!r}: {_reason(error)}") from error
    return expression


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


def _findings(found: Sequence[Found], shown: Sequence[Shown], area: Geometry, choose_by: Rule, per_cell: int | None, hosts: Hosts) -> Findings:
    # A found item is a candidate by what its source says: the same figures that a run keeps.
    sources = [source(each, seen) for each, seen in zip(found, shown, strict=True)]
    candidates = [_candidate(each, seen) for each, seen in zip(found, sources, strict=True)]
    chosen = choose(candidates, area, choose_by, per_cell)
    scenes = []
    # A collection whose scale changed in between may have both on one day: each is of a scene of its own.
    for ((collection, day), stretch), group in groupby(chosen, key=lambda index: (candidates[index].scene, shown[index].stretch)):
        members = list(group)
        guesses = dict.fromkeys(shown[index].guess for index in members if shown[index].guess)
        scenes.append(Scene(collection, day.isoformat(), tuple(sources[index] for index in members), stretch, "; ".join(guesses)))
    for index in chosen:
        quality = sources[index].quality
        for asset in (*sources[index].assets, *([] if quality is None else [quality.asset])):
            hosts.check(asset.href)
    items = tuple(_document(found[index]) for index in chosen)
    return Findings(tuple(scenes), items, {found[index].collection: found[index].described for index in chosen if found[index].described})


def _candidate(each: Found, seen: Source) -> Candidate:
    return Candidate(each.item.id, each.collection, solar_day(each), each.footprint, seen.cloud_cover, seen.gsd)


def _document(each: Found) -> dict[str, Any]:
    """The item by itself: its assets are absolute already; of its links only where it came from is kept."""
    document = each.item.to_dict(include_self_link=False, transform_hrefs=False)
    href = each.item.get_self_href()
    links = [{"rel": "self", "href": href, "type": "application/geo+json"}] if href else []
    return {**document, "collection": each.collection, "links": links}


def _reason(error: BaseException) -> str:
    """The error and what is at its root, on one line."""
    root = root_cause(error)
    parts = [f"{type(error).__name__}: {error}"] + ([] if str(root) in str(error) else [str(root)])
    return " ".join(": ".join(parts).split())
