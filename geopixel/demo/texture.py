"""Seeded smooth noise and plane geometry for the rendered scenes. Knows nothing of what is drawn."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Points = np.ndarray
"""(N, 2) float64 x, y in metres from the upper left corner of the scene; x grows right, y grows down."""
Pair = np.ndarray | tuple[float, ...]
"""Two numbers."""


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> np.ndarray:
    """(H, W) float32 of mean 0 and standard deviation about 0.8: white noise every `wavelength` >= 1 pixels, bicubic in between."""
    height, width = (side / wavelength for side in shape)
    knots = rng.standard_normal((math.ceil(height) + 4, math.ceil(width) + 4), dtype=np.float32)
    x, y = 1.5 + rng.random(2)
    return np.asarray(Image.fromarray(knots).resize(shape[::-1], Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)))


def octaves(rng: np.random.Generator, shape: tuple[int, int], wavelength: float, count: int, gain: float = 0.55) -> np.ndarray:
    """(H, W) float32: `count` noises, each of half the wavelength and `gain` of the strength of the one before; stops at one pixel."""
    total = np.zeros(shape, np.float32)
    for octave in range(count):
        if wavelength / 2**octave >= 1:
            total += smooth_noise(rng, shape, wavelength / 2**octave) * np.float32(gain**octave)
    return total


def rotation(angle: float) -> np.ndarray:
    """(2, 2): multiply row vectors from the right by its transpose to turn them by `angle` radians."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def rectangle(centre: Pair, half: Pair, angle: float) -> Points:
    """(4, 2) corners of a rectangle of half sides `half` whose first side points along `angle`."""
    (x, y), (a, b), c, s = centre, half, math.cos(angle), math.sin(angle)
    ac, bs, as_, bc = a * c, b * s, a * s, b * c
    return np.array([[x - ac + bs, y - as_ - bc], [x + ac + bs, y + as_ - bc], [x + ac - bs, y + as_ + bc], [x - ac - bs, y - as_ + bc]])


def normals(line: Points) -> Points:
    """(N, 2) unit vectors across a polyline at its points."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.hypot(tangent[:, 0], tangent[:, 1]), 1e-9)[:, None]
    return np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)


def ribbon(line: Points, width: float | np.ndarray, offset: float = 0.0) -> Points:
    """(2 N, 2) outline of a smooth polyline of at least two points drawn `width` metres wide, `offset` metres beside itself."""
    across = normals(line)
    half = np.broadcast_to(np.asarray(width, float) / 2, len(line))[:, None]
    return np.concatenate([line + across * (offset + half), (line + across * (offset - half))[::-1]])
