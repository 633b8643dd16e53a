"""Scores of referring segmentation against a worked example and a plain count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopixel.evaluation.datasets import Referring
from geopixel.evaluation.referring import Overlap, evaluate_referring, referring_scores


def test_a_worked_example() -> None:
    """IoUs of 1, 6/10, 10/40 and 0: half of them reach 0.5, two 0.6, one 0.7; 1 + 6 + 10 + 0 pixels of 1 + 10 + 40 + 9."""
    overlaps = [Overlap(1, 1, 1), Overlap(6, 8, 8), Overlap(10, 20, 30), Overlap(0, 4, 5)]
    scores = referring_scores(overlaps)
    assert {name: scores[name] for name in ("P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")} == {
        "P@0.5": 0.5, "P@0.6": 0.5, "P@0.7": 0.25, "P@0.8": 0.25, "P@0.9": 0.25
    }  # fmt: skip
    assert scores["oIoU"] == scores["cIoU"] == pytest.approx(17 / 60)
    assert scores["mIoU"] == pytest.approx((1 + 0.6 + 0.25 + 0) / 4)
    assert scores["N-acc"] is None


def test_scores_are_those_of_counting_pixel_by_pixel() -> None:
    """As RMSIN's test.py counts, in loops."""
    rng = np.random.default_rng(3)
    found, true = rng.random((2, 50, 12, 17)) < rng.random((2, 50, 1, 1))
    scores = referring_scores([Overlap.of(one, other) for one, other in zip(found, true, strict=True)])
    ious, correct, intersections, unions = [], dict.fromkeys((0.5, 0.6, 0.7, 0.8, 0.9), 0), 0, 0
    for one, other in zip(found, true, strict=True):
        intersection = np.sum(np.logical_and(one, other))
        union = np.sum(np.logical_or(one, other))
        iou = intersection / union
        ious.append(iou)
        intersections += intersection
        unions += union
        for threshold in correct:
            correct[threshold] += iou >= threshold
    assert scores["mIoU"] == pytest.approx(np.mean(ious))
    assert scores["oIoU"] == pytest.approx(intersections / unions)
    for threshold, count in correct.items():
        assert scores[f"P@{threshold}"] == pytest.approx(count / 50)
    assert 0 < correct[0.5] < 50


def test_nothing_found_where_nothing_is_meant_is_right() -> None:
    scores = referring_scores([Overlap(0, 0, 0), Overlap(0, 5, 0), Overlap(0, 0, 0), Overlap(0, 0, 7)])
    assert scores["N-acc"] == pytest.approx(2 / 3)
    assert scores["mIoU"] == pytest.approx(0.5)
    assert scores["oIoU"] == 0
    assert referring_scores([Overlap(0, 0, 0)])["oIoU"] == 1


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(ValueError, match="at least one expression"):
        referring_scores([])
    with pytest.raises(ValueError, match=r"size of its picture, \(4, 4\), got \(4, 5\)"):
        Overlap.of(np.zeros((4, 4), bool), np.zeros((4, 5), bool))


@dataclass
class Drawn:
    """An answer: masks (N, height, width) of probability."""

    masks: np.ndarray


class Painter:
    """Answers "left", "right" or "both" by probabilities of 0.6 there, as one mask a side, and "none" by no mask."""

    batch_size = 2

    def __init__(self) -> None:
        self.calls: list[list[list[str]]] = []

    def segment(self, images: list[np.ndarray], asked: list[list[str]]) -> list[list[Drawn]]:
        self.calls.append(asked)
        return [[self.answer(image, word) for word in words] for image, words in zip(images, asked, strict=True)]

    def answer(self, image: np.ndarray, word: str) -> Drawn:
        left = np.where(np.arange(image.shape[1]) < image.shape[1] // 2, 0.6, 0.4) * np.ones((image.shape[0], 1))
        sides = {"left": [left], "right": [1 - left], "both": [left, 1 - left], "none": []}
        return Drawn(np.array(sides[word]).reshape(-1, *image.shape[:2]))


def test_a_model_is_asked_picture_by_picture_and_its_masks_are_joined(tmp_path: Path) -> None:
    left = np.zeros((6, 8), bool)
    left[:, :4] = True
    truths = {"left": left, "right": ~left, "both": left | ~left, "none": left & ~left}
    samples = []
    for name, words in (("a", ["left", "both"]), ("b", ["none"]), ("c", ["right"])):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / f"{name}.png")
        samples += [Referring(tmp_path / f"{name}.png", word, lambda word=word: truths[word]) for word in words]
    painter, said = Painter(), []
    scores = evaluate_referring(painter, samples, said.append)  # type: ignore[arg-type]
    assert scores == {"expressions": 4} | dict.fromkeys(("P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "oIoU", "mIoU", "cIoU", "N-acc"), 1.0)
    assert painter.calls == [[["left", "both"], ["none"]], [["right"]]]
    assert said == [3, 4]
    wrong = [Referring(sample.image, "left", sample.truth) for sample in samples[1:]]
    assert evaluate_referring(painter, wrong, said.append)["mIoU"] == pytest.approx((0.5 + 0 + 0) / 3)  # type: ignore[arg-type]
