"""Set-of-mark pictures: the outlines of masks over a picture, each with its number, so that a person or a model can say which is which. Knows pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

PALETTE = ("#ffd60a", "#00e5ff", "#ff4fd8", "#7cff3a", "#ff8a1f", "#5b8cff", "#c68bff", "#00c08b", "#ffb3c7", "#ff3b30")
SHORTEST_SIDE = 768
"""Pixels that a marked picture has at least along its shorter side, so that numbers do not hide what they stand for."""
FONT_SIZE = 20
CROWDED = 26
"""Pixels between two numbers, where there is room for it."""


def draw_marks(rgb: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8: the picture (h, w, 3) uint8, enlarged by a whole number, with the outline of every mask (h, w) bool and its number,
    counted from 1, in its colour."""
    scale = max(1, -(-SHORTEST_SIDE // min(rgb.shape[:2])))
    canvas = _enlarged(rgb, scale)
    for mask, colour in zip(masks, cycle(PALETTE)):
        for window in find_objects(mask.astype(np.uint8)):
            part = _enlarged(mask[window], scale)
            rim = part & ~binary_erosion(np.pad(part, 2), iterations=2)[2:-2, 2:-2]
            canvas[tuple(slice(side.start * scale, side.stop * scale) for side in window)][rim] = ImageColor.getrgb(colour)
    picture = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    taken: list[tuple[int, int]] = []
    for number, (mask, colour) in enumerate(zip(masks, cycle(PALETTE)), start=1):
        x, y = (int((at + 0.5) * scale) for at in spot(mask, [(left // scale, top // scale) for left, top in taken], CROWDED // scale))
        taken.append((x, y))
        left, top, right, bottom = draw.textbbox((x, y), str(number), font=font, anchor="mm")
        draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill="#101114", outline=colour, width=2)
        draw.text((x, y), str(number), fill=colour, font=font, anchor="mm")
    return np.asarray(picture)


def _enlarged(pixels: np.ndarray, scale: int) -> np.ndarray:
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def spot(mask: np.ndarray, taken: Sequence[tuple[int, int]], crowded: int) -> tuple[int, int]:
    """x, y of the pixel deepest in a mask, more than crowded pixels away from those taken where the mask has such a place."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    free = np.ones(mask.shape, bool)
    for x, y in taken:
        free &= (np.abs(columns - x) > crowded) | (np.abs(rows - y) > crowded)
    best = depth * free if (mask & free).any() else depth
    row, column = divmod(int(best.argmax()), mask.shape[1])
    return column, row
