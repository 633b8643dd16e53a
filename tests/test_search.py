"""Searching, on static catalogs written here, on an API that speaks the STAC item search over real HTTP, and on recorded and awkward items.
Laws: an API and a static catalog of the same items give the same scenes; a smaller area gives the same scenes, fewer."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import odc.stac
import pystac
import pytest
import shapely
from shapely import Geometry

from geopixel.errors import CatalogError, NoScenesError
from geopixel.search import find_scenes
from geopixel.types import Asset

WORLD = shapely.box(-180, -90, 180, 90)
RGB = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def item(name: str, when: str | tuple[str, str], place: tuple[float, ...] = (10.0, 50.0, 11.0, 51.0), **fields: Any) -> dict[str, Any]:
    """A STAC 1.0 item of an image over the box `place`; fields replace parts of it."""
    times = {"datetime": when} if isinstance(when, str) else {"datetime": None, "start_datetime": when[0], "end_datetime": when[1]}
    assets = fields.pop("assets", {"visual": {"href": f"./{name}.tif", "type": TIFF, "eo:bands": RGB, "raster:bands": [{"data_type": "uint8"}] * 3}})
    plain = {"type": "Feature", "stac_version": "1.0.0", "id": name, "links": [], "collection": "aerial"}
    geometry = {"geometry": shapely.geometry.mapping(shapely.box(*place)), "bbox": list(place)}
    return {**plain, **geometry, "properties": {**times, **fields.pop("properties", {})}, "assets": assets, **fields}


ITEMS = [
    item("b", "2020-06-01T23:30:00Z", (10.5, 50, 11.5, 51), properties={"eo:cloud_cover": 5}),
    item("a", "2020-06-02T00:10:00Z", (-80, 50, -79, 51), properties={"eo:cloud_cover": 80}),
    item("c", "2020-06-01T10:00:00Z"),
    item("d", ("2015-01-01T00:00:00Z", "2015-12-31T00:00:00Z"), (11, 50, 12, 51)),
    item("e", "2021-03-04T10:00:00Z", (9, 50, 10.2, 51), properties={"eo:cloud_cover": 40}),
    item("f", "2019-03-04T10:00:00Z", collection="other"),
]


def write(folder: Path, items: list[dict[str, Any]], **collection: Any) -> str:
    """A static catalog with a collection for each of the items' collections; the path of its root."""
    names = sorted({each["collection"] for each in items})
    root = {"type": "Catalog", "id": "root", "stac_version": "1.0.0", "description": "-"}
    (folder / "catalog.json").write_text(json.dumps({**root, "links": [{"rel": "child", "href": f"./{name}/collection.json"} for name in names]}))
    for name in names:
        members = [each for each in items if each["collection"] == name]
        links = [{"rel": "item", "href": f"./{each['id']}/{each['id']}.json"} for each in members]
        (folder / name).mkdir()
        (folder / name / "collection.json").write_text(json.dumps({**described(name), "links": links, **collection}))
        for each in members:
            (folder / name / each["id"]).mkdir()
            (folder / name / each["id"] / f"{each['id']}.json").write_text(json.dumps(each))
    return str(folder / "catalog.json")


def described(name: str) -> dict[str, Any]:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    return {"type": "Collection", "id": name, "stac_version": "1.0.0", "description": "-", "license": "CC0-1.0", "extent": extent, "links": []}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("static"), ITEMS)


def found(catalog: str, area: Geometry = WORLD, **options: Any) -> list[tuple[str, str]]:
    return [(scene.day, "".join(source.item for source in scene.sources)) for scene in find_scenes(catalog, area, **options)]


# --- static catalogs


def test_items_become_scenes_by_collection_and_solar_day(catalog: str) -> None:
    """b at 23:30 UTC, 11 E is after midnight by the sun; a at 00:10 UTC, 80 W is the evening before."""
    assert found(catalog, collection="aerial") == [("2021-03-04", "e"), ("2020-06-02", "b"), ("2020-06-01", "ac"), ("2015-01-01", "d")]
    assert [scene.id for scene in find_scenes(catalog, WORLD)][-2:] == ["other/2019-03-04", "aerial/2015-01-01"]
    scene = find_scenes(catalog, WORLD, collection="aerial", datetime="2021")[0]
    source = scene.sources[0]
    assert scene.stretch is None
    assert source.assets == (Asset(str(Path(catalog).parent / "aerial" / "e" / "e.tif"), (1, 2, 3)),)
    assert source.footprint.equals(shapely.box(9, 50, 10.2, 51))
    assert (source.crs, source.resolution, source.gsd) == (None, None, None)


@pytest.mark.parametrize(
    ("datetime", "expected"),
    [
        (None, "ebacd"),
        ("2020", "bac"),
        ("2020-06", "bac"),
        ("2020-06-01", "bc"),
        ("2020-12", ""),
        ("2015-06", "d"),
        ("2015-12-31T00:00:00Z/2015-12-31T00:00:00Z", "d"),
        ("2016/2020-06-01T12:00:00+02:00", "c"),
        ("2020-06-01T10:00:00Z", "c"),
        ("2020-06-02/..", "ea"),
        ("../2015", "d"),
        ("/2015", "d"),
        ("../2014", ""),
        ("2014/2015-01-01", "d"),
    ],
)
def test_times_are_those_that_touch_the_interval(catalog: str, datetime: str | None, expected: str) -> None:
    if not expected:
        with pytest.raises(NoScenesError):
            find_scenes(catalog, WORLD, collection="aerial", datetime=datetime)
    else:
        assert "".join(ids for _, ids in found(catalog, collection="aerial", datetime=datetime)) == expected


def test_clouds_are_limited_where_they_are_told(catalog: str) -> None:
    assert "".join(ids for _, ids in found(catalog, collection="aerial", max_cloud=40)) == "ebcd"
    assert "".join(ids for _, ids in found(catalog, collection="aerial", max_cloud=0)) == "cd"


@pytest.mark.parametrize("area", [shapely.box(10.1, 50.1, 10.15, 50.2), shapely.box(11.2, 50, 11.3, 50.5), shapely.box(-80, 50, 12, 51)])
def test_a_smaller_area_gives_the_same_scenes_but_fewer(catalog: str, area: Geometry) -> None:
    everything = [(scene.id, source) for scene in find_scenes(catalog, WORLD) for source in scene.sources]
    part = [(scene.id, source) for scene in find_scenes(catalog, area) for source in scene.sources]
    assert part == [(name, source) for name, source in everything if source.footprint.intersects(area)]
    assert part


def test_a_collection_is_a_catalog_too(catalog: str) -> None:
    path = str(Path(catalog).parent / "aerial" / "collection.json")
    assert find_scenes(path, WORLD) == find_scenes(catalog, WORLD, collection="aerial")


def test_a_copied_collection_needs_no_root(tmp_path: Path) -> None:
    links = [{"rel": "root", "href": "./gone.json"}, {"rel": "item", "href": "./c/c.json"}]
    write(tmp_path, [ITEMS[2]], links=links)
    assert found(str(tmp_path / "aerial" / "collection.json")) == [("2020-06-01", "c")]


def test_footprints_are_repaired_or_taken_from_the_bbox(tmp_path: Path) -> None:
    bowtie = {"type": "Polygon", "coordinates": [[[0, 0, 5], [2, 2, 5], [2, 0, 5], [0, 2, 5], [0, 0, 5]]]}
    broken = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}
    items = [
        item("bowtie", "2020-01-01T12:00:00Z", geometry=bowtie),
        item("broken", "2020-01-02T12:00:00Z", geometry=broken, bbox=[0, 0, 100, 1, 1, 200]),
        item("none", "2020-01-03T12:00:00Z", geometry=None, bbox=[179, -17, -179, -16]),
    ]
    shapes = {scene.sources[0].item: scene.sources[0].footprint for scene in find_scenes(write(tmp_path, items), WORLD)}
    assert shapes["bowtie"].is_valid
    assert shapes["bowtie"].area == pytest.approx(2)
    assert not shapes["bowtie"].has_z
    assert shapes["broken"].equals(shapely.box(0, 0, 1, 1))
    assert shapes["none"].equals(shapely.MultiPolygon([shapely.box(179, -17, 180, -16), shapely.box(-180, -17, -179, -16)]))


# --- which file, which bands


@pytest.mark.parametrize(
    ("assets", "options", "expected"),
    [
        ({"visual": {"eo:bands": RGB}, "red": {}, "thumbnail": {"roles": ["thumbnail"]}}, {}, [("visual", (1, 2, 3))]),
        ({"image": {"bands": [{"eo:common_name": name} for name in ("nir", "blue", "green", "red")]}}, {}, [("image", (4, 3, 2))]),
        ({"z": {"roles": ["visual"], "eo:bands": RGB[::-1]}, "a": {}}, {}, [("z", (3, 2, 1))]),
        ({"B2": {"eo:bands": [RGB[2]]}, "B3": {"eo:bands": [RGB[1]]}, "B4": {"eo:bands": [RGB[0]]}, "B8": {}}, {}, [("B4", (1,)), ("B3", (1,)), ("B2", (1,))]),
        ({"red": {"raster:bands": [{}]}, "green": {}, "blue": {}, "nir": {}}, {}, [("red", (1,)), ("green", (1,)), ("blue", (1,))]),
        ({"analytic": {"eo:bands": [{"name": "nir"}, *RGB]}, "pan": {"eo:bands": [{"name": "pan"}]}}, {}, [("analytic", (2, 3, 4))]),
        ({"cog": {}, "notes": {"type": "text/plain"}, "mask": {"roles": ["data-mask"]}}, {}, [("cog", (1, 2, 3))]),
        ({"pan": {"bands": [{"name": "pan"}]}}, {}, [("pan", (1,))]),
        ({"a": {"eo:bands": [*RGB, {"name": "nir"}]}, "b": {}}, {"assets": ["a"], "bands": [4, 1, 2]}, [("a", (4, 1, 2))]),
        ({"a": {"eo:bands": RGB}, "b": {}, "c": {}}, {"assets": ["c", "b", "a"]}, [("c", (1,)), ("b", (1,)), ("a", (1,))]),
        ({"a": {}, "visual": {}}, {"assets": ["a"], "bands": [2]}, [("a", (2,))]),
    ],
)
def test_the_files_and_bands_that_show_colours(tmp_path: Path, assets: dict[str, Any], options: dict[str, Any], expected: list[Any]) -> None:
    described = {name: {"href": f"https://example.org/{name}.tif", "type": TIFF, **fields} for name, fields in assets.items()}
    scene = find_scenes(write(tmp_path, [item("a", "2020-01-01T12:00:00Z", assets=described)]), WORLD, stretch=(0, 1), **options)[0]
    assert [(asset.href, asset.bands) for asset in scene.sources[0].assets] == [(f"https://example.org/{name}.tif", bands) for name, bands in expected]


def test_what_the_item_and_its_collection_say_of_pixels(tmp_path: Path) -> None:
    assets = {"image": {"href": "x.tif", "type": TIFF, "proj:code": "EPSG:32632", "proj:transform": [0.3, 0.4, 7, 0.4, -0.3, 9, 0, 0, 1]}}
    bands = [{"nodata": "nan", "data_type": "float32", "statistics": {"minimum": low, "maximum": low + 9}} for low in (1, 0, 3)]
    items = [
        item("a", "2020-01-01T12:00:00Z", assets=assets, properties={"proj:epsg": 4326, "gsd": 2}),
        item("b", "2020-01-02T12:00:00Z", properties={"proj:epsg": 4326}, assets={"image": {"href": "y.tif", "bands": RGB, "nodata": 7, "gsd": 0.5}}),
    ]
    second, first = find_scenes(write(tmp_path, items, item_assets={"image": {"type": TIFF, "raster:bands": bands}}), WORLD)
    source = first.sources[0]
    assert (source.crs, source.resolution, source.gsd) == ("EPSG:32632", pytest.approx(0.5), 2.0)
    assert source.assets[0].nodata != source.assets[0].nodata  # NaN
    assert first.stretch == (0.0, 12.0)
    assert (second.sources[0].crs, second.sources[0].gsd) == ("EPSG:4326", 0.5)


@pytest.mark.parametrize(
    ("collection", "given", "data_type", "expected"),
    [
        ("landsat-c2-l2", None, "uint16", (7273.0, 18182.0)),
        ("landsat-c2-l2", (1.0, 2.0), "uint16", (1.0, 2.0)),
        ("sentinel-2-l2a", None, None, (0.0, 3000.0)),
        ("anything", None, "uint16", None),
        ("anything", (5, 6), None, (5, 6)),
        ("anything", (5, 6), "uint8", None),
    ],
)
def test_the_stretch_is_one_for_a_collection(tmp_path: Path, collection: str, given: Any, data_type: str | None, expected: Any) -> None:
    said = {"raster:bands": [{"data_type": data_type}]} if data_type else {}
    assets = {name: {"href": f"{name}.tif", "type": TIFF, **said} for name in ("red", "green", "blue")}
    catalog = write(tmp_path, [item("a", "2020-01-01T12:00:00Z", assets=assets, collection=collection)])
    assert find_scenes(catalog, WORLD, stretch=given)[0].stretch == expected


# --- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datetime": "2020-13"}, "2020-13"),
        ({"datetime": "yesterday"}, "yesterday"),
        ({"datetime": "2021/2020"}, "2021/2020"),
        ({"datetime": "2020/2021/2022"}, "2020/2021/2022"),
        ({"max_cloud": 101}, "101"),
        ({"assets": ["a", "b"]}, "'a', 'b'"),
        ({"assets": ["natural"]}, "'natural'.*it has visual"),
        ({"bands": [1, 2]}, "1, 2"),
        ({"bands": [0, 1, 2]}, "0, 1, 2"),
        ({"bands": [2, 3, 4]}, "from 1 to 3"),
        ({"assets": ["r", "g", "b"], "bands": [1]}, "single asset"),
        ({"stretch": (3, 3)}, r"\(3, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(catalog: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_scenes(catalog, WORLD, **options)
    with pytest.raises(ValueError, match="LineString"):
        find_scenes(catalog, shapely.LineString([(0, 0), (1, 1)]))


def test_items_without_a_clear_picture_ask_for_one(tmp_path: Path) -> None:
    assets = {name: {"href": f"{name}.tif", "type": TIFF} for name in ("B01", "B8A")}
    with pytest.raises(ValueError, match="assets must be named.*B01, B8A"):
        find_scenes(write(tmp_path, [item("a", "2020-01-01T12:00:00Z", assets=assets)]), WORLD)


def test_nothing_found_says_what_was_searched(catalog: str) -> None:
    with pytest.raises(NoScenesError, match=r"^no scenes: .*catalog.json, collection aerial, dates 2020, bbox \(0, 1, 2, 3\), cloud cover <= 10 %$"):
        find_scenes(catalog, shapely.box(0, 1, 2, 3), collection="aerial", datetime="2020", max_cloud=10)
    with pytest.raises(NoScenesError, match="collection nowhere"):
        find_scenes(catalog, WORLD, collection="nowhere")


@pytest.mark.parametrize("content", [None, "", "hello", "[1, 2]", '{"type": "FeatureCollection"}', json.dumps(item("a", "2020-01-01T12:00:00Z"))])
def test_what_is_no_catalog_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "catalog.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CatalogError, match="catalog.json") as caught:
        find_scenes(str(path), WORLD)
    assert "\n" not in str(caught.value)


def test_a_catalog_with_a_missing_item_is_refused(tmp_path: Path) -> None:
    catalog = write(tmp_path, ITEMS)
    (tmp_path / "aerial" / "c" / "c.json").unlink()
    with pytest.raises(CatalogError, match="c/c.json"):
        find_scenes(catalog, WORLD)


# --- an API


@contextmanager
def serving(answer: Callable[[str, str, Any, str], Any]) -> Iterator[str]:
    """A server whose JSON answers are answer(method, path, body, root URL); None: 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            result = answer(self.command, self.path, json.loads(body) if body else None, f"http://{self.headers['Host']}")
            data = json.dumps(result).encode()
            self.send_response(404 if result is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def landing(root: str, *methods: str) -> dict[str, Any]:
    conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search", "https://api.stacspec.org/v1.0.0/collections"]
    links = [{"rel": "self", "href": root}, {"rel": "root", "href": root}]
    links += [{"rel": "search", "href": f"{root}/search", "method": method, "type": "application/geo+json"} for method in methods]
    return {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "-", "conformsTo": conforms, "links": links}


def api(*methods: str) -> Callable[[str, str, Any, str], Any]:
    """ITEMS behind the item search protocol: collections, intersects, bbox and a page for every two items; datetime is left to the client."""

    def answer(method: str, path: str, body: Any, root: str) -> Any:
        name, _, query = path.partition("?")
        if name in ("", "/"):
            return landing(root, *methods)
        if name == "/collections/aerial":
            return {**described("aerial"), "links": [{"rel": "self", "href": f"{root}{name}"}, {"rel": "root", "href": root}]}
        if name != "/search" or method not in methods:
            return None
        from urllib.parse import parse_qs

        asked = body or {key: values[0] for key, values in parse_qs(query).items()}
        bbox = asked.get("bbox")
        place = shapely.geometry.shape(asked["intersects"]) if "intersects" in asked else shapely.box(*(float(value) for value in bbox.split(",")))
        assert "aerial" in asked["collections"]
        hits = [each for each in ITEMS if each["collection"] == "aerial" and shapely.geometry.shape(each["geometry"]).intersects(place)]
        start = int(asked.get("token", 0))
        links: list[dict[str, Any]] = [{"rel": "root", "href": root}]
        if start + 2 < len(hits):
            more = {"href": f"{root}/search", "method": "POST", "body": {**asked, "token": start + 2}}
            more = more if method == "POST" else {"href": f"{root}{path.split('&token')[0]}&token={start + 2}"}
            links.append({"rel": "next", **more})
        page = [{**each, "links": [{"rel": "self", "href": f"{root}/items/{each['id']}"}]} for each in hits[start : start + 2]]
        return {"type": "FeatureCollection", "features": page, "links": links}

    return answer


@pytest.mark.parametrize("methods", [("GET", "POST"), ("GET",)])
def test_an_api_and_a_static_catalog_give_the_same_scenes(catalog: str, methods: tuple[str, ...]) -> None:
    with serving(api(*methods)) as url:
        for area in (WORLD, shapely.box(10.1, 50.1, 10.15, 50.2), shapely.Point(10.35, 50.5).buffer(0.3, quad_segs=400)):
            for options in ({}, {"datetime": "2020/.."}, {"max_cloud": 20.0}):
                expected = found(catalog, area, collection="aerial", **options)  # type: ignore[arg-type]
                assert found(url, area, collection="aerial", **options) == expected  # type: ignore[arg-type]
        assert find_scenes(url, WORLD, collection="aerial")[0].sources[0].assets[0].href == f"{url}/items/e.tif"
        with pytest.raises(ValueError, match="collection must be named"):
            find_scenes(url, WORLD)


def test_a_server_that_is_not_there_or_not_well_is_refused() -> None:
    with serving(lambda *_: None) as url:
        pass
    with pytest.raises(CatalogError, match=url):
        find_scenes(url, WORLD, collection="aerial")
    with serving(lambda *_: None) as url, pytest.raises(CatalogError, match=url):
        find_scenes(url, WORLD, collection="aerial")
    with serving(lambda method, path, body, root: landing(root, "POST") if path == "/" else None) as url, pytest.raises(CatalogError, match=url):
        find_scenes(url, WORLD, collection="aerial")


# --- the real world


def test_real_imagery(shared: Path) -> None:
    catalog = str(shared / "imagery" / "catalog.json")
    labelled = shapely.from_geojson((shared / "imagery" / "labels" / "banepa_labelled_window.geojson").read_text())
    (scene,) = find_scenes(catalog, labelled, collection="oam-drone")
    assert scene.id == "oam-drone/2022-07-20"
    assert scene.sources[0].resolution == pytest.approx(0.1492910708693671)
    assert Path(scene.sources[0].assets[0].href).is_file()
    days = [scene.day for scene in find_scenes(catalog, WORLD, collection="naip-north-dakota")]
    assert days == ["2018-07-16", "2016-08-16", "2014-07-20", "2010-06-29", "2009-08-18"]


def test_a_recorded_answer_of_the_planetary_computer(shared: Path) -> None:
    yaml = pytest.importorskip("yaml")
    cassette = shared / "stac/pystac-client/cassettes/test_item_search/TestItemSearch.test_intersects_results.yaml"
    recorded = json.loads(yaml.safe_load(cassette.read_text())["interactions"][0]["response"]["body"]["string"])
    area = shapely.box(-73.21, 43.99, -73.12, 44.05)
    with serving(lambda method, path, body, root: recorded if path == "/search" else landing(root, "POST") if path == "/" else None) as url:
        scenes = find_scenes(url, area, collection="naip")
    items = {source.item: (scene, source) for scene in scenes for source in scene.sources}
    assert items.keys() == {each["id"] for each in recorded["features"]}
    assert [scene.day for scene in scenes] == sorted({scene.day for scene in scenes}, reverse=True)
    for each in recorded["features"]:
        scene, source = items[each["id"]]
        assert scene.day == each["properties"]["datetime"][:10]
        assert source.assets == (Asset(each["assets"]["image"]["href"], (1, 2, 3), access="planetary-computer"),)  # unsigned
        assert source.gsd == each["properties"]["gsd"]


def test_awkward_items_group_as_odc_stac_groups_them(shared: Path, tmp_path: Path) -> None:
    paths = [*(shared / "stac" / "odc-stac").glob("*.json"), *(shared / "stac" / "noaa-nashville").glob("2*.json")]
    items = [document for document in (json.loads(path.read_text()) for path in paths) if document.get("type") == "Feature"]
    assert len(items) > 5
    for index, document in enumerate(items):
        folder = tmp_path / str(index)
        folder.mkdir()
        assets = {"visual": {"href": "a.tif", "type": TIFF}}
        (scene,) = find_scenes(write(folder, [{**document, "links": [], "assets": assets, "collection": "aerial"}]), WORLD)
        parsed = odc.stac.parse_item(pystac.Item.from_dict({**document, "assets": {}}))
        midnight = parsed.nominal_datetime.time() == dt.time()  # a date, for us
        assert dt.date.fromisoformat(scene.day) == (parsed.nominal_datetime if midnight else parsed.solar_date).date(), document["id"]
