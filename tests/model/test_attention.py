"""Oracle: the softmax written out, head by head, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geopixel.model.attention import KERNELS, choose

CPU = torch.device("cpu")


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=torch.float64)
    groups = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = q[row, head].double() @ k[row, head // groups].double().T / q.shape[3] ** 0.5
            out[row, head] = scores.masked_fill(~mask[row], -torch.inf).softmax(-1) @ v[row, head // groups].double()
    return out


@pytest.mark.parametrize("name", ["sdpa", "math"])
@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(0, 99), st.integers(1, 2), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.integers(1, 5), st.integers(0, 4))
def test_kernels_compute_attention(name: str, seed: int, rows: int, heads: tuple[int, int], tokens: int, past: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, heads[0], tokens, 8, generator=generator)
    k, v = torch.randn(2, rows, heads[1], tokens + past, 8, generator=generator)
    mask = torch.rand(rows, tokens, tokens + past, generator=generator) < 0.6
    mask[..., 0] = True
    torch.testing.assert_close(KERNELS[name](q, k, v, mask).double(), written_out(q, k, v, mask), atol=1e-5, rtol=1e-5)
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(rows, -1, -1)
    k, v = k[:, :, :tokens], v[:, :, :tokens]
    torch.testing.assert_close(KERNELS[name](q, k, v, None).double(), written_out(q, k, v, causal), atol=1e-5, rtol=1e-5)


def test_the_kernel_of_a_name() -> None:
    assert choose("auto", CPU, torch.float32) == "sdpa"
    assert choose("math", CPU, torch.bfloat16) == "math"
    with pytest.raises(ValueError, match=r"one of \['auto', 'sdpa', 'math', 'flash_attention_2'\], got 'fast'"):
        choose("fast", CPU, torch.float32)
    with pytest.raises(ValueError, match="flash_attention_2 needs .* got cpu and torch.bfloat16"):
        choose("flash_attention_2", CPU, torch.bfloat16)
