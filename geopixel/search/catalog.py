"""The three kinds of catalog, read into items: a STAC API (searched in parts, page by page), a static catalog on disk or over HTTP (walked), a
STAC GeoParquet file (scanned). What is asked of all three is one Query, and all three are held to it here: servers differ in what they support."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import cql2
import pystac
from pystac.stac_io import DefaultStacIO
from pystac.utils import make_absolute_href
from pystac_client import Client, ConformanceClasses
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely import Geometry
from shapely.geometry import mapping

from geopixel.access import REMOTE_SCHEMES, Hosts, Web, bearer_token
from geopixel.errors import CatalogError
from geopixel.search import table
from geopixel.search.areas import search_parts
from geopixel.search.found import Found, footprint, times
from geopixel.storage import Folder
from geopixel.types import Access

PAGE = 100
"""Items asked for at once: more than most servers give by themselves, no more than any refuses."""
NEWEST = [{"field": "properties.datetime", "direction": "desc"}, {"field": "id", "direction": "asc"}]
"""Pages are cut from a stable order where the server can sort: without one an item may move between two pages and be missed."""
PLANETARY_COMPUTER = "planetarycomputer.microsoft.com"

Interval = tuple[dt.datetime | None, dt.datetime | None]
"""First and last instant; None: open."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is wanted of any catalog."""

    catalog: str
    area: Geometry
    """EPSG:4326, cut at the antimeridian."""
    collection: str | None
    interval: Interval
    max_cloud: float | None
    expression: cql2.Expr | None
    """CQL2, of the items' properties."""
    access: Access | None
    allow_hosts: tuple[str, ...]
    max_items: int


def find_items(query: Query) -> list[Found]:
    """Every item that is wanted, once, in the order in which the catalog gives them."""
    hosts = Hosts(query.catalog, query.allow_hosts)
    web = Web(hosts, token=bearer_token() if query.access == "bearer" else None)
    found: dict[tuple[str, str], Found] = {}
    for count, each in enumerate(_candidates(query, web), start=1):
        if count > query.max_items:
            raise ValueError(
                f"the search of {query.catalog} gives more than {query.max_items} items: narrow the area, --datetime or --max-cloud, or raise --max-items"
            )
        key = each.collection, each.item.id
        if key not in found and _wanted(each, query):
            found[key] = each
    return list(found.values())


def is_table(catalog: str) -> bool:
    return PurePosixPath(urlsplit(catalog).path if "://" in catalog else catalog).suffix.lower() in (".parquet", ".geoparquet")


def _candidates(query: Query, web: Web) -> Iterator[Found]:
    if is_table(query.catalog):
        yield from _table_items(query, web)
        return
    href = make_absolute_href(query.catalog)
    reader = _Api(web)
    root = reader.read_json(href)
    kind = root.get("type", "Catalog") if isinstance(root, dict) else None
    if kind not in ("Catalog", "Collection") or "stac_version" not in root or "links" not in root:
        raise CatalogError(f"cannot read catalog {query.catalog}: it is not a STAC catalog, collection or API")
    if "conformsTo" in root:
        client = Client.open(href, stac_io=reader)
        if _conforms(client, "ITEM_SEARCH"):
            if query.collection is None:
                raise ValueError(f"collection must be named: {query.catalog} is an API with many")
            yield from _api_items(client, query, query.collection)
            return
    top = (pystac.Collection if kind == "Collection" else pystac.Catalog).from_file(href, stac_io=_Files(web))
    top.set_root(top)  # its own root link may lead to a catalog that is not there
    yield from _static_items(top, query)


class _Api(StacApiIO):
    """Asks over a Web; pystac_client knows what."""

    def __init__(self, web: Web) -> None:
        super().__init__()
        self.web = web

    def request(self, href: str, method: str | None = None, headers: dict[str, str] | None = None, parameters: dict[str, Any] | None = None) -> str:
        method = (method or "GET").upper()
        body = {"json": parameters} if method == "POST" else {"params": parameters}
        return self.web.ask(method, href, headers=headers, **body).decode()

    def read_text(self, source: pystac.link.HREF, *args: Any, **kwargs: Any) -> str:
        if not isinstance(source, pystac.Link):
            self.web.hosts.check(str(source))
        return super().read_text(source, *args, **kwargs)


class _Files(DefaultStacIO):
    """Reads static catalogs as plain pystac objects (StacApiIO makes clients of them), over a Web."""

    def __init__(self, web: Web) -> None:
        super().__init__()
        self.api = _Api(web)

    def read_text_from_href(self, href: str) -> str:
        return self.api.read_text(href)


def _api_items(client: Client, query: Query, collection: str) -> Iterator[Found]:
    try:
        described = client.get_collection(collection)
    except (APIError, CatalogError, pystac.STACError):  # not there, or not described: the search will tell
        described = None
    posts = any(link.rel == "search" and link.extra_fields.get("method") == "POST" for link in client.links)
    said: dict[str, Any] = {"method": "POST" if posts else "GET", "collections": [collection], "limit": PAGE}
    if any(query.interval):
        said["datetime"] = "/".join(_rfc3339(instant) for instant in query.interval)
    if query.expression is not None and _conforms(client, "FILTER"):
        said["filter"] = query.expression.to_json() if posts else query.expression.to_text()
    if _conforms(client, "SORT"):
        said["sortby"] = NEWEST
    about = _description(described)
    for part in search_parts(query.area):
        place = {"intersects": mapping(part)} if posts else {"bbox": part.bounds}  # an outline would not fit into an URL
        for item in client.search(**said, **place).items():
            yield from _located(item, collection, about, query)


def _conforms(client: Client, name: str) -> bool:
    """Whether the API says so, in any version of the extension: pystac_client knows 1.0 only, and warns of others unless it is told."""
    able = any(uri.startswith("https://api.stacspec.org/v1.") and uri.endswith(ConformanceClasses[name].value) for uri in client.get_conforms_to())
    if able:
        client.add_conforms_to(name)
    return able


def _static_items(top: pystac.Catalog, query: Query) -> Iterator[Found]:
    """Items below top, or of the collection of that id below top; where none has it, those that say they belong to it."""
    named = None
    if query.collection is not None:
        named = top if top.id == query.collection else top.get_child(query.collection, recursive=True)
    for container, _, items in (named or top).walk():
        about = _description(container)
        for item in items:
            name = named.id if named else item.collection_id or container.id
            if query.collection in (None, name):
                yield from _located(item, name, about, query)


def _table_items(query: Query, web: Web) -> Iterator[Found]:
    items, collections = table.read_items(_table_source(query.catalog, web), query.area.bounds, query.collection)
    for document in items:
        item = pystac.Item.from_dict(document, preserve_dict=False)
        name = item.collection_id or ""
        yield from _located(item, name, collections.get(name, {}), query)


def _table_source(catalog: str, web: Web) -> str | bytes:
    scheme = urlsplit(catalog).scheme
    if scheme in ("http", "https"):
        return web.ask("GET", catalog)
    if scheme in REMOTE_SCHEMES:
        folder, _, name = catalog.rpartition("/")
        return Folder(folder).get(name)
    return catalog


def _description(container: pystac.Catalog | None) -> dict[str, Any]:
    if not isinstance(container, pystac.Collection):
        return {}
    return {**container.to_dict(include_self_link=False, transform_hrefs=False), "links": []}


def _located(item: pystac.Item, collection: str, described: Mapping[str, Any], query: Query) -> Iterator[Found]:
    """The item with its footprint, its collection's word and its key; nothing where it is nowhere."""
    place = footprint(item)
    if place is not None:
        for asset in item.assets.values():
            asset.href = asset.get_absolute_href() or asset.href
        yield Found(item, collection, place, described, _access(item, query))


def _access(item: pystac.Item, query: Query) -> Access:
    """What the caller says; else the Planetary Computer's signatures for its own items, wherever they were copied to; else nothing."""
    if query.access is not None:
        return query.access
    addresses = [query.catalog, *(str(link.target) for link in item.links if isinstance(link.target, str))]
    return "planetary-computer" if any(urlsplit(address).hostname == PLANETARY_COMPUTER for address in addresses) else "plain"


def _wanted(each: Found, query: Query) -> bool:
    first, last = times(each.item)
    start, end = query.interval
    cloud = each.item.properties.get("eo:cloud_cover")
    clear = query.max_cloud is None or cloud is None or cloud <= query.max_cloud
    if not (clear and (start is None or last >= start) and (end is None or first <= end) and query.area.intersects(each.footprint)):
        return False
    return query.expression is None or _fulfils(each, query.expression)


def _fulfils(each: Found, expression: cql2.Expr) -> bool:
    document = {**each.item.to_dict(include_self_link=False, transform_hrefs=False), "collection": each.collection}
    try:
        return bool(expression.matches(document))
    except Exception:  # cql2's own kind: a property that the item lacks makes no truth value, and what is not true is not wanted
        return False


def _rfc3339(instant: dt.datetime | None) -> str:
    return instant.astimezone(dt.UTC).isoformat().replace("+00:00", "Z") if instant else ".."
