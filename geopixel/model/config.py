"""Sizes of a GeoPixel network, and where a model of a name lies. Everything that differs between the published 7B model and the bundled nano
stands here; reading it loads no torch, so that a planner can ask what a tile will cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Any

from geopixel.errors import CheckpointError

SAFETENSORS = ("model.safetensors.index.json", "model*.safetensors")
BIN = ("pytorch_model.bin.index.json", "pytorch_model*.bin")
"""Index and shards of a checkpoint, as transformers names them: all that is downloaded and read of its weights."""

ENCODERS = ("hiera", "efficientnet-lite0")
"""Image encoders of SAM 2: its own, and a convolutional one for small models (encoder.py)."""

LITE_FLOPS = 25_900
"""Floating-point operations of EfficientNet-Lite0 and its pyramid for a pixel, without its classifier."""

PROMPT_TOKENS = 40
"""Of a referring question and its answer, about."""


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """InternLM2 with Partial LoRA."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_factor: float | None = None
    """Factor of dynamic NTK scaling, active beyond max_positions; None: plain rotary embedding."""
    max_positions: int = 32768
    plora_rank: int = 256
    plora_alpha: float = 256.0

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """CLIP vision tower; every crop is crop_size x crop_size pixels and becomes (crop_size / patch_size / 2) ** 2 tokens."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    crop_size: int = 560
    patch_size: int = 14
    layer_norm_eps: float = 1e-5

    @property
    def tokens_per_side(self) -> int:
        """Tokens along one edge of a crop after the 2 x 2 merge: 20 in the published model."""
        return self.crop_size // self.patch_size // 2


@dataclass(frozen=True, slots=True)
class GroundingConfig:
    """SAM 2 (image encoder, FPN, mask decoder), used for one image at a time with text states as prompts."""

    embed_size: int
    heads: int
    blocks: tuple[int, ...]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 16, 8)
    background_window: int = 7
    hidden_size: int = 256
    mlp_size: int = 2048
    image_size: int = 1024
    multimask_fallback: bool = True
    """SAM 2's dynamic fallback to mask tokens 1-3 where mask 0 is unstable; only for weights that trained those tokens."""
    encoder: str = "hiera"
    """One of ENCODERS. What stands above of Hiera (embed_size to background_window) says nothing of another."""

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {self.encoder!r}")

    @property
    def mask_size(self) -> int:
        """Edge of the decoder's low-resolution masks."""
        return self.image_size // 4


@dataclass(frozen=True, slots=True)
class GeoPixelConfig:
    language: LanguageConfig
    vision: VisionConfig
    grounding: GroundingConfig
    hd_num: int = 9
    """Crops that an image is cut into, at most, as long as it is small (see processor.crop_grid)."""
    max_length: int = 16384

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GeoPixelConfig:
        """Inverse of to_dict; unknown or missing names are a TypeError that names them."""
        grounding: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["grounding"].items()}
        rest = {k: v for k, v in values.items() if k not in ("language", "vision", "grounding")}
        return cls(LanguageConfig(**values["language"]), VisionConfig(**values["vision"]), GroundingConfig(**grounding), **rest)

    @classmethod
    def from_file(cls, path: Path) -> GeoPixelConfig:
        return cls.from_dict(json.loads(path.read_text()))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def image_tokens(self, rows: int, columns: int) -> int:
        """Language-model tokens of an image cut into rows x columns crops: the local view, the global view, row ends, one separator
        (mbzuai-oryx/GeoPixel, model/IXC/build_mlp.py: (hw + 1) * 400 + 1 + (h + 1) * 20 at 560 px)."""
        side = self.vision.tokens_per_side
        return (rows * columns + 1) * side * side + 1 + (rows + 1) * side

    def fits(self, width: int, height: int) -> bool:
        """Whether an image, a question about it and the answer fit the context."""
        return self.image_tokens(*crop_grid(width, height, self.hd_num, self.vision.crop_size)) + PROMPT_TOKENS <= self.max_length

    def flops(self, width: int, height: int, prompts: int) -> float:
        """Floating-point operations to answer so many prompts about an image: two per weight and token, and the attention.

        Low by about 12 % at the published sizes, where adapters and SAM 2's attention weigh little, and by up to half in a small model.
        """
        rows, columns = crop_grid(width, height, self.hd_num, self.vision.crop_size)
        language, vision, grounding = self.language, self.vision, self.grounding
        tokens = self.image_tokens(rows, columns)
        asked = tokens + PROMPT_TOKENS * prompts
        attention = language.hidden_size * (2 * language.hidden_size + 2 * language.kv_heads * language.head_size)
        weights = language.layers * (attention + 3 * language.hidden_size * language.intermediate_size)
        total = 2.0 * asked * weights + 2.0 * language.layers * language.hidden_size * asked * asked
        patches = (vision.crop_size // vision.patch_size) ** 2
        per_patch = 2 * vision.layers * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size + 2 * patches * vision.hidden_size)
        total += (rows * columns + 1) * patches * per_patch
        if grounding.encoder == "efficientnet-lite0":
            total += LITE_FLOPS * grounding.image_size**2
        for stage, blocks in enumerate(grounding.blocks):
            cells = (grounding.image_size // 4 >> stage) ** 2
            total += 2.0 * blocks * cells * 12 * (grounding.embed_size << stage) ** 2
        return total + prompts * 2.0 * grounding.mask_size**2 * grounding.hidden_size * grounding.hidden_size / 4


def crop_grid(width: int, height: int, hd_num: int, crop_size: int) -> tuple[int, int]:
    """(rows, columns) of crops that an image of this size is cut into.

    The published rule (model/IXC/ixc_utils.py, Image_transform): the most columns s with s * ceil(s / ratio) <= hd_num, but never fewer
    than the image is crops wide. hd_num is therefore no cap: large images get more crops. Portrait images are treated transposed.
    """
    long, short = max(width, height), min(width, height)
    ratio = long / short
    scale = 1
    while scale * ceil(scale / ratio) <= hd_num:
        scale += 1
    scale = max(long // crop_size, scale - 1)
    rows = ceil(max(1, int(scale * crop_size / ratio)) / crop_size)
    return (rows, scale) if width >= height else (scale, rows)


def published_config(values: Mapping[str, Any]) -> GeoPixelConfig:
    """Our configuration from a published config.json, which holds the language model's sizes only: CLIP ViT-L/14 at 560 px and
    SAM 2 Hiera-L are constants of the published code."""
    scaling = values.get("rope_scaling") or {"type": None}
    if scaling["type"] not in (None, "dynamic"):
        raise ValueError(f"rope_scaling must be dynamic or none, got {scaling['type']!r}")
    language = LanguageConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
        rms_norm_eps=values["rms_norm_eps"],
        rope_theta=values["rope_theta"],
        rope_factor=scaling["factor"] if scaling["type"] else None,
        max_positions=values["max_position_embeddings"],
    )
    vision = VisionConfig(hidden_size=1024, intermediate_size=4096, layers=24, heads=16)
    grounding = GroundingConfig(embed_size=144, heads=2, blocks=(2, 6, 36, 4), global_blocks=(23, 33, 43), hidden_size=values.get("out_dim", 256))
    return GeoPixelConfig(language, vision, grounding, max_length=values.get("max_length", 16384))


def read_config(folder: Path) -> GeoPixelConfig:
    """Raises CheckpointError where there is no readable config.json."""
    try:
        values = json.loads((folder / "config.json").read_text())
        return GeoPixelConfig.from_dict(values) if "language" in values else published_config(values)
    except KeyError as error:
        raise CheckpointError(f"no model configuration in {folder}: config.json lacks {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"no model configuration in {folder}: {error}") from error


def default_model(device: str) -> str:
    """The model for who names none, by what it will run on: cuda or cpu."""
    return "MBZUAI/GeoPixel-7B" if device == "cuda" else "nano"


def find_model(name: str, *, weights: bool = True) -> Path:
    """The folder of a model by its name: nano, a folder, or a hub id, of which configuration, tokenizer and weights are downloaded (without
    weights, the configuration alone). Raises CheckpointError where there is none."""
    if name == "nano":
        return Path(str(files("geopixel.model") / "weights" / "nano"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(f"unknown model {name!r}: nano, a folder, or a hub id such as MBZUAI/GeoPixel-7B")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["config.json", "tokenizer.model", *SAFETENSORS] if weights else ["config.json"]))
        if weights and not any(folder.glob("*.safetensors")):  # many repositories hold both formats: the second only for want of the first
            snapshot_download(name, allow_patterns=[*BIN])
    except Exception as error:  # the hub raises many kinds, for one fact
        raise CheckpointError(f"model {name!r} is neither a folder nor a model that the hub gives: {str(error).partition(chr(10))[0]}") from error
    return folder


def read_model_config(name: str) -> GeoPixelConfig:
    """The sizes of a model, without its weights. Raises CheckpointError where there is no such model."""
    return read_config(find_model(name, weights=False))
