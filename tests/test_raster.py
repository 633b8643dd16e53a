"""Reading is judged by rasterio on the file's own grid, by rasters whose colours are a formula of the place on any other, and by laws:
a window of a picture is the picture of the window; missing pixels never tint their neighbours; the first valid pixel wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from geopixel.errors import ReadError
from geopixel.raster import read_memory, read_origins, read_scenes, scenes_near
from geopixel.raster.files import MAX_BLOCK_BYTES
from geopixel.types import NO_SCENE, Asset, Grid, Scene, Source

WORLD = shapely.box(-180, -90, 180, 90)
GRID = Grid("EPSG:32618", 10.0)
LEFT, TOP = 50_000, -400_000
"""The first pixel of the rasters written here, on GRID: near 75 W, 36 N."""


def write(path: Path, pixels: np.ndarray, *, mask: np.ndarray | None = None, overviews: list[int] | None = None, **options: Any) -> Path:
    """pixels (bands, height, width) at (LEFT, TOP) of GRID; mask (height, width) True where valid, stored inside the file."""
    count, height, width = pixels.shape
    place = {"crs": GRID.crs, "transform": GRID.geobox(LEFT, TOP, width, height).transform}
    profile = {"driver": "GTiff", "width": width, "height": height, "count": count, "dtype": pixels.dtype, **place, **options}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
        if overviews:
            file.build_overviews(overviews, Resampling.average)
    return path


def scene(*assets: Path | Asset, stretch: tuple[float, float] | None = None, footprint: shapely.Geometry = WORLD) -> Scene:
    sources = [Source("item", footprint, (asset if isinstance(asset, Asset) else Asset(str(asset), (1, 2, 3)),)) for asset in assets]
    return Scene("aerial", "2020-06-01", tuple(sources), stretch)


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def holes(height: int, width: int) -> np.ndarray:
    """True where valid: seven pixels in ten."""
    return np.random.default_rng(7).random((height, width)) < 0.7


HERE = GRID.geobox(LEFT, TOP, 96, 64)
ELSEWHERE = [
    GeoBox.from_bbox((500_123, 3_999_391, 500_903, 3_999_951), "EPSG:32618", resolution=7),
    GeoBox.from_bbox((-75.0, 36.134, -74.99, 36.141), "EPSG:4326", shape=(90, 100)),
    GRID.geobox(LEFT - 7, TOP - 5, 120, 90),
]


# --- on the file's own grid: rasterio is the oracle


@pytest.mark.parametrize("kind", ["plain", "nodata", "catalog nodata", "mask", "alpha", "nan", "grey", "four bands"])
def test_on_its_own_grid_a_file_is_read_as_it_is(tmp_path: Path, kind: str) -> None:
    valid = np.ones((64, 96), bool) if kind in ("plain", "grey", "four bands") else holes(64, 96)
    pixels = noise((1 if kind == "grey" else 4 if kind in ("alpha", "four bands") else 3, 64, 96), "float32" if kind == "nan" else "uint8")
    alpha = {"photometric": "RGB", "alpha": "yes"}
    options: dict[str, Any] = {"nodata": {"nodata": 0}, "nan": {"nodata": np.nan}, "mask": {"mask": valid}, "alpha": alpha}.get(kind, {})
    if kind in ("nodata", "catalog nodata", "nan"):
        pixels[:, ~valid] = np.nan if kind == "nan" else 0
    if kind == "alpha":
        pixels[3] = valid * 255
    path = write(tmp_path / "file.tif", pixels, **options)
    asset = Asset(str(path), (1, 2, 3), 0 if kind == "catalog nodata" else None)
    with rasterio.open(path) as file:
        window = Window(5, 3, 40, 50)
        expected = np.nan_to_num(np.broadcast_to(file.read(window=window)[:3], (3, 50, 40)))
        seen = valid[3:53, 5:45]
        if kind != "catalog nodata":
            assert ((file.dataset_mask(window=window) > 0) == seen).all()

    rgb, mask = read_scenes([scene(asset, stretch=(0.0, 255.0) if kind == "nan" else None)], GRID.geobox(LEFT + 5, TOP + 3, 40, 50))

    assert rgb.dtype == np.uint8
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, seen)
    np.testing.assert_array_equal(rgb, np.moveaxis(expected, 0, -1).astype(np.uint8) * seen[..., None])


def test_bands_come_in_the_order_asked_for_from_one_file_or_three(tmp_path: Path) -> None:
    pixels = noise((4, 64, 96))
    together = write(tmp_path / "bgr.tif", pixels)
    apart = [write(tmp_path / f"{band}.tif", pixels[band : band + 1]) for band in (2, 1, 0)]
    rgb, _ = read_scenes([scene(Asset(str(together), (3, 2, 1)))], HERE)
    separate, _ = read_scenes([Scene("c", "2020-01-01", (Source("i", WORLD, tuple(Asset(str(path), (1,)) for path in apart)),))], HERE)
    np.testing.assert_array_equal(rgb, np.moveaxis(pixels[[2, 1, 0]], 0, -1))
    np.testing.assert_array_equal(separate, rgb)


def test_a_pixel_is_valid_where_all_files_of_its_item_are(tmp_path: Path) -> None:
    pixels = noise((1, 64, 96))
    pixels[0, 10] = 0
    paths = [write(tmp_path / "holed.tif", pixels, nodata=0), write(tmp_path / "whole.tif", noise((1, 64, 96)))]
    assets = tuple(Asset(str(path), (1,)) for path in [paths[0], paths[1], paths[1]])
    rgb, valid = read_scenes([Scene("c", "2020-01-01", (Source("i", WORLD, assets),))], HERE)
    assert not valid[10].any()
    assert valid.sum() == 63 * 96
    assert not rgb[10].any()


def test_black_is_a_colour_when_only_all_zeros_are_missing(tmp_path: Path) -> None:
    pixels = noise((3, 64, 96))
    pixels[0] = 0
    pixels[:, 5] = 0
    rgb, valid = read_scenes([scene(write(tmp_path / "file.tif", pixels, nodata=0))], HERE)
    assert valid.sum() == 63 * 96
    np.testing.assert_array_equal(rgb, np.moveaxis(pixels, 0, -1))


def test_a_mask_in_the_file_goes_before_the_nodata_value_of_the_catalog(tmp_path: Path) -> None:
    """Lossy files hold a nodata value here and there in good pixels; whoever wrote a mask knew."""
    valid, pixels = holes(64, 96), np.full((3, 64, 96), 200, np.uint8)
    path = write(tmp_path / "file.tif", pixels, mask=valid, compress="deflate")
    _, seen = read_scenes([scene(Asset(str(path), (1, 2, 3), 200))], HERE)
    np.testing.assert_array_equal(seen, valid)


def test_a_colour_map_becomes_colours_on_every_grid(tmp_path: Path) -> None:
    path = tmp_path / "classes.tif"
    index = noise((1, 64, 96)) % 5 * 40
    colours = {value: (value, 255 - value, value // 2, 255) for value in range(0, 200, 40)}
    write(path, index)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, colours)
    rgb, _ = read_scenes([scene(path)], HERE)
    np.testing.assert_array_equal(rgb, np.stack([index[0], 255 - index[0], index[0] // 2], axis=-1))
    warped, valid = read_scenes([scene(path)], ELSEWHERE[0])
    assert {tuple(colour) for colour in warped[valid]} <= {colour[:3] for colour in colours.values()}


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint8"])
def test_the_stretch_is_linear_rounds_half_up_and_clips(tmp_path: Path, dtype: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (3, 64, 96)).astype(dtype) * np.array(1 if dtype == "uint8" else 20, dtype)
    low, high = (30, 200) if dtype == "uint8" else (500, 3000)
    expected = np.clip(np.floor((pixels.astype(float) - low) * 255 / (high - low) + 0.5), 0, 255)
    rgb, valid = read_scenes([scene(write(tmp_path / "raw.tif", pixels), stretch=(low, high))], HERE)
    assert valid.all()
    np.testing.assert_array_equal(rgb, np.moveaxis(expected, 0, -1))


# --- on other grids: places are a formula, so colours are known


def ramp(width: int, height: int) -> np.ndarray:
    """(3, height, width) float32: red = metres east, green = metres south of the corner, blue = their sum, of pixel centres."""
    x, y = np.meshgrid(10 * (np.arange(width) + 0.5), 10 * (np.arange(height) + 0.5))
    return np.stack([x, y, x + y]).astype(np.float32)


@pytest.mark.parametrize("overviews", [None, [2, 4, 8]])
@pytest.mark.parametrize("crs", ["EPSG:32618", "EPSG:32617", "EPSG:3857", "EPSG:4326"])
@pytest.mark.parametrize("scale", [0.4, 1.3, 4.0, 16.0])
def test_a_ramp_shows_that_pixels_are_where_they_belong(tmp_path: Path, crs: str, scale: float, overviews: list[int] | None) -> None:
    size = 1024
    path = write(tmp_path / "ramp.tif", ramp(size, size), overviews=overviews, tiled=True)
    full = GRID.geobox(LEFT, TOP, size, size)
    middle = full[size // 4 : -size // 4, size // 4 : -size // 4]
    box = middle.extent.to_crs(crs).boundingbox
    side = int(size / 2 / scale)
    geobox = GeoBox.from_bbox(box, crs, shape=(side, side)) if scale >= 4 else _window_at(box, crs, scale)

    rgb, valid = read_scenes([scene(path, stretch=(0.0, 20.0 * size))], geobox)

    x, y = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
    world = geobox.transform @ (x.ravel(), y.ravel())
    east, north = (np.array(values) for values in rasterio.warp.transform(crs, GRID.crs, *world))
    truth = np.stack([east - full.transform.c, full.transform.f - north], axis=-1)
    truth = np.column_stack([truth, truth.sum(axis=1)]) * 255 / (20.0 * size)
    assert valid.all()
    # Half a grey level of rounding, and a tenth of a pixel of place.
    place = 0.1 * 10 * max(scale, 1) * 255 / (20.0 * size)
    assert np.abs(rgb.reshape(-1, 3) - truth).max() < 0.5 + 2 * place


def _window_at(box: Any, crs: str, scale: float) -> GeoBox:
    """48 x 40 pixels in the middle of box, scale times as coarse as GRID."""
    unit = 1 / 111_320 if crs == "EPSG:4326" else 1.0
    x, y, resolution = (box.left + box.right) / 2, (box.bottom + box.top) / 2, 10 * scale * unit
    return GeoBox((40, 48), Affine(resolution, 0, x, 0, -resolution, y), crs)


@pytest.mark.parametrize("geobox", ELSEWHERE)
@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "nan"])
def test_missing_pixels_are_the_nearest_ones_and_tint_nothing(tmp_path: Path, kind: str, geobox: GeoBox) -> None:
    valid = holes(64, 96)
    pixels = np.full((4 if kind == "alpha" else 3, 64, 96), 200, "float32" if kind == "nan" else "uint8")
    pixels[:, ~valid] = np.nan if kind == "nan" else 255 if kind == "nodata" else 0
    if kind == "alpha":
        pixels[3] = valid * 255
    alpha = {"photometric": "RGB", "alpha": "yes"}
    options: dict[str, Any] = {"nodata": {"nodata": 255}, "nan": {}, "mask": {"mask": valid}, "alpha": alpha}[kind]
    path = write(tmp_path / "file.tif", pixels, **options)

    rgb, seen = read_scenes([scene(path, stretch=(0.0, 255.0) if kind == "nan" else None)], geobox)

    expected = np.zeros(geobox.shape, np.uint8)
    grid = {"src_transform": HERE.transform, "src_crs": GRID.crs, "dst_transform": geobox.transform, "dst_crs": str(geobox.crs)}
    rasterio.warp.reproject(valid.astype(np.uint8), expected, **grid, resampling=Resampling.nearest, tolerance=0)
    assert 0.05 < seen.mean() < 0.8
    assert (seen == (expected > 0)).mean() > 0.999  # the nearest of two equally near is a matter of rounding
    assert (rgb[seen] == 200).all()
    assert not rgb[~seen].any()


def test_coarse_pixels_average_what_is_there(tmp_path: Path) -> None:
    pixels, valid = noise((3, 64, 96)), holes(64, 96)
    pixels[:, ~valid] = 0
    coarse = Grid(GRID.crs, 80.0).geobox(LEFT // 8, TOP // 8, 12, 8)
    rgb, seen = read_scenes([scene(write(tmp_path / "file.tif", pixels, nodata=0))], coarse)
    cells = np.where(valid, pixels, np.nan).astype(float).reshape(3, 8, 8, 12, 8)
    assert seen.all()
    np.testing.assert_allclose(rgb, np.moveaxis(np.nanmean(cells, axis=(2, 4)), 0, -1), atol=0.51)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_coarse_grid_is_read_from_the_overview_that_fits(tmp_path: Path, factor: int) -> None:
    path = write(tmp_path / "file.tif", noise((3, 256, 256)), overviews=[2, 4, 8])
    with rasterio.open(path, overview_level=[2, 4, 8].index(factor)) as file:
        overview = file.read()
    rgb, _ = read_scenes([scene(path)], Grid(GRID.crs, 10.0 * factor).geobox(LEFT // factor, TOP // factor, 256 // factor, 256 // factor))
    np.testing.assert_array_equal(rgb, np.moveaxis(overview, 0, -1))


@pytest.fixture(scope="module")
def speckled(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene(write(tmp_path_factory.mktemp("speckled") / "file.tif", noise((3, 300, 300)), mask=holes(300, 300), overviews=[2, 4]))


@settings(max_examples=30)
@given(
    st.sampled_from(["EPSG:32618", "EPSG:32617", "EPSG:3857"]),
    st.sampled_from([10.0, 9.0, 13.0, 27.0]),
    st.tuples(*[st.integers(0, 60)] * 4),
    st.integers(0, 5),
)
def test_a_window_of_a_picture_is_the_picture_of_the_window(
    speckled: Scene, crs: str, resolution: float, window: tuple[int, int, int, int], shift: int
) -> None:
    x, y = GRID.geobox(LEFT, TOP, 300, 300).extent.to_crs(crs).centroid.points[0]
    grid = Grid(crs, resolution)
    left, top = int(x / resolution) - 40 + shift, int(-y / resolution) - 40
    row, column, height, width = window[0], window[1], window[2] + 1, window[3] + 1
    rgb, valid = read_scenes([speckled], grid.geobox(left, top, 122, 122))
    part, seen = read_scenes([speckled], grid.geobox(left + column, top + row, width, height))
    np.testing.assert_array_equal(seen, valid[row : row + height, column : column + width])
    difference = np.abs(part.astype(int) - rgb[row : row + height, column : column + width])
    assert difference.max() <= 1  # a half that the last digit of a place rounds the other way ...
    assert (difference > 0).sum() <= 3 + 0.01 * difference.size  # ... is rare


# --- many files


def test_the_first_valid_pixel_wins_scene_by_scene(tmp_path: Path) -> None:
    layers = [np.random.default_rng(seed).random((64, 96)) < 0.5 for seed in range(4)]
    paths = [write(tmp_path / f"{value}.tif", np.full((3, 64, 96), 10 + value, np.uint8), mask=layer) for value, layer in enumerate(layers)]
    rgb, valid = read_scenes([scene(paths[2], paths[0]), scene(paths[3], paths[1])], HERE)
    order = [2, 0, 3, 1]
    first = np.select([layers[value] for value in order], [10 + value for value in order], 0)
    np.testing.assert_array_equal(rgb[..., 1], first)
    np.testing.assert_array_equal(valid, first > 0)


def test_files_that_are_not_needed_stay_closed(tmp_path: Path) -> None:
    full = write(tmp_path / "full.tif", noise((3, 64, 96)))
    west, south, east, north = transform_bounds(GRID.crs, "EPSG:4326", *HERE.extent.boundingbox)
    away = scene(tmp_path / "not there.tif", footprint=shapely.box(west - 1, south, west - 0.5, north))
    assert read_scenes([away, scene(full), scene(tmp_path / "not there.tif")], HERE)[1].all()
    near = scene(full, footprint=shapely.box(west, south, east, north))
    assert scenes_near([away, near, away], HERE) == [near]
    with pytest.raises(ReadError):
        read_scenes([scene(tmp_path / "not there.tif"), scene(full)], HERE)


@pytest.mark.parametrize("crs", ["EPSG:32618", "EPSG:32745", "EPSG:3857", "EPSG:4326", "EPSG:3031"])
def test_ground_that_no_file_covers_is_not_valid(tmp_path: Path, crs: str) -> None:
    path = write(tmp_path / "file.tif", noise((3, 64, 96)))
    rgb, valid = read_scenes([scene(path)], GeoBox((20, 30), Affine(0.001, 0, 10, 0, -0.001, 20), crs))
    assert not valid.any()
    assert not rgb.any()
    assert not read_scenes([], HERE)[1].any()


def test_ground_control_points_place_a_file_as_its_transform_does(tmp_path: Path) -> None:
    pixels = ramp(96, 64)
    placed = write(tmp_path / "placed.tif", pixels)
    path = tmp_path / "gcps.tif"
    corners = [(0, 0), (96, 0), (0, 64), (96, 64), (48, 32)]
    points = [GroundControlPoint(row, column, *(HERE.transform @ (column, row))) for column, row in corners]
    with rasterio.open(path, "w", driver="GTiff", width=96, height=64, count=3, dtype="float32", gcps=points, crs=GRID.crs) as file:
        file.write(pixels)
    with rasterio.open(path) as file:
        assert file.crs is None
    inner = GeoBox.from_bbox((500_100, 3_999_500, 500_800, 3_999_900), GRID.crs, resolution=6)
    expected, _ = read_scenes([scene(placed, stretch=(0, 2000))], inner)
    rgb, valid = read_scenes([scene(path, stretch=(0, 2000))], inner)
    assert valid.all()
    assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_threads_read_what_one_reads(speckled: Scene) -> None:
    boxes = [GRID.geobox(LEFT + 3 * i, TOP + 2 * i, 100, 100) for i in range(24)]
    serial = [read_scenes([speckled], box) for box in boxes]
    with ThreadPoolExecutor(4) as pool:
        for (rgb, valid), (other, seen) in zip(serial, pool.map(lambda box: read_scenes([speckled], box), boxes), strict=True):
            np.testing.assert_array_equal(rgb, other)
            np.testing.assert_array_equal(valid, seen)


MEASURE = """
import sys
from pathlib import Path
import shapely
from geopixel.raster import read_scenes
from geopixel.types import Asset, Grid, Scene, Source
path, resolution, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
def resident(name):
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
def read(size):
    scene = Scene("c", "2020-01-01", (Source("i", shapely.box(-180, -90, 180, 90), (Asset(path, (1, 2, 3)),)),), (0.0, 1000.0))
    return read_scenes([scene], Grid("EPSG:32618", resolution).geobox(int(500_000 / resolution), -int(4_000_000 / resolution), size, size))
read(2)  # what loads once
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
valid = read(size)[1]
assert valid.mean() > 0.9, valid.mean()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("edge", "resolution", "size"), [(9_000, 300.0, 290), (9_000, 30.0, 2900)])
def test_a_read_takes_no_more_memory_than_it_says(tmp_path: Path, edge: int, resolution: float, size: int) -> None:
    """Files of 486 MB without tiles or overviews, shrunk 30 times, or into a picture that is large itself."""
    path = tmp_path / "huge.tif"
    place = {"crs": GRID.crs, "transform": Affine(10, 0, 499_990, 0, -10, 4_000_010), "width": edge, "height": edge, "count": 3, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", compress="deflate", SPARSE_OK=True, **place):
        pass
    command = [sys.executable, "-c", MEASURE, str(path), str(resolution), str(size)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < read_memory(GRID.geobox(0, 0, size, size)) - MAX_BLOCK_BYTES  # its blocks are rows
    assert peak < 450e6


def test_a_file_whose_blocks_do_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "file.tif", noise((3, 64, 96)), blockysize=64)
    monkeypatch.setattr("geopixel.raster.files.MAX_BLOCK_BYTES", 2000)
    with pytest.raises(ReadError, match="file.tif: its blocks of"):
        read_scenes([scene(path)], HERE)


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    """Files stay open between reads; what is on the disk counts."""
    path = write(tmp_path / "file.tif", np.full((3, 64, 96), 5, np.uint8))
    assert (read_scenes([scene(path)], HERE)[0] == 5).all()
    os.utime(write(path, np.full((3, 64, 96), 9, np.uint8)), (1, 1))
    assert (read_scenes([scene(path)], HERE)[0] == 9).all()


# --- what cannot be read


def _unreadable(folder: Path, kind: str) -> Asset:
    path = folder / "file.tif"
    if kind == "not a raster":
        path.write_text("hello")
    elif kind == "cut short":
        write(path, noise((3, 64, 96)))
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "no crs":
        write(path, noise((3, 64, 96)), crs=None)
    elif kind == "on mars":
        write(path, noise((3, 64, 96)), crs="+proj=eqc +R=3396190 +units=m +no_defs +type=crs")
    elif kind != "not there":
        write(path, noise((3, 64, 96), "uint16" if kind == "sixteen bits" else "uint8"))
    return Asset(str(path), (1, 2, 7) if kind == "too few bands" else (1, 2, 3))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("not there", "No such file"),
        ("not a raster", "not recognized"),
        ("cut short", ""),
        ("no crs", "no coordinate reference system"),
        ("on mars", "EPSG:3857"),
        ("too few bands", "band 7"),
        ("sixteen bits", "collection aerial holds uint16 pixels and no stretch is known: set stretch"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason_on_one_line(tmp_path: Path, kind: str, why: str) -> None:
    asset = _unreadable(tmp_path, kind)
    geobox = GeoBox.from_bbox(HERE.extent.to_crs("EPSG:3857").boundingbox, "EPSG:3857", shape=(64, 96))
    with pytest.raises(ReadError) as caught:
        read_scenes([scene(asset)], geobox)
    message = str(caught.value)
    assert asset.href in message
    assert why in message
    assert "\n" not in message


# --- files behind HTTP


class Ranges(SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges, and tokens as the Planetary Computer does."""

    def do_GET(self) -> None:
        if self.path.startswith("/token/"):
            return self._send(200, json.dumps({"msft:expiry": "2100-01-01T00:00:00Z", "token": f"sig=for{self.path[6:]}"}).encode())
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self._send(404, b"")
        data = path.read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self._send(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}", "Accept-Ranges": "bytes"})

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=folder)) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """In a process of its own: rasterio holds the interpreter while GDAL waits for an answer."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_raster; test_raster.serve({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


def test_a_file_behind_http_reads_as_the_file(tmp_path: Path, server: str) -> None:
    path = write(tmp_path / "file.tif", noise((3, 64, 96)), mask=holes(64, 96))
    for geobox in (HERE, ELSEWHERE[0]):
        rgb, valid = read_scenes([scene(Asset(f"{server}/file.tif", (1, 2, 3)))], geobox)
        expected, seen = read_scenes([scene(path)], geobox)
        np.testing.assert_array_equal(rgb, expected)
        np.testing.assert_array_equal(valid, seen)
    with pytest.raises(ReadError, match="not.tif.*404"):
        read_scenes([scene(Asset(f"{server}/not.tif", (1, 2, 3)))], HERE)


# --- odd real files


@pytest.mark.parametrize("name", ["cog_rgb", "cog_rgb_mask", "cog_rgba", "cog_uint8_rgb_mask", "cog_uint8_rgb_nodata", "cog_uint8_rgba", "cog_cmap"])
def test_real_8_bit_files_on_their_own_grid(shared: Path, name: str) -> None:
    path = shared / "rasters" / f"{name}.tif"
    with rasterio.open(path) as file:
        window = Window(40, 30, 150, 120)
        pixels, seen = file.read(window=window), file.dataset_mask(window=window) > 0
        if file.colorinterp[0] == ColorInterp.palette:
            table = np.array([file.colormap(1)[value][:3] for value in range(256)], np.uint8)
            pixels = np.moveaxis(table[pixels[0]], -1, 0)
        geobox = GeoBox((120, 150), file.window_transform(window), str(file.crs))
    rgb, valid = read_scenes([scene(path)], geobox)
    np.testing.assert_array_equal(valid, seen)
    np.testing.assert_array_equal(rgb, np.moveaxis(pixels[:3], 0, -1) * seen[..., None])


@pytest.mark.parametrize("name", ["cog", "cog_nodata", "cog_int16", "cog_nodata_nan", "cog_fullearth", "cog_dateline", "mosaic_cog1"])
def test_real_raw_files_on_their_own_grid(shared: Path, name: str) -> None:
    path = shared / "rasters" / f"{name}.tif"
    with rasterio.open(path) as file:
        window = Window(100, 50, 150, 120)
        pixels, seen = file.read(window=window), file.dataset_mask(window=window) > 0
        geobox = GeoBox((120, 150), file.window_transform(window), str(file.crs))
    shown = np.clip(np.floor(np.nan_to_num(pixels.astype(float)) * 255 / 10000 + 0.5), 0, 255)
    seen &= np.isfinite(pixels).all(axis=0)
    rgb, valid = read_scenes([scene(path, stretch=(0, 10000))], geobox)
    np.testing.assert_array_equal(valid, seen)
    np.testing.assert_array_equal(rgb, np.moveaxis(np.broadcast_to(shown, (3, 120, 150)), 0, -1) * seen[..., None])


@pytest.mark.parametrize("name", ["cog_hirise_mars", "cog_nonearth"])
def test_other_planets_are_refused(shared: Path, name: str) -> None:
    with pytest.raises(ReadError, match="another planet"):
        read_scenes([scene(shared / "rasters" / f"{name}.tif", stretch=(0, 1))], HERE)


def test_a_file_across_the_antimeridian_is_seen_from_both_sides(shared: Path) -> None:
    path = shared / "rasters" / "cog_dateline.tif"
    for west in (179.6, -180.0):
        _, valid = read_scenes([scene(path, stretch=(0, 10000))], GeoBox.from_bbox((west, 51.5, west + 0.4, 52), "EPSG:4326", shape=50))
        assert valid.any()


def test_the_item_of_every_pixel_is_known(tmp_path: Path) -> None:
    """Counted through all sources in order, those that are elsewhere included."""
    pixels = np.full((3, *HERE.shape), 50, np.uint8)
    pixels[:, :, :10] = 0
    away = Scene("c", "2020-01-02", (Source("away", shapely.box(-10, -10, -9, -9), (Asset(str(tmp_path / "not there.tif"), (1, 2, 3)),)),))
    half, full = write(tmp_path / "half.tif", pixels, nodata=0), write(tmp_path / "full.tif", np.full_like(pixels, 60), nodata=0)
    rgb, origin = read_origins([away, scene(half, full)], HERE)
    width = HERE.shape[1]
    expected = np.broadcast_to(np.where(np.arange(width) < 10, 2, 1), HERE.shape)
    np.testing.assert_array_equal(origin, expected)
    np.testing.assert_array_equal(rgb[..., 0], np.where(expected == 2, 60, 50))
    assert (read_origins([away], HERE)[1] == NO_SCENE).all()
