"""A run's scenes.parquet is judged by what a search of it finds, by stac-geoparquet's own reader, and by the order of its rows."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import pystac
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geopixel.errors import CatalogError
from geopixel.search import SCENES, find_scenes, search_catalog, store_scenes
from geopixel.search.table import read_items, write_items
from geopixel.storage import Folder
from tests.test_search import ITEMS, WORLD, item, serving, write

EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)


def kept(catalog: str, folder: Path, **wanted: Any) -> str:
    store_scenes(Folder(str(folder)), search_catalog(catalog, WORLD, **wanted))
    return str(folder / SCENES)


@pytest.mark.parametrize("wanted", [{}, {"per_cell": 1}, {"choose_by": "best", "per_cell": 1}, {"collection": "aerial", "max_cloud": 50.0}], ids=str)
def test_a_run_is_repeated_without_its_catalog(tmp_path: Path, wanted: dict[str, Any]) -> None:
    statistics = [{"statistics": {"minimum": 3, "maximum": 900}}] * 3
    plain = [{**each, "assets": {"visual": {"href": f"{each['id']}.tif", "type": "image/tiff"}}} for each in ITEMS]
    catalog = write(tmp_path, plain, item_assets={"visual": {"raster:bands": statistics, "gsd": 0.5}})
    scenes = find_scenes(catalog, WORLD, **wanted)
    assert scenes[0].stretch == (3.0, 900.0)
    path = kept(catalog, tmp_path / "run", **wanted)
    shutil.rmtree(tmp_path / "aerial")
    assert find_scenes(path, WORLD, **wanted) == scenes
    part = shapely.box(10.6, 50, 10.9, 51)
    kept_there = {source.item for scene in scenes for source in scene.sources if source.footprint.intersects(part)}
    assert {source.item for scene in find_scenes(path, part) for source in scene.sources} == kept_there
    rows = gpd.read_parquet(path)
    assert rows["id"].tolist() == [source.item for scene in scenes for source in scene.sources]
    assert all(row.equals(source.footprint) for row, source in zip(rows.geometry, (source for scene in scenes for source in scene.sources), strict=True))


def test_real_items_of_many_kinds_are_kept(shared: Path, tmp_path: Path) -> None:
    """Landsat, Sentinel-2, LIDAR, drones: their fields disagree on types."""
    paths = [*(shared / "stac/odc-stac").glob("*.json"), *(shared / "stac/noaa-nashville").glob("2*.json"), *(shared / "imagery").rglob("*.json")]
    documents = [document for document in (json.loads(path.read_text()) for path in paths) if document.get("type") == "Feature"]
    items = [pystac.Item.from_dict(document).to_dict(include_self_link=False, transform_hrefs=False) | {"links": []} for document in documents]
    assert len(items) > 10
    back, _ = read_items(write_items(items, {}), EVERYWHERE, None)
    assert [each["id"] for each in back] == [each["id"] for each in items]
    for before, after in zip(items, back, strict=True):
        assert {name: asset["href"] for name, asset in after["assets"].items()} == {name: asset["href"] for name, asset in before["assets"].items()}
        assert after["properties"].get("eo:cloud_cover") == before["properties"].get("eo:cloud_cover")
        assert pystac.Item.from_dict(after).datetime == pystac.Item.from_dict(before).datetime
        assert shapely.geometry.shape(after["geometry"]).equals(shapely.geometry.shape(before["geometry"]))


def test_real_imagery_is_found_again(shared: Path, tmp_path: Path) -> None:
    catalog = str(shared / "imagery" / "catalog.json")
    assert find_scenes(kept(catalog, tmp_path), WORLD) == find_scenes(catalog, WORLD)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(["x", "y:z", "created", "collection"]), values, max_size=3), min_size=1, max_size=4))
@settings(max_examples=20)
def test_whatever_items_say_they_can_be_kept(said: list[dict[str, Any]]) -> None:
    items = [item(str(index), "2020-01-01T00:00:00Z", properties=dict(each)) for index, each in enumerate(said)]
    back, _ = read_items(write_items(items, {}), EVERYWHERE, None)
    assert [(each["id"], each["assets"]) for each in back] == [(each["id"], each["assets"]) for each in items]
    for before, after in zip(said, back, strict=True):
        for name in ("x", "y:z"):
            alike = {type(each[name]) for each in said if each.get(name) is not None}
            if alike <= {int} or alike <= {str} or alike <= {bool}:
                assert after["properties"].get(name) == before.get(name)


def test_a_table_over_http_and_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = write(tmp_path, [{**each, "assets": {"visual": {"href": f"https://example.org/{each['id']}.tif"}}} for each in ITEMS])
    path = Path(kept(catalog, tmp_path / "run"))
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.chdir(path.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert find_scenes(f"http://127.0.0.1:{server.server_address[1]}/{SCENES}", WORLD) == find_scenes(catalog, WORLD)
        server.shutdown()
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "text.parquet").write_text("hello")
    buffer = BytesIO()
    gpd.GeoDataFrame({"name": ["a"]}, geometry=[WORLD], crs=4326).to_parquet(buffer)
    (tmp_path / "other.parquet").write_bytes(buffer.getvalue())
    for name, reason in [("cut", "cut.parquet"), ("text", "text.parquet"), ("other", "column 'assets' is missing"), ("none", "none.parquet")]:
        with pytest.raises(CatalogError, match=reason) as caught:
            find_scenes(str(tmp_path / f"{name}.parquet"), WORLD)
        assert "\n" not in str(caught.value)


def test_a_table_that_came_over_the_network_may_not_lead_home(tmp_path: Path) -> None:
    """An item of an API may not either."""
    document = item("a", "2020-01-01T12:00:00Z", assets={"visual": {"href": "file:///etc/passwd", "type": "image/tiff"}})
    root = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "-", "links": [{"rel": "item", "href": "./a.json"}]}
    with serving(lambda method, path, body, url: root if path == "/catalog.json" else document if path == "/a.json" else None) as url:
        with pytest.raises(CatalogError, match="leads to a file of this machine, file:///etc/passwd: --allow-hosts file permits it"):
            find_scenes(f"{url}/catalog.json", WORLD)
        assert find_scenes(f"{url}/catalog.json", WORLD, allow_hosts=["file"])
    root["links"] = [{"rel": "item", "href": str(tmp_path / "a.json")}]
    (tmp_path / "a.json").write_text(json.dumps(document))
    with serving(lambda method, path, body, url: root if path == "/catalog.json" else None) as url, pytest.raises(CatalogError):
        find_scenes(f"{url}/catalog.json", WORLD)
