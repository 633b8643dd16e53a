"""What is said of a picture, at three levels: the scene as a whole, single objects, groups. Every phrase stands in <p></p>, tied to the mask behind
its [SEG]. Each sample is drawn by a generator that the caller seeds. Knows no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from geopixel.annotation.expressions import Expression, groups_of, refer_to, true_atoms, whole_class
from geopixel.annotation.objects import SPECK, Frame
from geopixel.annotation.references import Atom, meant
from geopixel.annotation.wordings import COLOUR_WORDS, MASS_WORDS, NEAR_WORDS, PLACE_WORDS, SIDE_WORDS, SIZE_WORDS, landmark, noun_of, pick, word

Level = Literal["scene", "object", "group"]

SEG = "[SEG]"
MOST_CLASSES = 6
"""Of which a scene description speaks, the widest first."""
TRIES = 8
"""How many objects are looked at for each that is wanted: some have no unambiguous expression."""

SCENE_QUESTIONS = (
    "Can you provide a thorough description of the this image? Please output with interleaved segmentation masks for the corresponding phrases.",
    "Could you describe this image in detail? Please answer with interleaved segmentation masks for the corresponding phrases.",
    "What does this aerial image show? Please respond with segmentation masks for the phrases that name something.",
    "Please describe the scene, its objects and how they are grouped, with a segmentation mask for each.",
)
"""The first as published, its slip included: the released weights know it."""
OBJECT_QUESTIONS = (
    "Could you provide a segmentation mask for {} in this image?",
    "Please segment {} in this image.",
    "Where is {}? Please answer with a segmentation mask.",
    "Can you mark {}?",
)
"""The first as published."""
GROUP_QUESTIONS = (OBJECT_QUESTIONS[0], OBJECT_QUESTIONS[1], "Where are {}? Please answer with a segmentation mask.", OBJECT_QUESTIONS[3])
OBJECT_ANSWERS = ("It is {}.", "Sure, this is {}.", "Here is {}.", "{}.")
GROUP_ANSWERS = ("These are {}.", "Sure, here are {}.", "Here you see {}.", "{}.")

SETTINGS: dict[str, tuple[tuple[float, str], ...]] = {
    "building": ((0.25, "a densely built-up area"), (0.1, "a built-up area"), (0.03, "a loosely built-up area"), (0.0, "a place with few buildings")),
    "tree": ((0.5, "a wooded area"), (0.25, "a place with many trees")),
    "trees": ((0.5, "a wooded area"), (0.25, "a place with many trees")),
    "vegetation": ((0.5, "green land"),),
    "field": ((0.4, "farmland"),),
    "water": ((0.4, "a place that is mostly water"),),
    "land": ((0.5, "open land"),),
}
"""By class: from which share of the picture on it is called what."""
OPENINGS = ("The image shows {}", "This aerial image shows {}", "Seen from above is {}", "The picture is of {}")
CONTENTS = (" with {}.", ". It contains {}.", ". One can see {}.", ", in which one finds {}.")
FRACTIONS = ((0.04, None), (0.075, "a twentieth"), (0.15, "a tenth"), (0.225, "a fifth"), (0.29, "a quarter"), (0.42, "a third"), (0.58, "half"),
             (0.72, "two thirds"), (0.9, "most"), (1.01, "nearly all"))  # fmt: skip
"""Up to which share of the picture it is called what."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that stand for objects."""

    text: str
    members: frozenset[int]
    """Indexes in the frame; its mask is what is seen of any of them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A question about a picture and its answer."""

    level: Level
    question: str
    answer: str
    """With <p></p> around each phrase and a [SEG] behind it."""
    phrases: tuple[Phrase, ...]
    """In the order of the answer."""


@dataclass(slots=True)
class _Writer:
    """Puts expressions of one frame into words and remembers them in order."""

    frame: Frame
    rng: np.random.Generator
    phrases: list[Phrase] = field(default_factory=list)
    start: int = field(init=False)
    """Which of several templates comes first."""

    def __post_init__(self) -> None:
        self.start = int(self.rng.integers(60))

    def tag(self, expression: Expression, *, capital: bool = False) -> str:
        return self.tag_words(self.words(expression), expression, capital=capital)

    def tag_words(self, text: str, expression: Expression, *, capital: bool = False) -> str:
        text = text[0].upper() + text[1:] if capital else text
        self.phrases.append(Phrase(text, expression.members))
        return f"<p>{text}</p> {SEG}"

    def words(self, expression: Expression) -> str:
        return word(expression.reference, self.rng, alone(self.frame))


def alone(frame: Frame) -> dict[str, bool]:
    """By class: is a single object of it seen?"""
    return {str(name): len(frame.of(name)) == 1 for name in dict.fromkeys(frame.categories.tolist())}


def describe(frame: Frame, rng: np.random.Generator, objects: int, groups: int) -> list[Sample]:
    """The samples of a picture: a description of all of it, which speaks of at most so many objects and groups, then a question for each of at most
    so many single objects and groups. Nothing where the picture shows nothing that can be told."""
    classes = sorted(dict.fromkeys(frame.categories.tolist()), key=lambda name: (-frame.mask(frame.of(name)).sum(), name))
    classes = [name for name in classes if (frame.area[frame.of(name)] >= SPECK).any() and _clear(frame, whole_class(frame, name))][:MOST_CLASSES]
    if not classes:
        return []
    sets = [group for name in classes for group in groups_of(frame, name)]
    samples = [_scene(_Writer(frame, rng), classes, list(_single(frame, rng, objects)), _draw(sets, groups, rng))]
    samples += [_question(_Writer(frame, rng), "object", each) for each in _single(frame, rng, objects)]
    return samples + [_question(_Writer(frame, rng), "group", each) for each in _draw(sets, groups, rng)]


def _clear(frame: Frame, expression: Expression) -> bool:
    """Not where "the vehicles" would mean cars too, which are a class of their own."""
    return meant(frame, expression.reference) == expression.members


def _single(frame: Frame, rng: np.random.Generator, wanted: int) -> Iterable[Expression]:
    """Expressions for objects, the well seen ones rather than others."""
    weights = np.sqrt(frame.area) * (frame.area >= SPECK) * np.where(frame.area < 0.9 * frame.full_area, 0.4, 1.0)
    count = min(TRIES * wanted, int((weights > 0).sum()))
    found = 0
    for index in rng.choice(len(weights), size=count, replace=False, p=weights / weights.sum()) if count else ():
        if found < wanted and (expression := refer_to(frame, int(index), rng)) is not None:
            found += 1
            yield expression


def _draw(expressions: Sequence[Expression], wanted: int, rng: np.random.Generator) -> list[Expression]:
    weights = np.array([_worth(each) for each in expressions])
    if not len(weights) or not wanted:
        return []
    chosen = rng.choice(len(weights), size=min(wanted, len(weights)), replace=False, p=weights / weights.sum())
    return [expressions[int(index)] for index in chosen]


def _worth(group: Expression) -> float:
    """Rows and clusters are rare, and what is said by one property is said better than by two."""
    return 4.0 if group.reference.form in ("row", "cluster") else 1.0 / len(group.reference.atoms)


def _question(writer: _Writer, level: Level, expression: Expression) -> Sample:
    several = expression.reference.form == "all"  # a row of buildings is one row
    questions, answers = (GROUP_QUESTIONS, GROUP_ANSWERS) if several else (OBJECT_QUESTIONS, OBJECT_ANSWERS)
    words = writer.words(expression)
    asked = pick(writer.rng, questions).format(words)
    if "the image" in words:
        asked = asked.replace(" in this image", "")
    template = pick(writer.rng, answers)
    answer = template.format(writer.tag(expression, capital=template.startswith("{")))
    return Sample(level, asked, answer, tuple(writer.phrases))


def _scene(writer: _Writer, classes: Sequence[str], singles: Sequence[Expression], groups: Sequence[Expression]) -> Sample:
    """Three parts: the whole, single objects, groups."""
    rng = writer.rng
    sentences = [_overview(writer, classes)]
    sentences += [_coverage(writer.frame, name, rng) for name in classes[:1]]
    told = {phrase.members for phrase in writer.phrases}
    sentences += [_object_sentence(writer, expression, turn) for turn, expression in enumerate(singles) if expression.members not in told]
    sentences += [_group_sentence(writer, expression, turn) for turn, expression in enumerate(groups) if expression.members not in told]
    return Sample("scene", pick(rng, SCENE_QUESTIONS), " ".join(filter(None, sentences)), tuple(writer.phrases))


def _overview(writer: _Writer, classes: Sequence[str]) -> str:
    frame, rng = writer.frame, writer.rng
    shares = {name: float(frame.mask(frame.of(name)).mean()) for name in classes}
    fitting = [text for name in classes for least, text in SETTINGS.get(name, ())[:] if shares[name] >= least][:1]
    opening = pick(rng, OPENINGS).format(fitting[0] if fitting else "a stretch of land")
    parts = []
    for name in classes:
        expression = whole_class(frame, name)
        parts.append(writer.tag_words(_introduced(writer, expression), expression))
    return opening + pick(rng, CONTENTS).format(listed(parts))


def _introduced(writer: _Writer, expression: Expression) -> str:
    """The first time that a class is named: "twelve buildings", "a road", "buildings", "water"."""
    reference, rng = expression.reference, writer.rng
    noun = noun_of(reference.category, alone(writer.frame))
    if reference.form == "one":
        text = pick(rng, noun.one)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    if reference.count is not None:
        return writer.words(expression).removeprefix("the ")
    return pick(rng, MASS_WORDS[reference.category] if noun.mass else noun.several)


def listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _coverage(frame: Frame, category: str, rng: np.random.Generator) -> str:
    """How much of the picture the widest class takes; nothing is said of a little."""
    share = float(frame.mask(frame.of(category)).mean())
    fraction = next(name for end, name in FRACTIONS if share < end)
    if fraction is None:
        return ""
    noun = noun_of(category)
    name = MASS_WORDS[category][0] if noun.mass else noun.several[0]
    singular = noun.mass and not name.endswith("s")
    about = "" if fraction in ("most", "nearly all") else "about "
    verb = pick(rng, (("cover", "take up", "occupy"), ("covers", "takes up", "occupies"))[singular])
    return f"{name.capitalize()} {verb} {about}{fraction} of it."


OBJECT_SENTENCES = ("{} {}.", "There is {}, which {}.", "One can make out {}, which {}.", "Then one sees {}; it {}.")
PLAIN_SENTENCES = ("There is also {}.", "One can make out {}.", "Clearly visible is {}.", "{} can be seen as well.")
GROUP_SENTENCES = ("There are {}.", "Also visible are {}.", "{} can be made out.", "{} stand out.", "One also sees {}.")


def _object_sentence(writer: _Writer, expression: Expression, turn: int) -> str:
    """An object, and one or two things besides that are true of it and not said in its phrase. turn: counts the sentences, none like the one before."""
    facts = _facts(writer, expression)
    templates = OBJECT_SENTENCES if facts else PLAIN_SENTENCES
    template = templates[(writer.start + turn) % len(templates)]
    phrase = writer.tag(expression, capital=template.startswith("{"))
    return template.format(phrase, " and ".join(facts)) if facts else template.format(phrase)


def _facts(writer: _Writer, expression: Expression) -> list[str]:
    (index,) = expression.members
    frame, rng, said = writer.frame, writer.rng, expression.reference.atoms
    noun = noun_of(expression.reference.category)
    kinds = {atom.kind for atom in said} | ({"place", "edge", "size"} if any(atom.kind == "most" for atom in said) else set())
    placed = [atom for atom in true_atoms(frame, index) if atom.kind == "place" and " " in atom.value or atom.value == "centre"]
    others = [atom for atom in true_atoms(frame, index) if atom.kind in ("size", "colour", "near", "side")]
    options = [atom for atom in [*placed, *others] if atom.kind not in kinds]
    chosen: list[Atom] = []
    for at in rng.permutation(len(options)).tolist():
        atom = options[at]
        neighbours = [each.value.split(" ", 1)[-1] for each in (*said, *chosen) if each.kind in ("near", "side", "nearest")]
        if len(chosen) < int(rng.integers(1, 3)) and atom.kind not in {each.kind for each in chosen} and atom.value.split(" ", 1)[-1] not in neighbours:
            chosen.append(atom)
    return [_fact(atom, noun.roofed, alone(frame), rng) for atom in chosen]


def _fact(atom: Atom, roofed: bool, single: dict[str, bool], rng: np.random.Generator) -> str:
    """As what follows "which": "has a grey roof"."""
    if atom.kind == "size":
        return f"is {pick(rng, SIZE_WORDS[atom.value])}"
    if atom.kind == "colour":
        text = pick(rng, COLOUR_WORDS[atom.value])
        return f"has {'an' if text[0] in 'aeiou' else 'a'} {text} roof" if roofed else f"is {text}"
    if atom.kind == "place":
        return f"{pick(rng, ('lies', 'is'))} {pick(rng, PLACE_WORDS[atom.value])}"
    side, _, other = atom.value.partition(" ") if atom.kind == "side" else ("", "", atom.value)
    return f"{pick(rng, ('lies', 'is'))} {pick(rng, SIDE_WORDS[side] if side else NEAR_WORDS).format(pick(rng, landmark(other, single)))}"


def _group_sentence(writer: _Writer, expression: Expression, turn: int) -> str:
    templates = PLAIN_SENTENCES if expression.reference.form in ("row", "cluster") else GROUP_SENTENCES
    template = templates[(writer.start + turn) % len(templates)]
    return template.format(writer.tag(expression, capital=template.startswith("{")))
