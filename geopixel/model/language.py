"""InternLM2 with Partial LoRA: rotary grouped-query attention, SwiGLU, RMSNorm, and a key-value cache in which several prompts share
one image. Knows embeddings and positions; nothing of text, images or masks.

Prompts of an image are *packed*, not batched: a row of the cache is [prefix | tokens of prompt 0, 1, ...], every token carries the
segment it belongs to and its position, and a query sees the prefix and its own segment up to its position. The keys of the
prefix therefore exist once, however many prompts ask about the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopixel.model import attention
from geopixel.model.config import LanguageConfig
from geopixel.model.partial_lora import PartialLoRA

PREFIX = -1
"""Segment of tokens that every prompt of the row sees."""
PADDING = -2
"""Segment of slots that nobody sees. What is asked from there sees the start of the prefix, so that no softmax is over nothing."""


class KeyValueCache:
    """Keys and values of the tokens seen so far, per layer (rows, kv_heads, capacity, head_size), and who may see them:
    segments and positions, (rows, capacity) int64. Slots are filled in the order of arrival."""

    def __init__(self, config: LanguageConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.segments = torch.full((rows, capacity), PADDING, device=device)
        self.positions = torch.zeros((rows, capacity), dtype=torch.int64, device=device)
        self.length = 0

    def visible(self, segments: Tensor, positions: Tensor) -> Tensor:
        """Which of the filled slots a query of this segment and position sees: (rows, queries, length) bool."""
        return visibility(segments, positions, self.segments[:, : self.length], self.positions[:, : self.length])

    def extend(self, segments: Tensor, positions: Tensor) -> slice:
        """Reserves slots for new tokens (rows, tokens) and says which."""
        start, self.length = self.length, self.length + segments.shape[1]
        slots = slice(start, self.length)
        self.segments[:, slots] = segments
        self.positions[:, slots] = positions
        return slots

    def forget(self, slots: slice, keep: Tensor) -> None:
        """Hides the slots whose keep (rows, slots) is False: rejected draft tokens."""
        self.segments[:, slots] = torch.where(keep, self.segments[:, slots], PADDING)


def visibility(query_segments: Tensor, query_positions: Tensor, key_segments: Tensor, key_positions: Tensor) -> Tensor:
    """(rows, queries, keys) bool, True: the key is in the prefix or in the query's own segment, and not after the query."""
    same = (key_segments[:, None, :] == query_segments[:, :, None]) | (key_segments[:, None, :] == PREFIX)
    before = key_positions[:, None, :] <= query_positions[:, :, None]
    return same & before & (key_segments[:, None, :] != PADDING)


def rotary_frequencies(config: LanguageConfig, length: int, device: torch.device) -> Tensor:
    """Inverse frequencies (head_size / 2,) float32 for a sequence of this length.

    Dynamic NTK (published modeling_internlm2.py): beyond max_positions the base grows with the length, so the keys of a cache would all
    have to be rotated anew. The published code keeps the longest base it ever saw (history dependent); ours depends on the length alone.
    """
    size = config.head_size
    base = config.rope_theta
    if config.rope_factor is not None and length > config.max_positions:
        stretch = config.rope_factor * length / config.max_positions - (config.rope_factor - 1)
        base *= stretch ** (size / (size - 2))
    return 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split layout: x (rows, heads, tokens, head_size); cos, sin (rows, 1, tokens, head_size)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Computed in float32; the weight is applied after the cast back, as published."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention; wqkv holds, per kv head, its queries, its key and its value in that order."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.kv_heads, self.head_size = config.kv_heads, config.head_size
        self.groups = config.heads // config.kv_heads
        self.kernel: attention.Kernel = attention.sdpa
        rank, alpha = config.plora_rank, config.plora_alpha
        self.wqkv = PartialLoRA(config.hidden_size, (config.heads + 2 * config.kv_heads) * config.head_size, rank, alpha)
        self.wo = PartialLoRA(config.heads * config.head_size, config.hidden_size, rank, alpha)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], image_mask: Tensor | None, mask: Tensor | None, past: tuple[Tensor, Tensor, slice] | None
    ) -> Tensor:
        """x (rows, tokens, hidden). mask (rows, tokens, keys) bool or None for plain causal. past: this layer's key and value buffers
        (rows, kv_heads, capacity, head_size) and the slots of x in them."""
        rows, tokens, _ = x.shape
        qkv = self.wqkv(x, image_mask).view(rows, tokens, self.kv_heads, self.groups + 2, self.head_size)
        q = qkv[:, :, :, : self.groups].reshape(rows, tokens, -1, self.head_size).transpose(1, 2)
        k, v = qkv[:, :, :, -2].transpose(1, 2), qkv[:, :, :, -1].transpose(1, 2)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if past is not None:
            keys, values, slots = past
            keys[:, :, slots], values[:, :, slots] = k, v
            if mask is not None:
                k, v = keys[:, :, : slots.stop], values[:, :, : slots.stop]
        y = self.kernel(q, k, v, mask)
        return self.wo(y.transpose(1, 2).reshape(rows, tokens, -1), image_mask)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden, inner, rank, alpha = config.hidden_size, config.intermediate_size, config.plora_rank, config.plora_alpha
        self.w1 = PartialLoRA(hidden, inner, rank, alpha)
        self.w3 = PartialLoRA(hidden, inner, rank, alpha)
        self.w2 = PartialLoRA(inner, hidden, rank, alpha)

    def forward(self, x: Tensor, image_mask: Tensor | None) -> Tensor:
        return self.w2(F.silu(self.w1(x, image_mask)) * self.w3(x, image_mask), image_mask)


class Block(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], image_mask: Tensor | None, mask: Tensor | None, past: tuple[Tensor, Tensor, slice] | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, image_mask, mask, past)
        return x + self.feed_forward(self.ffn_norm(x), image_mask)


class LanguageModel(nn.Module):
    """Token embeddings in, hidden states out; `output` turns hidden states into logits where they are wanted."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def use(self, kernel: str) -> None:
        """Every layer computes its attention with this one of attention.KERNELS from now on."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = attention.KERNELS[kernel]

    def forward(
        self,
        x: Tensor,
        *,
        image_mask: Tensor | None = None,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Embeddings x (rows, tokens, hidden) -> hidden states after the final norm, same shape.

        image_mask (rows, tokens) bool: True on image tokens. segments and positions (rows, tokens) int64: see KeyValueCache; without them x
        is one plain causal sequence from position 0. With a cache, x comes after what the cache holds and is kept in it.
        Raises ValueError when a cache would outgrow max_positions under dynamic NTK: no cache can equal the published model there.
        """
        rows, tokens, _ = x.shape
        plain = segments is None
        if segments is None or positions is None:
            positions = torch.arange(tokens, device=x.device).expand(rows, tokens)
            segments = torch.full_like(positions, PREFIX)
        length = int(positions.max()) + 1
        if cache is not None and self.config.rope_factor is not None and length > self.config.max_positions:
            raise ValueError(f"a key-value cache holds at most max_positions = {self.config.max_positions} tokens under dynamic NTK, got {length}")
        frequencies = rotary_frequencies(self.config, length, x.device)
        angles = torch.cat([positions[:, None, :, None] * frequencies] * 2, dim=-1)
        rotary = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        mask, slots = None, slice(0, tokens)
        if cache is not None:
            slots = cache.extend(segments, positions)
        if not plain or slots.start > 0:
            mask = cache.visible(segments, positions) if cache is not None else visibility(segments, positions, segments, positions)
        for i, layer in enumerate(self.layers):
            past = None if cache is None else (cache.keys[i], cache.values[i], slots)
            x = layer(x, rotary, image_mask, mask, past)
        return self.norm(x)
