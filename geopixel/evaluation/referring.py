"""Scores of referring segmentation: an expression, a picture, one mask each of what was found and what was meant. Knows counts of pixels, and a
model only as what answers expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from geopixel.evaluation.datasets import Referring
from geopixel.labels import read_image

if TYPE_CHECKING:
    from geopixel.model import GeoPixel  # loads torch

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixels of one answer against its truth."""

    intersection: int
    found: int
    true: int

    @classmethod
    def of(cls, found: np.ndarray, true: np.ndarray) -> Overlap:
        """Both (height, width) bool. Raises ValueError where they are not of one size."""
        if found.shape != true.shape:
            raise ValueError(f"a mask has the size of its picture, {found.shape}, got {true.shape}")
        return cls(int(np.count_nonzero(found & true)), int(np.count_nonzero(found)), int(np.count_nonzero(true)))

    @property
    def union(self) -> int:
        return self.found + self.true - self.intersection

    @property
    def iou(self) -> float:
        """1 where nothing was meant and nothing was found: LISA, GLaMM and GRES count so. RMSIN counts 0; its data has no such case."""
        return self.intersection / self.union if self.union else 1.0


def referring_scores(overlaps: Sequence[Overlap]) -> dict[str, float | None]:
    """Shares of 1 under the names of the papers.

    P@x: expressions whose IoU is at least x. mIoU: mean IoU over the expressions. oIoU, overall: all intersections over all unions, so that large
    things count more (all three: Lsan2401/RMSIN, test.py). cIoU, cumulative: the same figure by the name that LISA and GLaMM give it
    (mbzuai-oryx/groundingLMM, eval/referring_seg/infer_and_evaluate.py). N-acc: of the expressions that nothing in the picture fits, those
    answered by nothing (Liu et al. 2023, GRES, arXiv:2306.00968); None where there is no such expression. Raises ValueError for no expressions.
    """
    if not overlaps:
        raise ValueError("scores need at least one expression, got none")
    ious = np.array([overlap.iou for overlap in overlaps])
    union = sum(overlap.union for overlap in overlaps)
    overall = sum(overlap.intersection for overlap in overlaps) / union if union else 1.0
    absent = [overlap.found == 0 for overlap in overlaps if overlap.true == 0]
    precisions = {f"P@{x}": float((ious >= x).mean()) for x in PRECISIONS}
    return {**precisions, "oIoU": overall, "mIoU": float(ious.mean()), "cIoU": overall, "N-acc": sum(absent) / len(absent) if absent else None}


def evaluate_referring(model: GeoPixel, samples: Sequence[Referring], done: Callable[[int], None]) -> dict[str, float | None]:
    """referring_scores of a model, and how many `expressions` they are of. done: called with how many are answered."""
    overlaps = list(answer_expressions(model, samples, done))
    return {"expressions": len(overlaps), **referring_scores(overlaps)}


def answer_expressions(model: GeoPixel, samples: Sequence[Referring], done: Callable[[int], None]) -> Iterator[Overlap]:
    """The model's answer to every expression against its truth. Expressions of one picture that follow one another are asked together; an answer
    with several masks counts as their union, at probability 0.5 (logit 0) as published. done: called with how many are answered."""
    pictures = [(path, list(group)) for path, group in groupby(samples, key=lambda sample: sample.image)]
    answered = 0
    while pictures:
        batch, pictures = pictures[: model.batch_size], pictures[model.batch_size :]
        asked = [[sample.expression for sample in group] for _, group in batch]
        rows = model.segment([read_image(path) for path, _ in batch], asked)
        for (_, group), row in zip(batch, rows, strict=True):
            for sample, answer in zip(group, row, strict=True):
                try:
                    overlap = Overlap.of(np.any(answer.masks > 0.5, axis=0, keepdims=True)[0], sample.truth())
                except ValueError as error:
                    raise ValueError(f"{sample.image}: {error}") from error
                yield overlap
                answered += 1
        done(answered)
