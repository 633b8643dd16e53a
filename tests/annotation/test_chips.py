"""From files to chips: pixels are those of the file, masks those of rasterio, and what an edge or nodata hides of a label is known."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize

from geopixel.annotation.chips import Place, cut_chips, folder_scenes, plan_chips, split_places
from geopixel.annotation.labels import Labels, read_labels, rendered_labels
from geopixel.aoi import read_area
from geopixel.demo import CLASSES
from geopixel.search import find_scenes
from geopixel.tiling import choose_grid

CRS = "EPSG:32633"
LEFT, TOP, PIXEL = 500_000.0, 5_400_032.0, 0.5
SIZE = 256


def on_ground(shape: shapely.Geometry) -> shapely.Geometry:
    """From pixels of the picture below."""
    return shapely.transform(shape, lambda xy: xy * (PIXEL, -PIXEL) + (LEFT, TOP))


@pytest.fixture
def picture(tmp_path: Path) -> np.ndarray:
    """images/scene.tif, 256 x 256 pixels of noise with nodata in the last 20 columns; (3, 256, 256)."""
    pixels = np.random.default_rng(0).integers(1, 255, (3, SIZE, SIZE), np.uint8)
    pixels[:, :, -20:] = 0
    (tmp_path / "images").mkdir()
    profile = {"width": SIZE, "height": SIZE, "count": 3, "dtype": "uint8", "crs": CRS, "nodata": 0, "transform": Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP)}
    with rasterio.open(tmp_path / "images" / "scene.tif", "w", **profile) as raster:
        raster.write(pixels)
    return pixels


def labels(shapes: list[shapely.Geometry]) -> Labels:
    return Labels(gpd.GeoDataFrame({"category": ["building"] * len(shapes)}, geometry=[on_ground(shape) for shape in shapes], crs=CRS))


def test_chips_are_the_files_pixels_and_rasterios_masks(picture: np.ndarray, tmp_path: Path) -> None:
    shapes = [
        shapely.Polygon([(10.2, 12.1), (59.7, 20.3), (50.3, 70.1), (12.4, 50.2)]),  # no edge through the middle of a pixel
        shapely.box(100, 100, 160, 140),  # over the edge between chips
        shapely.Polygon(shapely.box(20, 90, 60, 120).exterior, [shapely.box(30, 100, 40, 110).exterior]),
        shapely.box(210, 10, 250, 30),  # into nodata
        shapely.box(240, 200, 250, 210),  # all of it nodata
        shapely.box(70.1, 70.1, 70.3, 70.3),  # no pixel's centre
    ]
    scenes = folder_scenes(tmp_path / "images")
    grid = choose_grid(scenes, None, None)
    places = [Place(-int(TOP / PIXEL) // 128 + row, int(LEFT / PIXEL) // 128 + column) for row in (0, 1) for column in (0, 1)]
    assert (LEFT / PIXEL) % 128 == (TOP / PIXEL) % 128 == 64, "the picture lies half a chip off the grid"
    chips = {chip.id: chip for chip in cut_chips(places, scenes, labels(shapes), grid, 128)}
    first = chips[places[0].id].frame
    np.testing.assert_array_equal(np.moveaxis(picture[:, :64, :64], 0, -1), first.rgb[64:, 64:])
    drawn = np.array([rasterize([(shape, 1)], (SIZE, SIZE)) for shape in shapes], bool)
    drawn[:, :, -20:] = False
    for place, (top, left) in zip(places, ((-64, -64), (-64, 64), (64, -64), (64, 64)), strict=True):
        frame = chips[place.id].frame
        window = np.zeros((len(shapes), 128, 128), bool)
        rows, columns = slice(max(top, 0), top + 128), slice(max(left, 0), left + 128)
        window[:, rows.start - top :, columns.start - left :] = drawn[:, rows, columns]
        expected = [(window[index], shapes[index]) for index in range(len(shapes)) if window[index].any()]
        assert len(frame.objects) == len(expected)
        for index, (mask, shape) in enumerate(expected):
            np.testing.assert_array_equal(frame.mask([index]), mask)
            whole = shapely.box(left, top, min(left + 128, SIZE - 20), top + 128).covers(shape)
            assert frame.full_area[index] == pytest.approx(mask.sum() if whole else shape.area)


def test_chips_lie_wholly_where_labels_are_complete() -> None:
    grid = choose_grid([], CRS, PIXEL)
    window = gpd.GeoSeries([on_ground(shapely.box(10, 10, 700, 400))], crs=CRS).to_crs("EPSG:4326").iloc[0]
    for place in plan_chips(grid, window, 128):
        left, bottom, right, top = place.geobox(grid, 128).boundingbox.bbox
        assert (left >= LEFT + 5 - PIXEL, top <= TOP - 5 + PIXEL, right <= LEFT + 350 + PIXEL, bottom >= TOP - 200 - PIXEL) == (True,) * 4
    assert len(plan_chips(grid, window, 128)) == 4 * 2
    with pytest.raises(ValueError, match="no chip of 512 pixels lies wholly in the window of 69. x 39. pixels"):
        plan_chips(grid, window, 512)


def test_validation_takes_whole_blocks_of_ground() -> None:
    places = [Place(row, column) for row in range(-7, 9) for column in range(3, 19)]
    kept = split_places(places, 0.25, seed=3)
    assert 0.25 <= len(kept) / len(places) < 0.4
    blocks = {(place.row // 4, place.column // 4) for place in kept}
    assert kept == {place for place in places if (place.row // 4, place.column // 4) in blocks}
    assert kept == split_places(places[::-1], 0.25, seed=3) != split_places(places, 0.25, seed=4)
    assert split_places(places, 0.0, 3) == set()
    assert split_places(places[:1], 0.5, 3) == set(), "a single block is for training"


def test_labels_of_several_files_and_their_refusals(tmp_path: Path) -> None:
    square = shapely.box(85.5, 27.6, 85.6, 27.7)
    table = gpd.GeoDataFrame({"kind": ["Swimming_Pools", None, "road", "road"]}, geometry=[square, square, square.exterior, square], crs="EPSG:4326")
    table.to_file(tmp_path / "mixed.gpkg")
    table.to_crs(CRS).to_parquet(tmp_path / "mixed.parquet")
    said: list[str] = []
    named = [(None, tmp_path / "mixed.gpkg"), ("building", tmp_path / "mixed.parquet")]
    found = read_labels(named, "kind", said.append).table
    assert sorted(found["category"]) == ["building", "road", "swimming pool"]
    assert said[0].endswith("objects of class 'swimming pools' are called 'swimming pool'")
    assert "1 that are no polygons and 1 without a class" in said[1]
    assert said[-1] == "labels: left out 2 that are there twice"
    with pytest.raises(ValueError, match="no column 'class' with classes, only kind"):
        read_labels(named, "class", said.append)
    (tmp_path / "none.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    for path, why in (("missing.gpkg", "cannot be read"), ("none.geojson", "hold no polygon|no column|no coordinate")):
        with pytest.raises(ValueError, match=why):
            read_labels([("road", tmp_path / path)], "kind", said.append)


def test_imagery_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        folder_scenes(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no GeoTIFF"):
        folder_scenes(tmp_path)
    with rasterio.open(tmp_path / "a.tif", "w", width=4, height=4, count=1, dtype="uint8") as raster:
        raster.write(np.ones((1, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="a.tif names no coordinate reference system"):
        folder_scenes(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="a.tif cannot be read"):
        folder_scenes(tmp_path)


def test_truth_of_rendered_scenes_is_traced_whole(catalog: Path) -> None:
    window = read_area(str(catalog.with_name("aoi.geojson")), warn=pytest.fail)
    scenes = find_scenes(str(catalog), window)
    grid = choose_grid(scenes, None, None)
    known = rendered_labels(str(catalog), window)
    assert set(known.table["category"]) <= {"trees", *CLASSES} - {"tree"}
    place = plan_chips(grid, window, 256)[0]
    (chip,) = cut_chips([place], scenes, known, grid, 256)
    truth = find_scenes(str(catalog), window, assets=("truth",), bands=(1,))
    (codes,) = cut_chips([place], truth, known, grid, 256)
    for name, code in CLASSES.items():
        mine = chip.frame.mask(chip.frame.of("trees" if name == "tree" else name))
        there = codes.frame.rgb[..., 0] == code
        assert not (mine & ~there).any()
        assert (there & ~mine).sum() <= 0.02 * max(there.sum(), 500), "but for patches of a few pixels"
