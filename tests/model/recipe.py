"""The inputs of the goldens, made anew from their seeds: the two recipes of <goldens>/recipe.py that the tests need, as given there."""

from __future__ import annotations

import zlib

import numpy as np


def rng(seed: int, *names: object) -> np.random.Generator:
    words = [int(seed)] + [zlib.crc32(str(name).encode()) for name in names]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def image(seed: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: blocks of 16 pixels, a gradient, small noise; integers only."""
    source = rng(seed, "image", width, height)
    blocks = source.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.int64)
    base = np.repeat(np.repeat(blocks, 16, axis=0), 16, axis=1)[:height, :width]
    noise = source.integers(-20, 21, (height, width, 3), dtype=np.int64)
    down = (np.arange(height, dtype=np.int64) * 64 // max(height, 1))[:, None, None]
    across = (np.arange(width, dtype=np.int64) * 64 // max(width, 1))[None, :, None]
    return np.clip(base // 2 + down + across + noise, 0, 255).astype(np.uint8)


def normal(seed: int, name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """float32 standard normal numbers times scale, rounded to what bfloat16 holds."""
    x = (rng(seed, "normal", name).standard_normal(shape) * scale).astype(np.float32)
    bits = x.view(np.uint32)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32)
