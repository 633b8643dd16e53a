"""The same picture as another camera, another hour or another heading would show it, and with more in it. Knows pixels and objects; everything random
comes from the generator that is passed in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from geopixel.annotation.objects import SceneObject

RESIZED = (0.4, 3.0)
LONGEST = 0.6
"""How large an object is laid over a picture: range of its edge as a multiple of what it was, and what share of the picture's edges it takes at most."""
PLACES_TRIED = 8
"""Of which it lies where it hides least."""


def turn(rng: np.random.Generator, rgb: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One of the eight positions of a square; rgb (height, width, 3) and truth (height, width) move together."""
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    rgb, truth = np.rot90(rgb, quarters), np.rot90(truth, quarters)
    return (rgb[:, ::-1], truth[:, ::-1]) if mirrored else (rgb, truth)


def jitter(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Other light, another camera: gain and offset per channel, gamma, a little noise. (height, width, 3) uint8 in and out."""
    level = np.linspace(0, 1, 256, dtype=np.float32)[:, None] ** np.exp(rng.normal(0, 0.2))
    level = level * np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.06, 3)) + rng.normal(0, 0.03, 3)
    table = (level.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    x = np.take_along_axis(table, rgb.reshape(-1, 3), axis=0).reshape(rgb.shape)
    if rng.random() < 0.5:
        noise = rng.integers(-6, 7, rgb.shape, dtype=np.int16)
        x = (x + noise).clip(0, 255).astype(np.uint8)
    return x


def restyle(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Another sensor and another country: saturation, channels mixed, contrast, softness. Stronger than jitter, for data of few sites: what a
    roof's colour says in one town it must not say in all. (height, width, 3) uint8 in and out."""
    x = rgb.astype(np.float32)
    mean = x.mean(axis=(0, 1))
    mixing = np.eye(3)[rng.permutation(3) if rng.random() < 0.3 else slice(None)] + rng.normal(0, 0.1, (3, 3))
    saturation = rng.uniform(0.0, 1.6)
    mixing = saturation * mixing + (1 - saturation) * np.full((3, 3), 1 / 3)
    contrast = np.exp(rng.normal(0, 0.2))
    x = ((x - mean) @ (contrast * mixing.T).astype(np.float32)) + mean + rng.normal(0, 12, 3).astype(np.float32)
    styled = x.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        height, width = rgb.shape[:2]
        factor = rng.uniform(1.2, 2.5)
        small = Image.fromarray(styled).resize((max(1, round(width / factor)), max(1, round(height / factor))), Image.Resampling.BOX)
        styled = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    return styled


def paste(rgb: np.ndarray, truth: np.ndarray, other_rgb: np.ndarray, other_truth: np.ndarray, code: int) -> tuple[np.ndarray, np.ndarray]:
    """What of the other picture has this code, laid over the first, as far as both reach: a sparse place becomes a dense one (Ghiasi et al., Simple
    Copy-Paste, arXiv:2012.07177). rgb (height, width, 3), truth (height, width); those given are left as they are."""
    rgb, truth = rgb.copy(), truth.copy()
    height, width = (min(sizes) for sizes in zip(truth.shape, other_truth.shape, strict=True))
    laid = other_truth[:height, :width] == code
    rgb[:height, :width][laid] = other_rgb[:height, :width][laid]
    truth[:height, :width][laid] = code
    return rgb, truth


def scatter(
    rng: np.random.Generator, rgb: np.ndarray, truth: np.ndarray, other: np.ndarray, objects: Iterable[SceneObject], code: int
) -> tuple[np.ndarray, np.ndarray]:
    """Objects of the picture other, each larger or smaller than it is there, laid over the first where they hide little of their kind: how large
    a thing is, and beside which others, must be seen each time and cannot be known by its look. rgb and other (height, width, 3), truth (height,
    width), code: of the objects; those given are left as they are."""
    rgb, truth = rgb.copy(), truth.copy()
    for each in objects:
        longest = LONGEST * min(truth.shape) / max(each.mask.shape)
        factor = min(longest, np.exp(rng.uniform(*np.log(RESIZED))))
        width, height = (max(1, round(edge * factor)) for edge in each.mask.shape[::-1])
        picture = Image.fromarray(other[each.window]).resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(each.mask).resize((width, height), Image.Resampling.NEAREST)
        patch, laid = turn(rng, np.asarray(picture), np.asarray(mask))
        places = [
            tuple(slice(start, start + edge) for start, edge in zip(rng.integers(np.subtract(truth.shape, laid.shape) + 1), laid.shape, strict=True))
            for _ in range(PLACES_TRIED)
        ]
        place = min(places, key=lambda place: int((laid & (truth[place] == code)).sum()))
        rgb[place][laid] = patch[laid]
        truth[place][laid] = code
    return rgb, truth
