"""quicklook.png: one picture of the map, of the shape of a slide: what was found over the imagery, and beside it what the colours mean and
how much there is of each. Knows a backdrop, features and failed tiles; nothing of how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import floor, log10

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from PIL import Image, ImageChops, ImageDraw, ImageFont
from shapely import Geometry

from geopixel.publish.backdrop import FAILED, INK, NO_IMAGERY, OUTLINE, PAPER, Backdrop, colour, ground_text, share_text
from geopixel.storage import Folder
from geopixel.types import Scene, Tile

QUICKLOOK = "quicklook.png"
MAP = (1480, 1040)
"""Pixels, (width, height): the largest map. With PANEL, the legend to its right, and GAP around both it fills 1920 x 1080."""
PANEL, GAP = 380, 20
LINE = 34
"""Pixels between two lines of the legend."""
FAINT = "#9aa0a8"

_SHARPNESS = 2  # drawn this many times larger, then averaged: Pillow's lines have hard edges
_FILL = 0.3  # how much of a feature's colour is laid over the imagery
_OUTSIDE = 0.45  # how bright the imagery around the area is


def draw_quicklook(
    folder: Folder,
    backdrop: Backdrop,
    *,
    area: Geometry,
    features: gpd.GeoDataFrame,
    prompts: Sequence[str],
    failed: Sequence[Tile],
    scenes: Sequence[Scene],
    model: str,
) -> None:
    """Writes quicklook.png: the imagery over the area, darker around it, every feature in its prompt's colour, failed tiles hatched, a legend.

    area: in the CRS of the backdrop. features: columns prompt and area_m2 (m2 on the ground), and geometry in any CRS.
    """
    height, width = backdrop.geobox.shape
    scale = min(MAP[0] / width, MAP[1] / height) * _SHARPNESS
    size = max(1, round(width * scale)), max(1, round(height * scale))
    to_picture = Affine.scale(size[0] / width, size[1] / height) @ ~backdrop.geobox.affine
    features = features.to_crs(str(backdrop.geobox.crs))

    outline = _rings(np.array([area], dtype=object), to_picture)
    picture, hidden = _ground(backdrop, outline, size)
    _hatch(picture, [tile.core.extent.geom for tile in failed], to_picture)
    pixel = 1 / abs(to_picture.a)
    found = {prompt: _largest_first(features, prompt, pixel) for prompt in prompts}
    drawn = [_rings(shapes, to_picture) for shapes in found.values()]
    for index, rings in enumerate(drawn):
        _fill(picture, rings, colour(index))
    draw = ImageDraw.Draw(picture)
    for index, rings in enumerate(drawn):
        _outline(draw, rings, colour(index), width=1.5)
    _outline(draw, outline, OUTLINE, width=2)

    ground = backdrop.square_metres(area)
    covered = {prompt: float(features.loc[features["prompt"] == prompt, "area_m2"].sum()) for prompt in prompts}
    rows = [(prompt, f"{len(found[prompt]):,}", f"{_plain(covered[prompt])}, {share_text(covered[prompt] / ground)} of the area") for prompt in prompts]
    panel = _legend(rows, len(failed), hidden, _notes(scenes, model, ground), size[1])
    gap = GAP * _SHARPNESS
    sheet = Image.new("RGB", (size[0] + panel.width + 3 * gap, panel.height + 2 * gap), PAPER)
    top = (sheet.height - size[1]) // 2
    sheet.paste(picture, (gap, top))
    sheet.paste(panel, (size[0] + 2 * gap, gap))
    _draw_scale(ImageDraw.Draw(sheet), backdrop.metres[0] * width / size[0], gap, top + size[1])
    sink = BytesIO()
    sheet.reduce(_SHARPNESS).save(sink, "png")
    folder.put(QUICKLOOK, sink.getvalue())


def _plain(m2: float) -> str:
    """Pillow's own font has no raised two."""
    return ground_text(m2).replace("\u00b2", "2")


def _ground(backdrop: Backdrop, outline: Sequence[tuple[bool, list[float]]], size: tuple[int, int]) -> tuple[Image.Image, bool]:
    """The imagery, darker outside the area; what was not observed is as the paper there, grey inside. And whether there is any of that inside."""
    picture = Image.fromarray(backdrop.rgb).resize(size, Image.Resampling.BOX)
    around = Image.blend(Image.new("RGB", size, PAPER), picture, _OUTSIDE)
    unseen = Image.fromarray((~backdrop.valid).view(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    around.paste(PAPER, mask=unseen)
    inside = _stencil(size, outline)
    picture.paste(around, mask=ImageChops.invert(inside))
    return picture, ImageChops.darker(unseen, inside).getbbox() is not None


def _largest_first(features: gpd.GeoDataFrame, prompt: str, pixel: float) -> np.ndarray:
    """The shapes of a prompt, simplified to what can be seen: one in a hole of another is drawn after it."""
    found = features.loc[(features["prompt"] == prompt).to_numpy()]
    shapes = found.geometry.to_numpy()[np.argsort(-found["area_m2"].to_numpy(), kind="stable")]
    return np.asarray(shapely.simplify(shapes, pixel / 2))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SHARPNESS)


def _rings(shapes: np.ndarray, to_picture: Affine) -> list[tuple[bool, list[float]]]:
    """Of every ring of the polygons in order: whether it is the outer one, and x, y, x, y, ... in pixels of the picture."""
    rings, owner = shapely.get_rings(shapely.get_parts(shapes), return_index=True)
    coordinates, ring = shapely.get_coordinates(rings, return_index=True)
    # Pillow counts from the middle of the first pixel, an affine from its corner.
    pixels = coordinates * (to_picture.a, to_picture.e) + (to_picture.c - 0.5, to_picture.f - 0.5)
    ends = np.cumsum(np.bincount(ring, minlength=len(rings)))[:-1]
    outer = np.diff(owner, prepend=-1) > 0
    return [(bool(is_outer), part.ravel().tolist()) for is_outer, part in zip(outer, np.split(pixels, ends), strict=True)] if len(rings) else []


def _stencil(size: tuple[int, int], rings: Sequence[tuple[bool, list[float]]]) -> Image.Image:
    """White inside the polygons, black in their holes and around them."""
    stencil = Image.new("L", size)
    draw = ImageDraw.Draw(stencil)
    for is_outer, ring in rings:
        draw.polygon(ring, fill=255 if is_outer else 0)
    return stencil


def _fill(picture: Image.Image, rings: Sequence[tuple[bool, list[float]]], shade: str) -> None:
    picture.paste(shade, mask=_stencil(picture.size, rings).point([round(_FILL * value) for value in range(256)]))


def _outline(draw: ImageDraw.ImageDraw, rings: Sequence[tuple[bool, list[float]]], shade: str, *, width: float) -> None:
    for _, ring in rings:
        draw.line(ring, shade, max(1, round(width * _SHARPNESS)))


def _hatch(picture: Image.Image, places: Sequence[Geometry], to_picture: Affine) -> None:
    """Red diagonal lines over the places."""
    inside, lines = _stencil(picture.size, _rings(np.array(places, dtype=object), to_picture)), Image.new("L", picture.size)
    _draw_diagonals(ImageDraw.Draw(lines), picture.size, 255)
    picture.paste(FAILED, mask=ImageChops.darker(inside, lines))


def _draw_diagonals(draw: ImageDraw.ImageDraw, size: tuple[int, int], shade: int | str) -> None:
    width, height = size
    for start in range(-height, width, 10 * _SHARPNESS):
        draw.line([(start, height), (start + height, 0)], shade, 2 * _SHARPNESS)


def _draw_scale(draw: ImageDraw.ImageDraw, metres: float, left: int, bottom: int) -> None:
    """A bar of 1, 2 or 5 times a power of ten metres, at most a fifth of the map's room. metres: ground of a drawn pixel."""
    longest = metres * MAP[0] * _SHARPNESS / 5
    power = 10.0 ** floor(log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    start, low, tick = left + GAP * _SHARPNESS, bottom - GAP * _SHARPNESS, 8 * _SHARPNESS
    stop = start + length / metres
    bar = [(start, low - tick), (start, low), (stop, low), (stop, low - tick)]
    for shade, thickness in (("#000000", 6), ("#ffffff", 3)):
        draw.line(bar, shade, thickness * _SHARPNESS)
    draw.text(((start + stop) / 2, low - tick), text, "#ffffff", _font(22), anchor="mb", stroke_width=2 * _SHARPNESS, stroke_fill="#000000")


def _notes(scenes: Sequence[Scene], model: str, ground: float) -> list[str]:
    days = sorted(scene.day for scene in scenes)
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return [
        f"{_plain(ground)} mapped",
        ", ".join(sorted({scene.collection for scene in scenes})),
        days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        name if name.startswith("GeoPixel") else f"GeoPixel {name}",
    ]


def _legend(rows: Sequence[tuple[str, str, str]], failed: int, hidden: bool, notes: Sequence[str], height: int) -> Image.Image:
    """What stands right of the map, as high as the map or as it needs. rows: prompt, how many, how much ground."""
    line = LINE * _SHARPNESS
    swatch = Image.new("RGB", (line // 2, line // 2), PAPER)
    hatched = swatch.copy()
    _draw_diagonals(ImageDraw.Draw(hatched), swatch.size, FAILED)
    signs = [("mapped area", _framed(swatch, OUTLINE))]
    signs += [(f"failed tiles: {failed:,}", hatched)] if failed else []
    signs += [("no imagery", Image.new("RGB", swatch.size, NO_IMAGERY))] if hidden else []
    below = line * (len(signs) + len(notes) + 1)
    room = max(1, (MAP[1] * _SHARPNESS - below) // (2 * line))
    shown = len(rows) if len(rows) <= room else room - 1
    panel = Image.new("RGB", (PANEL * _SHARPNESS, max(height, below + 2 * line * min(len(rows), room))), PAPER)
    draw, at = ImageDraw.Draw(panel), line // 2
    for index, (prompt, count, ground) in enumerate(rows[:shown]):
        panel.paste(_framed(swatch, colour(index)), (0, at - line // 4))
        draw.text((panel.width, at), count, INK, _font(22), anchor="rm")
        width = panel.width - line - draw.textlength(count, _font(22)) - line // 2
        draw.text((line, at), _shorten(draw, prompt, width, 22), INK, _font(22), anchor="lm")
        draw.text((line, at + line * 3 // 4), ground, FAINT, _font(17), anchor="lm")
        at += 2 * line
    if shown < len(rows):
        draw.text((line, at), f"and {len(rows) - shown} more", INK, _font(22), anchor="lm")
    at = panel.height - line * len(notes) - line // 2
    for text, image in reversed(signs):
        panel.paste(image, (0, at - line // 4))
        draw.text((line, at), text, INK, _font(20), anchor="lm")
        at -= line
    for index, text in enumerate(reversed(notes)):
        draw.text((0, panel.height - line // 2 - index * line), _shorten(draw, text, panel.width, 19), FAINT, _font(19), anchor="lm")
    return panel


def _framed(swatch: Image.Image, shade: str) -> Image.Image:
    framed = Image.blend(swatch, Image.new("RGB", swatch.size, shade), _FILL)
    ImageDraw.Draw(framed).rectangle((0, 0, swatch.width - 1, swatch.height - 1), outline=shade, width=3 * _SHARPNESS)
    return framed


def _shorten(draw: ImageDraw.ImageDraw, text: str, room: float, size: int) -> str:
    if draw.textlength(text, _font(size)) <= room:
        return text
    while text and draw.textlength(text + "...", _font(size)) > room:
        text = text[:-1]
    return text + "..."
