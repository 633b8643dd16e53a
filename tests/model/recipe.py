"""The inputs and the weights of the goldens, made anew from their seeds: the recipes of <goldens>/recipe.py, numpy only, as given there."""

from __future__ import annotations

import zlib
from math import prod, sqrt

import numpy as np

EMBEDDINGS = (
    "position_embedding.weight",
    "iou_token.weight",
    "mask_tokens.weight",
    "obj_score_token.weight",
    "no_mask_embed.weight",
    "not_a_point_embed.weight",
)


def rng(seed: int, *names: object) -> np.random.Generator:
    words = [int(seed)] + [zlib.crc32(str(name).encode()) for name in names]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def image(seed: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: blocks of 16 pixels, a gradient, small noise; integers only."""
    source = rng(seed, "image", width, height)
    # Drawn as int64, because the stream of numbers depends on it; small enough for int16 thereafter.
    blocks = source.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.int64).astype(np.int16)
    picture = source.integers(-20, 21, (height, width, 3), dtype=np.int64).astype(np.int16)
    picture += np.repeat(np.repeat(blocks // 2, 16, axis=0), 16, axis=1)[:height, :width]
    picture += (np.arange(height) * 64 // max(height, 1)).astype(np.int16)[:, None, None]
    picture += (np.arange(width) * 64 // max(width, 1)).astype(np.int16)[None, :, None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 numbers rounded to the nearest that bfloat16 holds, ties to even; still float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32).reshape(np.shape(x))


def normal(seed: int, name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """float32 standard normal numbers times scale, rounded to what bfloat16 holds."""
    return round_to_bfloat16(rng(seed, "normal", name).standard_normal(shape) * scale)


def sample_indices(seed: int, name: str, total: int, count: int) -> np.ndarray:
    """Sorted flat indices, at most count of them, into an array of total elements."""
    if total <= count:
        return np.arange(total)
    return np.unique(rng(seed, "index", name, total).integers(0, total, count, dtype=np.int64))


def weight(seed: int, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The published parameter or buffer of this name: float32 numbers that bfloat16 holds, none of them zero by rule.

    Standard normal numbers n; norms are 1 + 0.1 n, biases 0.1 n, bare parameters and embeddings 0.3 n, linear maps and convolutions
    gain * n / sqrt(inputs).
    """
    n = rng(seed, "weight", key).standard_normal(shape)
    last = key.rpartition(".")[2]
    if last == "positional_encoding_gaussian_matrix":
        values = n
    elif key.endswith("tok_embeddings.weight"):
        values = 0.7 * n
    elif len(shape) == 1 and last == "bias":
        values = 0.1 * n
    elif len(shape) == 1 and last in ("weight", "gamma"):
        values = 1.0 + 0.1 * n
    elif len(shape) == 1 or last not in ("weight", "bias") or key.endswith(EMBEDDINGS) or ".point_embeddings." in key:
        values = 0.3 * n
    else:
        inputs = shape[0] if ".output_upscaling." in key else prod(shape[1:])
        values = gain(key) * n / sqrt(inputs)
    return round_to_bfloat16(values)


def gain(key: str) -> float:
    """Of a linear map: what makes every part of so small a network matter to its output."""
    if key.endswith("attention.wqkv.weight"):
        return 1.7
    if any(name in key for name in ("Plora_B", "lora_sft_B", "lora_dpo_B", "lora_web_B")):
        return 0.5
    if key.endswith("text_hidden_fcs.0.2.weight"):
        return 3.0
    if "output_hypernetworks_mlps" in key and key.endswith("layers.2.weight"):
        return 4.0
    return 1.0
