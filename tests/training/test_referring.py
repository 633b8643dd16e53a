"""Phrases for single objects: each means what an independent look at the labels finds, and its mask is what the example trains."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from geopixel.annotation.wordings import parse
from geopixel.model.geopixel import SEGMENT_ANSWER, SEGMENT_PROMPT
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer
from geopixel.training.examples import Teacher, sizes
from geopixel.training.referring import ATOMS, LARGEST, REFERRED, objects_of, references, solidity
from geopixel.training.scratch import nano_config
from geopixel.training.words import CONCEPTS, train_tokenizer

EDGE = 96
OUTERMOST = {"leftmost": (1, min), "rightmost": (1, max), "topmost": (0, min), "bottommost": (0, max)}


def scattered(seed: int) -> np.ndarray:
    """(EDGE, EDGE) codes: rectangles of buildings and of water that do not touch."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((EDGE, EDGE), np.uint8)
    for row, column in product(range(0, EDGE, 32), repeat=2):
        height, width = rng.integers(3, 28, 2)
        code = (0, CONCEPTS["building"], CONCEPTS["water"])[rng.integers(3)]
        truth[row : row + height, column : column + width] = code
    return truth


def components(truth: np.ndarray, concept: str) -> list[np.ndarray]:
    labels, count = ndimage.label(truth == CONCEPTS[concept])
    return [labels == number for number in range(1, count + 1)]


def centre(mask: np.ndarray) -> tuple[float, float]:
    """y, x, as shares of the frame."""
    y, x = ndimage.center_of_mass(mask)
    return (y + 0.5) / EDGE, (x + 0.5) / EDGE


def in_place(mask: np.ndarray, place: str) -> bool:
    """Whether the centre lies in the third, or two thirds, of the frame that the words name."""
    y, x = centre(mask)
    if place == "centre":
        return abs(y - 0.5) < 0.25 and abs(x - 0.5) < 0.25
    sides = {"left": x < 0.42, "right": x > 0.58, "top": y < 0.42, "bottom": y > 0.58}
    return all(sides[side] for side in place.split())


@pytest.mark.parametrize("seed", range(12))
def test_a_phrase_means_what_the_labels_show(seed: int) -> None:
    truth = scattered(seed)
    found = list(references(np.zeros((EDGE, EDGE, 3), np.uint8), truth, ("building", "water", "road"), np.random.default_rng(seed)))
    for each in found:
        assert parse(each.words, REFERRED) == each.reference
        parts = components(truth, each.reference.category)
        meant = [part for part in parts if each.mask[part].any()]
        assert np.array_equal(np.any(meant, axis=0), each.mask), "whole objects, and nothing else"
        (atom,) = each.reference.atoms
        if atom.value == "largest":
            assert [part.sum() for part in meant] == [max(part.sum() for part in parts)]
            assert sorted(part.sum() for part in parts)[-2] * 2 <= meant[0].sum(), "by far the largest"
        elif atom.kind == "most":
            axis, best = OUTERMOST[atom.value]
            assert len(meant) == 1
            assert best(parts, key=lambda part: centre(part)[axis]) is meant[0]
        else:
            assert all(in_place(part, atom.value) == any(part is one for one in meant) for part in parts)
    again = references(np.zeros((EDGE, EDGE, 3), np.uint8), truth, ("building", "water", "road"), np.random.default_rng(seed))
    assert [each.words for each in found] == [each.words for each in again]


def test_the_largest_is_asked_for_oftener() -> None:
    blank = np.zeros((EDGE, EDGE, 3), np.uint8)
    found = [list(references(blank, scattered(seed), ("building", "water"), np.random.default_rng(seed))) for seed in range(60)]
    values = [[each.reference.atoms[0].value for each in refs] for refs in found if refs]
    first = np.mean([refs[0] == "largest" for refs in values if "largest" in refs])
    assert first > 2 * np.mean([refs.count("largest") / len(refs) for refs in values if "largest" in refs])


@pytest.mark.parametrize("seed", range(4))
def test_every_cell_knows_how_large_its_object_is(seed: int) -> None:
    truth = scattered(seed)
    found = sizes(truth, ("building",), 192)
    assert found.shape == (len(REFERRED), 48, 48)
    assert not found[[place for place, name in enumerate(REFERRED) if name != "building"]].any()
    expected = np.zeros((EDGE, EDGE))
    for part in components(truth, "building"):
        expected[part] = 2 * np.sqrt(part.sum())  # seen at twice the size
    cells = expected.reshape(48, 2, 48, 2).max(axis=(1, 3))
    np.testing.assert_allclose(found[REFERRED.index("building")], cells, rtol=1e-5)


def test_what_meets_in_a_corner_or_by_a_thread_is_two_objects() -> None:
    truth = np.zeros((EDGE, EDGE), np.uint8)
    truth[10:30, 10:30] = truth[29:50, 29:50] = truth[70:90, 10:40] = truth[70:90, 42:80] = CONCEPTS["field"]
    truth[80:82, 40:42] = CONCEPTS["field"]
    found = objects_of(truth, "field")
    assert sorted(each.area for each in found) == pytest.approx([400, 440, 600, 760], abs=2)
    truth[80:84, 40:42] = CONCEPTS["field"]
    assert sorted(each.area for each in objects_of(truth, "field")) == pytest.approx([400, 440, 1368], abs=2)
    assert [each.area for each in objects_of(np.full((EDGE, EDGE), CONCEPTS["field"], np.uint8), "field")] == [EDGE * EDGE]


def test_solid_is_what_fills_its_hull() -> None:
    square, corner = np.ones((20, 20), bool), np.ones((20, 20), bool)
    corner[:10, 10:] = False
    assert solidity(square) == 1
    assert solidity(square[:1]) == 1
    assert solidity(corner) == pytest.approx(3 / 3.5, abs=0.01)
    assert solidity(np.eye(20, dtype=bool) | np.eye(20, k=1, dtype=bool)) < solidity(corner)


def test_of_houses_that_touch_none_is_the_largest() -> None:
    """Nor is it taught how large they are: labels show them as one. A lake may have any outline."""
    truth = np.zeros((EDGE, EDGE), np.uint8)
    truth[8:16, 8:48] = truth[8:48, 8:16] = truth[70:80, 70:80] = CONCEPTS["building"]
    asked, taught = {}, {}
    for name in ("building", "water"):
        picture = np.where(truth > 0, CONCEPTS[name], 0).astype(np.uint8)
        found = references(np.zeros((EDGE, EDGE, 3), np.uint8), picture, (name,), np.random.default_rng(0))
        asked[name] = any(each.reference.atoms == (LARGEST,) for each in found)
        taught[name] = sizes(picture, (name,), EDGE)[REFERRED.index(name)]
    assert asked == {"building": False, "water": True}
    assert (taught["building"] > 0).sum() == (taught["water"] == 10).sum() > 0
    assert (taught["water"] > 10).any()


def test_pictures_have_such_phrases() -> None:
    blank, rng = np.zeros((EDGE, EDGE, 3), np.uint8), np.random.default_rng(0)
    found = [each for seed in range(12) for each in references(blank, scattered(seed), ("building", "water"), rng)]
    assert {each.reference.category for each in found} == {"building", "water"}
    assert {atom.kind for each in found for atom in each.reference.atoms} == {"most", "place"}


@pytest.mark.parametrize("seed", range(6))
def test_an_example_trains_the_masks_that_its_phrases_mean(seed: int) -> None:
    tokenizer = Tokenizer(train_tokenizer())
    teacher = Teacher(nano_config(tokenizer.vocab_size), tokenizer)
    truth = scattered(seed)
    example = teacher.example(np.zeros((EDGE, EDGE, 3), np.uint8), truth, ("building", "water"), np.random.default_rng(seed), phrases=2)
    before, after = (tokenizer.decode(tokenizer.encode(part)) for part in SEGMENT_PROMPT.split("{}"))
    masks = []
    for tokens, start in zip(example.tokens, example.answer_starts, strict=True):
        asked = tokenizer.decode(tokens[:start]).removeprefix(USER).removesuffix(ASSISTANT)
        if tokenizer.decode(tokens[start:], skip_special=True).removesuffix(ANSWER_END) == tokenizer.decode(tokenizer.encode(SEGMENT_ANSWER)):
            masks.append(asked.removeprefix(before).removesuffix(after))
    said = [words for words in masks if (reference := parse(words, REFERRED)) and reference.atoms]
    extra = [plane for plane in example.planes if plane >= len(CONCEPTS)]
    assert len(said) == len(extra) == len(example.shares) - len(CONCEPTS)
    assert len(example.concepts) == len(example.planes) == len(example.atoms)
    possible = list(references(np.zeros((EDGE, EDGE, 3), np.uint8), truth, ("building", "water"), np.random.default_rng(0)))
    for words, plane in zip(said, extra, strict=True):
        (meant,) = [each for each in possible if each.reference == parse(words, REFERRED)]
        cells = F.adaptive_avg_pool2d(torch.from_numpy(meant.mask.astype(np.float32))[None], example.shares.shape[-1])[0]
        assert torch.equal(example.shares[plane], cells)
        assert (example.weights[plane] == 1).all()
        assert list(CONCEPTS)[example.concepts[example.planes.index(plane)]] == meant.reference.category
        assert (ATOMS[example.atoms[example.planes.index(plane)] - 1],) == meant.reference.atoms
    picture = teacher.picture(np.zeros((EDGE, EDGE, 3), np.uint8), truth, ("building", "water"), 256, np.random.default_rng(seed), phrases=2)
    for each in (example, picture):
        assert all((atom > 0) == (plane >= len(CONCEPTS)) for atom, plane in zip(each.atoms, each.planes, strict=True))
