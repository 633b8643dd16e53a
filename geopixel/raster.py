"""Scenes onto a GeoBox as 8-bit colours and a mask, whatever their files look like: any CRS, pixel type, band order, nodata value,
mask, alpha band, colour map or ground control points. Knows files and grids; nothing of catalogs, tiles or models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import hypot, sqrt
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # GDAL's own errors have no public name
from rasterio.crs import CRS
from rasterio.dtypes import in_dtype_range
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from geopixel import access
from geopixel.errors import ReadError
from geopixel.types import CLOUDED, NO_SCENE, Asset, Scene, Source

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


def read_scenes(scenes: Sequence[Scene], geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the scenes on geobox, as read_origins has them: rgb (height, width, 3) uint8, 0 where not valid, and valid (height, width) bool,
    True where a pixel was observed."""
    rgb, origin = read_origins(scenes, geobox)
    return rgb, origin < CLOUDED


def read_origins(scenes: Sequence[Scene], geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the scenes on geobox, and where they are from: the first valid pixel wins, scene by scene, source by source.

    Returns rgb (height, width, 3) uint8, 0 where not valid, and origin (height, width) uint16, the index of the pixel's source, counted
    through the sources of all scenes in order; NO_SCENE where none has a valid pixel.
    On the raster's own grid the pixels are the file's; on another they are bilinear, and valid is that of the nearest source
    pixel; on a grid more than DOWNSAMPLED times coarser they are averages of the valid source pixels (of the overview that fits),
    and valid where there is one. Raw values are stretched linearly, Scene.stretch -> 0..255, half up.

    Safe in threads: every call opens its own handles. Files whose footprint is elsewhere, or under ground already seen, stay closed.
    Raises ReadError, naming the file and why, for one that cannot be opened, read, placed on Earth or shown in 8 bits.
    """
    rgb = np.zeros((*geobox.shape, 3), np.uint8)
    origin = np.full(geobox.shape, NO_SCENE, np.uint16)
    index = {id(source): index for index, source in enumerate(source for scene in scenes for source in scene.sources)}
    for scene in scenes_near(scenes, geobox):
        for source in scene.sources:
            missing = origin == NO_SCENE
            if not missing.any():
                return rgb, origin
            colours, seen = _read_source(source, geobox, scene)
            new = seen & missing
            rgb[new] = colours[new]
            origin[new] = index[id(source)]
    return rgb, origin


def scenes_near(scenes: Sequence[Scene], geobox: GeoBox) -> list[Scene]:
    """The scenes with the sources that may have pixels on geobox, in the same order; scenes without any are left out."""
    extent = geobox.geographic_extent.geom
    size = _diagonal(extent)
    near = [replace(scene, sources=tuple(source for source in scene.sources if _touches(source.footprint, extent, size))) for scene in scenes]
    return [scene for scene in near if scene.sources]


def _touches(footprint: shapely.Geometry, extent: shapely.Geometry, size: float) -> bool:
    # The edges of a footprint are straight in degrees, those of its raster in its CRS: they part by up to 1 % of their length
    # (an edge of 110 km at 75 degrees north sags 0.9 km).
    return bool(shapely.dwithin(footprint, extent, 0.01 * max(size, _diagonal(footprint))))


def _diagonal(geometry: shapely.Geometry) -> float:
    west, south, east, north = geometry.bounds
    return hypot(east - west, north - south)


def _read_source(source: Source, geobox: GeoBox, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(height, width, 3) uint8 and (height, width) bool: valid where every asset is."""
    bands: list[np.ndarray] = []
    valid = np.ones(geobox.shape, np.bool_)
    for asset in source.assets:
        pixels, seen = _read_asset(asset, geobox)
        bands.extend(_eight_bit(pixels, scene, asset))
        valid &= seen
    if len(bands) not in (1, 3):
        raise ReadError(f"cannot read item {source.item}: its files give {len(bands)} bands, 1 or 3 are needed")
    return np.stack(bands * 3 if len(bands) == 1 else bands, axis=-1), valid


def _eight_bit(pixels: np.ndarray, scene: Scene, asset: Asset) -> np.ndarray:
    """Raw pixels, any shape and type, as uint8: 0 at stretch[0] and below, 255 at stretch[1] and above, rounded half up."""
    if scene.stretch is None:
        if pixels.dtype != np.uint8:
            raise ReadError(f"cannot show {asset.href}: collection {scene.collection} holds {pixels.dtype} pixels and no stretch is known: set stretch")
        return pixels
    low, high = scene.stretch
    shown = (np.nan_to_num(pixels.astype(np.float64)) - low) * 255.0 / (high - low)  # in this order a half is exactly a half
    return np.floor(np.clip(shown, 0.0, 255.0) + 0.5).astype(np.uint8)


@access.signs_again
def _read_asset(asset: Asset, geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Raw pixels (bands, height, width) and valid (height, width) bool."""
    with _opened(asset, geobox) as (dataset, palette):
        bands = _present_bands(asset, dataset)
        *pixels, alpha = _warped(dataset, geobox, bands, asset.nodata, nearest=palette is not None)
    values = np.stack(pixels)
    valid = alpha > 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    if palette is not None:
        values = np.moveaxis(palette[values[0]], -1, 0)
    return values, valid


@contextmanager
def _opened(asset: Asset, geobox: GeoBox) -> Iterator[tuple[DatasetReader, np.ndarray | None]]:
    """The asset at the overview that suits geobox, and its colour map (values, 3) uint8 if it has one. Failures inside become ReadError."""
    href = asset.href
    try:
        with ExitStack() as stack:
            stack.enter_context(rasterio.Env(**access.read_options(asset)))
            href = access.signed(asset)
            dataset = stack.enter_context(access.open_raster(href))
            if dataset.crs is None and not dataset.gcps[0]:
                raise ReadError(f"cannot read {asset.href}: it has no coordinate reference system")
            palette = _palette(dataset)
            level = _overview_level(dataset, _shrinkage(dataset, geobox))
            if level is not None:
                dataset = stack.enter_context(access.open_raster(href, overview_level=level))
            if dataset.crs is None:
                # Ground control points: GDAL places them on a grid of its own choice only, so that grid is warped once more.
                dataset = stack.enter_context(WarpedVRT(dataset, crs=dataset.gcps[1], **_missing(dataset, asset.nodata), **WARP_OPTIONS))
            yield dataset, palette
    except (RasterioError, CPLE_BaseError, OSError, CRSError) as error:
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


def _overview_level(dataset: DatasetReader, shrinkage: float) -> int | None:
    """The coarsest overview that is still as fine as the GeoBox; None: the full resolution."""
    fine = [level for level, factor in enumerate(dataset.overviews(1)) if factor <= shrinkage * 1.001]
    return fine[-1] if fine else None


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


def _warped(dataset: DatasetReader, geobox: GeoBox, bands: list[int], nodata: float | None, *, nearest: bool) -> np.ndarray:
    """(bands + 1, height, width) in the file's type; the last is alpha, above 0 where valid."""
    height, width = geobox.shape
    if nearest or _same_grid(dataset, geobox):
        resampling = Resampling.nearest
    else:
        resampling = Resampling.average if _shrinkage(dataset, geobox) > DOWNSAMPLED else Resampling.bilinear
    grid: dict[str, Any] = {"crs": str(geobox.crs), "transform": Affine(*geobox.transform[:6]), "width": width, "height": height}
    with WarpedVRT(dataset, resampling=resampling, **grid, **_missing(dataset, nodata), **WARP_OPTIONS) as warped:
        return warped.read([*bands, warped.colorinterp.index(ColorInterp.alpha) + 1])


def _same_grid(dataset: DatasetReader, geobox: GeoBox) -> bool:
    """Whether every pixel of geobox is a pixel of the file, to a hundredth of a pixel."""
    if dataset.crs != CRS.from_user_input(str(geobox.crs)):
        return False
    to_pixel = ~dataset.transform @ Affine(*geobox.transform[:6])
    height, width = geobox.shape
    right, down = round(to_pixel.c), round(to_pixel.f)
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    return all(hypot(x - column - right, y - row - down) < 0.01 for column, row in corners for x, y in [to_pixel @ (column, row)])
