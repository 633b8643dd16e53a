"""Finds words for objects: what can be said of one, or of some together, that fits nothing else in the picture. What fits is asked of
references.meant; what is said is a Reference, which wordings.py puts into words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from geopixel.annotation.colours import COLOURS
from geopixel.annotation.groups import find_clusters, find_rows
from geopixel.annotation.objects import SPECK, Frame
from geopixel.annotation.references import EDGES, FEWEST, MOST, NO, PLACES, SIDES, SUPERLATIVES, YES, Atom, Form, Kind, Reference, judge, judge_atom, meant
from geopixel.annotation.wordings import SIZE_WORDS, noun_of

MOST_ATOMS = 3
"""Things that one expression says besides the class."""
LENGTHS = (0.5, 1.0, 1.0, 0.5)
"""How much rather expressions of no, one, two and three atoms are taken, where there are any."""
TELLING = 0.6
"""Share of a class up to which being near another says something."""
TOO_MANY = 80
"""Objects in a group beyond which nobody would count them."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A reference and the objects that it means in its frame."""

    reference: Reference
    members: frozenset[int]


def refer_to(frame: Frame, index: int, rng: np.random.Generator) -> Expression | None:
    """An unambiguous expression for one object, drawn from those of at most MOST_ATOMS atoms; None where there is none, as of twins side by side."""
    category = str(frame.categories[index])
    true = true_atoms(frame, index)
    found: dict[int, list[Reference]] = {}
    for length in range(MOST_ATOMS + 1):
        for atoms in combinations(true, length):
            if sensible(atoms) and meant(frame, reference := Reference(category, tuple(sorted(atoms)))) == {index}:
                found.setdefault(length, []).append(reference)
    if not found:
        return None
    weights = np.array([LENGTHS[length] for length in found])
    chosen = found[list(found)[int(rng.choice(len(found), p=weights / weights.sum()))]]
    return Expression(chosen[int(rng.integers(len(chosen)))], frozenset({index}))


def true_atoms(frame: Frame, index: int) -> list[Atom]:
    """All that can be said of an object, whether it tells it from others or not, in a fixed order; of superlatives those that it may have among some
    objects of its class."""
    category = str(frame.categories[index])
    atoms = []
    for atom in possible_atoms(frame, category, single=True):
        if atom.kind in SUPERLATIVES:  # it may be the largest among those of its colour
            if atom.kind == "most" or judge(frame, Reference(category, (atom,)))[index] != NO:
                atoms.append(atom)
        elif judge_atom(frame, category, atom)[index] == YES:
            atoms.append(atom)
    return atoms


def possible_atoms(frame: Frame, category: str, *, single: bool) -> Iterator[Atom]:
    """What might be said of objects of a class in this frame. single: of one, which may be the largest or lie left of a landmark."""
    noun, members = noun_of(category), frame.of(category)
    others = [str(name) for name in dict.fromkeys(frame.categories.tolist()) if name != category]
    sized = {text for texts in SIZE_WORDS.values() for text in texts} & set(category.split())  # there are small ones among "large vehicles"
    if not noun.mass and len(members) >= FEWEST and not sized:
        yield from (Atom("size", size) for size in ("large", "small"))
    if noun.coloured:
        yield from (Atom("colour", colour) for colour in COLOURS)
    yield from (Atom("place", place) for place in PLACES)
    if not single:
        yield from (Atom("edge", edge) for edge in EDGES)
    for other in others:
        if (judge_atom(frame, category, near := Atom("near", other))[members] == YES).mean() <= TELLING:
            yield near
    if single:
        for other in others:
            if len(landmarks := frame.of(other)) == 1 and frame.area[landmarks[0]] >= SPECK:
                yield from (Atom("side", f"{side} {other}") for side in SIDES)
        if len(members) > 1:
            yield from (Atom("most", most) for most in MOST)
            yield from (Atom("nearest", other) for other in others)


def sensible(atoms: tuple[Atom, ...]) -> bool:
    """Nothing is said twice in other words."""
    kinds: list[Kind] = [atom.kind for atom in atoms]
    if len(set(kinds)) != len(kinds) or sum(kind in SUPERLATIVES for kind in kinds) > 1:
        return False
    said = {atom.kind: atom.value for atom in atoms}
    placed = said.keys() & {"place", "edge"}
    if len(placed) > 1 or ("most" in said and ((said["most"] in MOST[:2] and "size" in said) or (said["most"] in MOST[2:] and placed))):
        return False
    neighbours = [said[kind].split(" ", 1)[-1] if kind == "side" else said[kind] for kind in ("side", "near", "nearest") if kind in said]
    return len(set(neighbours)) == len(neighbours)


def groups_of(frame: Frame, category: str) -> list[Expression]:
    """Unambiguous expressions for two or more objects of a class, but not for all of them: those that have something in common, rows and clusters.
    Each set of objects has one, its shortest. Counted where they are not too many."""
    members = frame.of(category)
    if len(members) < 2:
        return []
    found: dict[frozenset[int], Reference] = {}
    atoms = list(possible_atoms(frame, category, single=False))
    everyone = frozenset(members.tolist())

    def note(reference: Reference) -> None:
        group = meant(frame, reference)
        if group is not None and 1 < len(group) <= TOO_MANY and (group != everyone or reference.form != "all"):
            found.setdefault(group, Reference(reference.category, reference.atoms, reference.form, len(group)))

    for form, find in (("row", find_rows), ("cluster", find_clusters)):
        if certain := find(frame, category)[0]:
            for said in [(), *((atom,) for atom in atoms if atom.kind in ("place", "edge", "near"))]:
                for size in sorted({len(group) for group in certain}):
                    note(Reference(category, said, _form(form), size))
    if not noun_of(category).mass:
        for length in (1, 2):
            for said in combinations(atoms, length):
                if sensible(said):
                    note(Reference(category, tuple(sorted(said)), "all"))
    return [Expression(reference, group) for group, reference in found.items()]


def _form(name: str) -> Form:
    return "row" if name == "row" else "cluster"


def whole_class(frame: Frame, category: str) -> Expression:
    """All that is seen of a class, which is more than a speck: "the road" where it is one, counted where every one can be told, else "the buildings"."""
    members = frame.of(category)
    if len(members) == 1 and frame.area[members[0]] >= SPECK:
        return Expression(Reference(category), frozenset(members.tolist()))
    counted = not noun_of(category).mass and 1 < len(members) <= TOO_MANY and bool((frame.area[members] >= SPECK).all())
    return Expression(Reference(category, (), "all", len(members) if counted else None), frozenset(members.tolist()))
