"""Seeded, aerial-like pictures with known truth: a layout drawn flat, then trees, sun and sensor. The truth of a pixel is the
class of what is visible there, in shadow or not. Knows nothing of places or files."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geopixel.demo.layout import plan_layout
from geopixel.demo.light import cast_shadow, crowns, expose, illuminate, texture
from geopixel.demo.paint import FIELD, TREE, Painter
from geopixel.demo.texture import smooth_noise


@dataclass(frozen=True, slots=True)
class RenderedScene:
    rgb: np.ndarray
    """(H, W, 3) uint8, 1 or more everywhere: 0 is left to mean no data."""
    truth: np.ndarray
    """(H, W) uint8 class codes of CLASSES, 0 for other ground."""


def render_scene(seed: int, size: int = 2048, gsd: float = 0.5) -> RenderedScene:
    """Renders size x size pixels of `gsd` metres. Equal arguments give equal pixels.

    Raises ValueError for a negative seed, a size below 64 pixels or a gsd outside 0.1 to 2 metres.
    """
    if seed < 0 or size < 64 or not 0.1 <= gsd <= 2:
        raise ValueError(f"a scene needs seed >= 0, size >= 64 and 0.1 <= gsd <= 2, got seed {seed}, size {size}, gsd {gsd}")
    rng = np.random.default_rng(seed)
    layout = plan_layout(rng, size * gsd)
    sun, elevation = rng.uniform(0, 2 * np.pi), math.radians(rng.uniform(32, 68))
    painter = Painter(rng, layout, size, gsd, sun)
    crop_rows = painter.draw_fields()
    painter.draw_water()
    painter.draw_roads()
    painter.draw_pavements()
    painter.draw_buildings()
    painter.draw_vehicles()
    truth = np.array(painter.truth)
    colour = [np.array(band, np.float32) for band in painter.colour.split()]
    height = np.array(painter.height, np.float32) / 4
    light = texture(rng, truth, gsd)
    light *= np.where(truth == FIELD, crop_rows, np.float32(1))
    if len(layout.trees):
        plant_trees(rng, layout.trees / gsd, gsd, sun, truth, colour, height, light)
    illuminate(rng, colour, light, cast_shadow(height, sun, math.tan(elevation) * gsd))
    return RenderedScene(expose(rng, colour), truth)


def plant_trees(
    rng: np.random.Generator, trees: np.ndarray, gsd: float, sun: float, truth: np.ndarray, colour: list[np.ndarray], height: np.ndarray, light: np.ndarray
) -> None:
    """Puts (N, 3) trees, in pixels, on top of everything. Changes truth, colour, height and light in place."""
    leaf = np.array([62, 86, 42]) + rng.normal(0, (10, 10, 7))
    tints = (leaf * rng.uniform(0.72, 1.3, (len(trees), 1)) + rng.normal(0, (7, 6, 4), (len(trees), 3))).astype(np.float32)
    lobes = smooth_noise(rng, truth.shape, max(1.0, 1.4 / gsd))
    canopy, owner = crowns(trees, lobes, len(truth))
    canopy *= np.float32(rng.uniform(1.3, 2.2) * gsd)
    seen = canopy > 0
    tree = owner[seen]
    truth[seen] = TREE
    for plane, tint in zip(colour, tints.T, strict=True):
        plane[seen] = tint[tree]
    towards_sun = np.roll(canopy, (-round(1.2 * math.sin(sun)), -round(1.2 * math.cos(sun))), axis=(0, 1))
    slope = (canopy[seen] - towards_sun[seen]) / np.float32(gsd)
    light[seen] *= np.clip(1 - np.float32(0.28) * slope, 0.5, 1.45) + np.float32(0.16) * lobes[seen]
    height[seen] = canopy[seen] + 2
