"""Hand-made pictures of coloured rectangles, and an evaluator of references that looks at one pixel after another."""

from __future__ import annotations

from statistics import median

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from geopixel.annotation import references as r
from geopixel.annotation.colours import COLOURS
from geopixel.annotation.objects import SPECK, Frame, SceneObject, cut_object
from geopixel.annotation.references import MAYBE, NO, YES, Atom, Reference

PAINT = {"red": (200, 40, 40), "blue": (40, 80, 210), "grey": (128, 128, 128), "green": (50, 150, 50), "white": (250, 250, 250)}
Box = tuple[str, int, int, int, int, str]
"""Class, left, top, width, height, colour."""


def draw(boxes: list[Box], size: int = 64, full: dict[int, float] | None = None) -> Frame:
    """full: pixels that boxes would have with what is hidden, by index."""
    rgb = np.full((size, size, 3), (120, 100, 70), np.uint8)
    objects: list[SceneObject] = []
    for index, (category, left, top, width, height, colour) in enumerate(boxes):
        mask = np.zeros((size, size), bool)
        mask[top : top + height, left : left + width] = True
        rgb[mask] = PAINT[colour]
        objects.append(cut_object(category, mask, (full or {}).get(index)))
    return Frame(rgb, tuple(objects))


CATEGORIES = ("building", "road", "water")


@st.composite
def frames(draw_from: st.DrawFn) -> Frame:
    """Up to eight rectangles of three classes in 48 x 48 pixels; some are cut, some are specks, some overlap."""
    boxes: list[Box] = []
    full: dict[int, float] = {}
    for index in range(draw_from(st.integers(1, 8))):
        width, height = draw_from(st.integers(2, 14)), draw_from(st.integers(2, 14))
        left, top = draw_from(st.integers(0, 48 - width)), draw_from(st.integers(0, 48 - height))
        boxes.append((draw_from(st.sampled_from(CATEGORIES)), left, top, width, height, draw_from(st.sampled_from(sorted(PAINT)))))
        if draw_from(st.booleans()) and 0 in (left, top):
            full[index] = float(width * height * draw_from(st.integers(2, 5)))
    return draw(boxes, 48, full)


def atoms(category: str) -> st.SearchStrategy[Atom]:
    others = [name for name in CATEGORIES if name != category]
    return st.one_of(
        st.builds(Atom, st.just("size"), st.sampled_from(["large", "small"])),
        st.builds(Atom, st.just("colour"), st.sampled_from(["red", "blue", "grey"])),
        st.builds(Atom, st.just("place"), st.sampled_from(r.PLACES)),
        st.builds(Atom, st.just("edge"), st.sampled_from(r.EDGES)),
        st.builds(Atom, st.just("near"), st.sampled_from(others)),
        st.builds(Atom, st.just("side"), st.builds("{} {}".format, st.sampled_from(r.SIDES), st.sampled_from(others))),
        st.builds(Atom, st.just("most"), st.sampled_from(r.MOST)),
        st.builds(Atom, st.just("nearest"), st.sampled_from(others)),
    )


@st.composite
def references(draw_from: st.DrawFn) -> Reference:
    category = draw_from(st.sampled_from(CATEGORIES))
    said = sorted(set(draw_from(st.lists(atoms(category), max_size=3))))
    superlatives = [atom for atom in said if atom.kind in r.SUPERLATIVES]
    said = [atom for atom in said if atom not in superlatives[1:]]
    form = draw_from(st.sampled_from(["one", "all"]))
    return Reference(category, tuple(said), form, draw_from(st.none() | st.integers(1, 4)) if form == "all" else None)  # type: ignore[arg-type]


class Slow:
    """What a reference means, worked out from whole masks, object by object."""

    def __init__(self, frame: Frame) -> None:
        self.rgb = frame.rgb.astype(int)
        self.size = len(frame.rgb)
        self.names = [each.category for each in frame.objects]
        self.pixels = [np.argwhere(frame.mask([index])) for index in range(len(frame.objects))]
        self.full = [each.full_area for each in frame.objects]
        self.frame = frame

    def meant(self, reference: Reference) -> frozenset[int] | None:
        verdicts = [self.verdict(reference, index) for index in range(len(self.names))]
        fitting = frozenset(index for index, verdict in enumerate(verdicts) if verdict == YES)
        wrong = MAYBE in verdicts or not fitting or (reference.form == "one") != (len(fitting) == 1)
        return None if wrong or reference.count not in (None, len(fitting)) else fitting

    def verdict(self, reference: Reference, index: int) -> int:
        superlatives = [atom for atom in reference.atoms if atom.kind in r.SUPERLATIVES]
        base = [self.base(reference, each) for each in range(len(self.names))]
        if not superlatives or base[index] == NO:
            return base[index]
        rivals = [each for each in range(len(self.names)) if each != index and base[each] != NO]
        if any(base[rival] == YES and self.beats(superlatives[0], rival, index) for rival in rivals):
            return NO
        return YES if base[index] == YES and all(self.beats(superlatives[0], index, rival) for rival in rivals) else MAYBE

    def base(self, reference: Reference, index: int) -> int:
        if self.names[index] != reference.category:
            return NO
        plain = reference.form == "all" and not reference.atoms and reference.count is None
        verdicts = [MAYBE if len(self.pixels[index]) < SPECK and not plain else YES]
        verdicts += [self.atom(reference.category, atom, index) for atom in reference.atoms if atom.kind not in r.SUPERLATIVES]
        return min(verdicts)

    def centre(self, index: int) -> tuple[float, float]:
        y, x = (self.pixels[index].mean(axis=0) + 0.5) / self.size
        return float(x), float(y)

    def distance(self, index: int, other: str) -> float:
        pixels = [each for each, name in zip(self.pixels, self.names, strict=True) if name == other]
        if not pixels:
            return float("inf")
        return max(0.0, float(cdist(self.pixels[index], np.concatenate(pixels)).min()) - 1) / self.size

    def atom(self, category: str, atom: Atom, index: int) -> int:
        kind, value = atom.kind, atom.value
        area = len(self.pixels[index])
        x, y = self.centre(index)
        if kind == "size":
            seen = [len(each) for each, name in zip(self.pixels, self.names, strict=True) if name == category and len(each) >= SPECK]
            if len(seen) < 3:
                return MAYBE
            middle = median(seen)
            if value == "large":
                return YES if area >= 1.6 * middle else NO if self.full[index] <= 1.25 * middle else MAYBE
            return YES if self.full[index] <= 0.6 * middle else NO if area >= 0.8 * middle else MAYBE
        if kind == "colour":
            share, possible = self.frame.colours[index, :, COLOURS.index(value)]  # the names of pixels have tests of their own
            return MAYBE if area < SPECK else YES if share >= 0.5 else NO if possible <= 0.2 else MAYBE
        if kind == "edge":
            gap = {"northern": y, "southern": 1 - y, "western": x, "eastern": 1 - x}[value]
            return YES if gap <= 0.14 else NO if gap >= 0.22 else MAYBE
        if kind == "near":
            gap = self.distance(index, value)
            return YES if gap <= 0.03 else NO if gap >= 0.08 else MAYBE
        return self.side(value, index) if kind == "side" else self.place(value, index)

    def place(self, value: str, index: int) -> int:
        height, width = np.ptp(self.pixels[index], axis=0) + 1
        verdicts = []
        for at, span, low, high in zip(self.centre(index), (width, height), ("left", "top"), ("right", "bottom"), strict=True):
            if value == "centre":
                here = YES if abs(at - 0.5) <= 0.14 else NO if abs(at - 0.5) >= 0.22 else MAYBE
            elif low in value or high in value:
                gap = at if low in value else 1 - at
                here = YES if gap <= 0.34 else NO if gap >= 0.42 else MAYBE
            else:
                continue
            verdicts.append(MAYBE if here == YES and span / self.size > 0.55 else here)
        return min(verdicts)

    def side(self, value: str, index: int) -> int:
        side, other = value.split(" ")
        landmarks = [each for each, name in enumerate(self.names) if name == other]
        if len(landmarks) != 1:
            return MAYBE
        turn = (lambda p: p) if side in ("left", "right") else (lambda p: p[:, ::-1])
        mine, theirs = turn(self.pixels[index]), turn(self.pixels[landmarks[0]])
        rows = sorted(set(mine[:, 0].tolist()))
        rows = list(range(rows[0], rows[-1] + 1))
        inside = []
        for row in rows:
            columns = theirs[theirs[:, 0] == row][:, 1]
            if len(columns):
                inside.append(columns.min() > mine[:, 1].max() if side in ("left", "above") else columns.max() < mine[:, 1].min())
        if len(inside) >= 0.8 * len(rows):
            return YES if all(inside) else MAYBE if any(inside) else NO
        beyond = theirs[:, 1].min() > mine[:, 1].max() if side in ("left", "above") else theirs[:, 1].max() < mine[:, 1].min()
        return MAYBE if all(inside) and (beyond or inside) else NO

    def beats(self, atom: Atom, one: int, other: int) -> bool:
        if atom.kind == "nearest":
            near, far = self.distance(one, atom.value), self.distance(other, atom.value)
            return far < float("inf") and near * 1.25 <= far and near + 0.05 <= far
        if atom.value == "largest":
            return len(self.pixels[one]) >= 1.25 * self.full[other]
        if atom.value == "smallest":
            return 1.25 * self.full[one] <= len(self.pixels[other])
        axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}[atom.value]
        return sign * self.centre(one)[axis] + 0.05 <= sign * self.centre(other)[axis]
