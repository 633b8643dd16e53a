"""The figures of the bundled model's table, on pictures whose answers are known beforehand: a model that reads the truth off the colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geopixel.model.geopixel import Answer
from geopixel.training.real import Ground
from geopixel.training.referring import references
from geopixel.training.words import CONCEPTS, UNLABELLED
from tests.benchmarks import nano
from tests.training.test_real import write_chips


class Seeing:
    """Finds each concept where the blue is its code, and nothing else; every second column of it where it is half blind."""

    def __init__(self, half: bool = False) -> None:
        self.half = half

    def segment(self, pictures: Sequence[np.ndarray], words: Sequence[str]) -> list[list[Answer]]:
        return [[self.answer(picture, word) for word in words] for picture in pictures]

    def answer(self, picture: np.ndarray, word: str) -> Answer:
        found = picture[..., 2] == CONCEPTS.get(word, -1)
        found[:, 1::2] &= not self.half
        logits = np.where(found, 9, -9).astype(np.float32)[None] if found.any() else np.zeros((0, *found.shape), np.float32)
        ones = np.ones(len(logits), np.float32)
        return Answer("", [], logits, ones, ones, *found.shape)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A quarter building, a quarter road, half water of which the last 16 columns are unlabelled."""
    codes = np.full((64, 64), CONCEPTS["water"], np.uint8)
    codes[:32, :32], codes[32:, :32] = CONCEPTS["building"], CONCEPTS["road"]
    truth = codes.copy()
    truth[:, 48:] = UNLABELLED
    return np.dstack([np.zeros_like(codes)] * 2 + [codes]), truth


def test_what_is_unlabelled_does_not_count() -> None:
    rgb, truth = picture()
    ground = Ground("here", rgb, truth, ("building", "road", "water"), (1, 2))
    names = ("building", "road", "water")
    assert nano.class_ious(Seeing(), [ground, ground], names) == dict.fromkeys(names, 1.0)  # type: ignore[arg-type]
    assert nano.class_ious(Seeing(half=True), [ground], names) == dict.fromkeys(names, 0.5)  # type: ignore[arg-type]


def test_who_is_not_listened_to_gets_all_of_the_concept() -> None:
    """A building of 30 x 30 pixels and one of 10 x 10: a model that knows classes only draws both, or nothing."""
    codes = np.zeros((64, 64), np.uint8)
    codes[2:32, 2:32] = codes[50:60, 50:60] = CONCEPTS["building"]
    rgb = np.dstack([np.zeros_like(codes)] * 2 + [codes])
    largest = [each for each in references(rgb, codes, ("building",), np.random.default_rng(0)) if each.reference.atoms[0].value == "largest"]
    told = nano.understood(Seeing(), [(rgb, codes, largest), (rgb, codes, [])])  # type: ignore[arg-type]
    heard = {"largest": 0.0, "largest, meant drawn": 0.0, "largest, others drawn": 0.0}
    bare = {"largest, bare": 0.9, "largest, bare, meant drawn": 1.0, "largest, bare, others drawn": 1.0}
    assert told == heard | bare | {"largest, asked": 1, "outermost, asked": 0, "place, asked": 0}
    renamed = [replace(each, words="building") for each in largest]
    told = nano.understood(Seeing(), [(rgb, codes, renamed)])  # type: ignore[arg-type]
    assert (told["largest"], told["largest, meant drawn"], told["largest, others drawn"]) == (0.9, 1.0, 1.0)


def test_absent_things_are_counted_by_prompt() -> None:
    rgb, _ = picture()
    assert nano.empty_share(Seeing(), [(rgb, ["tree", "ship"]), (rgb, []), (rgb, ["road", "field"])]) == (3, 4)  # type: ignore[arg-type]


def test_chips_are_read_with_their_masks(tmp_path: Path) -> None:
    write_chips(tmp_path, {"here": [(0, 0), (1, 1)], "there": [(0, 0)]})
    read = list(nano.chips(tmp_path, "here"))
    assert [(rgb.shape, float(mask.mean())) for rgb, mask in read] == [((256, 256, 3), 0.5)] * 2
    rgb, truth = picture()
    assert nano.building_iou(Seeing(), [(rgb, truth == CONCEPTS["building"])]) == 1.0  # type: ignore[arg-type]
    assert nano.building_iou(Seeing(), [(rgb, truth == CONCEPTS["water"])]) == pytest.approx(0)  # type: ignore[arg-type]
