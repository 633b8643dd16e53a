"""Names for colours, as somebody who looks at a picture would say them. Knows pixels; nothing of objects or words around the names."""

from __future__ import annotations

import numpy as np

COLOURS = ("white", "grey", "black", "red", "orange", "brown", "yellow", "green", "blue", "purple")
"""What a pixel may be called; names that share a border are next to one another in COLOURS_BY_HUE."""
BLACK, WHITE = 0.18, 0.80
"""Brightest of the three channels, 0..1: no pixel below is called by its hue, and grey ones above are white."""
PALE = 0.16
"""Saturation, 0..1, below which a pixel has no hue to speak of."""
DULL = 0.62
"""Brightness below which red and orange are brown."""
HUES = ((18, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (258, "blue"), (325, "purple"), (360, "red"))
"""Where each hue ends, in degrees of the colour circle."""


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """(...) uint8 index into COLOURS of (..., 3) uint8 pixels, by hue, saturation and value."""
    channels = rgb.astype(np.float32) / 255
    value, low = channels.max(axis=-1), channels.min(axis=-1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    named = np.select([value < BLACK, (saturation < PALE) & (value >= WHITE), saturation < PALE], [_index("black"), _index("white"), _index("grey")], 255)
    hue = _hue(channels, value, np.maximum(chroma, 1e-6))
    ends = np.array([end for end, _ in HUES])
    by_hue = np.array([_index(name) for _, name in HUES])[np.searchsorted(ends, hue, side="right").clip(0, len(HUES) - 1)]
    warm = np.isin(by_hue, [_index("red"), _index("orange")])
    by_hue = np.where(warm & ((value < DULL) | (saturation < 0.35)) & (hue < 180), _index("brown"), by_hue)
    return np.where(named == 255, by_hue, named).astype(np.uint8)


def colour_shares(pixels: np.ndarray) -> np.ndarray:
    """(len(COLOURS),) float64 share of the (N, 3) uint8 pixels that have each name; zeros where there is none."""
    return np.bincount(name_pixels(pixels).ravel(), minlength=len(COLOURS)) / max(len(pixels), 1)


def _hue(channels: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees, 0 red, 120 green, 240 blue."""
    red, green, blue = np.moveaxis(channels, -1, 0)
    sextant = np.select([value == red, value == green], [((green - blue) / chroma) % 6, (blue - red) / chroma + 2], (red - green) / chroma + 4)
    return sextant * 60


def _index(name: str) -> int:
    return COLOURS.index(name)
