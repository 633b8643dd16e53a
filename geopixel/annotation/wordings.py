"""References as English, in many wordings, and back: whatever is said here can be read here, so that words can be held against objects without
knowing how they came about. Knows no picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, TypeVar

import numpy as np

from geopixel.annotation.colours import COLOURS
from geopixel.annotation.references import EDGES, MOST, PLACES, SIDES, Atom, Form, Reference

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Noun:
    """What the objects of a class are called."""

    one: tuple[str, ...]
    several: tuple[str, ...]
    """As many as of one, in the same order."""
    roofed: bool = False
    """Its colour is that of its roof."""
    coloured: bool = False
    """Its colour tells it from others of its class."""
    mass: bool = False
    """One says "the water" of any amount of it, and how many there are means little."""


NOUNS = {
    "building": Noun(("building", "structure"), ("buildings", "structures"), roofed=True, coloured=True),
    "road": Noun(("road",), ("roads",)),
    "vehicle": Noun(("vehicle",), ("vehicles",), coloured=True),
    "car": Noun(("car",), ("cars",), coloured=True),
    "truck": Noun(("truck",), ("trucks",), coloured=True),
    "tree": Noun(("tree",), ("trees",)),
    "trees": Noun(("patch of trees", "clump of trees"), ("patches of trees", "clumps of trees"), mass=True),
    "field": Noun(("field", "plot of farmland"), ("fields", "plots of farmland"), coloured=True),
    "water": Noun(("body of water", "water body"), ("bodies of water", "water bodies"), mass=True),
    "vegetation": Noun(("patch of vegetation", "area of vegetation"), ("patches of vegetation", "areas of vegetation"), mass=True),
    "land": Noun(("patch of bare land", "area of bare land"), ("patches of bare land", "areas of bare land"), mass=True),
    "swimming pool": Noun(("swimming pool", "pool"), ("swimming pools", "pools")),
    "ship": Noun(("ship", "vessel"), ("ships", "vessels"), coloured=True),
}
"""Classes of which more is known than their name."""

MASS_WORDS = {"water": ("water",), "vegetation": ("vegetation",), "land": ("bare land",), "trees": ("trees",)}
"""All of a class, where it is one of a mass."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
           "sixteen", "seventeen", "eighteen", "nineteen", "twenty")  # fmt: skip

SIZE_WORDS = {"large": ("large", "big"), "small": ("small", "little")}
MOST_WORDS = {
    "largest": ("largest", "biggest"),
    "smallest": ("smallest",),
    "leftmost": ("leftmost", "westernmost"),
    "rightmost": ("rightmost", "easternmost"),
    "topmost": ("topmost", "northernmost"),
    "bottommost": ("bottommost", "southernmost"),
}
_COMPASS = {"top": "north", "bottom": "south", "left": "west", "right": "east"}
_UPPER = {"top": "upper", "bottom": "lower"}
PLACE_WORDS: Mapping[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side of the image", "in the west of the image"),
    "right": ("on the right", "on the right side of the image", "in the east of the image"),
    "top": ("at the top", "in the upper part of the image", "in the north of the image"),
    "bottom": ("at the bottom", "in the lower part of the image", "in the south of the image"),
    "centre": ("in the centre", "in the middle of the image", "in the central part of the image"),
} | {
    f"{y} {x}": (f"in the {y} {x}", f"in the {_UPPER[y]} {x} part of the image", f"in the {_COMPASS[y]}-{_COMPASS[x]} of the image")
    for y, x in product(("top", "bottom"), ("left", "right"))
}
_BORDER = {"northern": "top", "southern": "bottom", "western": "left", "eastern": "right"}
EDGE_WORDS = {edge: (f"along the {edge} edge", f"along the {side} edge of the image", f"at the {edge} edge of the image") for edge, side in _BORDER.items()}
NEAR_WORDS = ("next to {}", "near {}", "close to {}", "beside {}")
NEAREST_WORDS = ("nearest to {}", "closest to {}")
SIDE_WORDS = {
    "left": ("left of {}", "to the left of {}", "west of {}"),
    "right": ("right of {}", "to the right of {}", "east of {}"),
    "above": ("above {}", "north of {}"),
    "below": ("below {}", "south of {}"),
}
COLOUR_WORDS = {colour: (colour, "gray") if colour == "grey" else (colour,) for colour in COLOURS}
assert [set(words) for words in (PLACE_WORDS, EDGE_WORDS, SIDE_WORDS, MOST_WORDS)] == [set(values) for values in (PLACES, EDGES, SIDES, MOST)]

DETERMINED = ("all of the", "all the", "all", "the", "an", "a", "several", "many", "some")
LINES = {"row": ("row of", "line of"), "cluster": ("cluster of", "group of")}


def noun_of(category: str, among: Iterable[str] = ()) -> Noun:
    """What is known of a class, or its name with an English plural; without what is the name of another class among those: a swimming pool is no pool
    where those are a class of their own."""
    noun = NOUNS.get(category) or Noun((category,), (plural(category),))
    others = set(among) - {category}
    own = [index for index, text in enumerate(noun.one) if text not in others]
    return replace(noun, one=tuple(noun.one[index] for index in own), several=tuple(noun.several[index] for index in own))


def plural(word: str) -> str:
    """English, by rule."""
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def singular(word: str) -> str:
    """What one of a class is called whose name is a plural, by rule; any other name as it is."""
    known = {noun.several[0]: category for category, noun in NOUNS.items()} | {category: category for category in NOUNS}
    if word in known or not re.search(r"[^aious]s$", word):  # not grass, bus, tennis
        return known.get(word, word)
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if re.search(r"(ss|x|z|ch|sh)es$", word) else word[:-1]


def number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def word(reference: Reference, rng: np.random.Generator, alone: Mapping[str, bool]) -> str:
    """A phrase for a reference, such as "the large blue-roofed building left of the road".

    alone: by class, whether the picture shows a single object of it, which is then "the road" and not "a road".
    """
    noun = noun_of(reference.category, alone)
    before: list[tuple[int, str]] = []
    after: list[tuple[int, str]] = []
    for atom in reference.atoms:
        options = list(_forms(atom, noun, alone))
        text, leads = pick(rng, options)
        (before if leads else after).append((_ORDER[atom.kind], text))
    leading, trailing = [text for _, text in sorted(before)], [text for _, text in sorted(after)]
    several = reference.form != "one"
    name = pick(rng, noun.several if several else noun.one)
    if several and not reference.atoms and reference.count is None and reference.form == "all" and noun.mass:
        return pick(rng, [f"the {mass}" for mass in MASS_WORDS[reference.category]])
    words = [*leading, name, *trailing]
    if reference.form in ("row", "cluster"):
        counted = [] if reference.count is None else [number(reference.count)]
        return " ".join(["the", pick(rng, LINES[reference.form]), *counted, *words])
    if not several:
        return " ".join(["the", *words])
    if reference.count is None:
        return " ".join([pick(rng, ("all", "the")), *words])
    return " ".join([*pick(rng, ([], ["the"])), number(reference.count), *words])


_ORDER = {"most": 0, "size": 1, "colour": 2, "edge": 3, "place": 3, "side": 4, "near": 5, "nearest": 5}


def _forms(atom: Atom, noun: Noun, alone: Mapping[str, bool]) -> Iterator[tuple[str, bool]]:
    """Wordings of an atom, and whether each stands before the noun."""
    if atom.kind == "size":
        yield from ((text, True) for text in SIZE_WORDS[atom.value])
    elif atom.kind == "most":
        yield from ((text, True) for text in MOST_WORDS[atom.value])
    elif atom.kind == "colour":
        yield from (((f"{text}-roofed" if noun.roofed else text), True) for text in COLOUR_WORDS[atom.value])
        if noun.roofed:
            yield from ((f"with {'an' if text[0] in 'aeiou' else 'a'} {text} roof", False) for text in COLOUR_WORDS[atom.value])
    elif atom.kind in ("place", "edge"):
        yield from ((text, False) for text in (PLACE_WORDS if atom.kind == "place" else EDGE_WORDS)[atom.value])
    else:
        side, _, other = atom.value.partition(" ") if atom.kind == "side" else ("", "", atom.value)
        templates = SIDE_WORDS[side] if side else NEAR_WORDS if atom.kind == "near" else NEAREST_WORDS
        for template, name in product(templates, landmark(other, alone)):
            yield template.format(name), False


def landmark(category: str, alone: Mapping[str, bool]) -> list[str]:
    """What a neighbour is called: "the road" where there is one, else "a road". alone: see word."""
    noun = noun_of(category, alone)
    if noun.mass:
        return [f"the {text}" for text in MASS_WORDS[category]]
    return [f"the {text}" if alone.get(category) else f"{'an' if text[0] in 'aeiou' else 'a'} {text}" for text in noun.one]


@dataclass(frozen=True, slots=True)
class _Lexicon:
    """Everything that may be said of pictures with certain classes, by the text it starts with."""

    nouns: dict[str, tuple[str, Form]]
    atoms: dict[str, tuple[Atom, ...]]
    """Roofs and plain colours are both read, whatever the noun."""

    def longest(self, text: str, table: Mapping[str, Any]) -> str | None:
        found = [key for key in table if text.startswith(key) and not re.match(r"[\w-]", text[len(key) :])]
        return max(found, key=len, default=None)


@lru_cache(maxsize=64)
def _lexicon(categories: tuple[str, ...]) -> _Lexicon:
    nouns: list[tuple[str, tuple[str, Form]]] = []
    atoms: list[tuple[str, tuple[Atom, ...]]] = []
    for category in categories:
        noun = noun_of(category, categories)
        nouns += [(text, (category, "one")) for text in noun.one]
        nouns += [(text, (category, "all")) for text in (*noun.several, *(MASS_WORDS[category] if noun.mass else ()))]
    known = [Atom("size", value) for value in SIZE_WORDS] + [Atom("most", value) for value in MOST_WORDS]
    known += [Atom("place", value) for value in PLACE_WORDS] + [Atom("edge", value) for value in EDGE_WORDS]
    known += [Atom("colour", value) for value in COLOUR_WORDS]
    known += [Atom("near", other) for other in categories] + [Atom("nearest", other) for other in categories]
    known += [Atom("side", f"{side} {other}") for side in SIDES for other in categories]
    for atom, roofed, alone in product(known, (True, False), (True, False)):
        for text, _ in _forms(atom, Noun((), (), roofed=roofed), dict.fromkeys(categories, alone)):
            atoms.append((text, (atom,)))
    return _Lexicon(_clear(nouns), _clear(atoms))


def _clear(said: Iterable[tuple[str, T]]) -> dict[str, T]:
    """What each text means, without those that mean more than one thing, as "trees" where single ones and patches of them are classes."""
    meanings: dict[str, set[T]] = {}
    for text, value in said:
        meanings.setdefault(text, set()).add(value)
    return {text: next(iter(values)) for text, values in meanings.items() if len(values) == 1}


def parse(phrase: str, categories: Sequence[str]) -> Reference | None:
    """What a phrase says of pictures with these classes; None where it says anything that is not in the lexicon, or says it twice."""
    lexicon = _lexicon(tuple(sorted(categories)))
    text = " ".join(phrase.casefold().replace(",", " ").split())
    text, determined = _skip(text, DETERMINED)
    text, count = _count(text)
    text, line = _skip(text, [each for words in LINES.values() for each in words])
    form = next((form for form, words in LINES.items() if line in words), None)
    if form and count is None:
        text, count = _count(text)
    found: list[Atom] = []
    text = _atoms(text, lexicon, found)
    name = lexicon.longest(text, lexicon.nouns)
    if name is None:
        return None
    category, shape = lexicon.nouns[name]
    rest = _atoms(text[len(name) :].lstrip(), lexicon, found)
    if rest or len(set(found)) != len(found) or sum(atom.kind in ("most", "nearest") for atom in found) > 1:
        return None
    if shape == "one" and (form or count not in (None, 1) or determined.startswith("all")):
        return None
    if shape == "all" and determined in ("several", "many", "some") and not found:
        determined = ""
    return Reference(category, tuple(sorted(found)), form or shape, count if form or shape == "all" else None)  # type: ignore[arg-type]


def _skip(text: str, words: Sequence[str]) -> tuple[str, str]:
    for each in sorted(words, key=len, reverse=True):
        if text.startswith(f"{each} "):
            return text[len(each) + 1 :], each
    return text, ""


def _count(text: str) -> tuple[str, int | None]:
    first, _, rest = text.partition(" ")
    if first in NUMBERS:
        return rest, NUMBERS.index(first)
    return (rest, int(first)) if first.isdecimal() and rest else (text, None)


def _atoms(text: str, lexicon: _Lexicon, found: list[Atom]) -> str:
    """Takes what is said from the beginning of the text; gives the rest. Where a class is called what may be said of one, it is the class."""
    while (said := lexicon.longest(text, lexicon.atoms)) is not None and len(said) > len(lexicon.longest(text, lexicon.nouns) or ""):
        found.extend(lexicon.atoms[said])
        text = text[len(said) :].lstrip()
        text = text.removeprefix("and ")
    return text
