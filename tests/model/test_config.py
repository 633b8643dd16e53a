"""Laws: a configuration survives its file; the crop grid is the published rule's; tokens are counted as the network makes them; work costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopixel.model.config import GeoPixelConfig, crop_grid
from geopixel.model.vision import VisionTokens

from .tiny import CONFIG, fill

sizes = st.integers(1, 6000)


def published_grid(width: int, height: int, hd_num: int, crop_size: int) -> tuple[int, int]:
    """model/IXC/ixc_utils.py of mbzuai-oryx/GeoPixel, Image_transform and padding, step by step: (rows, columns)."""
    transposed = width < height
    if transposed:
        width, height = height, width
    ratio = width / height
    scale = 1
    while scale * np.ceil(scale / ratio) <= hd_num:
        scale += 1
    scale -= 1
    scale = max(int(np.floor(width / crop_size)), scale)
    new_w = int(scale * crop_size)
    new_h = int(new_w / ratio)
    target = int(np.ceil(new_h / crop_size) * crop_size)
    rows, columns = target // crop_size, new_w // crop_size
    return (columns, rows) if transposed else (rows, columns)


@given(sizes, sizes, st.integers(1, 30), st.sampled_from([28, 512, 560]))
def test_crop_grid_is_the_published_rule(width: int, height: int, hd_num: int, crop_size: int) -> None:
    rows, columns = crop_grid(width, height, hd_num, crop_size)
    published = published_grid(width, height, hd_num, crop_size)
    # The published rule gives no crops at all, and then fails, where the long side is more than all its pixels times the short one.
    assert (rows, columns) == published or 0 in published
    assert rows >= 1 <= columns
    assert (columns, rows) == crop_grid(height, width, hd_num, crop_size) or width == height


def test_the_number_of_crops_is_no_cap() -> None:
    assert crop_grid(800, 800, 9, 560) == (3, 3)
    assert crop_grid(4000, 3000, 9, 560) == (6, 7)
    assert crop_grid(47, 33, 9, 560) == (3, 3)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([(28, 7), (56, 14), (42, 7)]))
def test_image_tokens_are_those_of_the_network(rows: int, columns: int, size: tuple[int, int]) -> None:
    crop_size, patch_size = size
    config = replace(CONFIG, vision=replace(CONFIG.vision, crop_size=crop_size, patch_size=patch_size))
    with torch.inference_mode():
        tokens = fill(VisionTokens(config), 0)(torch.zeros(1 + rows * columns, 3, crop_size, crop_size), [(rows, columns)])[0]
    assert tokens.shape == (config.image_tokens(rows, columns), config.language.hidden_size)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    assert GeoPixelConfig.from_file(tmp_path / "config.json") == GeoPixelConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_names_that_do_not_fit_are_told() -> None:
    values = CONFIG.to_dict()
    with pytest.raises(TypeError, match="mood"):
        GeoPixelConfig.from_dict({**values, "mood": 1})
    with pytest.raises(TypeError, match="mood"):
        GeoPixelConfig.from_dict({**values, "vision": {**values["vision"], "mood": 1}})
    with pytest.raises(TypeError, match="heads"):
        GeoPixelConfig.from_dict({**values, "language": {k: v for k, v in values["language"].items() if k != "heads"}})


@given(sizes, sizes, st.integers(0, 20))
def test_more_work_costs_more(width: int, height: int, prompts: int) -> None:
    cost = CONFIG.flops(width, height, prompts)
    assert cost < CONFIG.flops(width, height, prompts + 1)
    rows, columns = crop_grid(width, height, CONFIG.hd_num, CONFIG.vision.crop_size)
    finer = replace(CONFIG, hd_num=CONFIG.hd_num + 12)
    more = crop_grid(width, height, finer.hd_num, CONFIG.vision.crop_size)
    if more[0] * more[1] > rows * columns:
        assert cost < finer.flops(width, height, prompts)
    else:
        assert cost == finer.flops(width, height, prompts)
