"""Every real file at hand against a plain rasterio warp of the same window: bit for bit on its own grid, within a grey level on any other. The
plain warp is rasterio's with its own settings, but for places that are exact: its own tolerance of an eighth of a pixel is up to three grey levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.warp import transform as transform_places

from geopixel.errors import ReadError
from geopixel.raster import read_scenes
from geopixel.search import find_scenes
from geopixel.types import Asset, Scene, Source

WORLD = shapely.box(-180, -90, 180, 90)
SIZE = 96
REFUSED = {"cog_hirise_mars": "another planet", "cog_nonearth": "another planet"}
NAMES = [
    "cog", "cog_cmap", "cog_dateline", "cog_fullearth", "cog_gcps", "cog_gcps_ovr", "cog_gradient", "cog_hirise_mars", "cog_int16", "cog_name",
    "cog_nodata", "cog_nodata_nan", "cog_nonearth", "cog_ovr", "cog_rgb", "cog_rgb_mask", "cog_rgba", "cog_scale", "cog_scale_epsg4326",
    "cog_scale_stats", "cog_tags", "cog_uint8_rgb_mask", "cog_uint8_rgb_nodata", "cog_uint8_rgba", "cog_world", "mosaic_cog1", "mosaic_cog2",
    "mosaic_cog3",
]  # fmt: skip


def path_of(shared: Path, name: str) -> Path:
    return shared / "rasters" / f"{name}.tif"


def stretch_of(file: DatasetReader) -> tuple[float, float] | None:
    """From the pixels in the middle; None for 8-bit ones."""
    if file.dtypes[0] == "uint8":
        return None
    values = file.read(1, masked=True).compressed().astype(float)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (2, 98))
    # Whole numbers that are interpolated are rounded to whole numbers: seen at less than half a grey level each.
    return float(low), float(max(high, low + (1 if file.dtypes[0].startswith("float") else 512)))


def place(file: DatasetReader) -> tuple[Any, Affine]:
    return (file.crs, file.transform) if file.crs else (file.gcps[1], from_gcps(file.gcps[0]))


def grid_of(file: DatasetReader, kind: str) -> GeoBox:
    """A square in the middle of the file: of its own pixels, between them, or of finer ones in another CRS (coarser ones are averages)."""
    crs, transform = place(file)
    size = min(SIZE, file.width // 2, file.height // 2)
    column, row = (file.width - size) // 2, (file.height - size) // 2
    middle = transform @ Affine.translation(column, row - (3000 if file.width == 36_000 else 0))  # the middle of the world is sea, without data
    if kind == "own":
        return GeoBox((size, size), middle, str(crs))
    if kind == "between":
        return GeoBox((size, size), middle @ Affine.translation(0.37, 0.61), str(crs))
    other = "EPSG:3857" if crs.to_epsg() != 3857 else "EPSG:4326"
    columns, rows = zip(*[middle @ corner for corner in ((0, 0), (size, 0), (0, size), (size, size))], strict=True)
    xs, ys = transform_places(crs, other, columns, rows)
    pixel = (max(xs) - min(xs)) / size / 2
    left, top = (min(xs) + max(xs) - size * pixel) / 2, (min(ys) + max(ys) + size * pixel) / 2
    return GeoBox((size, size), Affine(pixel, 0, left, 0, -pixel, top), other)


def plainly(file: DatasetReader, geobox: GeoBox, stretch: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """rgb (height, width, 3) float64 and valid (height, width): by WarpedVRT, or by reproject where ground control points place the file."""
    grid = {"crs": str(geobox.crs), "transform": Affine(*geobox.transform[:6]), "height": geobox.shape[0], "width": geobox.shape[1]}
    palette = file.colorinterp[0] == ColorInterp.palette
    bands = [1] if palette or sum(each != ColorInterp.alpha for each in file.colorinterp) < 3 else [1, 2, 3]
    if file.crs:
        masked = MaskFlags.per_dataset in file.mask_flag_enums[0]
        options = {"add_alpha": True} if masked and ColorInterp.alpha not in file.colorinterp else {}
        with WarpedVRT(file, resampling=Resampling.nearest if palette else Resampling.bilinear, tolerance=1e-6, **grid, **options) as warped:
            colours, valid = warped.read(bands), warped.dataset_mask() > 0
        if file.nodata is None and not masked:
            valid = np.ones(geobox.shape, bool)  # these grids lie inside the files
    else:
        colours, mask = np.zeros((1, *geobox.shape), file.dtypes[0]), np.zeros(geobox.shape, np.uint8)
        placed = {"gcps": file.gcps[0], "src_crs": file.gcps[1], "dst_crs": grid["crs"], "dst_transform": grid["transform"]}
        reproject(file.read(1), colours[0], src_nodata=file.nodata, resampling=Resampling.bilinear, **placed)
        reproject(file.dataset_mask(), mask, resampling=Resampling.nearest, **placed)
        valid = mask > 0
    if palette:
        colours = np.array([file.colormap(1)[value][:3] for value in range(256)]).T[:, colours[0]]
    rgb = np.moveaxis(np.broadcast_to(colours, (3, *geobox.shape)), 0, -1).astype(np.float64)
    if stretch is not None:
        rgb = np.clip((rgb - stretch[0]) * 255 / (stretch[1] - stretch[0]), 0, 255)
    return rgb, valid & np.isfinite(colours).all(axis=0)


@pytest.mark.parametrize("kind", ["own", "between", "other"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_file_reads_as_a_plain_warp_of_it(shared: Path, name: str, kind: str) -> None:
    path = path_of(shared, name)
    with rasterio.open(path) as file:
        stretch, geobox = stretch_of(file), grid_of(file, kind)
        expected, seen = plainly(file, geobox, stretch)
        on_grid = kind == "own" and file.crs is not None
    rgb, valid = read_scenes([Scene("c", "2020-01-01", (Source(name, WORLD, (Asset(str(path), (1, 2, 3)),)),), stretch)], geobox)
    both = valid & seen
    assert both.any()
    assert not rgb[~valid].any()
    if on_grid:
        np.testing.assert_array_equal(valid, seen)
        np.testing.assert_array_equal(rgb[both], np.floor(expected[both] + 0.5))
        return
    assert (valid == seen).mean() > 0.998  # the nearest of two equally near is a matter of rounding
    difference = np.abs(rgb[both] - np.floor(expected[both] + 0.5))
    if name == "cog_cmap":
        assert (difference == 0).mean() > 0.998
    else:
        assert difference.max() <= 1


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_lies_nowhere_on_earth_is_refused_by_name(shared: Path, name: str) -> None:
    path = path_of(shared, name)
    geobox = GeoBox((8, 8), Affine(10, 0, 500_000, 0, -10, 4_000_000), "EPSG:32618")
    with pytest.raises(ReadError, match=f"{name}.tif.*{REFUSED[name]}"):
        read_scenes([Scene("c", "2020-01-01", (Source(name, WORLD, (Asset(str(path), (1, 2, 3)),)),), (0.0, 1.0))], geobox)


def test_every_file_is_in_one_of_these_tests(shared: Path) -> None:
    assert {path.stem for path in (shared / "rasters").glob("*.tif")} == set(NAMES)


@pytest.mark.parametrize("item", ["oam-drone", "naip-north-dakota", "noaa-nashville"])
def test_items_with_pixels_read_as_their_files(shared: Path, tmp_path: Path, item: str) -> None:
    """By way of a catalog: with proj:, and without (NOAA)."""
    catalog = shared / "imagery" / "catalog.json"
    if item == "noaa-nashville":
        document = json.loads((shared / "stac" / item / "20200307aC0853900w361030.json").read_text())
        document["assets"]["cog"]["href"] = str(shared / "stac" / item / "20200307aC0853900w361030n.tif")
        (tmp_path / "item.json").write_text(json.dumps(document | {"links": []}))
        catalog = tmp_path / "catalog.json"
        links = [{"rel": "item", "href": "./item.json"}]
        catalog.write_text(json.dumps({"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "c", "links": links}))
    scenes = find_scenes(str(catalog), WORLD, collection=None if item == "noaa-nashville" else item)
    assert scenes
    for scene in scenes:
        for source in scene.sources:
            with rasterio.open(source.assets[0].href) as file:
                row, column = file.height // 2, file.width // 2
                window = rasterio.windows.Window(column, row, SIZE, SIZE)
                geobox = GeoBox((SIZE, SIZE), file.window_transform(window), str(file.crs))
                bands, seen = file.read([1, 2, 3], window=window), file.dataset_mask(window=window) > 0
            rgb, valid = read_scenes([Scene(scene.collection, scene.day, (source,), scene.stretch)], geobox)
            np.testing.assert_array_equal(valid, seen)
            np.testing.assert_array_equal(rgb, np.moveaxis(bands, 0, -1) * seen[..., None])
