"""Attention kernels of the language model, by name. All compute the same function; they differ in speed, in memory and in the last bits.
Knows queries, keys and values; nothing of positions, prompts or caches."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(queries (rows, heads, tokens, size), keys and values (rows, kv_heads, keys, size), mask (rows, tokens, keys) bool, True: may see, or None:
plain causal, as many keys as tokens) -> (rows, heads, tokens, size). Head h belongs to kv head h // (heads / kv_heads)."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """torch's own choice: its flash kernels where the mask is plain causal.

    Under a mask the heads that share a kv head are queries of one head: kernels that take masks take no grouped queries, and the keys of a
    long prefix must not be copied once a group."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    groups = q.shape[1] // k.shape[1]
    folded = q.reshape(q.shape[0], k.shape[1], groups * q.shape[2], q.shape[3])
    return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask.repeat(1, groups, 1)[:, None]).view_as(q)


def math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The formula step by step, every score in memory: the reference that fast kernels are measured against."""
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(q, k, v, mask)


def flash_attention_2(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The flash-attn package where the mask is plain causal (which is nearly all of the work: the image's prefix), else as sdpa."""
    if mask is not None:
        return sdpa(q, k, v, mask)
    from flash_attn import flash_attn_func

    return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True).transpose(1, 2)


KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "math": math, "flash_attention_2": flash_attention_2}


def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that a name means here; "auto": flash_attention_2 where it can run, else sdpa.

    Raises ValueError for an unknown name, and for flash_attention_2 where it cannot run.
    """
    if name not in ("auto", *KERNELS):
        raise ValueError(f"attention must be one of {['auto', *KERNELS]}, got {name!r}")
    flash = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and find_spec("flash_attn") is not None
    if name == "flash_attention_2" and not flash:
        raise ValueError(f"flash_attention_2 needs the flash-attn package, CUDA and a 16-bit dtype, got {device} and {dtype}")
    if name == "auto":
        return "flash_attention_2" if flash else "sdpa"
    return name
