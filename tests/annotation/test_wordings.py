"""Whatever is said can be read again, in every wording; nothing else can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopixel.annotation.references import Atom, Reference
from geopixel.annotation.wordings import NOUNS, parse, plural, singular, word
from tests.annotation.scenes import CATEGORIES, references

ALL = (*NOUNS, "solar panel", "bus")


@given(references(), st.integers(0, 1000), st.booleans())
def test_words_can_be_read_again(reference: Reference, seed: int, alone: bool) -> None:
    text = word(reference, np.random.default_rng(seed), dict.fromkeys(CATEGORIES, alone))
    read = parse(text[0].upper() + text[1:], ALL)
    assert read is not None, text
    assert (read.category, read.atoms, read.form, read.count) == (reference.category, tuple(sorted(reference.atoms)), reference.form, reference.count), text


@pytest.mark.parametrize(
    ("phrase", "reference"),
    [
        ("the large blue-roofed building left of the road", Reference("building", (Atom("colour", "blue"), Atom("side", "left road"), Atom("size", "large")))),
        ("twelve small buildings along the northern edge", Reference("building", (Atom("edge", "northern"), Atom("size", "small")), "all", 12)),
        ("The row of five structures, next to the water", Reference("building", (Atom("near", "water"),), "row", 5)),
        ("five structures", Reference("building", (), "all", 5)),
        ("a road", Reference("road")),
        ("water", Reference("water", (), "all")),
        ("all buses with a red roof", Reference("bus", (Atom("colour", "red"),), "all")),
        ("37 vehicles", Reference("vehicle", (), "all", 37)),
        ("the largest building on the left", Reference("building", (Atom("most", "largest"), Atom("place", "left")))),
    ],
)
def test_phrases_are_read(phrase: str, reference: Reference) -> None:
    assert parse(phrase, ALL) == reference


@pytest.mark.parametrize(
    "phrase",
    ["the old building", "the building with the chimney", "building left of nothing", "", "the", "the castle", "the large large building", "all building",
     "the largest building nearest to the water", "five building", "the row of building"],
)  # fmt: skip
def test_what_is_not_in_the_lexicon_is_not_read(phrase: str) -> None:
    assert parse(phrase, ALL) is None


def test_a_class_may_be_called_what_is_said_of_others() -> None:
    assert parse("the large building", ("large building",)) == Reference("large building")
    assert parse("the large building", ("building",)) == Reference("building", (Atom("size", "large"),))


def test_no_class_is_called_what_is_the_name_of_another() -> None:
    assert parse("the pool", ("swimming pool",)) == Reference("swimming pool")
    assert parse("the pool", ("pool", "swimming pool")) == Reference("pool")
    assert parse("the building next to a pool", ("building", "pool", "swimming pool")) == Reference("building", (Atom("near", "pool"),))
    assert parse("the trees", ("tree", "trees")) is None
    for seed in range(10):
        assert word(Reference("swimming pool"), np.random.default_rng(seed), {"pool": True, "swimming pool": True}) == "the swimming pool"


def test_plurals() -> None:
    names = ("buildings", "roads", "trees", "greenhouses", "quarries", "churches", "solar panels", "grass", "bus", "tennis", "building")
    assert [*map(singular, names)] == ["building", "road", "trees", "greenhouse", "quarry", "church", "solar panel", "grass", "bus", "tennis", "building"]
    assert [plural(name) for name in ("bus", "quarry", "runway", "church", "tank", "box")] == ["buses", "quarries", "runways", "churches", "tanks", "boxes"]
