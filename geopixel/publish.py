"""Shows a finished run to people and to catalogs: quicklook.png, the features drawn over the imagery, and item.json, a STAC Item that names
what the run made, of what ground and from what. Reads the imagery once, coarse; knows nothing of how the features came about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from math import floor, log10

import geopandas as gpd
import numpy as np
import pystac
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image, ImageChops, ImageDraw, ImageFont
from pyproj import CRS, Geod, Transformer
from shapely import Geometry
from shapely.geometry import mapping

from geopixel.errors import ReadError
from geopixel.raster import read_scenes
from geopixel.storage import Folder
from geopixel.types import Grid, Scene, State, Tile

ITEM = "item.json"
QUICKLOOK = "quicklook.png"
PARQUET = "application/vnd.apache.parquet"
ASSETS = {
    "masks.zarr": ("application/vnd.zarr; version=3", "data", "Mask and confidence of every prompt, state of every pixel, with overviews"),
    "features.parquet": (PARQUET, "data", "Outlines of what was found, GeoParquet"),
    "coverage.parquet": (PARQUET, "metadata", "What became of every tile, GeoParquet"),
    "plan.parquet": (PARQUET, "metadata", "The tiles planned, GeoParquet"),
    QUICKLOOK: ("image/png", "overview", "The outlines over the imagery"),
}
"""Path in the run folder: media type, role, title."""
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"

MAP_SIZE = (1200, 1600)
PANEL = 400
"""Pixels: the largest map, (width, height), and the width of the legend beside it. Together no side is longer than 1600."""
MARGIN = 0.02
"""Of the area's size, around it, so that its outline can be seen."""
COLOURS = ["#ffd60a", "#00e5ff", "#ff4fd8", "#7cff3a", "#ff8a1f", "#5b8cff", "#c68bff", "#00c08b", "#ffb3c7", "#b8a200", "#8fd3ff", "#c98f5a"]
"""Of the prompts, in order. None is the red of failed tiles."""
FAILED, NO_IMAGERY, OUTLINE, INK, PAPER = "#ff2020", "#808080", "#ffffff", "#f0f0f0", "#1b1d21"

_SHARPNESS = 2  # drawn this many times larger, then averaged: Pillow's lines have hard edges


def store_item(
    folder: Folder,
    *,
    name: str,
    area: Geometry,
    grid: Grid,
    scenes: Sequence[Scene],
    features: Mapping[str, int],
    tiles: Mapping[State, int],
) -> None:
    """Writes item.json, a STAC 1.1 Item.

    name: id of the item. area: EPSG:4326, longitude first; cut at the antimeridian where it crosses it. features: how many by prompt.
    tiles: how many by state. The items it derives from are listed by collection and id: their catalog may have no address that lasts.
    """
    if not scenes:
        raise ValueError("an item comes from at least one scene, got none")
    days = sorted(datetime.fromisoformat(scene.day).replace(tzinfo=UTC) for scene in scenes)
    authority = CRS(grid.crs).to_authority()
    item = pystac.Item(
        id=name,
        geometry=mapping(area),
        bbox=_bbox(area),
        datetime=None,
        start_datetime=days[0],
        end_datetime=days[-1].replace(hour=23, minute=59, second=59),
        properties={
            "title": f"{', '.join(features)} in {', '.join(sorted({scene.collection for scene in scenes}))}",
            "proj:code": ":".join(authority) if authority else None,
            "geopixel:resolution": grid.resolution,
            "geopixel:features": dict(features),
            "geopixel:tiles": dict(tiles),
            "geopixel:sources": sorted({f"{scene.collection}/{source.item}" for scene in scenes for source in scene.sources}),
        },
        stac_extensions=[PROJECTION],
    )
    if not authority:
        item.properties["proj:wkt2"] = CRS(grid.crs).to_wkt()
    for path, (media_type, role, title) in ASSETS.items():
        item.add_asset(path, pystac.Asset(f"./{path}", title=title, media_type=media_type, roles=[role]))
    folder.put_json(ITEM, item.to_dict(include_self_link=False))


def draw_quicklook(
    folder: Folder, *, scenes: Sequence[Scene], grid: Grid, area: Geometry, features: gpd.GeoDataFrame, prompts: Sequence[str], failed: Sequence[Tile]
) -> None:
    """Writes quicklook.png: the imagery over the area, every feature's outline in its prompt's colour, failed tiles hatched, and a legend.

    area: in the grid's CRS. features: columns prompt and geometry, in any CRS. Imagery that cannot be read stays grey.
    """
    geobox, features = _window(area, grid), features.to_crs(grid.crs)
    rgb, valid = _imagery(scenes, geobox)
    rgb[~valid] = int(NO_IMAGERY[1:3], 16)
    height, width = geobox.shape
    picture = Image.fromarray(rgb).resize((width * _SHARPNESS, height * _SHARPNESS), Image.Resampling.NEAREST)
    to_picture = Affine.scale(_SHARPNESS) @ ~geobox.affine

    _hatch(picture, [tile.core.extent.geom for tile in failed], to_picture)
    draw = ImageDraw.Draw(picture)
    _draw_rings(draw, shapely.get_parts(area), to_picture, OUTLINE, width=2)
    counts: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        found = features.geometry.to_numpy()[(features["prompt"] == prompt).to_numpy()]
        counts[prompt] = len(found)
        _draw_rings(draw, found, to_picture, _colour(index), width=1.5)
    _draw_scale(draw, geobox)

    panel = _legend(counts, len(failed), scenes, picture.height)
    sheet = Image.new("RGB", (picture.width + panel.width, max(picture.height, panel.height)), PAPER)
    sheet.paste(picture, (0, 0))
    sheet.paste(panel, (picture.width, 0))
    sink = BytesIO()
    sheet.reduce(_SHARPNESS).save(sink, "png")
    folder.put(QUICKLOOK, sink.getvalue())


def _bbox(area: Geometry) -> list[float]:
    """West, south, east, north; west > east where the area was cut at the antimeridian (RFC 7946, section 5.2)."""
    west, south, east, north = area.bounds
    if (west, east) == (-180, 180):
        bounds = shapely.bounds(shapely.get_parts(area))
        eastern = bounds[:, 0] > 0
        if eastern.any() and (bounds[~eastern, 2] < 0).all():
            west, east = bounds[eastern, 0].min(), bounds[~eastern, 2].max()
    return [float(west), float(south), float(east), float(north)]


def _window(area: Geometry, grid: Grid) -> GeoBox:
    """The area and a margin, in square pixels that fill MAP_SIZE one way or the other."""
    left, bottom, right, top = area.bounds
    margin = MARGIN * max(right - left, top - bottom)
    left, bottom, right, top = left - margin, bottom - margin, right + margin, top + margin
    pixel = max((right - left) / MAP_SIZE[0], (top - bottom) / MAP_SIZE[1])
    shape = max(1, round((top - bottom) / pixel)), max(1, round((right - left) / pixel))
    return GeoBox(shape, Affine(pixel, 0, left, 0, -pixel, top), grid.crs)


def _imagery(scenes: Iterable[Scene], geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """As read_scenes, but a file that cannot be read leaves its ground to the next one: a picture is no reason to fail."""
    rgb, valid = np.zeros((*geobox.shape, 3), np.uint8), np.zeros(geobox.shape, bool)
    for scene in scenes:
        for source in scene.sources:
            if valid.all():
                return rgb, valid
            try:
                colours, seen = read_scenes([replace(scene, sources=(source,))], geobox)
            except ReadError:
                continue
            new = seen & ~valid
            rgb[new] = colours[new]
            valid |= new
    return rgb, valid


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SHARPNESS)


def _to_pixels(ring: Geometry, to_picture: Affine) -> list[tuple[float, float]]:
    x, y = shapely.get_coordinates(ring).T
    # Pillow counts from the middle of the first pixel, an affine from its corner.
    columns, rows = to_picture.a * x + to_picture.c - 0.5, to_picture.e * y + to_picture.f - 0.5
    return list(zip(columns.tolist(), rows.tolist(), strict=True))


def _draw_rings(draw: ImageDraw.ImageDraw, polygons: np.ndarray, to_picture: Affine, colour: str, *, width: float) -> None:
    """Outer and inner rings as lines of width pixels, on a thin dark casing: they show on bright ground and on dark."""
    rings = [_to_pixels(ring, to_picture) for ring in shapely.get_rings(polygons)]
    for shade, thickness in (("#000000", width + 1), (colour, width)):
        for ring in rings:
            draw.line(ring, shade, round(thickness * _SHARPNESS), joint="curve")


def _hatch(picture: Image.Image, places: Sequence[Geometry], to_picture: Affine) -> None:
    """Red diagonal lines over the places."""
    inside, lines = Image.new("L", picture.size), Image.new("L", picture.size)
    ink = ImageDraw.Draw(inside)
    for place in places:
        ink.polygon(_to_pixels(place, to_picture), fill=255)
    _draw_diagonals(ImageDraw.Draw(lines), picture.size, 255)
    picture.paste(FAILED, mask=ImageChops.darker(inside, lines))


def _draw_diagonals(draw: ImageDraw.ImageDraw, size: tuple[int, int], colour: int | str) -> None:
    width, height = size
    for start in range(-height, width, 10 * _SHARPNESS):
        draw.line([(start, height), (start + height, 0)], colour, 2 * _SHARPNESS)


def _draw_scale(draw: ImageDraw.ImageDraw, geobox: GeoBox) -> None:
    """A bar of 1, 2 or 5 times a power of ten metres, at most a quarter of the width, bottom left."""
    height, width = geobox.shape
    (left, middle), (right, _) = (geobox.affine @ (column, height / 2) for column in (0, width))
    to_degrees = Transformer.from_crs(str(geobox.crs), "EPSG:4326", always_xy=True)
    (west, east), (south, north) = to_degrees.transform([left, right], [middle, middle])
    metres = Geod(ellps="WGS84").inv(west, south, east, north)[2] / width
    longest = metres * width / 4
    power = 10.0 ** floor(log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    start, bottom, tick = 20 * _SHARPNESS, (height - 20) * _SHARPNESS, 8 * _SHARPNESS
    stop = start + length / metres * _SHARPNESS
    bar = [(start, bottom - tick), (start, bottom), (stop, bottom), (stop, bottom - tick)]
    for shade, thickness in (("#000000", 6), ("#ffffff", 3)):
        draw.line(bar, shade, thickness * _SHARPNESS)
    draw.text(((start + stop) / 2, bottom - tick), text, "#ffffff", _font(20), anchor="mb", stroke_width=2 * _SHARPNESS, stroke_fill="#000000")


def _legend(counts: Mapping[str, int], failed: int, scenes: Sequence[Scene], height: int) -> Image.Image:
    """What the colours mean, how many there are of each, and where the imagery is from. At least height high."""
    line = 36 * _SHARPNESS
    days = sorted(scene.day for scene in scenes)
    notes = [*sorted({scene.collection for scene in scenes}), days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"]
    swatch = Image.new("RGB", (line // 2, line // 2), PAPER)
    hatched, plain = swatch.copy(), Image.new("RGB", swatch.size, NO_IMAGERY)
    _draw_diagonals(ImageDraw.Draw(hatched), swatch.size, FAILED)
    entries = [(prompt, f"{count:,}", _framed(swatch, _colour(index))) for index, (prompt, count) in enumerate(counts.items())]
    entries += [("area", "", _framed(swatch, OUTLINE)), ("failed tiles", f"{failed:,}", hatched), ("no imagery", "", plain)]
    size = PANEL * _SHARPNESS, max(height, line * (len(entries) + len(notes) + 2))
    panel = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(panel)
    left, right = line * 2 // 3, size[0] - line * 2 // 3
    row = line
    for text, count, image in entries:
        panel.paste(image, (left, row - line // 4))
        draw.text((right, row), count, INK, _font(20), anchor="rm")
        room = right - left - line - draw.textlength(count, _font(20)) - line // 2
        draw.text((left + line, row), _shorten(draw, text, room), INK, _font(20), anchor="lm")
        row += line
    for text in notes:
        row += line
        draw.text((left, row), _shorten(draw, text, right - left), INK, _font(20), anchor="lm")
    return panel


def _framed(swatch: Image.Image, colour: str) -> Image.Image:
    framed = swatch.copy()
    ImageDraw.Draw(framed).rectangle((0, 0, swatch.width - 1, swatch.height - 1), outline=colour, width=3 * _SHARPNESS)
    return framed


def _shorten(draw: ImageDraw.ImageDraw, text: str, room: float) -> str:
    if draw.textlength(text, _font(20)) <= room:
        return text
    while text and draw.textlength(text + "...", _font(20)) > room:
        text = text[:-1]
    return text + "..."
