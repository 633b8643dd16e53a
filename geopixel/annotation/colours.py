"""Names for colours, as somebody who looks at a picture would say them. Knows pixels; nothing of objects or words around the names."""

from __future__ import annotations

import numpy as np

COLOURS = ("white", "grey", "black", "red", "orange", "brown", "yellow", "green", "blue", "purple")
"""What a pixel may be called; names that share a border are next to one another in COLOURS_BY_HUE."""
BLACK, WHITE = 0.18, 0.80
"""Brightest of the three channels, 0..1: no pixel below is called by its hue, and grey ones above are white."""
PALE = 0.16
"""Saturation, 0..1, below which a pixel has no hue to speak of."""
DULL, FAINT = 0.62, 0.35
"""Brightness, and saturation, below which red and orange are brown; but for what is ..."""
VIVID = (14, 0.45)
"""... within so many degrees of pure red, and as saturated: dark red is red."""
DOUBT = {"hue": (-14.0, 14.0), "saturation": (-0.09, 0.09), "value": (-0.12, 0.12)}
"""How far a pixel may be off, by light and by eye, before one would call it otherwise."""
HUES = ((18, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (258, "blue"), (325, "purple"), (360, "red"))
"""Where each hue ends, in degrees of the colour circle."""


def colour_shares(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(len(COLOURS),) float64 share of the (N, 3) uint8 pixels that have each name, and share of those that may have it; zeros where there is none."""
    measured = _measure(pixels.reshape(-1, 3))
    names = _name(*measured)
    possible = np.zeros((len(names), len(COLOURS)), bool)
    possible[np.arange(len(names)), names] = True
    for axis, shifts in enumerate(DOUBT.values()):
        for shift in shifts:
            moved = [values + shift if which == axis else values for which, values in enumerate(measured)]
            possible[np.arange(len(names)), _name(moved[0] % 360, *moved[1:])] = True
    count = max(len(names), 1)
    return np.bincount(names, minlength=len(COLOURS)) / count, possible.sum(axis=0) / count


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """(...) uint8 index into COLOURS of (..., 3) uint8 pixels."""
    return _name(*_measure(rgb))


def _measure(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value from 0 to 1."""
    channels = rgb.astype(np.float32) / 255
    value, low = channels.max(axis=-1), channels.min(axis=-1)
    chroma = value - low
    return _hue(channels, value, np.maximum(chroma, 1e-6)), chroma / np.maximum(value, 1e-6), value


def _name(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    named = np.select([value < BLACK, (saturation < PALE) & (value >= WHITE), saturation < PALE], [_index("black"), _index("white"), _index("grey")], 255)
    ends = np.array([end for end, _ in HUES])
    by_hue = np.array([_index(name) for _, name in HUES])[np.searchsorted(ends, hue, side="right").clip(0, len(HUES) - 1)]
    warm = np.isin(by_hue, [_index("red"), _index("orange")])
    vivid = (np.minimum(hue, 360 - hue) <= VIVID[0]) & (saturation >= VIVID[1])
    by_hue = np.where(warm & ((value < DULL) | (saturation < FAINT)) & ~vivid, _index("brown"), by_hue)
    return np.where(named == 255, by_hue, named).astype(np.uint8)


def _hue(channels: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees, 0 red, 120 green, 240 blue."""
    red, green, blue = np.moveaxis(channels, -1, 0)
    sextant = np.select([value == red, value == green], [((green - blue) / chroma) % 6, (blue - red) / chroma + 2], (red - green) / chroma + 4)
    return sextant * 60


def _index(name: str) -> int:
    return COLOURS.index(name)
