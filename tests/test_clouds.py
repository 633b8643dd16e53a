"""Clouds and their shadows, from the quality band to the map: what one item hides the next one fills, what all hide is said to be hidden, and no
feature is ever seen there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from geopixel.aoi import read_area
from geopixel.pipeline import MapRequest, SerialRunner, load_run, make_plan, map_area
from geopixel.raster import read_origins
from geopixel.storage import Folder
from geopixel.survey import CELL, survey_scenes
from geopixel.types import CLOUDED, NO_SCENE, STATUS_CODES, Asset, Grid, Quality, Scene, Source
from tests.conftest import NANO, quiet, rasters

WORLD = shapely.box(-180, -90, 180, 90)
GRID = Grid("EPSG:32618", 10.0)
LEFT, TOP = 50_176, -400_384
"""The first pixel of the rasters written here: of a cell."""
EDGE = 64


def write(path: Path, pixels: np.ndarray, pixel: int = 1, **options: object) -> str:
    """pixels (bands, height, width), each of them as wide as so many of GRID, from (LEFT, TOP) on."""
    count, height, width = pixels.shape
    transform = Grid(GRID.crs, GRID.resolution * pixel).geobox(LEFT // pixel, TOP // pixel, width, height).transform
    place = {"crs": GRID.crs, "transform": transform, "width": width, "height": height, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", **place, **options) as file:
        file.write(pixels)
    return str(path)


def flags(rng: np.random.Generator, by: str) -> np.ndarray:
    if by == "values":
        return rng.choice(np.array([0, 3, 4, 5, 8, 9, 11], np.uint8), (1, EDGE // 2, EDGE // 2))
    return rng.choice(np.array([1, 2, 8, 16, 64, 128, 5448, 21824], np.uint16), (1, EDGE // 2, EDGE // 2))


def hidden(quality: np.ndarray, by: str) -> np.ndarray:
    """By hand, one pixel at a time, on GRID."""
    cloud = [value in (3, 8, 9, 10) if by == "values" else any(value >> bit & 1 for bit in (1, 2, 3, 4)) for value in quality.ravel().tolist()]
    return np.kron(np.reshape(cloud, quality.shape[1:]), np.ones((2, 2))) > 0


@pytest.mark.parametrize("by", ["values", "bits"])
def test_what_one_item_hides_the_next_one_fills(tmp_path: Path, by: str) -> None:
    rng = np.random.default_rng(0)
    sources, seen, clouds = [], [], []
    for index in range(3):
        data = rng.random((EDGE, EDGE)) < 0.6
        quality = flags(rng, by)
        colours = write(tmp_path / f"{index}.tif", np.where(data, 50 + index, 0).astype(np.uint8)[None].repeat(3, axis=0), nodata=0)
        # A nodata value of the quality file is no reason to trust the pixel less, or more.
        asset = Asset(write(tmp_path / f"{index}_q.tif", quality, pixel=2, nodata=3 if by == "values" else None), (1,))
        rule = Quality(asset, values=(3, 8, 9, 10)) if by == "values" else Quality(asset, bits=(1, 2, 3, 4))
        sources.append(Source(str(index), WORLD, (Asset(colours, (1, 2, 3)),), quality=rule))
        seen.append(data)
        clouds.append(hidden(quality, by))
    rgb, origin = read_origins([Scene("c", "2020-01-02", tuple(sources[:2])), Scene("c", "2020-01-01", (sources[2],))], GRID.geobox(LEFT, TOP, EDGE, EDGE))

    clear = [data & ~cloud for data, cloud in zip(seen, clouds, strict=True)]
    expected = np.select([*clear, np.any(seen, axis=0)], [0, 1, 2, CLOUDED], NO_SCENE)
    assert {0, 1, 2, CLOUDED, NO_SCENE} <= set(np.unique(expected))
    np.testing.assert_array_equal(origin, expected)
    np.testing.assert_array_equal(rgb, np.where(expected < CLOUDED, 50 + expected, 0)[..., None].repeat(3, axis=-1))


def test_the_survey_says_how_much_of_a_cell_is_hidden(tmp_path: Path) -> None:
    """Two cells side by side, the first half hidden and half without data, the second wholly hidden in one item and clear in the next."""
    pixels = np.full((3, CELL, 2 * CELL), 90, np.uint8)
    pixels[:, : CELL // 2, :CELL] = 0
    quality = np.zeros((1, CELL, 2 * CELL), np.uint8)
    quality[0, :, CELL // 2 :] = 1
    first = Source("first", WORLD, (Asset(write(tmp_path / "1.tif", pixels, nodata=0, tiled=True), (1, 2, 3)),))
    clouds = Quality(Asset(write(tmp_path / "q.tif", quality), (1,)), values=(1,))
    cells = LEFT // CELL, TOP // CELL, LEFT // CELL + 2, TOP // CELL + 1
    cloudy = Source("cloudy", WORLD, first.assets, quality=clouds)
    survey = survey_scenes([Scene("c", "2020-01-01", (cloudy,))], GRID, cells)
    np.testing.assert_allclose(survey.valid, [[0.5, 1]], atol=1e-6)
    np.testing.assert_allclose(survey.cloud, [[0.5, 1]], atol=1e-6)
    filled = survey_scenes([Scene("c", "2020-01-02", (cloudy,)), Scene("c", "2020-01-01", (first,))], GRID, cells)
    np.testing.assert_allclose(filled.valid, [[0.5, 1]], atol=1e-6)
    assert not filled.cloud.any()


@pytest.fixture
def cloudy(catalog: Path, tmp_path: Path) -> tuple[Path, shapely.Polygon]:
    """The rendered scenes with a quality band: the western 600 of 1024 columns of each are under cloud. And that ground of the first."""
    copy = tmp_path / "demo"
    shutil.copytree(catalog.parent, copy)
    ground = None
    for path in sorted(copy.glob("demo/demo-*/demo-*.json")):
        with rasterio.open(path.with_name("visual.tif")) as visual:
            place = {"crs": visual.crs, "transform": visual.transform, "width": visual.width, "height": visual.height, "count": 1, "dtype": "uint8"}
            left, bottom, _, top = visual.bounds
            ground = ground or shapely.box(left, bottom, left + 600 * visual.res[0], top)
        quality = np.zeros((1, place["height"], place["width"]), np.uint8)
        quality[..., :600] = 9
        with rasterio.open(path.with_name("classes.tif"), "w", driver="GTiff", **place) as file:
            file.write(quality)
        document = json.loads(path.read_text())
        document["assets"]["classes"] = {"href": "./classes.tif", "type": "image/tiff; application=geotiff", "roles": ["data-mask"]}
        path.write_text(json.dumps(document))
    return copy / "catalog.json", ground


PROFILE = """
collections = ["demo"]
[[colours]]
assets = ["visual"]
[[quality]]
asset = "classes"
values = [9]
"""


def test_masked_pixels_never_become_features(cloudy: tuple[Path, shapely.Polygon], serial: Path, tmp_path: Path) -> None:
    catalog, ground = cloudy
    area = read_area(str(catalog.with_name("aoi.geojson")), warn=pytest.fail)
    request = MapRequest(area, ("building", "water"), str(catalog), "nano", profile=PROFILE)
    map_area(request, Folder(str(tmp_path / "run")), NANO, SerialRunner(), quiet)

    clear, found = gpd.read_parquet(serial / "features.parquet"), gpd.read_parquet(tmp_path / "run" / "features.parquet")
    hidden = gpd.GeoSeries([ground], crs="EPSG:32633").to_crs(clear.crs)[0].buffer(-1e-7 if clear.crs.is_geographic else -0.01)  # less the rounding
    assert clear.intersection(hidden).union_all().area > 0.03 * hidden.area, "without the clouds there is something to find"
    assert not found.intersects(hidden).any()
    assert len(found) > 5
    run = load_run(Folder(str(tmp_path / "run")))
    assert all(source.quality is not None for scene in run.scenes for source in scene.sources)
    status = rasters(tmp_path / "run")["status"]
    x, y = ground.centroid.coords[0]
    assert int(status.sel(x=x, y=y, method="nearest")) == STATUS_CODES["cloud"]

    decided = make_plan(MapRequest(area, ("building",), str(catalog), "nano", profile=PROFILE, max_cloud=50.0), NANO, SerialRunner(), quiet)
    assert decided.cost.decided["cloud"] > 0
    assert decided.cost.skipped_km2["cloud"] > 0
