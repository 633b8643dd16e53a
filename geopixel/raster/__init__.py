"""Scenes onto a GeoBox as 8-bit colours and the item of every pixel, whatever their files look like: any CRS, pixel type, band order, nodata
value, mask, alpha band, colour map or ground control points; clouds are left out. Knows files and grids; nothing of catalogs, tiles or models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from math import hypot

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # GDAL's own errors have no public name
from rasterio.warp import transform

from geopixel.errors import ReadError
from geopixel.raster.files import CACHE_BYTES, MAX_BLOCK_BYTES, SOURCE_BYTES, places_in, read_asset, read_classes
from geopixel.types import CLOUDED, NO_SCENE, Asset, Quality, Scene, Source

STRIP_PIXELS = 2**22
"""Of a GeoBox that are read together: bounds the memory, see read_memory."""


def read_scenes(scenes: Sequence[Scene], geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the scenes on geobox, as read_origins has them: rgb (height, width, 3) uint8, 0 where not valid, and valid (height, width) bool,
    True where a pixel was observed."""
    rgb, origin = read_origins(scenes, geobox)
    return rgb, origin < CLOUDED


def read_origins(scenes: Sequence[Scene], geobox: GeoBox, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the scenes on geobox, and where they are from: the first clear pixel wins, scene by scene, source by source.

    Returns rgb (height, width, 3) uint8, 0 where not valid, and origin (height, width) uint16, the index of the pixel's source, counted
    through the sources of all scenes in order; NO_SCENE where none has a valid pixel, CLOUDED where all that have one call it cloud or shadow.
    On the raster's own grid the pixels are the file's; on another they are bilinear, and valid is that of the nearest source
    pixel; on a grid more than DOWNSAMPLED times coarser they are averages of the valid source pixels (of the overview that fits),
    and valid where there is one. Raw values are stretched linearly, Scene.stretch -> 0..255, half up. Clouds are those of the nearest pixel.
    among: (k,) indexes of the only sources that may have pixels there, ascending, where that is known (see assignment); None: all.

    Safe in threads: every call opens its own handles. Files whose footprint is elsewhere, or under ground already seen, stay closed.
    Takes at most read_memory(geobox) bytes. Raises ReadError, naming the file and why, for one that cannot be opened, read, placed on Earth
    or shown in 8 bits.
    """
    rgb = np.zeros((*geobox.shape, 3), np.uint8)
    origin = np.full(geobox.shape, NO_SCENE, np.uint16)
    extent = _extent(geobox)
    near = [(index, scene, source) for index, scene, source in _indexed(scenes, among) if _touches(source.footprint, extent)]
    height, width = geobox.shape
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows) if near else ():
        strip = slice(top, min(top + rows, height))
        _fill(near, geobox[strip, :], rgb[strip], origin[strip])
    return rgb, origin


def _indexed(scenes: Sequence[Scene], among: np.ndarray | None) -> Iterator[tuple[int, Scene, Source]]:
    """The sources, or those among, with their index and scene."""
    if among is None:
        yield from enumerate_sources(scenes)
        return
    first = np.cumsum([0] + [len(scene.sources) for scene in scenes])
    for index, at in zip(among.tolist(), (np.searchsorted(first, among, side="right") - 1).tolist(), strict=True):
        yield index, scenes[at], scenes[at].sources[index - first[at]]


def only(scenes: Sequence[Scene], among: np.ndarray) -> list[Scene]:
    """The scenes with the sources of these ascending indexes, in the same order; scenes without any are left out."""
    groups = groupby(_indexed(scenes, among), key=lambda each: id(each[1]))
    parts = [list(group) for _, group in groups]
    return [replace(part[0][1], sources=tuple(source for _, _, source in part)) for part in parts]


def enumerate_sources(scenes: Sequence[Scene]) -> Iterator[tuple[int, Scene, Source]]:
    """Every source with its index, as read_origins counts them, and its scene."""
    index = 0
    for scene in scenes:
        for source in scene.sources:
            yield index, scene, source
            index += 1


def _fill(near: Sequence[tuple[int, Scene, Source]], geobox: GeoBox, rgb: np.ndarray, origin: np.ndarray) -> None:
    """Reads sources into the pixels of rgb and origin (see read_origins) that still miss one, until none does."""
    for index, scene, source in near:
        missing = origin >= CLOUDED
        if not missing.any():
            return
        colours, seen = _read_source(source, geobox, scene)
        seen &= missing
        if source.quality is not None and seen.any():
            hidden = seen & _read_clouds(source.quality, geobox)
            origin[hidden] = CLOUDED
            seen &= ~hidden
        whole = bool(seen.all())
        for channel, colour in enumerate(colours):
            if whole:
                rgb[..., channel] = colour
            else:
                rgb[..., channel] += colour * seen  # 0 so far; a quarter of the time of rgb[seen] = ...
        np.putmask(origin, seen, index)


def read_memory(geobox: GeoBox) -> int:
    """Bytes that read_origins takes at most, whatever the files are: the result and its strips, GDAL's cache, what is warped together, a block."""
    height, width = geobox.shape
    pixels = height * width
    strip = min(pixels, max(STRIP_PIXELS, width))
    # Of a strip at once: up to four raw bands of 8 bytes, their copy, colours, masks.
    return pixels * 5 + strip * 80 + CACHE_BYTES + 2 * SOURCE_BYTES + MAX_BLOCK_BYTES


def scenes_near(scenes: Sequence[Scene], geobox: GeoBox) -> list[Scene]:
    """The scenes with the sources that may have pixels on geobox, in the same order; scenes without any are left out."""
    extent = _extent(geobox)
    near = [replace(scene, sources=tuple(source for source in scene.sources if _touches(source.footprint, extent))) for scene in scenes]
    return [scene for scene in near if scene.sources]


def _extent(geobox: GeoBox) -> shapely.Geometry | None:
    """The ground of geobox in EPSG:4326, its edges in 8 parts; None where that cannot say where it is."""
    along = np.linspace(0, 1, 9)[:-1]
    across, down = np.concatenate([along, np.ones(8), 1 - along, np.zeros(8)]), np.concatenate([np.zeros(8), along, np.ones(8), 1 - along])
    x, y = places_in(geobox, across, down)
    try:
        lonlat = np.array(transform(str(geobox.crs), "EPSG:4326", x, y)).T
    except CPLE_BaseError:
        return None
    return shapely.polygons(lonlat) if np.isfinite(lonlat).all() else None


def _touches(footprint: shapely.Geometry, extent: shapely.Geometry | None) -> bool:
    # The edges of a footprint are straight in degrees, those of its raster in its CRS: they part by up to 1 % of their length
    # (an edge of 110 km at 75 degrees north sags 0.9 km).
    return extent is None or bool(shapely.dwithin(footprint, extent, 0.01 * max(_diagonal(extent), _diagonal(footprint))))


def _diagonal(geometry: shapely.Geometry) -> float:
    west, south, east, north = geometry.bounds
    return hypot(east - west, north - south)


def _read_source(source: Source, geobox: GeoBox, scene: Scene) -> tuple[list[np.ndarray], np.ndarray]:
    """Red, green, blue, (height, width) uint8 each, and (height, width) bool: valid where every asset is."""
    bands: list[np.ndarray] = []
    valid = np.ones(geobox.shape, np.bool_)
    for asset in source.assets:
        pixels, seen = read_asset(asset, geobox)
        bands.extend(_eight_bit(pixels, scene, asset))
        valid &= seen
    if len(bands) not in (1, 3):
        raise ReadError(f"cannot read item {source.item}: its files give {len(bands)} bands, 1 or 3 are needed")
    return bands * (3 // len(bands)), valid


def _read_clouds(quality: Quality, geobox: GeoBox) -> np.ndarray:
    """(height, width) bool: what the nearest pixel of the quality band calls cloud or shadow; False beyond its file."""
    values, inside = read_classes(quality.asset, geobox)
    values = values.astype(np.int64)
    hidden = np.isin(values, quality.values) | (values & sum(1 << bit for bit in quality.bits) != 0)
    return hidden & inside


def _eight_bit(pixels: np.ndarray, scene: Scene, asset: Asset) -> list[np.ndarray]:
    """Raw bands, any shape and type, as uint8: 0 at stretch[0] and below, 255 at stretch[1] and above, rounded half up."""
    if scene.stretch is None:
        if pixels.dtype != np.uint8:
            raise ReadError(f"cannot show {asset.href}: collection {scene.collection} holds {pixels.dtype} pixels and no stretch is known: set stretch")
        return list(pixels)
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return [_stretched(band, *scene.stretch) for band in pixels]
    limits = np.iinfo(pixels.dtype)
    table = _stretched(np.arange(limits.min, limits.max + 1), *scene.stretch)
    return [table[band.astype(np.int32) - limits.min] for band in pixels]


def _stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    shown = np.nan_to_num(values.astype(np.float64))
    shown -= low
    shown *= 255.0
    shown /= high - low  # in this order a half is exactly a half
    return np.floor(np.clip(shown, 0.0, 255.0, out=shown) + 0.5).astype(np.uint8)


