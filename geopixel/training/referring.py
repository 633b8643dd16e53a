"""Phrases for single objects and parts of a labelled picture, with the pixels that they mean: "the largest building", "the lakes in the top left". What a
phrase means, and whether it is unambiguous, is decided as for annotated samples (geopixel.annotation). Knows no tokens and no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from scipy import ndimage

from geopixel.annotation.objects import Frame, SceneObject
from geopixel.annotation.references import MOST, PLACES, Atom, Reference, meant
from geopixel.annotation.wordings import word
from geopixel.training.words import CONCEPTS

REFERRED = ("building", "water", "field")
"""Concepts with objects that can be told apart where they do not touch."""
SHORTEST = 0.02
"""Share of the picture's edge that the square root of a meant area has at least: what is smaller nano's mask cells do not show."""
SPECK_SHARE = SHORTEST**2 / 16
"""Of the picture: a part of a concept that covers less is no object."""
MOST_OBJECTS = 60
"""Of a concept in a picture: among more nobody would pick one by its size."""
STANDS_OUT = 2.0
"""Times the area of any other that the largest has: of those closer to each other nano's masks do not show which it is."""
SOLID = 0.9
"""Share of its convex hull that a building covers at least: what covers less is mostly houses that touch, which labels show as one."""
OFTENER = 5.0
"""The largest is asked for so much oftener than each of the others: it is what people ask for, and the hardest."""
ATOMS = (*(Atom("most", most) for most in MOST if most != "smallest"), *(Atom("place", place) for place in PLACES))
"""What may be asked of a concept's objects: the one that stands out, or all in a part of the picture."""
LARGEST = Atom("most", "largest")


@dataclass(frozen=True, slots=True, eq=False)
class Referred:
    """A phrase, and what it means."""

    words: str
    reference: Reference
    """What the words say; its category is a concept."""
    mask: np.ndarray
    """(height, width) bool, True where it is what the words mean."""

    @property
    def atom(self) -> int:
        """Place in ATOMS."""
        return ATOMS.index(self.reference.atoms[0])


def objects_of(truth: np.ndarray, concept: str) -> list[SceneObject]:
    """The parts of a concept in codes (height, width), specks left out. Less than three pixels across connect nothing: labels of neighbours meet in
    corners and at gaps that are too thin for them."""
    core, _ = ndimage.label(ndimage.binary_erosion(truth == CONCEPTS[concept], np.ones((3, 3)), border_value=1))
    labels = ndimage.grey_dilation(core, size=(3, 3))
    found = []
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[window] == number
        if mask.sum() >= truth.size * SPECK_SHARE:
            found.append(SceneObject(concept, window[1].start, window[0].start, mask, float(mask.sum())))
    return found


def solidity(mask: np.ndarray) -> float:
    """Share of its convex hull that mask (height, width) bool covers."""
    rows = np.flatnonzero(mask.any(axis=1))
    left, right = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    corners = [np.column_stack([x, y]) for x in (left, right) for y in (rows, rows + 1)]
    return float(mask.sum() / shapely.convex_hull(shapely.multipoints(np.concatenate(corners))).area)


def one_thing(each: SceneObject) -> bool:
    """Whether an object has a size of its own: of touching houses nobody says which is the largest."""
    return each.category != "building" or solidity(each.mask) >= SOLID


def stands_out(frame: Frame, largest: int) -> bool:
    """Whether an object of a frame that shows one class only is larger by far than all others."""
    objects = frame.objects
    return all(objects[largest].area >= STANDS_OUT * each.area for place, each in enumerate(objects) if place != largest) and one_thing(objects[largest])


def references(rgb: np.ndarray, truth: np.ndarray, known: Sequence[str], rng: np.random.Generator) -> Iterator[Referred]:
    """All that can be asked of this picture without ambiguity, in random order. rgb (height, width, 3) uint8; truth (height, width) uint8, codes of
    CONCEPTS; known: the concepts that the labels tell."""
    frames = {}
    for concept in (name for name in known if name in REFERRED):
        objects = objects_of(truth, concept)
        if 1 < len(objects) <= MOST_OBJECTS:
            frames[concept] = Frame(rgb, tuple(objects))
    possible = [Reference(concept, (atom,), "one" if atom.kind == "most" else "all") for concept in frames for atom in ATOMS]
    waits = [rng.random() / (OFTENER if reference.atoms == (LARGEST,) else 1.0) for reference in possible]
    for place in np.argsort(waits):
        reference = possible[place]
        frame = frames[reference.category]
        group = meant(frame, reference)
        if group is None or len(group) == len(frame.objects):
            continue
        if reference.atoms == (LARGEST,) and not stands_out(frame, *group):
            continue
        mask = frame.mask(group)
        if mask.mean() >= SHORTEST**2:
            yield Referred(word(reference, rng, {}), reference, mask)
