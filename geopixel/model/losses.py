"""The published training losses: cross-entropy on answers, binary cross-entropy and Dice on masks, and how they are weighed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BCE_WEIGHT, DICE_WEIGHT = 2.0, 0.5
"""mbzuai-oryx/GeoPixel, train.sh; the answers' cross-entropy weighs 1."""

IGNORED = -100
"""Label of tokens that the loss does not look at."""


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (tokens, vocabulary) against labels (tokens,), already aligned; IGNORED labels do not count."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over masks (masks, height, width) of the mean cross-entropy over pixels; target in 0..1, 1 inside the object."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none").flatten(1).mean(1).sum()


def dice_loss(logits: Tensor, target: Tensor, scale: float = 1000.0, eps: float = 1e-6) -> Tensor:
    """Sum over masks of 1 - Dice; scale and eps as published (LISA's dice_loss)."""
    probability, target = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    overlap = 2 * (probability / scale * target).sum(1)
    total = (probability / scale).sum(1) + (target / scale).sum(1)
    return (1 - (overlap + eps) / (total + eps)).sum()


def mask_loss(logits: Tensor, target: Tensor, dice_weight: float = DICE_WEIGHT) -> Tensor:
    """Weighted BCE and Dice of masks (masks, height, width), per mask; zero where there are no masks."""
    if len(logits) == 0:
        return logits.sum()
    return (BCE_WEIGHT * bce_loss(logits, target) + dice_weight * dice_loss(logits, target)) / len(logits)
