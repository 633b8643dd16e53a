"""Networks of the published architecture that are small enough for laws: seeded random weights, a few thousand parameters, milliseconds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from geopixel.model.config import GeoPixelConfig, GroundingConfig, LanguageConfig, VisionConfig
from geopixel.model.geopixel import SEGMENT_ANSWER, SEGMENT_PROMPT
from geopixel.model.language import LanguageModel
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import Tokenizer
from geopixel.training.words import make_tokenizer

LANGUAGE = LanguageConfig(
    24, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, rope_theta=1e4, max_positions=512, plora_rank=4, plora_alpha=8.0
)
VISION = VisionConfig(hidden_size=16, intermediate_size=32, layers=2, heads=2, crop_size=28, patch_size=7)
GROUNDING = GroundingConfig(8, heads=1, blocks=(1, 1, 2, 1), global_blocks=(3,), hidden_size=32, mlp_size=48, image_size=64)
CONFIG = GeoPixelConfig(LANGUAGE, VISION, GROUNDING, hd_num=4, max_length=512)

PUBLISHED: dict[str, Any] = {
    "vocab_size": 92547,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "max_length": 16384,
    "out_dim": 256,
    "auto_map": {"AutoModel": "modeling_geopixel.GeoPixel"},
}
"""A published config.json, shortened."""


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep the states' size: nothing is zero, so that nothing can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values = noise / prod(parameter.shape[1:]) ** 0.5
        elif name.endswith("bias"):
            values = 0.1 * noise
        else:
            values = 1 + 0.1 * noise
        with torch.no_grad():
            parameter.copy_(values)
    for buffer in module.buffers():
        if buffer.is_floating_point():  # the matrix of SAM 2's positional encoding
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return module.eval().requires_grad_(False)


@cache
def language_model(seed: int = 0, config: LanguageConfig = LANGUAGE) -> LanguageModel:
    language = LanguageModel(config)
    fill(language, seed)
    language.tok_embeddings.weight *= config.hidden_size**0.5
    return language


@cache
def tokenizer_model() -> bytes:
    """A sentencepiece model with InternLM2's layout: <unk>, <s>, </s>, bytes, pieces, chat markers."""
    lines = [SEGMENT_PROMPT, SEGMENT_ANSWER, "user", "assistant", "a tank and two ships at the pier", "the roofs of houses", "a road", "no water"]
    return make_tokenizer(lines, 340)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_model())


def network(seed: int = 0, config: GeoPixelConfig = CONFIG) -> GeoPixelNetwork:
    """A new network that knows the tokenizer's words, or more where the config has more."""
    words = replace(config.language, vocab_size=max(tokenizer().vocab_size, config.language.vocab_size))
    made = GeoPixelNetwork(replace(config, language=words))
    fill(made, seed)
    return made


def teach(made: GeoPixelNetwork, ids: list[int]) -> None:
    """Sets the output layer by hand: whatever was asked, after ids[i] comes ids[i + 1]; no id may be in ids twice.

    The residual stream keeps the embedding of the input token on top of what the layers add, so the output row that points along an
    embedding answers to its token.
    """
    language = made.language
    embedding = nn.functional.normalize(language.tok_embeddings.weight, dim=1) * 100
    language.tok_embeddings.weight.copy_(embedding)
    language.norm.weight.fill_(1)
    language.output.weight.zero_()
    language.output.weight[ids[1:]] = embedding[ids[:-1]]


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
