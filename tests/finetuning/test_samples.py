"""What is read is what was said, and what is wrong names the sample. The oracle of masks is what was drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geopixel.finetuning import hold_out, read_class_chips, read_published
from geopixel.finetuning.samples import ABSENT_ANSWER
from geopixel.labels import encode_mask, read_mask

from .conftest import published

TURNS = [{"from": "human", "value": "What is there?"}, {"from": "bot", "value": "<p> A pond </p> [SEG] and <p> a road </p> [SEG]."}]
RINGS = [[[[2, 3], [9, 3], [9, 7], [2, 7]], [[20, 20], [22, 20], [22, 22], [20, 22]]], [[[30, 30], [40, 30], [40, 40], [30, 40]]]]


@pytest.fixture
def folder(tmp_path: Path, chips: Path) -> Path:
    shutil.copy(chips / "images" / "north_1.png", tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"polygons": RINGS}))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, rings in {"flat": [[3, 4], [3, 4]], "endless": [[[[1, float("inf")]]]] * 2, "none": [None, None]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"polygons": rings}))
    return tmp_path


def said(question: str, answer: str | None) -> list[dict[str, str | None]]:
    return [{"from": "human", "value": question}, {"from": "bot", "value": answer}]


def drawn() -> np.ndarray:
    masks = np.zeros((2, 48, 48), bool)
    masks[0, 3:8, 2:10] = masks[0, 20:23, 20:23] = True
    masks[1, 30:41, 30:41] = True
    return masks


def test_polygons_and_run_lengths_are_the_masks_of_the_answers(folder: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"id": 7, "conversations": TURNS, "image": "a.png", "polygons": "a.json"},
        {"conversations": TURNS, "image": "a.png", "segmentation": [encode_mask(mask) for mask in drawn()]},
        {"conversations": [{"from": "user", "value": "[SEG]?"}, {"from": "bot", "value": "No."}], "image": "a.png"},
    ]
    first, second, plain = read_published(published(folder, entries))
    np.testing.assert_array_equal(first.masks(), drawn())
    np.testing.assert_array_equal(second.masks(), drawn())
    assert plain.masks().shape == (0, 48, 48)
    assert first.turns == ((TURNS[0]["value"], TURNS[1]["value"]),)
    assert (first.name, second.name) == (f"{folder / 'train.json'}, sample 0 (id 7)", f"{folder / 'train.json'}, sample 1")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"conversations": TURNS, "image": "a.png", "segmentation": [encode_mask(drawn()[0])]}, r"got 1 masks for 2 \[SEG\]"),
        ({"conversations": TURNS, "image": "a.png"}, r"got 0 masks for 2 \[SEG\]"),
        ({"conversations": TURNS[:1] + TURNS[:1], "image": "a.png"}, "each with its answer .* got human, human"),
        ({"conversations": TURNS[:1], "image": "a.png"}, "each with its answer .* got human"),
        ({"conversations": TURNS, "image": "b.png", "polygons": "a.json"}, r"b\.png is not there"),
        ({"conversations": TURNS, "image": "a.png", "polygons": "b.json"}, r"b\.json is not there"),
        ({"conversations": TURNS, "polygons": "a.json"}, "it lacks 'image'"),
        ({"conversations": TURNS, "image": "", "polygons": "a.json"}, "cannot be read as a picture"),
        ({"conversations": TURNS, "image": "broken.png", "polygons": "a.json"}, r"broken\.png cannot be read as a picture"),
        ({"conversations": TURNS, "image": "a.png", "polygons": "flat.json"}, r"for each object, a list of rings of \(x, y\), got 3"),
        ({"conversations": TURNS, "image": "a.png", "polygons": "endless.json"}, r"a list of rings of \(x, y\), got inf"),
        ({"conversations": TURNS, "image": "a.png", "polygons": "none.json"}, r"a list of rings of \(x, y\), got None"),
        ({"conversations": TURNS, "image": "a.png", "segmentation": [encode_mask(mask[:40]) for mask in drawn()]}, r"picture, \(48, 48\), got \[40, 48\]"),
        ({"conversations": said("Where?", None), "image": "a.png"}, "what is said is text, got None"),
        ({"conversations": said("Where?", "[SEG] it is."), "image": "a.png"}, "an answer begins with words"),
        ({"conversations": said("Where [UNUSED_TOKEN_145]?", "No."), "image": "a.png"}, "is a marker of the conversation's own"),
        ("a.png", "indices"),
    ],
)
def test_what_is_wrong_names_the_sample(folder: Path, entry: Any, said: str) -> None:
    good = {"conversations": TURNS, "image": "a.png", "polygons": "a.json"}
    with pytest.raises(ValueError, match=rf"train\.json, sample 1.*: .*{said}"):
        read_published(published(folder, [good, entry]))


def test_what_is_no_list_of_samples_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="must hold a list of samples, got dict"):
        read_published(published(folder, {}))
    with pytest.raises(ValueError, match="holds no sample"):
        read_published(published(folder, []))


def test_chips_are_asked_for_their_class_and_answered_by_their_mask(chips: Path) -> None:
    lessons = read_class_chips(chips / "images", chips / "masks", "a road")
    assert len(lessons) == 6
    for lesson in lessons:
        mask = read_mask(chips / "masks" / lesson.image.name)
        ((question, answer),) = lesson.turns
        assert "a road" in question
        assert answer == ("It is [SEG]." if mask.any() else ABSENT_ANSWER)
        np.testing.assert_array_equal(lesson.masks(), mask[None] if mask.any() else np.zeros((0, 48, 48), bool))


def test_pictures_of_a_name_are_held_out(chips: Path) -> None:
    lessons = read_class_chips(chips / "images", chips / "masks", "a road")
    learnt, held = hold_out(lessons, "south_*")
    assert {lesson.image.stem for lesson in held} == {"south_4", "south_5"}
    assert learnt + held == lessons
    for pattern in ("*", "west_*"):
        with pytest.raises(ValueError, match="must hold out some of the pictures and not all"):
            hold_out(lessons, pattern)
