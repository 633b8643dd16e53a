"""Oracle: transformers' own way from pixels to image embeddings. Laws: prompts and images do not see one another; upsampling is bilinear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopixel.model.grounding import Grounding, Masks, upsample

from .tiny import GROUNDING, fill


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def grounding() -> Grounding:
    made = Grounding(GROUNDING)
    fill(made, 0)
    return made


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(count: int) -> torch.Tensor:
    return random(count, 3, GROUNDING.image_size, GROUNDING.image_size)


def close(actual: Masks, expected: Masks) -> None:
    for name in ("logits", "scores", "object_scores"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_features_are_those_of_sam2(grounding: Grounding) -> None:
    features = grounding.encode(pixels(2))
    *fine, embedding = grounding.sam2.get_image_embeddings(pixels(2))
    for ours, theirs in zip((*features.fine, features.embedding), (*fine, embedding), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    size, hidden = GROUNDING.mask_size, GROUNDING.hidden_size
    assert features.embedding.shape == (2, hidden, size // 4, size // 4)
    assert [f.shape for f in features.fine] == [(2, hidden // 8, size, size), (2, hidden // 4, size // 2, size // 2)]


def test_prompts_and_images_are_independent(grounding: Grounding) -> None:
    features = grounding.encode(pixels(2))
    prompts = random(2, 3, GROUNDING.hidden_size, seed=1)
    masks = grounding.decode(features, prompts)
    assert masks.logits.shape == (6, GROUNDING.mask_size, GROUNDING.mask_size)
    assert masks.scores.shape == masks.object_scores.shape == (6,)
    for image in range(2):
        own = grounding.encode(pixels(2)[image : image + 1])
        for prompt in range(3):
            i = 3 * image + prompt
            alone = grounding.decode(own, prompts[image, prompt][None, None])
            close(alone, Masks(masks.logits[i : i + 1], masks.scores[i : i + 1], masks.object_scores[i : i + 1]))
    # The same with the features of the right image at every prompt, as training has it.
    close(grounding.decode(features.take(torch.tensor([0, 0, 0, 1, 1, 1])), prompts.view(6, 1, -1)), masks)


def test_the_fallback_is_asked_for() -> None:
    """With it an unstable mask 0 gives way to the best of the others; without it mask 0 stays, as in train mode."""
    fallback, plain = Grounding(GROUNDING), Grounding(replace(GROUNDING, multimask_fallback=False))
    fill(fallback, 0), fill(plain, 0)
    features, prompts = plain.encode(pixels(1)), random(1, 8, GROUNDING.hidden_size, seed=1)
    first = plain.decode(features, prompts).logits
    stability = (first > 0.05).sum((1, 2)) / (first > -0.05).sum((1, 2))
    assert (stability < 0.98).any()
    changed = (fallback.decode(features, prompts).logits - first).abs().amax((1, 2)) > 1e-4
    assert torch.equal(changed, stability < 0.98)
    fallback.train()
    torch.testing.assert_close(fallback.decode(features, prompts).logits, first, atol=1e-4, rtol=1e-4)


def bilinear(values: np.ndarray, size: int) -> np.ndarray:
    """Along the first axis, half-pixel centres, edges repeated."""
    at = np.clip((np.arange(size) + 0.5) * len(values) / size - 0.5, 0, len(values) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (at - low)[:, None]
    return values[low] * (1 - share) + values[high] * share


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
def test_upsampling_is_bilinear(count: int, height: int, width: int) -> None:
    logits = random(count, 8, 8)
    full = upsample(logits.to(torch.float64), height, width)
    assert full.dtype == torch.float32
    for mask, low in zip(full, logits, strict=True):
        np.testing.assert_allclose(mask, bilinear(bilinear(low.numpy(), height).T, width).T, atol=1e-5)


def test_no_masks_upsample_to_none() -> None:
    assert upsample(torch.zeros(0, 8, 8), 5, 7).shape == (0, 5, 7)
