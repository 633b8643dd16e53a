"""Oracle: transformers' Llama, which InternLM2 is where all tokens are words, or all an image's. Laws: who sees whom does not depend on how tokens are packed,
padded or cached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from geopixel.model.config import LanguageConfig
from geopixel.model.language import PADDING, PREFIX, KeyValueCache, LanguageModel, rotary_frequencies, rotate
from geopixel.model.partial_lora import PartialLoRA

from .tiny import LANGUAGE, language_model

HIDDEN = LANGUAGE.hidden_size


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def states(count: int, seed: int = 0) -> Tensor:
    """Embeddings (1, count, hidden)."""
    return torch.randn(1, count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the order of sums."""
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def weight(layer: PartialLoRA, adapted: bool) -> Tensor:
    """What multiplies an image's tokens (adapted), or the words'."""
    return layer.weight + layer.scale * layer.plora_b.weight @ layer.plora_a.weight if adapted else layer.weight


def llama(language: LanguageModel, adapted: bool) -> LlamaForCausalLM:
    """The same network as transformers has it, with the adapters of every layer merged into its weights or left out."""
    config = language.config
    rope: dict[str, object] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_factor is not None:
        rope |= {"rope_type": "dynamic", "factor": config.rope_factor}
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_positions,
            rope_parameters=rope,
        )
    )
    weights = {"model.embed_tokens.weight": language.tok_embeddings.weight, "model.norm.weight": language.norm.weight, "lm_head.weight": language.output.weight}
    groups = config.heads // config.kv_heads
    for i, layer in enumerate(language.layers):
        # Per kv head: its queries, its key, its value.
        packed = weight(layer.attention.wqkv, adapted).view(config.kv_heads, groups + 2, config.head_size, config.hidden_size)
        weights |= {
            f"model.layers.{i}.{name}.weight": tensor
            for name, tensor in {
                "self_attn.q_proj": packed[:, :groups].flatten(0, 2),
                "self_attn.k_proj": packed[:, groups].flatten(0, 1),
                "self_attn.v_proj": packed[:, groups + 1].flatten(0, 1),
                "self_attn.o_proj": weight(layer.attention.wo, adapted),
                "mlp.gate_proj": weight(layer.feed_forward.w1, adapted),
                "mlp.up_proj": weight(layer.feed_forward.w3, adapted),
                "mlp.down_proj": weight(layer.feed_forward.w2, adapted),
                "input_layernorm": layer.attention_norm.weight,
                "post_attention_layernorm": layer.ffn_norm.weight,
            }.items()
        }
    made.load_state_dict(weights)
    return made.eval()


@pytest.mark.parametrize("adapted", [False, True], ids=["words", "image"])
@pytest.mark.parametrize(
    ("factor", "max_positions"), [(None, 512), (None, 16), (2.0, 512), (2.0, 16)], ids=["plain", "plain beyond", "dynamic unused", "dynamic active"]
)
def test_it_is_llama(factor: float | None, max_positions: int, adapted: bool) -> None:
    language = language_model(config=replace(LANGUAGE, rope_factor=factor, max_positions=max_positions))
    x = states(40)
    image_mask = torch.full((1, 40), adapted)
    close(language.output(language(x, image_mask=image_mask)), llama(language, adapted)(inputs_embeds=x).logits)


def test_dynamic_ntk_depends_on_the_length_alone() -> None:
    language = language_model(config=replace(LANGUAGE, rope_factor=2.0, max_positions=16))
    short = language(states(12))
    language(states(40))
    close(language(states(12)), short)
    close(short, language_model()(states(12)))


def test_dynamic_ntk_refuses_a_cache_beyond_its_positions() -> None:
    config = replace(LANGUAGE, rope_factor=2.0, max_positions=16)
    language = language_model(config=config)
    cache = KeyValueCache(config, 1, 20, torch.float32, torch.device("cpu"))
    language(states(16), cache=cache)
    position = torch.full((1, 1), 16)
    with pytest.raises(ValueError, match=r"max_positions = 16 .* got 17"):
        language(states(1), segments=torch.zeros_like(position), positions=position, cache=cache)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 5))
def test_a_cache_changes_nothing(chunks: list[int], seed: int) -> None:
    language, count = language_model(), sum(chunks)
    x = states(count, seed)
    image_mask = torch.rand(1, count, generator=torch.Generator().manual_seed(seed)) < 0.5
    cache = KeyValueCache(LANGUAGE, 1, count + 3, x.dtype, x.device)
    hidden, start = [], 0
    for chunk in chunks:
        slots = slice(start, start + chunk)
        positions = torch.arange(start, start + chunk)[None]
        hidden.append(language(x[:, slots], image_mask=image_mask[:, slots], segments=torch.full_like(positions, PREFIX), positions=positions, cache=cache))
        start += chunk
    close(torch.cat(hidden, 1), language(x, image_mask=image_mask))


def packed(prefix: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Segments and positions (1, tokens) of a prefix and so many tokens of each prompt after it."""
    segments = [PREFIX] * prefix + [i for i, count in enumerate(counts) for _ in range(count)]
    positions = list(range(prefix)) + [prefix + j for count in counts for j in range(count)]
    return torch.tensor([segments]), torch.tensor([positions])


@settings(max_examples=40)
@given(st.integers(1, 5), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_packed_prompts_are_as_if_alone(prefix: int, counts: list[int], data: st.DataObject) -> None:
    language = language_model()
    x = states(prefix + sum(counts))
    segments, positions = packed(prefix, counts)
    together = language(x, segments=segments, positions=positions)
    start = prefix
    for count in counts:
        own = slice(start, start + count)
        alone = language(torch.cat([x[:, :prefix], x[:, own]], 1))
        close(together[:, own], alone[:, prefix:])
        start += count
    close(together[:, :prefix], language(x[:, :prefix]))

    changed = data.draw(st.integers(0, len(counts) - 1))
    other = torch.where((segments == changed)[..., None], states(x.shape[1], 1), x)
    differs = (language(other, segments=segments, positions=positions) - together).abs().amax(-1) > 1e-4
    assert not (differs & (segments != changed)).any()
    assert differs[segments == changed].all()


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 6))
def test_padding_is_invisible(count: int, padding: int, at: int) -> None:
    language = language_model()
    x = states(count)
    at = min(at, count)
    real = torch.tensor([[True] * at + [False] * padding + [True] * (count - at)])
    row = states(count + padding, 1)
    row[real] = x[0]
    segments = torch.where(real, PREFIX, PADDING)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    hidden = language(row, segments=segments, positions=positions)
    close(hidden[real], language(x)[0])
    assert hidden.isfinite().all()


def test_forgotten_tokens_were_never_there() -> None:
    language = language_model()
    x, rejected = states(8), states(3, 1)
    cache = KeyValueCache(LANGUAGE, 1, 11, x.dtype, x.device)
    language(x[:, :4], cache=cache)
    positions = torch.arange(4, 8)[None]
    slots = slice(cache.length, cache.length + 4)
    language(torch.cat([x[:, 4:5], rejected], 1), segments=torch.zeros_like(positions), positions=positions, cache=cache)
    cache.forget(slots, torch.tensor([[True, False, False, False]]))
    positions = torch.arange(5, 8)[None]
    hidden = language(x[:, 5:], segments=torch.zeros_like(positions), positions=positions, cache=cache)
    close(hidden, language(x)[:, 5:])


def test_rows_of_a_batch_are_independent() -> None:
    language = language_model()
    x = torch.cat([states(6, seed) for seed in range(3)])
    image_mask = torch.tensor([[True] * 3 + [False] * 3, [False] * 6, [True] * 6])
    batch = language(x, image_mask=image_mask)
    for i in range(3):
        close(batch[i : i + 1], language(x[i : i + 1], image_mask=image_mask[i : i + 1]))


@given(st.integers(0, 7))
def test_an_image_token_changes_itself_and_what_follows(at: int) -> None:
    language, x = language_model(), states(8)
    image_mask = torch.arange(8)[None] == at
    differs = (language(x, image_mask=image_mask) - language(x)).abs().amax(-1)[0] > 1e-4
    assert differs.tolist() == [False] * at + [True] * (8 - at)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 200))
def test_rotation_keeps_lengths_and_knows_only_distances(query: int, key: int, shift: int) -> None:
    config = LanguageConfig(8, 32, 8, 1, 2, 2, rope_theta=1e4)
    frequencies = rotary_frequencies(config, 512, torch.device("cpu")).double()
    q, k = torch.randn(2, 1, 1, 1, config.head_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def turned(x: Tensor, position: int) -> Tensor:
        angles = torch.cat([position * frequencies] * 2)
        return rotate(x, angles.cos(), angles.sin())

    torch.testing.assert_close(turned(q, query).norm(), q.norm())
    torch.testing.assert_close((turned(q, query) * turned(k, key)).sum(), (turned(q, query + shift) * turned(k, key + shift)).sum())
