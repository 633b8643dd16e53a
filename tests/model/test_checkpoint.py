"""Laws: what was saved is loaded, under our names and the published ones, in hardly more memory than it takes; what does not fit is refused
by name, and no code in a file is ever run."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from geopixel.errors import CheckpointError
from geopixel.model import checkpoint
from geopixel.model.checkpoint import DROPPED, load_model, load_network, parse_dtype, read_tokenizer, rename, save_checkpoint
from geopixel.model.config import GroundingConfig, LanguageConfig, VisionConfig, published_config, read_config
from geopixel.model.network import GeoPixelNetwork

from . import tiny
from .tiny import CONFIG, PUBLISHED, tokenizer, tokenizer_model

network = cache(tiny.network)
CPU = torch.device("cpu")

PUBLISHED_NAMES = [
    (r"^language\.output\.", "output."),
    (r"^language\.", "model."),
    (r"\.plora_([ab])\.", lambda m: f".Plora_{m[1].upper()}."),
    (r"^text_hidden_fcs\.", "model.text_hidden_fcs.0."),
    (r"^vision\.separator$", "plora_glb_GN"),
    (r"^vision\.row_end$", "plora_sub_GN"),
    (r"^vision\.projector\.", "vision_proj."),
    (r"^vision\.tower\.", "vit.vision_tower.vision_model."),
    (r"^grounding\.sam2\.", "model.visual_model."),
    (r"\.no_memory_embedding$", ".no_mem_embed"),
    (r"\.vision_encoder\.backbone\.", ".image_encoder.trunk."),
    (r"\.vision_encoder\.neck\.convs\.(\d+)\.", r".image_encoder.neck.convs.\1.conv."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"(visual_model.*)\.layer_norm(\d)\.", r"\1.norm\2."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"\.shared_image_embedding\.positional_embedding$", ".sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"\.prompt_encoder\.", ".sam_prompt_encoder."),
    (r"\.mask_decoder\.", ".sam_mask_decoder."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"(mlps\.\d+|_head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d+|_head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d+|_head)\.proj_out\.", r"\1.layers.2."),
]
"""Our names to the published ones, from the published code's side: the inverse of checkpoint.RENAMED."""

UNUSED = {
    "model.layers.0.attention.wqkv.lora_sft_A.weight": (8, 32),
    "model.layers.1.feed_forward.w2.lora_web_B.weight": (32, 8),
    "vit.vision_tower.vision_model.post_layernorm.weight": (16,),
    "vit.vision_tower.vision_model.embeddings.position_ids": (1, 5),
    "model.visual_model.memory_encoder.out_proj.weight": (64, 256, 1, 1),
    "model.visual_model.maskmem_tpos_enc": (7, 1, 1, 64),
    "model.visual_model.sam_prompt_encoder.mask_downscaling.0.weight": (4, 1, 2, 2),
    "model.layers.0.attention.rotary_emb.inv_freq": (4,),
}
"""A published key, with some shape, for every reason to drop one."""


def publish(name: str) -> str:
    for pattern, replacement in PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def published(made: GeoPixelNetwork) -> dict[str, torch.Tensor]:
    """A network's weights as the published code would hold them: with what is never used, and parameters of one axis more."""
    stored = {publish(name): tensor.clone() for name, tensor in made.state_dict().items()}
    stored["plora_glb_GN"], stored["plora_sub_GN"] = stored["plora_glb_GN"][None, None], stored["plora_sub_GN"][None, None, None]
    return stored | {key: torch.full(shape, torch.nan) for key, shape in UNUSED.items()}


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


def shard(folder: Path, tensors: dict[str, torch.Tensor], kind: str, *, index: bool) -> list[Path]:
    """Replaces the folder's weights by three shards, as transformers names them."""
    (folder / "model.safetensors").unlink()
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    places: dict[str, str] = {}
    for number in range(3):
        part = {key: tensors[key] for key in sorted(tensors)[number::3]}
        name = f"{stem}-{number + 1:05d}-of-00003{suffix}"
        if kind == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
        places |= dict.fromkeys(part, name)
    if index:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return [folder / name for name in sorted(set(places.values()))]


@pytest.mark.parametrize(("names", "index"), [("ours", False), ("published", True)], ids=["ours, no index", "published, index"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_several_shards(folder: Path, kind: str, names: str, index: bool) -> None:
    shards = shard(folder, network().state_dict() if names == "ours" else published(network()), kind, index=index)
    same(load(folder), network())
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shards[1].name}" if index else "missing"):
        load(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_lies_beside_the_weights_is_left_alone(folder: Path, kind: str, tmp_path: Path) -> None:
    shard(folder, published(network()), kind, index=True)
    save_file({"mood": torch.zeros(1)}, folder / "adapter_model.safetensors")
    save_file({"mood": torch.zeros(1)}, folder / f"{'' if kind == 'safetensors' else 'other_'}model-00009-of-00009.safetensors")
    for name in ("training_args.bin", "optimizer.bin", "scheduler.bin", "adapter_model.bin", "pytorch_model-00009-of-00009.bin"):
        torch.save({"mood": Attack(tmp_path / "owned")}, folder / name)
    same(load(folder), network())


def test_safetensors_are_preferred(folder: Path) -> None:
    torch.save({"mood": torch.zeros(1)}, folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"mood": "pytorch_model.bin"}}))
    same(load(folder), network())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}', "\x00\xff"], ids=repr)
def test_a_broken_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_bytes(text.encode("latin1"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"language\.norm\.weight twice: in model-00002-of-00002\.safetensors and in model\.safetensors"):
        load(folder)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_network_does_not_depend_on_its_file(folder: Path, kind: str) -> None:
    """Not even in the dtype of the file: the tensors are no views of it."""
    path = folder / "model.safetensors" if kind == "safetensors" else to_bin(folder)
    loaded = load(folder)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    same(loaded, network())


def test_large_checkpoints_are_saved_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    save_checkpoint(tmp_path, network(), tokenizer_model(), torch.float32)
    stored = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert len(stored) > 3
    assert {path.name for path in tmp_path.iterdir()} == stored.keys() | {"config.json", "tokenizer.model", "model.safetensors.index.json"}
    for tensors in stored.values():
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 20_000 or len(tensors) == 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {key: name for name, tensors in stored.items() for key in tensors}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensors in stored.values() for tensor in tensors.values())
    same(load(tmp_path), network())
    monkeypatch.undo()
    save_checkpoint(tmp_path, network(seed=1), tokenizer_model(), torch.float32)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "tokenizer.model", "model.safetensors"}, "nothing stays of an earlier one"
    same(load(tmp_path), network(seed=1))


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
    with pytest.raises(CheckpointError, match=r"no weights in .*model\*\.safetensors.*pytorch_model\*\.bin"):
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


@pytest.mark.parametrize("content", [[], {"weights": {"language.norm.weight": torch.zeros(32)}}, {1: torch.zeros(1)}], ids=["list", "nested", "numbered"])
def test_a_bin_shard_of_something_else(folder: Path, content: Any) -> None:
    torch.save(content, to_bin(folder))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load(folder)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", "32"), ("hidden_size", -32), ("heads", 0), ("layers", 1.5)])
def test_sizes_that_make_no_network(folder: Path, field: str, value: Any) -> None:
    values = CONFIG.to_dict()
    values["language"] |= {"vocab_size": tokenizer().vocab_size, field: value}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="makes no network"):
        load(folder)


@pytest.mark.parametrize("name", ["auto", "int8", "nn", "", "torch.float32"])
def test_unknown_dtypes(name: str) -> None:
    with pytest.raises(ValueError, match=f"float32, bfloat16, float16, got '{name}'"):
        parse_dtype(name)


def test_dtypes(folder: Path) -> None:
    for name in ("float32", "bfloat16", "float16"):
        assert load(folder, parse_dtype(name)).language.norm.weight.dtype == getattr(torch, name)


def test_tokenizer_and_embedding_must_agree(folder: Path) -> None:
    """As many rows as tokens is what published checkpoints have, and enough; one fewer is not; more are padding."""
    known = tokenizer().vocab_size
    loaded, words = load_model(folder, torch.float32, CPU)
    assert len(loaded.language.tok_embeddings.weight) == known == words.vocab_size
    for rows in (known - 1, known + 5):
        made = GeoPixelNetwork(replace(CONFIG, language=replace(CONFIG.language, vocab_size=rows)))
        save_checkpoint(folder, made, tokenizer_model(), torch.float32)
        if rows > known:
            assert load_model(folder, torch.float32, CPU)[0].config.language.vocab_size == rows
            continue
        with pytest.raises(CheckpointError, match=rf"{known} tokens \(\[SEG\] is {known - 3}\).* {rows} rows"):
            load_model(folder, torch.float32, CPU)


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


def test_every_reason_to_drop_a_key() -> None:
    """Each has its example, and none takes a weight of ours under its published name."""
    for pattern in DROPPED:
        assert any(re.search(pattern, key) for key in UNUSED), pattern
    for key in UNUSED:
        assert rename(key) is None, key
    for name in network().state_dict():
        assert rename(publish(name)) == name


def test_parameters_of_the_published_network() -> None:
    """By group, of what is kept: parameters counted in the released 7B checkpoint, of which 32 layers are alike."""
    with torch.device("meta"):
        made = GeoPixelNetwork(published_config(PUBLISHED | {"num_hidden_layers": 1}))
    counted: Counter[str] = Counter()
    for name, tensor in made.state_dict().items():
        key = publish(name)
        assert rename(key) == name
        group = ".".join(key.split(".")[: 2 if key.startswith(("model.", "vision_proj")) else 1])
        counted["Plora" if ".Plora_" in key else group] += math.prod(tensor.shape)
    assert counted == {
        "model.layers": 6979584000 // 32,
        "Plora": 603979776 // 32,
        "model.tok_embeddings": 379072512,
        "output": 379072512,
        "model.norm": 4096,
        "model.text_hidden_fcs": 17830144,
        "plora_glb_GN": 4096,
        "plora_sub_GN": 4096,
        "vision_proj.0": 16781312,
        "vision_proj.2": 16781312,
        "vit": 304556032 - 2 * 1024,  # post_layernorm
        "model.visual_model": 216919157,  # of 224430386, the rest is SAM 2's video memory and other prompts
    }


def test_our_configuration_is_told_from_the_published_one(folder: Path) -> None:
    assert read_config(folder).grounding == CONFIG.grounding


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Published checkpoints of 60 MB in bfloat16, safetensors in three shards and one .bin, with unused adapters; how many weights are kept."""
    folder, hidden, layers = tmp_path_factory.mktemp("big"), 768, 5
    config = replace(CONFIG, language=LanguageConfig(tokenizer().vocab_size, hidden, 2 * hidden, layers, hidden // 64, hidden // 128, plora_rank=16))
    with torch.device("meta"):
        state = GeoPixelNetwork(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    stored = {publish(name): torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(generator=generator) for name, tensor in state.items()}
    for layer in range(layers):
        for part in ("attention.wo", "feed_forward.w1"):
            stored[f"model.layers.{layer}.{part}.lora_sft_A.weight"] = torch.ones(hidden, hidden, dtype=torch.bfloat16)
    for kind in ("safetensors", "bin"):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(config.to_dict()))
        (folder / kind / "tokenizer.model").write_bytes(tokenizer_model())
    torch.save(stored, folder / "bin" / "pytorch_model.bin")
    save_file({}, folder / "safetensors" / "model.safetensors")
    shard(folder / "safetensors", stored, "safetensors", index=True)
    return folder, sum(tensor.numel() for tensor in state.values())


def resident(field: str) -> int:
    """Bytes of this process's memory, mapped pages of files included: now (VmRSS) or at most since the last reset (VmHWM)."""
    return 1024 * int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)))


def peak(work: Callable[..., object], *arguments: Any) -> int:
    """Bytes of memory that work takes at most, on top of what there was."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: a tensor's memory is asked for anew and given back when it is freed,
    libc.malloc_trim(0)  # and what was freed before cannot hide a peak
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten, as getrusage could not
    before = resident("VmRSS")
    kept = work(*arguments)
    del kept
    return resident("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("kind", "dtype"), [("safetensors", "bfloat16"), ("safetensors", "float32"), ("bin", "bfloat16")])
def test_memory_while_loading(big: tuple[Path, int], kind: str, dtype: str) -> None:
    """At most 1.2 times the weights kept, in either format, converted or not."""
    folder, kept = big
    bytes_kept = kept * parse_dtype(dtype).itemsize
    assert 0.9 * bytes_kept < peak(load_model, folder / kind, parse_dtype(dtype), CPU) < 1.2 * bytes_kept
