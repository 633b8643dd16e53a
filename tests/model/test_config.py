"""Laws: a configuration survives its file; the crop grid is the published rule's; tokens are counted as the network makes them; work costs."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from shutil import copy

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from geopixel.errors import CheckpointError
from geopixel.model.config import PROMPT_TOKENS, GeoPixelConfig, crop_grid, find_model, published_config, read_config, read_model_config
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.vision import VisionTokens

from .tiny import CONFIG, PUBLISHED, fill

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
    # The published rule gives no crops at all, and then fails, where the picture would be less than a pixel high.
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


@pytest.fixture(scope="module")
def one_layer() -> GeoPixelNetwork:
    """The full-size published network without memory, and with one language layer to stand for all."""
    config = published_config(PUBLISHED | {"num_hidden_layers": 1})
    with torch.device("meta"):
        return GeoPixelNetwork(config)


@pytest.mark.parametrize(("hd_num", "prompts"), [(1, 1), (9, 6)])
def test_flops_are_those_of_the_published_network(one_layer: GeoPixelNetwork, hd_num: int, prompts: int) -> None:
    """Counted by torch, without numbers; 20 % is what a plan needs."""
    config = replace(published_config(PUBLISHED), hd_num=hd_num)
    rows, columns = crop_grid(700, 700, hd_num, config.vision.crop_size)
    tokens = config.image_tokens(rows, columns)
    language, size = config.language, config.vision.crop_size
    asked = tokens + PROMPT_TOKENS * prompts
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        one_layer.vision(torch.zeros(1 + rows * columns, 3, size, size), [(rows, columns)])
        features = one_layer.grounding.encode(torch.zeros(1, 3, config.grounding.image_size, config.grounding.image_size))
        one_layer.grounding.decode(features, torch.zeros(1, prompts, config.grounding.hidden_size))
        outside = counter.get_total_flops()
        rotary = (torch.zeros(1, 1, asked, language.head_size),) * 2
        one_layer.language.layers[0](torch.zeros(1, asked, language.hidden_size), rotary, None, None, None)
        layer = counter.get_total_flops() - outside
    assert config.flops(700, 700, prompts) == pytest.approx(outside + language.layers * layer, rel=0.2)


REPOSITORY = (
    "README.md",
    "config.json",
    "generation_config.json",
    "modeling_geopixel.py",
    "tokenizer.model",
    "tokenizer_config.json",
    "adapter_model.safetensors",
    "training_args.bin",
    "optimizer.bin",
)
SAFETENSORS = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BIN = ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    ("held", "fetched"),
    [((*SAFETENSORS, *BIN), SAFETENSORS), (BIN, BIN), (("model.safetensors",), ("model.safetensors",)), (("pytorch_model.bin",), ("pytorch_model.bin",))],
    ids=["both formats", "bin", "one file", "one bin"],
)
def test_what_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: tuple[str, ...], fetched: tuple[str, ...]) -> None:
    """Configuration, tokenizer and one format of the weights; for the sizes alone, the configuration."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    hub.mkdir()
    cache.mkdir()
    for name in (*REPOSITORY, *held):
        (hub / name).write_text(json.dumps(PUBLISHED))

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        assert name == "somebody/something"
        for path in hub.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                copy(path, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert read_model_config("somebody/something") == published_config(PUBLISHED)
    assert [path.name for path in cache.iterdir()] == ["config.json"]
    assert find_model("somebody/something") == cache
    assert {path.name for path in cache.iterdir()} == {"config.json", "tokenizer.model", *fetched}


def test_a_hub_that_fails_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise OSError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="'somebody/something' is neither"):
        find_model("somebody/something")


def test_a_configuration_that_lacks_a_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in PUBLISHED.items() if key != "rms_norm_eps"}))
    with pytest.raises(CheckpointError, match=f"{tmp_path}: config.json lacks 'rms_norm_eps'"):
        read_config(tmp_path)


def test_a_rotary_scaling_that_is_not_ours_is_refused() -> None:
    """Computed without it every answer would be wrong, and nothing would say so."""
    assert published_config(PUBLISHED | {"rope_scaling": None}).language.rope_factor is None
    assert published_config(PUBLISHED).language.rope_factor == 2.0
    with pytest.raises(ValueError, match="dynamic or none, got 'linear'"):
        published_config(PUBLISHED | {"rope_scaling": {"type": "linear", "factor": 2.0}})


@pytest.mark.parametrize(("edge", "tokens"), [(1, 4081), (2239, 4081), (2240, 6901), (2800, 10521), (3360, 14941), (3919, 14941)])
def test_the_published_model_takes_images_up_to_3919_pixels(edge: int, tokens: int) -> None:
    config = published_config(PUBLISHED)
    assert config.image_tokens(*crop_grid(edge, edge, config.hd_num, config.vision.crop_size)) == tokens
    assert config.fits(edge, edge)
    assert not config.fits(3920, 3920)
