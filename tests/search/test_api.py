"""Searching a real API over real HTTP, and exchanges recorded from real ones. The law: an API gives what a static catalog of the same items gives."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import shapely

from geopixel import access
from geopixel.access import Patience, Web
from geopixel.aoi import read_area
from geopixel.errors import CatalogError, NoScenesError
from geopixel.search import find_scenes
from geopixel.types import Scene
from tests.search.conftest import StacApi
from tests.test_search import described, item, landing, serving, write

COUNT = 260
CLOUD = {"property": "eo:cloud_cover"}
AREA = shapely.box(4.5, 44.5, 7.6, 47.5)


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    """More than two pages of them, in a grid from 3 E, 43 N, a day apart; and two on the antimeridian."""
    made = []
    for index in range(COUNT):
        x, y = 3 + index % 20 * 0.4, 43 + index // 20 * 0.4
        when = f"2020-{1 + index % 12:02}-{1 + index % 28:02}T11:00:00Z"
        said = {"eo:cloud_cover": index % 101, "gsd": 10, "platform": "sentinel-2a" if index % 3 else "sentinel-2b"}
        assets = {"visual": {"href": f"https://example.org/{index}.tif", "type": "image/tiff; application=geotiff", "roles": ["visual"]}}
        made.append(item(f"i{index:03}", when, (x, y, x + 0.5, y + 0.5), properties=said, assets=assets))
    for index, west in enumerate((179.4, -179.9)):
        assets = {"visual": {"href": f"https://example.org/fiji{index}.tif", "type": "image/tiff; application=geotiff", "roles": ["visual"]}}
        made.append(item(f"fiji{index}", "2020-05-05T11:00:00Z", (west, -17.5, west + 0.5, -16), assets=assets))
    return made


@pytest.fixture(scope="module")
def static(items: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("static"), items)


@pytest.fixture(scope="module")
def api(stac_api: StacApi, items: list[dict[str, Any]]) -> str:
    stac_api.load([described("aerial")], items)
    return stac_api.url


class Asked(list[tuple[str, str, Any]]):
    """Every request of a search: method, path, and body or query."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    requests, ask = Asked(), Web.ask

    def listening(self: Web, method: str, url: str, **request: Any) -> bytes:
        requests.append((method, urlsplit(url).path, request.get("json") or request.get("params")))
        return ask(self, method, url, **request)

    monkeypatch.setattr(Web, "ask", listening)
    return requests


def plainly(scenes: list[Scene]) -> list[Any]:
    """Without what only an API knows: where the item itself is."""
    return [(scene.id, [(each.item, each.assets, each.footprint.wkt, each.gsd, each.cloud_cover) for each in scene.sources]) for scene in scenes]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"datetime": "2020-03/2020-05"},
        {"max_cloud": 30.0},
        {"filter": json.dumps({"op": "and", "args": [{"op": "<=", "args": [CLOUD, 40]}, {"op": "=", "args": [{"property": "platform"}, "sentinel-2b"]}]})},
        {"filter": "platform LIKE '%2b' AND eo:cloud_cover < 20"},
        {"choose_by": "least-cloud", "per_cell": 1},
        {"choose_by": "best", "per_cell": 2},
    ],
    ids=str,
)
def test_a_real_api_gives_what_a_static_catalog_gives(api: str, static: str, asked: Asked, wanted: dict[str, Any]) -> None:
    expected = find_scenes(static, AREA, collection="aerial", **wanted)
    assert plainly(find_scenes(api, AREA, collection="aerial", **wanted)) == plainly(expected)
    assert len(expected) > 1
    searches = [body for method, path, body in asked if (method, path) == ("POST", "/search")]
    assert searches[0]["sortby"][0]["field"] == "properties.datetime"
    assert ("filter" in searches[0]) == ("filter" in wanted)


def test_pages_follow_one_another(api: str, static: str, asked: Asked) -> None:
    world = shapely.box(-180, -90, 180, 90)
    scenes = find_scenes(api, world, collection="aerial")
    assert plainly(scenes) == plainly(find_scenes(static, world, collection="aerial"))
    assert sum(len(scene.sources) for scene in scenes) == COUNT + 2
    assert len([path for _, path, _ in asked if path == "/search"]) > COUNT / 100
    with pytest.raises(ValueError, match="more than 100 items.*--max-items"):
        find_scenes(api, world, collection="aerial", max_items=100)


def test_an_area_across_the_antimeridian_is_searched_on_both_sides(api: str, asked: Asked) -> None:
    scenes = find_scenes(api, shapely.box(179, -18, 181, -16), collection="aerial")
    assert sorted(source.item for scene in scenes for source in scene.sources) == ["fiji0", "fiji1"]
    assert len([path for _, path, _ in asked if path == "/search"]) == 2


def test_an_outline_of_a_country_is_asked_for_in_parts_and_nothing_twice(api: str, asked: Asked, shared: Path, static: str) -> None:
    area = read_area(str(shared / "aoi/FRA.geojson"), warn=pytest.fail)
    scenes = find_scenes(api, area, collection="aerial")
    assert plainly(scenes) == plainly(find_scenes(static, area, collection="aerial"))
    bodies = [len(json.dumps(body)) for method, path, body in asked if path == "/search"]
    assert len(bodies) > 3
    assert max(bodies) < 50_000


def test_a_real_api_is_asked_by_get_where_it_does_not_offer_post(api: str, static: str, asked: Asked) -> None:
    with urllib.request.urlopen(api) as answer:
        conforms = json.load(answer)["conformsTo"]
    search = {"rel": "search", "href": f"{api}/search", "method": "GET", "type": "application/geo+json"}

    def front(method: str, path: str, body: Any, root: str) -> Any:
        page = landing(root)
        return {**page, "conformsTo": conforms, "links": [*page["links"], search]} if path == "/" else None

    wanted = {"filter": "platform = 'sentinel-2b' AND eo:cloud_cover < 60", "datetime": "2020-02/.."}
    with serving(front) as url:
        scenes = find_scenes(url, AREA, collection="aerial", allow_hosts=["*", urlsplit(api).netloc], **wanted)
        with pytest.raises(CatalogError, match=r"private address 127.0.0.1:\d+ .*--allow-hosts"):
            find_scenes(url, AREA, collection="aerial", **wanted)
    assert plainly(scenes) == plainly(find_scenes(static, AREA, collection="aerial", **wanted))
    assert {method for method, path, _ in asked if path == "/search"} == {"GET"}


def test_what_a_server_refuses_is_told(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PATIENCE", Patience(tries=2, first=0.01))
    with pytest.raises(CatalogError, match=r"tried 2 times in \d+ s, got 500 Internal Server Error"):
        find_scenes(api, AREA, collection="aerial", filter="nothing_that_is_queryable_here(eo:cloud_cover) = 3")
    with pytest.raises(NoScenesError, match="filter platform = 'none'"):
        find_scenes(api, AREA, collection="aerial", filter="platform = 'none'")


# --- recorded exchanges


def recorded(cassette: Path) -> list[tuple[str, Any]]:
    """(path, answer) of every exchange with a JSON answer."""
    yaml = pytest.importorskip("yaml")
    exchanges = yaml.load(cassette.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["interactions"]
    answers = []
    for each in exchanges:
        try:
            answers.append((urlsplit(each["request"]["uri"]).path, json.loads(each["response"]["body"]["string"])))
        except (ValueError, TypeError, UnicodeDecodeError):
            continue
    return answers


@pytest.mark.parametrize(
    "name",
    [
        "TestItemSearch.test_intersects_results",
        "TestItemSearch.test_result_paging",
        "TestItemSearch.test_datetime_results",
        "TestItemSearch.test_results",
        "TestItemSearch.test_item_collection",
        "TestItemSearchQuery.test_query_json_syntax",
        "test_multiple_collections",
    ],
)
def test_recorded_searches_are_read_page_by_page(shared: Path, name: str) -> None:
    pages = [answer for path, answer in recorded(shared / f"stac/pystac-client/cassettes/test_item_search/{name}.yaml") if path.endswith("/search")]
    assert pages
    turn = iter(pages)

    def answer(method: str, path: str, body: Any, root: str) -> Any:
        if path == "/":
            return landing(root, "POST")
        if not path.startswith("/search"):
            return None
        page = next(turn, {"type": "FeatureCollection", "features": []})
        page = {**page, "links": []}
        remaining = len(pages) - 1 - pages.index(next(each for each in pages if each["features"] == page["features"])) if page["features"] else 0
        more = {"rel": "next", "method": "POST", "href": f"{root}/search", "body": {"token": "next"}}
        return {**page, "links": [more] if remaining else []}

    expected = {(each["collection"], each["id"]) for page in pages for each in page["features"]}
    with serving(answer) as url:
        scenes = find_scenes(url, shapely.box(-180, -90, 180, 90), collection="recorded", stretch=(0, 3000), **_readable(pages))
    assert {source.item for scene in scenes for source in scene.sources} == {identity for _, identity in expected}
    assert all(asset.access == "planetary-computer" for scene in scenes for source in scene.sources for asset in source.assets if "blob.core" in asset.href)


def _readable(pages: list[Any]) -> dict[str, Any]:
    """An asset that all the items have, where the colours are not clear by themselves."""
    features = [each for page in pages for each in page["features"]]
    common = set.intersection(*(set(each["assets"]) for each in features))
    return {"assets": (sorted(common & {"image", "visual", "data", "VNIR"})[:1] or sorted(common)[:1])}
