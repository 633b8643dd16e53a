"""From flat colours to a photograph: texture, tree crowns, cast shadows, haze and a sensor. Works on rasters in place; knows
class codes only as row numbers of its tables, and nothing of layouts or files."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageFilter

from geopixel.demo.texture import octaves, smooth_noise

GRAIN = np.array([0.09, 0.05, 0.03, 0.02, 0.10, 0.06, 0.02], np.float32)
"""Fine texture of each class, as a share of its brightness."""
PATCHES = np.array([0.07, 0.045, 0.035, 0.035, 0.05, 0.05, 0.0], np.float32)
"""Coarser texture of each class."""


def texture(rng: np.random.Generator, truth: np.ndarray, gsd: float) -> np.ndarray:
    """(H, W) float32 brightness around 1: grain and patches of each class."""
    grain = smooth_noise(rng, truth.shape, max(1.0, 0.7 / gsd)) + 0.8 * smooth_noise(rng, truth.shape, max(1.0, 2.2 / gsd))
    grain *= (GRAIN * rng.uniform(0.5, 1.2))[truth]
    patches = octaves(rng, truth.shape, max(2.0, 14 / gsd), 3)
    patches *= PATCHES[truth]
    grain += patches
    grain += 1
    return grain


def crowns(trees: np.ndarray, lobes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged domes seen from above.

    trees: (N, 3) x, y, radius in pixels; lobes: (size, size) smooth noise that frays the edges.
    Returns the (size, size) float32 height of the highest dome, in pixels, 0 where there is none, and the int32 number of its tree.
    """
    canopy, owner = np.zeros(size * size, np.float32), np.zeros(size * size, np.int32)
    order = np.argsort(trees[:, 2], kind="stable")
    for part in np.array_split(order, max(1, len(order) // 4000)):  # trees of like size share a stamp
        raise_domes(trees, part, lobes.ravel(), size, canopy, owner)
    return canopy.reshape(size, size), owner.reshape(size, size)


def raise_domes(trees: np.ndarray, part: np.ndarray, lobes: np.ndarray, size: int, canopy: np.ndarray, owner: np.ndarray) -> None:
    """Raises canopy (flat) by the trees numbered `part`, and notes in owner whose dome is the highest."""
    x, y, radius = (trees[part, k].astype(np.float32) for k in range(3))
    reach = math.ceil(1.2 * radius.max())
    step = np.arange(-reach, reach + 1, dtype=np.int32)
    column, row = (np.floor(at).astype(np.int32)[:, None] + step for at in (x, y))
    dx, dy = ((line.astype(np.float32) + np.float32(0.5) - at[:, None]) / radius[:, None] for line, at in ((column, x), (row, y)))
    dx[(column < 0) | (column >= size)] = np.inf
    dy[(row < 0) | (row >= size)] = np.inf
    level = 1 - (dy * dy)[:, :, None] - (dx * dx)[:, None, :]
    which, r, c = np.nonzero(level > -0.3)
    place = row[which, r] * size + column[which, c]
    top = level[which, r, c] + np.float32(0.22) * lobes[place]
    solid = top > 0
    place, which = place[solid], which[solid]
    top = np.sqrt(top[solid]) * radius[which]
    np.maximum.at(canopy, place, top)
    highest = canopy[place] == top
    owner[place[highest]] = part[which[highest]]


def cast_shadow(height: np.ndarray, direction: float, drop: float) -> np.ndarray:
    """(H, W) bool: True where something towards the sun stands above the line of sight to it.

    height: metres; direction: where shadows point to, radians from x (right) towards y (down); drop: metres that the line of
    sight sinks in a pixel along it. The highest line over a pixel, max over k of height(k pixels back) - k drop, is built by doubling k.
    """
    line = height.copy()
    for k in (1, 2, 4, 8, 16, 32, 64):
        dx, dy = round(k * math.cos(direction)), round(k * math.sin(direction))
        rows, columns = line.shape
        source = line[max(0, -dy) : rows - max(0, dy), max(0, -dx) : columns - max(0, dx)] - np.float32(k * drop)
        target = line[max(0, dy) : rows - max(0, -dy), max(0, dx) : columns - max(0, -dx)]
        np.maximum(target, source, out=target)
    return line > height + 0.6


def illuminate(rng: np.random.Generator, colour: list[np.ndarray], light: np.ndarray, shadow: np.ndarray) -> None:
    """Multiplies the three planes by light, and by a shadow with soft edges that keeps some of the blue of the sky. In place."""
    soft = np.asarray(Image.fromarray(shadow.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(0.6))).astype(np.float32) / 255
    depth = rng.uniform(0.45, 0.68)
    for plane, sky in zip(colour, (0.0, 0.03, 0.1), strict=True):
        plane *= light
        plane *= 1 - soft * np.float32(depth - sky)


def expose(rng: np.random.Generator, colour: list[np.ndarray]) -> np.ndarray:
    """What the sensor makes of three planes: contrast, cast, haze, saturation, blur, noise, sometimes JPEG; (H, W, 3) uint8 of at least 1."""
    thickness = rng.uniform(0, 0.18)
    gain = rng.uniform(0.82, 1.28) * (1 + rng.normal(0, 0.03, 3)) * (1 - thickness)
    haze = thickness * np.array([150, 160, 175])
    saturation = rng.uniform(0.7, 1.15)
    blur = ImageFilter.BoxBlur(rng.uniform(0.15, 0.6))
    noise = rng.standard_normal(colour[0].shape, dtype=np.float32) * np.float32(rng.uniform(0.5, 4))
    grey = (colour[0] + colour[1] + colour[2]) * np.float32((1 - saturation) / 3)
    planes = []
    for plane, by, add in zip(colour, gain, haze, strict=True):
        seen = (plane * np.float32(saturation) + grey) * np.float32(by) + np.float32(add)
        blurred = np.asarray(Image.fromarray(np.clip(seen, 1, 255, out=seen).astype(np.uint8)).filter(blur))
        planes.append(np.clip(blurred + noise, 1, 255).astype(np.uint8))
    picture = np.stack(planes, axis=-1)
    if rng.random() < 0.5:
        packed = io.BytesIO()
        Image.fromarray(picture).save(packed, "JPEG", quality=int(rng.integers(70, 95)))
        picture = np.maximum(np.asarray(Image.open(packed)), np.uint8(1))
    return picture
