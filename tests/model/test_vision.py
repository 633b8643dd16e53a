"""Oracles: transformers' CLIP for the features, loops over the pixels of a picture of numbers for the order of the tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPVisionModel

from geopixel.model.vision import VisionTokens

from .tiny import CONFIG, VISION, fill


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def crops(count: int) -> torch.Tensor:
    return torch.randn(count, 3, VISION.crop_size, VISION.crop_size, generator=torch.Generator().manual_seed(0))


def test_features_are_the_last_layer_merged_two_by_two() -> None:
    vision = fill(VisionTokens(CONFIG), 0)
    clip = CLIPVisionModel(vision.tower.config).eval()
    clip.load_state_dict(vision.tower.state_dict(), strict=False)
    patches = clip(crops(3), output_hidden_states=True).hidden_states[-1][:, 1:]
    per_edge = VISION.crop_size // VISION.patch_size
    patches = patches.view(3, per_edge, per_edge, -1)
    features = vision.features(crops(3))
    for y in range(per_edge // 2):
        for x in range(per_edge // 2):
            block = [patches[:, 2 * y + dy, 2 * x + dx] for dy in (0, 1) for dx in (0, 1)]
            torch.testing.assert_close(features[:, y, x], torch.cat(block, -1), atol=1e-4, rtol=1e-4)


@given(st.integers(1, 4), st.integers(1, 4))
def test_tokens_lie_as_the_picture_does(rows: int, columns: int) -> None:
    vision = fill(VisionTokens(CONFIG), 0)
    side, channels = vision.side, len(vision.row_end)
    vision.row_end.fill_(-1)
    vision.separator.fill_(-2)
    height, width = rows * side, columns * side
    picture = torch.arange(height * width, dtype=torch.float32).view(height, width)
    view = 1000 + torch.arange(side * side, dtype=torch.float32).view(side, side)
    local = [picture[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(rows) for c in range(columns)]
    arranged = vision.arrange(torch.stack([view, *local])[..., None].expand(-1, -1, -1, channels), rows, columns)
    lines = [[*line.tolist(), -1] for line in view] + [[-2]] + [[*line.tolist(), -1] for line in picture]
    assert arranged.shape[1] == channels
    assert arranged[:, 0].tolist() == [value for line in lines for value in line]
    assert (arranged == arranged[:, :1]).all()


def test_images_of_a_batch_are_independent() -> None:
    vision = fill(VisionTokens(CONFIG), 0)
    both = vision(crops(6), [(1, 2), (2, 1)])
    torch.testing.assert_close(both[0], vision(crops(6)[:3], [(1, 2)])[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1], vision(crops(6)[3:], [(2, 1)])[0], atol=1e-4, rtol=1e-4)
