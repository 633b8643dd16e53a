"""Partial LoRA: a low-rank adapter that acts on image tokens only (InternLM-XComposer2, arXiv:2401.16420)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PartialLoRA(nn.Linear):
    """y = W x for every token, + (alpha / rank) B A x where the token belongs to an image.

    Weights: weight (out, in), plora_a (rank, in), plora_b (out, rank). No bias.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.plora_a = nn.Linear(in_features, rank, bias=False)
        self.plora_b = nn.Linear(rank, out_features, bias=False)
        self.scale = alpha / rank

    def forward(self, x: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """x (batch, tokens, in) -> (batch, tokens, out); image_mask (batch, tokens) bool, True: image token; None: no image tokens."""
        y = super().forward(x)
        if image_mask is None:
            return y
        adapted = self.plora_b(self.plora_a(x[image_mask])) * self.scale
        return torch.index_put(y, (image_mask,), adapted, accumulate=True)
