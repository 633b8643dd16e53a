"""Laws of the choice, on random footprints: what any candidate covers stays covered, as deep as asked where there is as much; the order of the
results has no say; choosing again chooses the same; at a place, the best scenes by the rule are there. Checked at points, by hand."""

from __future__ import annotations

import datetime as dt
import random

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geopixel.search.choice import Candidate, Rule, choose, order

AREA = shapely.union_all([shapely.box(10.03, 50.02, 10.31, 50.21), shapely.Point(10.4, 50.2).buffer(0.07)])
POINTS = shapely.points(np.random.default_rng(0).uniform((10.0, 50.0), (10.5, 50.3), (600, 2)))
POINTS = POINTS[shapely.contains(AREA, POINTS)]


@st.composite
def candidates(draw: st.DrawFn, most: int = 14) -> list[Candidate]:
    """Boxes and discs of all sizes, on few days, so that some are of one scene."""
    found = []
    for index in range(draw(st.integers(1, most))):
        x, y, size = draw(st.floats(9.9, 10.5)), draw(st.floats(49.9, 50.3)), draw(st.sampled_from([0.03, 0.1, 0.25, 2.0]))
        place = shapely.box(x - size, y - size / 2, x + size, y + size / 2) if draw(st.booleans()) else shapely.Point(x, y).buffer(size, quad_segs=4)
        day = dt.date(2020, 1, 1) + dt.timedelta(days=draw(st.integers(0, 4)) * 100)
        cloud = draw(st.none() | st.floats(0, 100))
        found.append(Candidate(f"i{index}", draw(st.sampled_from("ab")), day, place, cloud, draw(st.sampled_from([None, 0.3, 10.0]))))
    return found


rules = st.sampled_from(["newest", "least-cloud", "best"])
depths = st.integers(1, 3)


def at(point: shapely.Point, those: list[Candidate]) -> set[tuple[str, dt.date]]:
    return {each.scene for each in those if shapely.contains_properly(each.footprint, point)}


@given(candidates(), rules, depths, st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_what_is_there_is_covered_as_deep_as_asked_whatever_the_order(found: list[Candidate], rule: Rule, depth: int, shuffle: random.Random) -> None:
    chosen = [found[index] for index in choose(found, AREA, rule, depth)]
    for point in POINTS[:80]:
        assert len(at(point, chosen)) >= min(depth, len(at(point, found)))
    assert chosen == sorted(chosen, key=lambda each: order(each, rule))
    shuffled = shuffle.sample(found, len(found))
    assert [shuffled[index] for index in choose(shuffled, AREA, rule, depth)] == chosen
    assert [chosen[index] for index in choose(chosen, AREA, rule, depth)] == chosen


@given(candidates(), st.sampled_from(["newest", "least-cloud"]), depths)
@settings(max_examples=25)
def test_every_point_has_its_best_scenes_and_no_item_is_there_for_nothing(found: list[Candidate], rule: Rule, depth: int) -> None:
    """The choice by hand: an item is needed where it is the first of its scene, in the order, and fewer than depth scenes come before it."""
    points, ranked = POINTS, sorted(found, key=lambda each: order(each, rule))
    chosen = {found[index].id for index in choose(found, AREA, rule, depth)}
    inside = np.array([shapely.contains_properly(each.footprint, points) for each in ranked])
    needed = set()
    for here in inside.T:
        scenes: list[tuple[str, dt.date]] = []
        for each in (each for each, covers in zip(ranked, here, strict=True) if covers):
            if each.scene not in scenes and len(scenes) < depth:
                scenes.append(each.scene)
                needed.add(each.id)
    assert needed <= chosen
    # What the points do not show is smaller than the gaps between them.
    for each in (each for each in found if each.id in chosen - needed):
        better = [other.footprint for other in ranked[: ranked.index(each)]]
        alone = shapely.difference(shapely.intersection(each.footprint, AREA), shapely.union_all(better)) if depth == 1 else shapely.Point()
        assert depth > 1 or 0 < alone.area < 0.01


@given(candidates(), st.sampled_from(["newest", "least-cloud"]), depths)
@settings(max_examples=20)
def test_a_part_of_the_area_needs_a_part_of_the_choice(found: list[Candidate], rule: Rule, depth: int) -> None:
    part = shapely.intersection(AREA, shapely.box(10.1, 50.0, 10.37, 50.15))
    assert set(choose(found, part, rule, depth)) <= set(choose(found, AREA, rule, depth))


def one(name: str, day: str, place: shapely.Geometry = AREA.envelope, cloud: float | None = None, metres: float | None = None) -> Candidate:
    return Candidate(name, "c", dt.date.fromisoformat(day), place, cloud, metres)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("newest", "new"), ("least-cloud", "clear"), ("best", "fine")],
)
def test_the_rules(rule: Rule, expected: str) -> None:
    found = [
        one("new", "2024-06-01", cloud=60, metres=10),
        one("unsaid", "2024-05-01", metres=10),
        one("clear", "2016-05-01", cloud=0, metres=10),
        one("fine", "2023-06-01", cloud=2, metres=0.5),
        one("coarse", "2024-05-30", cloud=1, metres=1000),
    ]
    assert [found[index].id for index in choose(found, AREA, rule, 1)] == [expected]


def test_the_best_of_a_cell_covers_it() -> None:
    """Of two alike the one that shows more of the cell is taken first: the other adds nothing."""
    half, whole = one("a-half", "2024-01-01", shapely.box(9, 49, 10.15, 51)), one("whole", "2024-01-01", shapely.box(9, 49, 11, 51))
    half = Candidate(half.id, "other", half.day, half.footprint)
    assert choose([half, whole], shapely.box(10.11, 50.11, 10.14, 50.14), "newest", 1) == [1]
    assert choose([half, whole], shapely.box(10.11, 50.11, 10.14, 50.14), "best", 1) == [1]
    old = Candidate("whole", "other", dt.date(2023, 1, 1), whole.footprint)
    assert choose([one("a-half", "2024-01-01", half.footprint), old], shapely.box(10.11, 50.11, 10.14, 50.14), "best", 1) == [1]


def test_all_are_kept_unless_a_depth_is_asked_for() -> None:
    found = [one(str(year), f"{year}-01-01") for year in (2001, 2020, 2010)]
    assert choose(found, AREA, "newest", None) == [1, 2, 0]
    assert choose(found, AREA, "newest", 2) == [1, 2]
    assert choose([], AREA, "newest", 1) == []
    with pytest.raises(ValueError, match="per_cell must be 1 or more scenes, got 0"):
        choose(found, AREA, "newest", 0)


def test_items_of_one_scene_count_once() -> None:
    """Neighbours of a day overlap: a depth of two wants another day."""
    same = [one("a", "2020-01-02"), one("b", "2020-01-02"), one("c", "2020-01-01")]
    assert choose(same, AREA, "newest", 2) == [0, 2]


def test_depth_counts_where_a_cell_is_not_full() -> None:
    """Two days of the same half of a cell: the second is the second layer there."""
    half = shapely.box(9, 49, 10.15, 51)
    found = [one("a", "2020-01-03", half), one("b", "2020-01-02", half), one("c", "2020-01-01", half)]
    assert choose(found, shapely.box(10.11, 50.11, 10.19, 50.19), "newest", 2) == [0, 1]
