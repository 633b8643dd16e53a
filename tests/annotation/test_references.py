"""What can be said of objects, one attribute after another in scenes made for it, and the law: an expression that is given fits its object and no
other, by an evaluator that shares no line with the one that chose it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from geopixel.annotation.colours import COLOURS, colour_shares, name_pixels
from geopixel.annotation.descriptions import describe
from geopixel.annotation.expressions import groups_of, possible_atoms, refer_to, whole_class
from geopixel.annotation.groups import find_clusters, find_rows
from geopixel.annotation.objects import SPECK, Frame, cut_object
from geopixel.annotation.references import Atom, Reference, judge_atom, meant
from geopixel.annotation.review import complaints
from geopixel.annotation.wordings import parse, word
from tests.annotation.scenes import CATEGORIES, Box, Slow, draw, frames, references

HOUSES: list[Box] = [
    ("building", 4, 4, 8, 8, "red"),
    ("building", 50, 4, 8, 8, "blue"),
    ("building", 4, 50, 8, 8, "grey"),
    ("building", 44, 44, 16, 16, "grey"),
    ("building", 28, 30, 5, 5, "white"),
    ("road", 20, 0, 4, 64, "grey"),
]
"""Small and large ones in the corners and in the middle, and a road from north to south."""


def said(kind: str, value: str, boxes: list[Box] = HOUSES, full: dict[int, float] | None = None) -> list[int]:
    """Verdicts for the buildings."""
    frame = draw(boxes, full=full)
    return judge_atom(frame, "building", Atom(kind, value))[frame.categories == "building"].tolist()  # type: ignore[arg-type]


def test_sizes_are_relative_to_the_others_of_the_class() -> None:
    assert said("size", "large") == [-1, -1, -1, 1, -1]
    assert said("size", "small") == [-1, -1, -1, -1, 1]
    assert said("size", "small", HOUSES[:2]) == [0, 0], "two are no company"


def test_what_is_hidden_may_be_large() -> None:
    assert said("size", "large", full={0: 500.0}) == [0, -1, -1, 1, -1]
    assert said("size", "small", full={4: 60.0}) == [-1, -1, -1, -1, 0]


def test_colours_are_those_of_most_pixels() -> None:
    assert [said("colour", name) for name in ("red", "blue", "white")] == [[1, -1, -1, -1, -1], [-1, 1, -1, -1, -1], [-1, -1, -1, -1, 1]]
    assert said("colour", "grey") == [-1, -1, 1, 1, -1]


@pytest.mark.parametrize(
    ("rgb", "name", "possible"),
    [
        ((230, 30, 30), "red", {"red"}),
        ((150, 60, 60), "red", {"red"}),
        ((110, 75, 50), "brown", {"brown"}),
        ((60, 110, 190), "blue", {"blue"}),
        ((20, 20, 20), "black", {"black"}),
        ((130, 130, 130), "grey", {"grey"}),
        ((255, 255, 255), "white", {"white"}),
        ((230, 210, 60), "yellow", {"yellow"}),
        ((70, 130, 60), "green", {"green"}),
        ((140, 60, 160), "purple", {"purple"}),
        ((140, 160, 180), "blue", {"blue", "grey"}),
    ],
)
def test_names_of_colours(rgb: tuple[int, int, int], name: str, possible: set[str]) -> None:
    pixel = np.array([rgb], np.uint8)
    assert COLOURS[int(name_pixels(pixel)[0])] == name
    strict, loose = colour_shares(pixel)
    assert strict[COLOURS.index(name)] == 1
    assert possible <= {COLOURS[index] for index in np.flatnonzero(loose)}
    assert (loose >= strict).all()


def test_places_in_the_frame() -> None:
    assert said("place", "top left") == [1, -1, -1, -1, -1]
    assert said("place", "left") == [1, -1, 1, -1, -1]
    assert said("place", "bottom right") == [-1, -1, -1, 1, -1]
    assert said("place", "centre") == [-1, -1, -1, -1, 1]
    assert said("edge", "northern") == [1, 1, -1, -1, -1]
    road = draw(HOUSES)
    assert judge_atom(road, "road", Atom("place", "top"))[5] == -1
    assert judge_atom(draw([("road", 0, 4, 64, 4, "grey")]), "road", Atom("place", "left"))[0] != 1, "it runs through all of the picture"


def test_neighbours() -> None:
    boxes: list[Box] = [*HOUSES, ("building", 12, 30, 7, 6, "red"), ("building", 25, 40, 5, 5, "red")]
    assert said("near", "road", boxes) == [-1, -1, -1, -1, 0, 1, 1]
    assert said("side", "left road", boxes) == [1, -1, 1, -1, -1, 1, -1]
    assert said("side", "right road", boxes) == [-1, 1, -1, 1, 1, -1, 1]
    assert said("near", "water", boxes) == [-1] * 7, "what is not there is near nothing"
    assert said("side", "left road", [*boxes, ("road", 0, 0, 64, 2, "grey")]) == [0] * 7, "of two roads nobody knows which"


def test_sides_of_a_slanting_road() -> None:
    """By the rows where the object is, not by the middle of the road."""
    rgb = np.zeros((64, 64, 3), np.uint8)
    y, x = np.mgrid[:64, :64]
    boxes = [(20, 44), (44, 20)]
    houses = [cut_object("building", (abs(x - left) < 5) & (abs(y - top) < 5)) for left, top in boxes]
    frame = Frame(rgb, (*houses, cut_object("road", abs(x - y) < 4)))
    assert judge_atom(frame, "building", Atom("side", "left road")).tolist() == [1, -1, -1]
    assert judge_atom(frame, "building", Atom("side", "above road")).tolist() == [-1, 1, -1]


def test_rows_and_clusters() -> None:
    row: list[Box] = [("building", 4 + 11 * k, 6, 6, 6, "red") for k in range(5)]
    heap: list[Box] = [("building", x, y, 5, 5, "grey") for x, y in ((30, 40), (36, 40), (31, 47), (38, 47), (35, 53))]
    frame = draw([*row, *heap])
    assert find_rows(frame, "building")[0] == [frozenset(range(5))]
    assert find_clusters(frame, "building")[0] == [frozenset(range(5, 10))]
    assert meant(frame, Reference("building", (), "row", 5)) == frozenset(range(5))
    assert meant(frame, Reference("building", (), "row", 4)) is None
    assert meant(frame, Reference("building", (Atom("place", "bottom"),), "cluster")) == frozenset(range(5, 10))
    assert meant(frame, Reference("building", (Atom("place", "top"),), "cluster")) is None
    phrases = {expression.members: expression.reference for expression in groups_of(frame, "building")}
    assert phrases[frozenset(range(5))].form == "row"
    assert phrases[frozenset(range(5, 10))].form == "cluster"
    bent: list[Box] = [("building", 4 + 11 * k, 6 + 9 * (k % 2), 6, 6, "red") for k in range(5)]
    assert find_rows(draw(bent), "building")[0] == []
    crowded = draw([*row, *[(n, x, y + 11, w, h, c) for n, x, y, w, h, c in row]])
    assert find_rows(crowded, "building")[0] == [], "of a block of rows none stands out"


def test_what_is_a_kind_of_a_class_may_be_meant_by_it() -> None:
    frame = draw([("vehicle", 4, 4, 6, 6, "red"), ("car", 50, 50, 6, 6, "red"), ("pool", 4, 50, 6, 6, "blue"), ("swimming pool", 50, 4, 6, 6, "blue")])
    assert meant(frame, Reference("vehicle")) is None
    assert meant(frame, Reference("vehicle", (Atom("place", "top left"),))) == {0}
    assert meant(frame, Reference("car")) == {1}
    assert meant(frame, Reference("pool")) is None
    assert meant(frame, Reference("swimming pool")) == {3}
    for seed in range(20):
        for sample in describe(frame, np.random.default_rng(seed), 4, 2):
            assert complaints(frame, sample) == []


def test_nothing_is_a_small_large_vehicle() -> None:
    frame = draw([("large vehicle", 4 + 12 * k, 4, 4 + 2 * k, 10, "red") for k in range(4)])
    assert {atom.kind for atom in possible_atoms(frame, "large vehicle", single=True)}.isdisjoint({"size"})
    assert "size" in {atom.kind for atom in possible_atoms(draw([("car", 4 + 12 * k, 4, 4, 9, "red") for k in range(4)]), "car", single=True)}


def test_twins_have_no_words() -> None:
    frame = draw([("building", 28, 28, 5, 5, "red"), ("building", 29, 29, 5, 5, "red")])
    assert refer_to(frame, 0, np.random.default_rng(0)) is None


def test_a_speck_makes_doubtful_what_it_might_be() -> None:
    frame = draw([("building", 4, 4, 10, 10, "red"), ("building", 60, 60, 3, 3, "red")])
    assert meant(frame, Reference("building")) is None
    assert meant(frame, Reference("building", (Atom("place", "top left"),))) == {0}
    assert meant(frame, Reference("building", (), "all")) == {0, 1}
    assert meant(frame, Reference("building", (), "all", 2)) is None
    assert whole_class(frame, "building").reference.count is None


@given(frames(), references())
@limits(max_examples=120)
def test_meaning_is_that_of_the_slow_evaluator(frame: Frame, reference: Reference) -> None:
    assert meant(frame, reference) == Slow(frame).meant(reference)


@given(frames(), st.integers(0, 5))
@limits(max_examples=30)
def test_expressions_mean_their_objects_alone(frame: Frame, seed: int) -> None:
    rng, slow = np.random.default_rng(seed), Slow(frame)
    found = [expression for index in range(len(frame.objects)) if (expression := refer_to(frame, index, rng)) is not None]
    found += [group for category in CATEGORIES for group in groups_of(frame, category) if group.reference.form == "all"]
    found += [whole_class(frame, category) for category in CATEGORIES if (frame.area[frame.of(category)] >= SPECK).any()]
    for expression in found:
        text = word(expression.reference, rng, {})
        read = parse(text, CATEGORIES)
        assert read == expression.reference, text
        assert slow.meant(read) == expression.members, text
