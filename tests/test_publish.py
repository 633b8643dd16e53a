"""Laws: the item is valid STAC and says what the run was; an outline is drawn where the thing is in the imagery, to the pixel."""

from __future__ import annotations

import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image
from pystac.validation.stac_validator import JsonSchemaSTACValidator

from geopixel.publish import ASSETS, COLOURS, FAILED, ITEM, MAP_SIZE, MARGIN, NO_IMAGERY, PANEL, QUICKLOOK, draw_quicklook, store_item
from geopixel.storage import Folder
from geopixel.types import Asset, Grid, Scene, Source, Tile

GRID = Grid("EPSG:32645", 0.5)
WEST, NORTH = GRID.resolution * 512 * 1293, -GRID.resolution * 512 * -11914
"""A corner of a tile of 512."""
AREA = shapely.box(WEST, NORTH - 384, WEST + 512, NORTH)
HOUSE = shapely.box(WEST + 100, NORTH - 200, WEST + 180, NORTH - 150)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Green ground with a dark blue HOUSE on it; the easternmost 128 m lie in a file that is not there."""
    path = tmp_path / "ground.tif"
    pixels = np.zeros((3, 768, 768), np.uint8)
    pixels[1] = 120
    pixels[:, 300:400, 200:360] = [[[0]], [[0]], [[90]]]
    profile = {"driver": "GTiff", "width": 768, "height": 768, "count": 3, "dtype": "uint8", "crs": GRID.crs}
    with rasterio.open(path, "w", transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH), **profile) as target:
        target.write(pixels)
    everywhere = shapely.box(-180, -90, 180, 90)
    broken = Source("broken", everywhere, (Asset(str(tmp_path / "gone.tif"), (1, 2, 3)),))
    return Scene("drone", "2024-05-06", (broken, Source("ground", everywhere, (Asset(str(path), (1, 2, 3)),))))


def picture(folder: Folder) -> np.ndarray:
    with Image.open(Path(folder.url, QUICKLOOK)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: str, tolerance: int = 40) -> np.ndarray:
    return (np.abs(pixels - rgb(colour)) <= tolerance).all(axis=-1)


def test_quicklook_draws_to_the_pixel(tmp_path: Path, scene: Scene) -> None:
    folder = Folder(str(tmp_path / "run"))
    yard = shapely.box(WEST + 250, NORTH - 300, WEST + 330, NORTH - 220) - shapely.box(WEST + 280, NORTH - 270, WEST + 300, NORTH - 250)
    features = gpd.GeoDataFrame({"prompt": ["house", "yard"]}, geometry=[HOUSE, yard], crs=GRID.crs)
    failed = Tile(GRID, 512, 1294, -11914)  # the second tile of the first row
    prompts = ["house", "yard", "a prompt so long that no legend could ever hold all of it"]
    draw_quicklook(folder, scenes=[scene], grid=GRID, area=AREA, features=features, prompts=prompts, failed=[failed])
    seen = picture(folder)
    assert seen.shape[1] == MAP_SIZE[0] + PANEL <= 1600
    assert seen.shape[0] <= 1600
    per_metre = MAP_SIZE[0] / (512 * (1 + 2 * MARGIN))

    def at(east: float, south: float) -> tuple[int, int]:
        return round((south + 512 * MARGIN) * per_metre), round((east + 512 * MARGIN) * per_metre)

    for place, colour in (((175, 0), COLOURS[0]), ((260, 280), COLOURS[1])):
        assert not near(seen[at(*place)], colour), "outlines are not filled"
    for east, south in ((100, 175), (180, 175), (140, 150), (140, 200)):  # the middles of the four walls
        row, column = at(east, south)
        assert near(seen[row - 1 : row + 2, column - 1 : column + 2], COLOURS[0]).any()
    for east, south in ((250, 260), (330, 260), (280, 260), (300, 260)):  # outer and inner walls of the yard
        row, column = at(east, south)
        assert near(seen[row - 1 : row + 2, column - 1 : column + 2], COLOURS[1]).any()
    # The house itself is dark blue right up to its line, the ground green from the other side on: lines and imagery share their edges.
    for inside, outside in (((103, 175), (97, 175)), ((177, 175), (183, 175)), ((140, 153), (140, 147)), ((140, 197), (140, 203))):
        assert near(seen[at(*inside)], "#00005a", 10)
        assert near(seen[at(*outside)], "#007800", 10)
    assert near(seen[at(450, 100)], NO_IMAGERY, 5), "what no file shows is grey, also where a file cannot be read"
    hatched = near(seen[slice(*sorted((at(260, 10)[0], at(260, 200)[0]))), slice(at(260, 10)[1], at(370, 10)[1])], FAILED, 60)
    assert 0.1 < hatched.mean() < 0.5
    assert not near(seen[slice(at(10, 10)[0], at(10, 140)[0]), slice(at(10, 10)[1], at(240, 10)[1])], FAILED, 60).any()
    legend = seen[:, MAP_SIZE[0] :]
    assert all(near(legend, colour).any() for colour in (*COLOURS[:3], FAILED, NO_IMAGERY))


@pytest.mark.parametrize(("width", "height"), [(10, 4000), (4000, 10)])
def test_quicklook_of_a_narrow_area_fits(tmp_path: Path, scene: Scene, width: int, height: int) -> None:
    folder = Folder(str(tmp_path / "run"))
    nothing = gpd.GeoDataFrame({"prompt": []}, geometry=[], crs=GRID.crs)
    area = shapely.box(WEST, NORTH - height, WEST + width, NORTH)
    draw_quicklook(folder, scenes=[scene], grid=GRID, area=area, features=nothing, prompts=["house"], failed=[])
    assert max(picture(folder).shape) <= 1600


def store(folder: Folder, area: shapely.Geometry, crs: str = GRID.crs) -> dict:
    scenes = [Scene("naip", day, (Source(f"tile-{day}", area, (Asset("a.tif", (1, 2, 3)),)),)) for day in ("2021-07-02", "2019-05-30")]
    store_item(
        folder, name="run-1", area=area, grid=Grid(crs, 0.5), scenes=scenes, features={"building": 7, "swimming pool": 0}, tiles={"ok": 3, "failed": 1}
    )
    return folder.get_json(ITEM)


def test_item_is_valid_stac(tmp_path: Path) -> None:
    area = shapely.box(85, 27, 86, 28)
    stored = store(Folder(str(tmp_path)), area)
    JsonSchemaSTACValidator().validate_core(stored, pystac.STACObjectType.ITEM, "1.1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        item = pystac.Item.from_dict(stored)
    assert shapely.geometry.shape(item.geometry).equals(area)
    assert item.bbox == [85, 27, 86, 28]
    assert item.datetime is None
    assert item.common_metadata.start_datetime.isoformat() == "2019-05-30T00:00:00+00:00"
    assert item.common_metadata.end_datetime.isoformat() == "2021-07-02T23:59:59+00:00"
    assert item.properties["proj:code"] == GRID.crs
    assert item.properties["geopixel:features"] == {"building": 7, "swimming pool": 0}
    assert item.properties["geopixel:tiles"] == {"ok": 3, "failed": 1}
    assert item.properties["geopixel:sources"] == ["naip/tile-2019-05-30", "naip/tile-2021-07-02"]
    assert {asset.href for asset in item.assets.values()} == {f"./{path}" for path in ASSETS}
    assert all(asset.media_type and asset.roles for asset in item.assets.values())


def test_item_across_the_antimeridian_and_in_an_unnamed_crs(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert store(folder, shapely.union(shapely.box(177, -19, 180, -16), shapely.box(-180, -18, -179, -16)))["bbox"] == [177, -19, -179, -16]
    assert store(folder, shapely.box(-180, -80, 180, 80))["bbox"] == [-180, -80, 180, 80]
    own = store(folder, shapely.box(85, 27, 86, 28), "+proj=laea +lat_0=27 +lon_0=85 +datum=WGS84")["properties"]
    assert own["proj:code"] is None
    assert own["proj:wkt2"].startswith("PROJCRS")
