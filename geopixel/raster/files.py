"""One file onto a GeoBox as raw pixels and a mask: opened once a thread, at the overview that suits, cropped where nothing is to be warped, in pieces
where it is large. Knows files and grids; nothing of scenes or colours on a screen."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from math import hypot, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # GDAL's own errors have no public name
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.dtypes import in_dtype_range
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer, from_gcps
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject, transform
from rasterio.windows import Window

from geopixel import access
from geopixel.errors import ReadError
from geopixel.tally import level_factor, note
from geopixel.types import Asset

CACHE_BYTES = 64 * 2**20
"""Of decoded blocks that GDAL keeps for a process; its own default grows with the machine."""
SOURCE_BYTES = 64 * 2**20
"""Raw pixels of a file that are warped together."""
MAX_HANDLES = 16
"""Open files of a thread."""
MAX_BLOCK_BYTES = 256 * 2**20
"""Decoded; a file whose blocks are larger, one compressed strip of a huge image, say, is refused."""

DOWNSAMPLED = 1.5
"""Source pixels along the edge of a GeoBox pixel from which on colours are averages; below, they are interpolated."""

WARP_OPTIONS: dict[str, Any] = {
    # A pixel is missing where all of its bands are: black needs all three zeros.
    "UNIFIED_SRC_NODATA": "YES",
    # GDAL else guesses the kernel's width from the window: the same ground would read differently in two overlapping windows.
    "XSCALE": 1,
    "YSCALE": 1,
    # Pixels of error allowed when places are interpolated; as good as none, and for the same reason.
    "tolerance": 1e-6,
}


def places_in(geobox: GeoBox, across: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y in its CRS of places in geobox, given as shares of its width and height."""
    a, b, c, d, e, f = geobox.transform[:6]
    columns, rows = across * geobox.shape[1], down * geobox.shape[0]
    return a * columns + b * rows + c, d * columns + e * rows + f


@access.signs_again
def read_classes(asset: Asset, geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """(height, width) values of the nearest pixels, whatever the file calls missing, and (height, width) bool: inside the file."""
    with _opened(asset, geobox) as (dataset, _):
        (values,), inside = _read_bands(dataset, geobox, _present_bands(asset, dataset), {"src_nodata": None, "add_alpha": True}, nearest=True)
    return values, inside


@access.signs_again
def read_asset(asset: Asset, geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Raw pixels (bands, height, width) and valid (height, width) bool."""
    with _opened(asset, geobox) as (dataset, palette):
        bands = _present_bands(asset, dataset)
        values, valid = _read_bands(dataset, geobox, bands, _missing(dataset, asset.nodata), nearest=palette is not None)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    if palette is not None:
        values = np.moveaxis(palette[values[0]], -1, 0)
    return values, valid


class _Handles(threading.local):
    """Files that this thread has open, the last few: neighbouring tiles share blocks, which GDAL keeps decoded as long as their file is open. A
    handle is never shared between threads: that gives wrong pixels."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[str, Any, int | None], DatasetReader] = OrderedDict()

    def opened(self, href: str, level: int | None = None) -> DatasetReader:
        """The file as it is now, at an overview or at its full resolution."""
        status = None if "://" in href or href.startswith("/vsi") else Path(href).stat()
        key = (href, status and (status.st_mtime_ns, status.st_size), level)
        if key not in self.kept:
            self.kept[key] = access.open_raster(href) if level is None else access.open_raster(href, overview_level=level)
            if len(self.kept) > MAX_HANDLES:
                self.kept.popitem(last=False)[1].close()
        self.kept.move_to_end(key)
        return self.kept[key]

    def close(self, href: str) -> None:
        for key in [key for key in self.kept if key[0] == href]:
            self.kept.pop(key).close()


_HANDLES = _Handles()


class _DamageOfThread(logging.Handler):
    """From a JPEG or JPEG 2000 stream that is corrupt or broken off GDAL reads on, into pixels of its own making, and tells it in its log only. Keeps
    what it told, each thread its own."""

    SIGNS = ("Corrupt JPEG data", "Premature end of JPEG", "Stream does not end with EOC")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.mine = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if any(sign in (message := record.getMessage()) for sign in self.SIGNS):
            self.mine.told = message

    def forget(self) -> str | None:
        """What was told since this was last asked."""
        return self.mine.__dict__.pop("told", None)


_DAMAGE = _DamageOfThread()
logging.getLogger("rasterio").addHandler(_DAMAGE)


@contextmanager
def _opened(asset: Asset, geobox: GeoBox) -> Iterator[tuple[DatasetReader, np.ndarray | None]]:
    """The asset at the overview that suits geobox, and its colour map (values, 3) uint8 if it has one. Failures inside become ReadError."""
    href = asset.href
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, **access.read_options(asset)):
            href = access.signed(asset)
            dataset = _HANDLES.opened(href)
            if dataset.crs is None and not dataset.gcps[0]:
                raise ReadError(f"cannot read {asset.href}: it has no coordinate reference system")
            if prod(dataset.block_shapes[0]) * dataset.count * np.dtype(dataset.dtypes[0]).itemsize > MAX_BLOCK_BYTES:
                raise ReadError(f"cannot read {asset.href}: its blocks of {dataset.block_shapes[0]} pixels do not fit into memory")
            palette = _palette(dataset)
            factors, shrinkage = (1, *dataset.overviews(1)), _shrinkage(dataset, geobox)
            level = factors.index(level_factor(factors, shrinkage))
            if level:
                dataset = _HANDLES.opened(href, level - 1)
            note(dataset, geobox, asset.bands, shrinkage, factors)
            _DAMAGE.forget()
            yield dataset, palette
            if damage := _DAMAGE.forget():
                raise RasterioIOError(damage)
    except (RasterioError, CPLE_BaseError, OSError, CRSError) as error:
        _HANDLES.close(href)
        while error.__cause__ is not None:  # rasterio wraps GDAL's reason in a general one
            error = error.__cause__
        reason = " ".join(str(error).split()).replace(href, asset.href)  # a signed address is a secret
        raise ReadError(f"cannot read {asset.href}: {reason}") from error


def _present_bands(asset: Asset, dataset: DatasetReader) -> list[int]:
    """The bands wanted. Red, green, blue of a file with fewer colours is its first band, as grey: catalogs often do not tell."""
    count = sum(interpretation != ColorInterp.alpha for interpretation in dataset.colorinterp)
    if asset.bands == (1, 2, 3) and count < 3:
        return [1]
    if max(asset.bands) > dataset.count:
        raise ReadError(f"cannot read {asset.href}: band {max(asset.bands)} is wanted, it has {dataset.count}")
    return list(asset.bands)


def _palette(dataset: DatasetReader) -> np.ndarray | None:
    """(values, 3) uint8: the colour of every value of the first band."""
    if dataset.colorinterp[0] != ColorInterp.palette:
        return None
    colours = np.zeros((np.iinfo(dataset.dtypes[0]).max + 1, 3), np.uint8)
    for value, colour in dataset.colormap(1).items():
        colours[value] = colour[:3]
    return colours


def _shrinkage(dataset: DatasetReader, geobox: GeoBox) -> float:
    """Source pixels along the edge of a GeoBox pixel, at the middle of geobox."""
    crs, pixel_to_world = (dataset.crs, dataset.transform) if dataset.crs else (dataset.gcps[1], from_gcps(dataset.gcps[0]))
    grid_crs = CRS.from_user_input(str(geobox.crs))
    if crs == grid_crs:
        return sqrt(abs((~pixel_to_world @ geobox.transform).determinant))
    height, width = geobox.shape
    corners = [geobox.transform @ (width / 2 + right, height / 2 + down) for right, down in ((0, 0), (1, 0), (0, 1))]
    try:
        xs, ys = transform(grid_crs, crs, *zip(*corners, strict=True))
    except CPLE_BaseError as error:  # it would quote both definitions in full
        name = crs.wkt.split('"')[1]
        raise ReadError(f"cannot read {dataset.name}: its coordinate reference system {name!r} has no way to {geobox.crs} (another planet?)") from error
    if not np.isfinite([*xs, *ys]).all():
        return 1.0  # the middle of geobox cannot be seen in this CRS; GDAL finds out what can
    (x0, y0), (x1, y1), (x2, y2) = (~pixel_to_world @ place for place in zip(xs, ys, strict=True))
    return sqrt(abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)))


def _missing(dataset: DatasetReader, declared: float | None) -> dict[str, Any]:
    """How a warp shall know missing pixels: by the file's alpha band or mask, else by the catalog's nodata value, else by the file's own, else NaN."""
    if ColorInterp.alpha in dataset.colorinterp:
        return {}  # GDAL uses the alpha band and hands it on
    if MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
        return {"src_nodata": None, "add_alpha": True}
    nodata = declared if declared is not None else dataset.nodata
    if nodata is None and np.dtype(dataset.dtypes[0]).kind == "f":
        nodata = np.nan
    if nodata is not None and not in_dtype_range(nodata, dataset.dtypes[0]):
        nodata = None  # no pixel can have it
    return {"src_nodata": nodata, "add_alpha": True}


def _read_bands(dataset: DatasetReader, geobox: GeoBox, bands: list[int], missing: dict[str, Any], *, nearest: bool) -> tuple[np.ndarray, np.ndarray]:
    """Raw pixels (bands, height, width) and valid (height, width) bool. missing: of _missing."""
    place = _same_grid(dataset, geobox)
    if place is not None and dataset.driver == "GTiff":  # of a PNG that is cut short GDAL reads the rest as it likes, without a word; a warp says it
        return _cropped(dataset, geobox, bands, missing, *place)
    shrinkage = _shrinkage(dataset, geobox)
    resampling = Resampling.nearest if nearest or place is not None else Resampling.average if shrinkage > DOWNSAMPLED else Resampling.bilinear
    height, width = geobox.shape
    values = np.empty((len(bands), height, width), dataset.dtypes[0])
    valid = np.empty((height, width), np.bool_)
    # GDAL warps all of what it is asked for at once: asked for less, it takes less memory.
    budget = SOURCE_BYTES / (dataset.count * values.itemsize * max(shrinkage, 1) ** 2)
    columns = min(width, max(1, int(budget)))
    rows = min(height, max(1, int(budget / columns)))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            part = np.s_[top : min(top + rows, height), left : min(left + columns, width)]
            warp = _warped if dataset.crs else _warped_by_points
            values[:, *part], valid[part] = warp(dataset, geobox[part], bands, missing, resampling)
    return values, valid


def _grid(geobox: GeoBox) -> dict[str, Any]:
    return {"crs": str(geobox.crs), "transform": Affine(*geobox.transform[:6]), "width": geobox.shape[1], "height": geobox.shape[0]}


def _warped(
    dataset: DatasetReader, geobox: GeoBox, bands: list[int], missing: dict[str, Any], resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """As _read_bands."""
    with WarpedVRT(dataset, resampling=resampling, **_grid(geobox), **missing, **WARP_OPTIONS) as warped:
        *pixels, alpha = warped.read([*bands, warped.colorinterp.index(ColorInterp.alpha) + 1])
    return np.stack(pixels), alpha > 0


def _warped_by_points(
    dataset: DatasetReader, geobox: GeoBox, bands: list[int], missing: dict[str, Any], resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """As _read_bands, for a file that only ground control points place. WarpedVRT puts it on a grid of GDAL's choice; so what lies on geobox is
    read and warped as an array, once."""
    points, crs = dataset.gcps
    values, valid = np.full((len(bands), *geobox.shape), np.nan), np.zeros(geobox.shape, np.uint8)
    along = np.linspace(0, 1, 9)
    x, y = places_in(geobox, *(values.ravel() for values in np.meshgrid(along, along)))
    with GCPTransformer(points) as place:
        rows, columns = place.rowcol(*transform(str(geobox.crs), crs, x, y), op=float)
    margin = 3 * max(1.0, _shrinkage(dataset, geobox))
    top, bottom = int(max(min(rows) - margin, 0)), int(min(max(rows) + margin, dataset.height))
    left, right = int(max(min(columns) - margin, 0)), int(min(max(columns) + margin, dataset.width))
    if top < bottom and left < right:
        window = Window(left, top, right - left, bottom - top)
        pixels = dataset.read(bands, window=window)
        seen = _seen(dataset, window, pixels, bands, missing)
        moved = [GroundControlPoint(point.row - top, point.col - left, point.x, point.y) for point in points]
        grid = _grid(geobox)
        options = {"gcps": moved, "src_crs": crs, "dst_crs": grid["crs"], "dst_transform": grid["transform"], **WARP_OPTIONS}
        reproject(np.where(seen, pixels, np.nan), values, src_nodata=np.nan, dst_nodata=np.nan, resampling=resampling, **options)
        reproject(seen.astype(np.uint8), valid, resampling=Resampling.nearest, **options)
    dtype = np.dtype(dataset.dtypes[0])
    known = np.asarray(np.isfinite(values).all(axis=0))
    if resampling != Resampling.average:
        known &= valid > 0
    if dtype.kind in "iu":
        values = np.floor(np.nan_to_num(values) + 0.5)
    return values.astype(dtype), known


def _cropped(
    dataset: DatasetReader, geobox: GeoBox, bands: list[int], missing: dict[str, Any], left: int, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """As _read_bands, where the first pixel of geobox is the pixel (left, top) of the file: nothing to warp."""
    height, width = geobox.shape
    column0, column1 = max(left, 0), min(left + width, dataset.width)
    row0, row1 = max(top, 0), min(top + height, dataset.height)
    if column0 >= column1 or row0 >= row1:
        return np.zeros((len(bands), height, width), dataset.dtypes[0]), np.zeros((height, width), np.bool_)
    window = Window(column0, row0, column1 - column0, row1 - row0)
    pixels = dataset.read(bands, window=window)
    seen = _seen(dataset, window, pixels, bands, missing)
    if seen.shape == (height, width):
        return pixels, seen
    around = (row0 - top, top + height - row1), (column0 - left, left + width - column1)
    return np.pad(pixels, ((0, 0), *around)), np.pad(seen, around)


def _seen(dataset: DatasetReader, window: Window, pixels: np.ndarray, bands: list[int], missing: dict[str, Any]) -> np.ndarray:
    """(height, width) bool: what a warp takes for data in this window, of which pixels are the bands."""
    if ColorInterp.alpha in dataset.colorinterp:
        return dataset.read(dataset.colorinterp.index(ColorInterp.alpha) + 1, window=window) > 0
    if MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
        return dataset.read_masks(1, window=window) > 0
    nodata = missing["src_nodata"]
    if nodata is None:
        return np.ones(pixels.shape[1:], np.bool_)

    def is_missing(values: np.ndarray) -> np.ndarray:
        return (np.isnan(values) if np.isnan(nodata) else values == np.array(nodata, values.dtype)).all(axis=0)

    lost = is_missing(pixels)
    others = [band for band in dataset.indexes if band not in bands]
    if others and lost.any():
        lost &= is_missing(dataset.read(others, window=window))
    return ~lost


def _same_grid(dataset: DatasetReader, geobox: GeoBox) -> tuple[int, int] | None:
    """Column and row of the file's pixel that is the first of geobox, if every pixel of geobox is one of the file, to a hundredth of a pixel; else None."""
    if dataset.crs != CRS.from_user_input(str(geobox.crs)):
        return None
    to_pixel = ~dataset.transform @ Affine(*geobox.transform[:6])
    height, width = geobox.shape
    right, down = round(to_pixel.c), round(to_pixel.f)
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    same = all(hypot(x - column - right, y - row - down) < 0.01 for column, row in corners for x, y in [to_pixel @ (column, row)])
    return (right, down) if same else None
