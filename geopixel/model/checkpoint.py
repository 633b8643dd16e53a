"""Weights and sizes from a folder into a network: our own layout (config.json, model.safetensors, tokenizer.model), or the published
GeoPixel's, whose every key is renamed or dropped by name. Knows nothing of where a folder came from. No remote code, no pickles with code in them.

A shard is memory-mapped, and a mapping keeps every page that was read of it until it is closed. Tensors are therefore copied out one by
one, what is dropped is never touched, and a shard is mapped anew after every sixteenth of it: the peak is the network and little more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geopixel.errors import CheckpointError, StorageError
from geopixel.model.config import BIN, SAFETENSORS, GeoPixelConfig, read_config
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights may be held in."""

PORTIONS = 16
"""A shard is mapped anew after each of so many parts, which are a mebibyte at least."""

SHARD_BYTES = 4_000_000_000
"""Most that save_weights puts into one file."""

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


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of this name. Raises ValueError for one that weights are not held in."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def read_tokenizer(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(folder / "tokenizer.model")
    except (OSError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"no tokenizer.model in {folder}: {error}") from error


def read_parts(folder: Path) -> tuple[GeoPixelConfig, Tokenizer]:
    """Configuration and tokenizer of a folder, without its weights. Raises CheckpointError where one of them cannot be read or where the
    tokenizer knows more tokens than the embedding has rows; published embeddings have exactly as many: pieces, [SEG], <p> and </p>."""
    config, tokenizer = read_config(folder), read_tokenizer(folder)
    rows = config.language.vocab_size
    if tokenizer.vocab_size > rows:
        raise CheckpointError(f"{folder}: the tokenizer knows {tokenizer.vocab_size} tokens ([SEG] is {tokenizer.seg}), the embedding has {rows} rows")
    return config, tokenizer


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[GeoPixelNetwork, Tokenizer]:
    """Network and tokenizer of a folder in either layout. Raises CheckpointError as read_parts and load_network do."""
    config, tokenizer = read_parts(folder)
    return load_network(folder, config, dtype, device), tokenizer


def find_shards(folder: Path) -> list[Path]:
    """The files of weights that the index names, or those of the usual names where there is no index: never optimizer states, adapters or
    training arguments, which lie beside them. Raises CheckpointError naming those that the index names and that are not there."""
    for index, pattern in (SAFETENSORS, BIN):
        path = folder / index
        if path.is_file():
            try:
                names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
                shards = [folder / name for name in names]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{path} is no index of weights: {error!r}") from error
            if absent := [shard.name for shard in shards if not shard.is_file()]:
                raise CheckpointError(f"{folder} lacks {', '.join(absent)}, which {index} names")
            return shards
        if shards := sorted(folder.glob(pattern)):
            return shards
    raise CheckpointError(f"no weights in {folder}: neither {SAFETENSORS[1]} nor {BIN[1]}")


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the files of weights, one after the other in order of their names: of a single one what sha256sum says. Raises CheckpointError
    as find_shards does."""
    digest = hashlib.sha256()
    for shard in find_shards(folder):
        with shard.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return digest.hexdigest()


@contextmanager
def open_shard(shard: Path) -> Iterator[tuple[Mapping[str, tuple[int, ...]], Callable[[str], Tensor]]]:
    """Shapes of the tensors in a shard, and what maps one of them by its key. Nothing is read before a mapped tensor is."""
    if shard.suffix == ".bin":
        tensors = _map_bin(shard)
        yield {key: tuple(tensor.shape) for key, tensor in tensors.items()}, tensors.__getitem__
        return
    try:
        with safe_open(shard, "pt") as file:
            yield {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.get_tensor  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{shard} is no whole safetensors file: {error}") from error


def _map_bin(shard: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling raises any kind, as pickle's documentation says, for one fact
        raise CheckpointError(f"{shard} is no whole file of weights alone: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in tensors.items()):
        raise CheckpointError(f"{shard} is no file of weights alone: it holds something besides tensors by name")
    return tensors


class Weights:
    """Where the tensors of a network lie in a folder in either layout; made without reading any of them.

    Raises CheckpointError naming shards that are absent or broken, and keys that are unknown, missing, given twice or of another shape.
    """

    def __init__(self, folder: Path, config: GeoPixelConfig) -> None:
        try:
            with torch.device("meta"):
                self.network = GeoPixelNetwork(config)
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise CheckpointError(f"the configuration of {folder} makes no network: {str(error).partition(chr(10))[0]}") from error
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        self.places: dict[str, tuple[Path, str]] = {}
        """Name of a tensor -> its shard and its key in there, in the order in which they are read."""
        unknown: list[str] = []
        for shard in find_shards(folder):
            with open_shard(shard) as (stored, _):
                for key, shape in stored.items():
                    name = key if key in self.shapes else rename(key)
                    if name is None:
                        continue
                    if name not in self.shapes:
                        unknown.append(key)
                        continue
                    if name in self.places:
                        raise CheckpointError(f"{folder} holds {name} twice: in {self.places[name][0].name} and in {shard.name}")
                    wanted = self.shapes[name]
                    if [size for size in shape if size > 1] != [size for size in wanted if size > 1]:  # published parameters have axes of one more
                        raise CheckpointError(f"{key} in {folder} has shape {shape}, the configuration asks for {wanted}")
                    self.places[name] = shard, key
        missing = sorted(self.shapes.keys() - self.places.keys())
        if unknown or missing:
            raise CheckpointError(f"{folder} does not fit the network: unknown {unknown[:3]} ({len(unknown)}), missing {missing[:3]} ({len(missing)})")

    def read(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the network by name, contiguous and of its own memory, in the order of places."""
        by_shard: dict[Path, list[str]] = {}
        for name, (shard, _) in self.places.items():
            by_shard.setdefault(shard, []).append(name)
        for shard, names in by_shard.items():
            portion = max(shard.stat().st_size / PORTIONS, 2**20)
            while names:
                with open_shard(shard) as (_, map_tensor):
                    mapped = 0
                    while names and mapped <= portion:
                        name = names.pop(0)
                        tensor = map_tensor(self.places[name][1])
                        mapped += tensor.nbytes
                        shape = self.shapes[name]
                        yield name, torch.empty(shape, dtype=dtype, device=device).copy_(tensor.reshape(shape))


def load_network(folder: Path, config: GeoPixelConfig, dtype: torch.dtype, device: torch.device) -> GeoPixelNetwork:
    """The network of a folder in either layout, in eval mode; host memory stays within 1.2 times its weights. Raises CheckpointError as
    Weights does, before anything is read."""
    weights = Weights(folder, config)
    network = weights.network
    network.load_state_dict(dict(weights.read(dtype, device)), assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # position_ids of the tower: a constant that no checkpoint holds
            owner, _, own_name = name.rpartition(".")
            network.get_submodule(owner).register_buffer(own_name, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
    return network.eval().requires_grad_(False)


def save_weights(folder: Path, sizes: Mapping[str, int], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """One model.safetensors, or shards of SHARD_BYTES at most and their index. sizes: bytes of every tensor, in the order in which they come;
    a shard is in memory at a time. Weights that the folder held before are gone."""
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    index, pattern = SAFETENSORS
    for old in (folder / index, *folder.glob(pattern)):
        old.unlink(missing_ok=True)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = folder / ("model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        try:
            save_file(dict(next(tensors) for _ in names), file, metadata={"format": "pt"})
        except SafetensorError as error:  # what the system said, as of a full disk
            raise StorageError(f"{file} cannot be written: {error}") from error
        file.chmod((folder / "config.json").stat().st_mode)  # save_file leaves it to its owner alone
        places |= dict.fromkeys(names, file.name)
    if len(shards) > 1:
        (folder / index).write_text(json.dumps({"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}, indent=1) + "\n")


def save_parts(folder: Path, config: GeoPixelConfig, tokenizer: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer)


def save_checkpoint(folder: Path, network: GeoPixelNetwork, tokenizer: bytes, dtype: torch.dtype) -> None:
    """Our own layout: config.json, tokenizer.model and the weights in this dtype (see save_weights)."""
    save_parts(folder, network.config, tokenizer)
    state = network.state_dict()
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in state.items()}
    save_weights(folder, sizes, ((name, tensor.to(dtype).contiguous()) for name, tensor in state.items()))
