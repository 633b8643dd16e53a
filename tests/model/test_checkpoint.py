"""Laws: what was saved is loaded; what does not fit is refused by name, and no code in a file is ever run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from geopixel.errors import CheckpointError
from geopixel.model.checkpoint import load_network, read_tokenizer, rename, save_checkpoint
from geopixel.model.config import GroundingConfig, LanguageConfig, VisionConfig, published_config, read_config
from geopixel.model.network import GeoPixelNetwork

from .tiny import CONFIG, PUBLISHED, network, tokenizer, tokenizer_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", network(), tokenizer_model(), torch.float32)
    return tmp_path / "model"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> GeoPixelNetwork:
    return load_network(folder, read_config(folder), dtype, CPU)


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Rewrites tensors of the checkpoint; None leaves one out."""
    stored = load_file(folder / "model.safetensors") | tensors
    save_file({key: tensor for key, tensor in stored.items() if tensor is not None}, folder / "model.safetensors")


def same(loaded: GeoPixelNetwork, saved: GeoPixelNetwork) -> None:
    """Equal weights, and equal outputs but for the order of sums, which depends on where a tensor lies in memory."""
    expected = saved.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    for ours, theirs in zip(outputs(loaded), outputs(saved), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def outputs(made: GeoPixelNetwork) -> list[torch.Tensor]:
    size = made.config.vision.crop_size
    dtype = made.language.output.weight.dtype
    generator = torch.Generator().manual_seed(0)
    tokens = made.vision(torch.randn(3, 3, size, size, generator=generator).to(dtype), [(2, 1)])[0]
    hidden = made.language(tokens[None], image_mask=torch.ones(1, len(tokens), dtype=torch.bool))[0]
    pixels = torch.randn(1, 3, made.config.grounding.image_size, made.config.grounding.image_size, generator=generator).to(dtype)
    masks = made.grounding.decode(made.grounding.encode(pixels), made.mask_prompts(hidden[-2:])[None])
    return [hidden, made.language.output(hidden), masks.logits, masks.scores, masks.object_scores]


def test_round_trip(folder: Path) -> None:
    loaded = load(folder)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config == network().config
    same(loaded, network())
    assert read_tokenizer(folder).encode("two ships [SEG]") == tokenizer().encode("two ships [SEG]")


def test_round_trip_in_bfloat16(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, network(), tokenizer_model(), torch.bfloat16)
    rounded = load(tmp_path).state_dict()
    for key, tensor in network().state_dict().items():
        torch.testing.assert_close(rounded[key], tensor.bfloat16().float(), atol=0, rtol=0)
    assert all(output.isfinite().all() and output.dtype == torch.bfloat16 for output in outputs(load(tmp_path, torch.bfloat16)))


def test_several_shards(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(stored)
    save_file({key: stored[key] for key in keys[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({key: stored[key] for key in keys[1::2]}, folder / "model-00002-of-00002.safetensors")
    same(load(folder), network())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(folder)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"language.mood.weight": torch.zeros(3)}, "unknown.*language.mood.weight"),
        ({"model.layers.0.attention.mood.weight": torch.zeros(3)}, "unknown.*model.layers.0.attention.mood.weight"),
        ({"vision.separator": None}, "missing.*vision.separator"),
        ({"language.norm.weight": torch.zeros(5)}, r"language.norm.weight .*\(5,\).*\(32,\)"),
        ({"language.layers.0.feed_forward.w1.weight": torch.zeros(32, 48)}, r"w1.weight .*\(32, 48\).*\(48, 32\)"),
    ],
    ids=["unknown", "unknown published", "missing", "another size", "transposed"],
)
def test_what_does_not_fit_is_refused_by_name(folder: Path, tensors: dict[str, Any], named: str) -> None:
    change(folder, **tensors)
    with pytest.raises(CheckpointError, match=named):
        load(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 7, 2000], ids="{} bytes".format)
def test_a_broken_safetensors_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(folder)


def to_bin(folder: Path) -> Path:
    """The folder's weights as torch stores them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def test_bin_shards(folder: Path) -> None:
    to_bin(folder)
    same(load(folder), network())


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_code_in_a_bin_shard_is_not_run(folder: Path, tmp_path: Path) -> None:
    path = to_bin(folder)
    torch.save({"language.norm.weight": Attack(tmp_path / "owned")}, path)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load(folder)
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "owned").exists(), "the attack would have worked"


@pytest.mark.parametrize("keep", [0, 7, 2000], ids="{} bytes".format)
def test_a_broken_bin_shard(folder: Path, keep: int) -> None:
    path = to_bin(folder)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load(folder)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"language": {}}', '{"language": 1, "vision": {}, "grounding": {}}', "\x00\xff"], ids=repr)
def test_a_broken_configuration(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match="configuration"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_broken_tokenizer(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        read_tokenizer(tmp_path)


def test_published_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = read_config(tmp_path)
    assert config.language == LanguageConfig(92547, 4096, 14336, 32, 32, 8, 1e-5, 1e6, 2.0, 32768, 256, 256.0)
    assert config.vision == VisionConfig(1024, 4096, 24, 16, 560, 14, 1e-5)
    assert config.grounding == GroundingConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7, 256, 2048, 1024, True)
    assert (config.hd_num, config.max_length) == (9, 16384)
    assert published_config({**PUBLISHED, "rope_scaling": None}).language == replace(config.language, rope_factor=None)
    assert published_config({k: v for k, v in PUBLISHED.items() if k != "num_key_value_heads"}).language.kv_heads == 32
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="vocab_size"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("plora_glb_GN", "vision.separator"),
        ("plora_sub_GN", "vision.row_end"),
        ("vision_proj.2.bias", "vision.projector.2.bias"),
        ("vit.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "vision.tower.encoder.layers.0.mlp.fc1.weight"),
        ("output.weight", "language.output.weight"),
        ("model.norm.weight", "language.norm.weight"),
        ("model.layers.1.feed_forward.w2.Plora_B.weight", "language.layers.1.feed_forward.w2.plora_b.weight"),
        ("model.text_hidden_fcs.0.2.weight", "text_hidden_fcs.2.weight"),
        ("model.visual_model.image_encoder.trunk.pos_embed_window", "grounding.sam2.vision_encoder.backbone.pos_embed_window"),
        ("model.visual_model.image_encoder.trunk.blocks.1.mlp.layers.1.bias", "grounding.sam2.vision_encoder.backbone.blocks.1.mlp.proj_out.bias"),
        ("model.visual_model.image_encoder.neck.convs.0.conv.bias", "grounding.sam2.vision_encoder.neck.convs.0.bias"),
        ("model.visual_model.sam_mask_decoder.iou_prediction_head.layers.1.bias", "grounding.sam2.mask_decoder.iou_prediction_head.layers.0.bias"),
        ("model.layers.0.attention.wqkv.lora_sft_A.weight", None),
        ("vit.vision_tower.vision_model.post_layernorm.weight", None),
        ("model.visual_model.memory_encoder.out_proj.weight", None),
        ("model.visual_model.sam_prompt_encoder.mask_downscaling.0.weight", None),
    ],
)
def test_published_names(published: str, ours: str | None) -> None:
    assert rename(published) == ours
    if ours is not None and ".1.mlp" not in ours:
        assert ours in network().state_dict()


def test_our_configuration_is_told_from_the_published_one(folder: Path) -> None:
    assert read_config(folder).grounding == CONFIG.grounding
