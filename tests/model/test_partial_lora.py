"""Law: the adapter is added where the mask says, scaled by alpha / rank, and nowhere else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from geopixel.model.partial_lora import PartialLoRA

from .tiny import fill


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_formula(rows: list[list[bool]]) -> None:
    layer = fill(PartialLoRA(6, 4, rank=3, alpha=12.0), 0)
    image_mask = torch.tensor(rows)
    x = torch.randn(*image_mask.shape, 6, generator=torch.Generator().manual_seed(1))
    plain = x @ layer.weight.T
    adapted = 12.0 / 3 * (x @ layer.plora_a.weight.T) @ layer.plora_b.weight.T
    torch.testing.assert_close(layer(x, image_mask), plain + image_mask[..., None] * adapted)
    torch.testing.assert_close(layer(x), plain)


def test_text_tokens_do_not_train_the_adapter() -> None:
    layer = PartialLoRA(6, 4, rank=3, alpha=3.0)
    x = torch.randn(1, 5, 6)
    layer(x, torch.zeros(1, 5, dtype=torch.bool)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
    assert layer.plora_a.weight.grad is None or not layer.plora_a.weight.grad.any()
    layer(x, torch.ones(1, 5, dtype=torch.bool)).sum().backward()
    assert layer.plora_a.weight.grad is not None
    assert layer.plora_a.weight.grad.any()
