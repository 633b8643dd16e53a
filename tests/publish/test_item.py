"""Laws: the item is valid STAC with all its extensions, by schemas at hand, and what it says of every file is what others read in that file."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from geopixel.pipeline import load_run
from geopixel.publish.item import EXTENSIONS, ITEM, store_item
from geopixel.storage import Folder
from geopixel.types import Asset, Grid, Scene, Source
from tests.conftest import PROMPTS

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"
UTM = "EPSG:32645"


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[Any]]:
    """pystac's whole validation, core and extensions, with schemas at hand; any try to reach a network fails."""
    validator = JsonSchemaSTACValidator()
    for name, uri in EXTENSIONS.items():
        validator.schema_cache[uri] = json.loads((SCHEMAS / f"{name}.json").read_text())
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("validation asked the network"))

    def validate(item: dict[str, Any]) -> list[Any]:
        return pystac.validation.validate_dict(item, validator=validator)

    return validate


def said(**request: object) -> dict[str, Any]:
    """What run.json says of a run."""
    return {
        "request": {"model": "nano", "prompts": ["building", "swimming pool"], "threshold": 0.5} | request,
        "versions": {"geopixel-ray": "0.1.0", "torch": "2.13.0+cpu"},
        "finished": {"features": {"building": 7, "swimming pool": 0}, "tiles": {"ok": 3, "failed": 1}},
        "submissions": [{"computed_with": ["cpu float32 sdpa"]}],
    }


def store(folder: Folder, area: shapely.Geometry, crs: str = UTM, **request: object) -> dict[str, Any]:
    scenes = []
    for day, href in (("2021-07-02", "https://stac.test/collections/naip/items/a"), ("2019-05-30", None)):
        scenes.append(Scene("naip", day, (Source(f"tile-{day}", area, (Asset("a.tif", (1, 2, 3)),), gsd=0.6, href=href),)))
    store_item(folder, name="run-1", run=said(**request), area=area, grid=Grid(crs, 0.5), scenes=scenes)
    return folder.get_json(ITEM)


def test_the_item_of_a_run_is_valid_and_true(serial: Path, validate: Callable[[dict[str, Any]], list[Any]]) -> None:
    stored = json.loads((serial / ITEM).read_text())
    assert set(EXTENSIONS.values()) <= set(validate(stored))
    item = pystac.Item.from_file(serial / ITEM)
    run = load_run(Folder(str(serial)))
    assert shapely.geometry.shape(item.geometry).equals(run.request.area)
    for name, asset in item.assets.items():
        if name not in ("masks.zarr", "model"):
            data = Path(asset.get_absolute_href()).read_bytes()
            assert asset.extra_fields["file:size"] == len(data)
            assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
    files = {path.name for path in serial.iterdir() if path.is_file()} - {ITEM, "run.json"}
    assert set(item.assets) == files | {"masks.zarr", "model"}

    table = gpd.read_parquet(serial / "features.parquet")
    described = item.assets["features.parquet"].extra_fields
    assert described["table:row_count"] == len(table)
    assert set(table.columns) <= {column["name"] for column in described["table:columns"]}
    assert described["proj:code"] == ":".join(table.crs.to_authority())

    masks, raster = item.assets["masks.zarr"].extra_fields, xr.open_dataset(serial / "masks.zarr", engine="zarr", mask_and_scale=False)
    assert masks["proj:shape"] == list(raster["mask"].shape[1:])
    transform = rasterio.Affine(*masks["proj:transform"])
    assert transform @ (0.5, 0.5) == (raster["x"].values[0], raster["y"].values[0])
    assert {band["name"] for band in masks["bands"]} >= {f"{layer}/{prompt}" for layer in ("mask", "confidence") for prompt in PROMPTS} | {"status"}
    for band in masks["bands"]:
        assert band["data_type"] == raster[band["name"].partition("/")[0]].dtype.name
        assert band["raster:spatial_resolution"] == pytest.approx(run.grid.resolution, rel=1e-3)  # a metre of UTM is one to the thousandth

    sources = [source for scene in run.scenes for source in scene.sources]
    links = {link.target: link for link in item.get_links("derived_from")}
    assert len(links) == len(sources) > 0
    for source in sources:
        assert links[source.href].title == f"demo/{source.item}"
        assert pystac.Item.from_file(source.href).id == source.item


@pytest.mark.parametrize(
    ("extension", "spoil"),
    [
        ("projection", lambda item: item["properties"].update({"proj:epsg": 32645})),
        ("raster", lambda item: item["assets"]["masks.zarr"]["bands"][0].update({"raster:spatial_resolution": "0.5 m"})),
        ("file", lambda item: item["assets"]["features.parquet"].update({"file:checksum": "1220 XYZ"})),
        ("table", lambda item: item["assets"]["features.parquet"]["table:columns"][0].pop("name")),
        ("processing", lambda item: item["properties"].update({"processing:software": ["geopixel"]})),
        ("mlm", lambda item: item["properties"].pop("mlm:input")),
        ("mlm", lambda item: item["assets"].pop("model")),
        ("mlm", lambda item: item["properties"].update({"mlm:tasks": ["finding"]})),
        ("item", lambda item: item.pop("bbox")),
    ],
)
def test_the_schemas_refuse(extension: str, spoil: Callable[[Any], Any], serial: Path, validate: Callable[[dict[str, Any]], list[Any]]) -> None:
    stored = json.loads((serial / ITEM).read_text())
    spoil(stored)
    with pytest.raises(pystac.STACValidationError, match=extension):
        validate(stored)


def test_times_sources_and_counts(tmp_path: Path, validate: Callable[[dict[str, Any]], list[Any]]) -> None:
    area = shapely.box(85, 27, 86, 28)
    stored = store(Folder(str(tmp_path)), area)
    validate(stored)
    item = pystac.Item.from_dict(stored)
    assert item.bbox == [85, 27, 86, 28]
    assert item.datetime is None
    assert item.common_metadata.start_datetime.isoformat() == "2019-05-30T00:00:00+00:00"
    assert item.common_metadata.end_datetime.isoformat() == "2021-07-02T23:59:59+00:00"
    assert item.common_metadata.gsd == 0.6
    assert item.properties["proj:code"] == UTM
    assert item.properties["geopixel:features"] == {"building": 7, "swimming pool": 0}
    assert item.properties["geopixel:tiles"] == {"ok": 3, "failed": 1}
    assert item.properties["geopixel:sources"] == ["naip/tile-2019-05-30", "naip/tile-2021-07-02"]
    assert [link.target for link in item.get_links("derived_from")] == ["https://stac.test/collections/naip/items/a"]
    assert set(item.assets) == {"model"}, "only what is in the folder"


@pytest.mark.parametrize(
    ("model", "name", "href"),
    [
        ("nano", "GeoPixel nano", "pkg:pypi/geopixel-ray@0.1.0#geopixel/model/weights/nano"),
        ("MBZUAI/GeoPixel-7B", "GeoPixel-7B", "https://huggingface.co/MBZUAI/GeoPixel-7B"),
        ("FOLDER/my weights (3)", "GeoPixel my weights -3", "FOLDER/my%20weights%20%283%29"),
    ],
)
def test_the_model_is_named_and_can_be_found(
    model: str, name: str, href: str, tmp_path: Path, validate: Callable[[dict[str, Any]], list[Any]]
) -> None:
    (tmp_path / "my weights (3)").mkdir()
    stored = store(Folder(str(tmp_path)), shapely.box(85, 27, 86, 28), model=model.replace("FOLDER", str(tmp_path)))
    validate(stored)
    assert stored["properties"]["mlm:name"] == name
    assert stored["assets"]["model"]["href"] == href.replace("FOLDER", tmp_path.as_uri())


def test_across_the_antimeridian_and_in_an_unnamed_crs(tmp_path: Path, validate: Callable[[dict[str, Any]], list[Any]]) -> None:
    folder = Folder(str(tmp_path))
    assert store(folder, shapely.union(shapely.box(177, -19, 180, -16), shapely.box(-180, -18, -179, -16)))["bbox"] == [177, -19, -179, -16]
    assert store(folder, shapely.box(-180, -80, 180, 80))["bbox"] == [-180, -80, 180, 80]
    own = store(folder, shapely.box(85, 27, 86, 28), "+proj=laea +lat_0=27 +lon_0=85 +datum=WGS84")
    validate(own)
    assert own["properties"]["proj:code"] is None
    assert own["properties"]["proj:wkt2"].startswith("PROJCRS")
