"""Weights and sizes from a folder into a network: our own layout (config.json, model.safetensors, tokenizer.model), or the published
GeoPixel's, whose every key is renamed or dropped by name. No remote code, no pickles with code in them."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geopixel.errors import CheckpointError
from geopixel.model.config import GeoPixelConfig
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import Tokenizer

DROPPED: dict[str, str] = {
    r"\.lora_(sft|dpo|web)_[AB]\.": "adapters of InternLM-XComposer's other tasks; GeoPixel never runs them",
    r"^vit\.vision_tower\.vision_model\.post_layernorm\.": "the features are taken before it",
    r"^vit\..*position_ids$": "a constant range",
    r"\.sam_prompt_encoder\.(point_embeddings|not_a_point_embed|mask_downscaling)\.": "text states are the only prompts",
    r"\.visual_model\.(memory_attention|memory_encoder|obj_ptr_proj|obj_ptr_tpos_proj|mask_downsample)\.": "SAM 2's video memory; single images have none",
    r"\.visual_model\.(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$": "SAM 2's video memory; single images have none",
    r"\.rotary_emb\.inv_freq$": "computed from the configuration",
}
"""Published keys that are not loaded, with the reason."""

RENAMED: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^plora_glb_GN$", "vision.separator"),
    (r"^plora_sub_GN$", "vision.row_end"),
    (r"^vision_proj\.", "vision.projector."),
    (r"^vit\.vision_tower\.vision_model\.", "vision.tower."),
    (r"^output\.", "language.output."),
    (r"^model\.(tok_embeddings|norm|layers)\.", r"language.\1."),
    (r"\.Plora_([AB])\.", lambda m: f".plora_{m[1].lower()}."),
    (r"^model\.text_hidden_fcs\.0\.", "text_hidden_fcs."),
    (r"^model\.visual_model\.", "grounding.sam2."),
    (r"\.no_mem_embed$", ".no_memory_embedding"),
    (r"\.image_encoder\.trunk\.", ".vision_encoder.backbone."),
    (r"\.image_encoder\.neck\.convs\.(\d+)\.conv\.", r".vision_encoder.neck.convs.\1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"(backbone\.blocks\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"((?:backbone\.blocks|transformer\.layers)\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"((?:backbone\.blocks|transformer\.layers)\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
    (r"\.sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_image_embedding.positional_embedding"),
    (r"\.sam_prompt_encoder\.", ".prompt_encoder."),
    (r"\.sam_mask_decoder\.", ".mask_decoder."),
    (r"(transformer\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"(mask_decoder\.transformer\..*)\.out_proj\.", r"\1.o_proj."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))\.layers\.0\.", r"\1.proj_in."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))\.layers\.2\.", r"\1.proj_out."),
    (r"((?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))\.layers\.1\.", r"\1.layers.0."),
]
"""Published names (transformers 4.33, facebookresearch/sam2) to ours (transformers 5), applied in this order."""


def rename(key: str) -> str | None:
    """Our name of a published key; None where it is dropped."""
    if any(re.search(pattern, key) for pattern in DROPPED):
        return None
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def read_tokenizer(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(folder / "tokenizer.model")
    except (OSError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"no tokenizer.model in {folder}: {error}") from error


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, one at a time: safetensors shards, else .bin shards (weights only)."""
    shards = sorted(folder.glob("*.safetensors"))
    for shard in shards:
        try:
            with safe_open(shard, "pt") as file:
                for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    yield key, file.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(f"{shard} is no safetensors file: {error}") from error
    if not shards:
        for shard in sorted(folder.glob("*.bin")):
            try:
                tensors = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                raise CheckpointError(f"{shard} is no file of weights alone: {str(error).splitlines()[0]}") from error
            yield from tensors.items()


def load_network(folder: Path, config: GeoPixelConfig, dtype: torch.dtype, device: torch.device) -> GeoPixelNetwork:
    """The network of a folder in either layout, in eval mode. Raises CheckpointError naming keys that are unknown, missing or of another shape."""
    with torch.device("meta"):
        network = GeoPixelNetwork(config)
    wanted = network.state_dict()
    loaded: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in stored_tensors(folder):
        name = key if key in wanted else rename(key)
        if name is None:
            continue
        if name not in wanted:
            unknown.append(key)
            continue
        shape = wanted[name].shape
        if [size for size in tensor.shape if size > 1] != [size for size in shape if size > 1]:  # published parameters have axes of one more
            raise CheckpointError(f"{key} in {folder} has shape {tuple(tensor.shape)}, the configuration asks for {tuple(shape)}")
        loaded[name] = tensor.reshape(shape).to(device=device, dtype=dtype)
    missing = sorted(wanted.keys() - loaded.keys())
    if unknown or missing:
        raise CheckpointError(f"{folder} does not fit the network: unknown {unknown[:3]} ({len(unknown)}), missing {missing[:3]} ({len(missing)})")
    network.load_state_dict(loaded, assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # position_ids of the tower: a constant that no checkpoint holds
            owner, _, own_name = name.rpartition(".")
            network.get_submodule(owner).register_buffer(own_name, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
    return network.eval().requires_grad_(False)


def save_checkpoint(folder: Path, network: GeoPixelNetwork, tokenizer: bytes, dtype: torch.dtype) -> None:
    """Our own layout: config.json, tokenizer.model and one model.safetensors in this dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network.config.to_dict(), indent=1) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in network.state_dict().items()}, folder / "model.safetensors")
