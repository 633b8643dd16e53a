"""Oracles: the formulas written out in numpy. Laws: what is ignored does not count, and a right mask costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geopixel.model.losses import BCE_WEIGHT, DICE_WEIGHT, IGNORED, answer_loss, bce_loss, dice_loss, mask_loss

RNG = np.random.default_rng(0)
LOGITS, TARGET = RNG.normal(0, 3, (3, 20, 30)), RNG.random((3, 20, 30)) > 0.5


def test_formulas() -> None:
    probability = 1 / (1 + np.exp(-LOGITS))
    bce = -np.where(TARGET, np.log(probability), np.log(1 - probability)).mean((1, 2))
    dice = 1 - 2 * (probability * TARGET).sum((1, 2)) / (probability.sum((1, 2)) + TARGET.sum((1, 2)))
    logits, target = torch.from_numpy(LOGITS), torch.from_numpy(TARGET)
    assert bce_loss(logits, target).item() == pytest.approx(bce.sum(), rel=1e-5)
    assert dice_loss(logits, target).item() == pytest.approx(dice.sum(), rel=1e-4)
    assert mask_loss(logits, target).item() == pytest.approx((BCE_WEIGHT * bce + DICE_WEIGHT * dice).mean(), rel=1e-4)


def test_a_right_mask_costs_nothing_and_a_wrong_one_much() -> None:
    target = torch.from_numpy(TARGET)
    sure = torch.where(target, 30.0, -30.0)
    assert mask_loss(sure, target).item() == pytest.approx(0, abs=1e-5)
    assert mask_loss(-sure, target).item() == pytest.approx(30 * BCE_WEIGHT + DICE_WEIGHT, rel=1e-3)


def test_no_masks_cost_nothing_and_can_be_differentiated() -> None:
    logits = torch.zeros(0, 8, 8, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 8, 8))
    loss.backward()
    assert loss.item() == 0


def test_ignored_labels_do_not_count() -> None:
    logits = torch.from_numpy(RNG.normal(size=(6, 9)))
    labels = torch.tensor([3, IGNORED, 0, 8, IGNORED, 1])
    kept = labels != IGNORED
    chosen = torch.log_softmax(logits[kept], -1)[torch.arange(4), labels[kept]]
    assert answer_loss(logits, labels).item() == pytest.approx(-chosen.mean().item(), rel=1e-5)
