"""What words may ask of the objects of a picture, and which objects they mean. A wording is vague and a picture is cut: an object fits, does not
fit, or may fit. A reference is unambiguous where what fits is what is meant and nothing else may fit. Knows no wording: see wordings.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from geopixel.annotation.colours import COLOURS
from geopixel.annotation.groups import find_clusters, find_rows
from geopixel.annotation.objects import SPECK, Frame

YES, MAYBE, NO = 1, 0, -1
"""Verdicts: the least of several is that of all of them together."""

Kind = Literal["size", "colour", "place", "edge", "near", "side", "most", "nearest"]
Form = Literal["one", "all", "row", "cluster"]

HORIZONTAL, VERTICAL = ("left", "right"), ("top", "bottom")
PLACES = (*HORIZONTAL, *VERTICAL, *(f"{y} {x}" for y in VERTICAL for x in HORIZONTAL), "centre")
EDGES = ("northern", "southern", "western", "eastern")
SIDES = ("left", "right", "above", "below")
MOST = ("largest", "smallest", "leftmost", "rightmost", "topmost", "bottommost")
SUPERLATIVES: tuple[Kind, ...] = ("most", "nearest")

LARGE, NOT_LARGE = 1.6, 1.25
"""Times the median of its class: from the first on an object is large, up to the second it is not; between the two opinions differ."""
SMALL, NOT_SMALL = 0.6, 0.8
FEWEST = 3
"""Objects of a class, from which on one can be large or small among them."""
THIRD, NOT_THIRD = 0.34, 0.42
"""Share of the frame: a centre up to the first is at that side, beyond the second it is not."""
MIDDLE, NOT_MIDDLE = 0.14, 0.22
"""From the middle of the frame, as shares of it."""
WIDE = 0.55
"""What spans more of the frame than this lies at no place in it."""
EDGE, NOT_EDGE = 0.14, 0.22
NEAR, NOT_NEAR = 0.03, 0.08
"""Share of the frame's longer side between two masks."""
COLOURED, NOT_COLOURED = 0.5, 0.2
"""Share of an object's pixels: with so many of a colour it is of that colour, with no more that might be of it it is not."""
CLEARLY = 1.25
"""How many times larger the largest is than any other."""
APART = 0.05
"""Share of the frame by which the leftmost is left of any other."""
BESIDE = 0.8
"""Share of the rows (or columns) of an object at which a landmark lies beside it."""
KINDS = {"vehicle": ("car", "truck", "bus", "van"), "vegetation": ("tree", "trees")}
"""Classes that are another one too, besides those whose names say so: a swimming pool is a pool."""


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """One thing that words say of an object."""

    kind: Kind
    value: str
    """Of SIZES, COLOURS, PLACES, EDGES, MOST; of side "left road"; of near and nearest the other class."""

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {"size": ("large", "small"), "colour": COLOURS, "place": PLACES, "edge": EDGES, "most": MOST}
        side = self.kind != "side" or self.value.partition(" ")[0] in SIDES
        if self.kind not in get_args(Kind) or self.value not in known.get(self.kind, (self.value,)) or not side:
            raise ValueError(f"no such thing can be said of an object: {self.kind} {self.value!r}")


@dataclass(frozen=True, slots=True)
class Reference:
    """What a phrase says, without its words."""

    category: str
    atoms: tuple[Atom, ...] = ()
    form: Form = "one"
    """one: a single object; all: every one that fits; row, cluster: objects that stand so."""
    count: int | None = None
    """How many objects the words say that there are; None: they do not."""

    def __post_init__(self) -> None:
        if sum(atom.kind in SUPERLATIVES for atom in self.atoms) > 1 or len(set(self.atoms)) != len(self.atoms):
            raise ValueError(f"a reference says a thing once, and at most one superlative, got {self.atoms}")

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"category": self.category, "form": self.form, "atoms": [[atom.kind, atom.value] for atom in self.atoms]}
        return told if self.count is None else told | {"count": self.count}


def meant(frame: Frame, reference: Reference) -> frozenset[int] | None:
    """The objects of the frame that the reference means, by index; None where it fits none, or may be understood in more than one way."""
    if reference.form in ("row", "cluster"):
        return _meant_group(frame, reference)
    verdicts = judge(frame, reference)
    fitting = np.flatnonzero(verdicts == YES)
    if not len(fitting) or (verdicts == MAYBE).any() or reference.count not in (None, len(fitting)):
        return None
    if (reference.form == "one") != (len(fitting) == 1):
        return None
    return frozenset(fitting.tolist())


def judge(frame: Frame, reference: Reference) -> np.ndarray:
    """(n,) int8 verdict for every object of the frame, each by itself: form and count are not asked."""
    # What says no more than "the buildings" means every pixel of them, specks included.
    plain = reference.form == "all" and not reference.atoms and reference.count is None
    verdicts = _of_category(frame, reference.category, plain)
    for atom in reference.atoms:
        if atom.kind not in SUPERLATIVES:
            verdicts = np.minimum(verdicts, judge_atom(frame, reference.category, atom))
    for atom in reference.atoms:
        if atom.kind in SUPERLATIVES:
            verdicts = _foremost(verdicts, _beats(frame, atom))
    return verdicts


def _of_category(frame: Frame, category: str, specks: bool) -> np.ndarray:
    """(n,) int8 whether objects are of a category; those of a class that is a kind of it may be meant. specks: those that nobody can tell are counted in."""
    key = ("category", category, specks)
    if key not in frame.memory:
        same = frame.categories == category
        kinds = np.array([str(name).endswith(f" {category}") or name in KINDS.get(category, ()) for name in frame.categories], bool)
        frame.memory[key] = np.where(same & (specks | (frame.area >= SPECK)), YES, np.where(same | kinds, MAYBE, NO)).astype(np.int8)
    return np.asarray(frame.memory[key])


def judge_atom(frame: Frame, category: str, atom: Atom) -> np.ndarray:
    """(n,) int8 verdict of one atom, which is no superlative. category: among whose objects they are large or small."""
    key = ("verdict", category, atom)
    if key not in frame.memory:
        frame.memory[key] = _JUDGES[atom.kind](frame, category, atom.value)
    return np.asarray(frame.memory[key])


def _graded(values: np.ndarray, fits: float, fits_not: float) -> np.ndarray:
    """YES up to fits, NO from fits_not on."""
    return np.where(values <= fits, YES, np.where(values >= fits_not, NO, MAYBE)).astype(np.int8)


def _size(frame: Frame, category: str, size: str) -> np.ndarray:
    """By what is seen and by what is hidden: an object fits where both do."""
    members = frame.of(category)
    members = members[frame.area[members] >= SPECK]
    if len(members) < FEWEST:
        return np.full(len(frame.objects), MAYBE, np.int8)
    median = float(np.median(frame.area[members]))
    seen, full = frame.area / median, frame.full_area / median
    if size == "large":
        return np.where(seen >= LARGE, YES, np.where(full <= NOT_LARGE, NO, MAYBE)).astype(np.int8)
    return np.where(full <= SMALL, YES, np.where(seen >= NOT_SMALL, NO, MAYBE)).astype(np.int8)


def _colour(frame: Frame, category: str, colour: str) -> np.ndarray:
    share, possible = frame.colours[:, :, COLOURS.index(colour)].T
    verdicts = np.where(share >= COLOURED, YES, np.where(possible <= NOT_COLOURED, NO, MAYBE)).astype(np.int8)
    verdicts[frame.area < SPECK] = MAYBE
    return verdicts


def _place(frame: Frame, category: str, place: str) -> np.ndarray:
    verdicts = np.full(len(frame.objects), YES, np.int8)
    words = ("left/right", "top/bottom") if place == "centre" else place.split()
    for word in words:
        axis = 0 if word in (*HORIZONTAL, "left/right") else 1
        at = frame.centres[:, axis]
        gap, *bounds = (np.abs(at - 0.5), MIDDLE, NOT_MIDDLE) if "/" in word else (at if word in ("left", "top") else 1 - at, THIRD, NOT_THIRD)
        here = _graded(gap, *bounds)
        here[(frame.spans[:, axis] > WIDE) & (here == YES)] = MAYBE
        verdicts = np.minimum(verdicts, here)
    return verdicts


def _edge(frame: Frame, category: str, edge: str) -> np.ndarray:
    x, y = frame.centres.T
    return _graded({"northern": y, "southern": 1 - y, "western": x, "eastern": 1 - x}[edge], EDGE, NOT_EDGE)


def _near(frame: Frame, category: str, other: str) -> np.ndarray:
    return _graded(frame.distances(other), NEAR, NOT_NEAR)


def _side(frame: Frame, category: str, value: str) -> np.ndarray:
    """On one side of the only object of another class: in the rows of an object (for above and below: its columns) that landmark lies all on the
    other side. What lies beyond the landmark's ends may be said to be on that side of it, or not."""
    side, _, other = value.partition(" ")
    landmarks = frame.of(other)
    if len(landmarks) != 1:
        return np.full(len(frame.objects), MAYBE, np.int8)
    mask = frame.mask(landmarks)
    boxes = frame.boxes.astype(int)
    if side in ("above", "below"):
        mask, boxes = mask.T, boxes[:, [1, 0, 3, 2]]
    present: np.ndarray = np.asarray(mask.any(axis=1))
    first, last = mask.argmax(axis=1), mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    verdicts = np.full(len(boxes), NO, np.int8)
    for index, (left, top, right, bottom) in enumerate(boxes):
        rows = np.flatnonzero(present[top:bottom]) + top
        before = np.asarray(first[rows] >= right if side in ("left", "above") else last[rows] < left)
        if len(rows) >= BESIDE * (bottom - top):
            verdicts[index] = YES if before.all() else MAYBE if before.any() else NO
        elif before.all():  # it ends beside the object, or before it
            reach = first[present].min() >= right if side in ("left", "above") else last[present].max() < left
            verdicts[index] = MAYBE if reach or len(rows) else NO
    verdicts[landmarks] = NO
    return verdicts


_JUDGES: dict[str, Callable[[Frame, str, str], np.ndarray]] = {
    "size": _size,
    "colour": _colour,
    "place": _place,
    "edge": _edge,
    "near": _near,
    "side": _side,
}


def _beats(frame: Frame, atom: Atom) -> np.ndarray:
    """(n, n) bool: object i has clearly more of a superlative than object j, and so it has than itself."""
    key = ("beats", atom)
    if key not in frame.memory:
        frame.memory[key] = _exceeds(frame, atom) | np.eye(len(frame.objects), dtype=bool)
    return np.asarray(frame.memory[key])


def _exceeds(frame: Frame, atom: Atom) -> np.ndarray:
    if atom.kind == "nearest":
        distance = frame.distances(atom.value)
        if not np.isfinite(distance).all():
            return np.zeros((len(distance), len(distance)), bool)
        return np.maximum(distance * CLEARLY, distance + NOT_NEAR - NEAR)[:, None] <= distance[None, :]
    if atom.value == "largest":
        return frame.area[:, None] >= CLEARLY * frame.full_area[None, :]
    if atom.value == "smallest":
        return CLEARLY * frame.full_area[:, None] <= frame.area[None, :]
    at = frame.centres[:, 0 if atom.value in ("leftmost", "rightmost") else 1] * (-1 if atom.value in ("rightmost", "bottommost") else 1)
    return at[:, None] + APART <= at[None, :]


def _foremost(verdicts: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Verdicts with a superlative: YES beats whatever may be meant besides, NO is beaten by what is."""
    rivals = np.flatnonzero(verdicts >= MAYBE)
    among = beats[np.ix_(rivals, rivals)]
    sure = verdicts[rivals] == YES
    first, beaten = np.zeros(len(verdicts), bool), np.ones(len(verdicts), bool)
    first[rivals] = sure & among.all(axis=1)
    beaten[rivals] = among[sure].sum(axis=0) > sure  # by another than itself
    return np.where(first, YES, np.where(beaten, NO, MAYBE)).astype(np.int8)


def _meant_group(frame: Frame, reference: Reference) -> frozenset[int] | None:
    """A row or a cluster is judged like a single object, among those that there clearly are and those that one might see."""
    certain, possible = (find_rows if reference.form == "row" else find_clusters)(frame, reference.category)
    groups = list(dict.fromkeys([*certain, *possible]))
    if reference.count is not None:
        groups = [group for group in groups if len(group) == reference.count]
    if not groups:
        return None
    found = judge(frame.joined(groups, reference.category), Reference(reference.category, reference.atoms))[: len(groups)]
    fitting = [group for group, verdict in zip(groups, found, strict=True) if verdict >= MAYBE]
    if len(fitting) != 1 or found.max() != YES or fitting[0] not in certain:
        return None
    return fitting[0]
