"""Texts rewritten by a person or a captioning model: read back and held against the objects. The masks of a sample stay as they are, in their
order; a phrase must still mean its own objects and no others, or be vouched for by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from geopixel.annotation.descriptions import SEG, Phrase, Sample
from geopixel.annotation.marks import draw_marks
from geopixel.annotation.objects import Frame
from geopixel.annotation.page import PHRASE
from geopixel.annotation.references import Reference, meant
from geopixel.annotation.samples import REVIEW, Annotated, read_samples
from geopixel.annotation.wordings import parse


class Captioner(Protocol):
    """A person behind a form, or a model that sees pictures and writes."""

    def caption(self, image: np.ndarray, marks: np.ndarray, draft: str) -> str:
        """A better text for an image (h, w, 3) uint8.

        marks: (H, W, 3) uint8, the image enlarged, with the outline and number of the mask of every phrase of the draft, in its order.
        draft: with its phrases in <p></p> and a [SEG] behind each; so is what comes back, phrases in the same order.
        """


@dataclass(frozen=True, slots=True, config={"strict": True})
class Reviewed:
    """A line of review.jsonl: what a sample says from now on."""

    id: str
    question: str
    answer: str
    by_hand: tuple[int, ...] = ()
    """Phrases, counted from 1, that a person vouches for, 0 for the question: they are not held against the objects."""


_LINE = TypeAdapter(Reviewed)


def complaints(frame: Frame, sample: Sample, by_hand: Sequence[int] = ()) -> list[str]:
    """What is wrong with a sample, in words; empty where each of its phrases, and what a question for objects asks for, read anew from the text, means
    its objects and no others."""
    texts = phrases_of(sample.answer)
    if not sample.answer.count(SEG) == sample.answer.count("<p>") == sample.answer.count("</p>") == len(texts) == len(sample.phrases):
        return [
            f"it has {len(sample.phrases)} masks and needs as many phrases <p>...</p> {SEG} and nothing else in <p> or {SEG}, got {len(texts)} phrases, "
            f"{sample.answer.count('<p>')} <p> and {sample.answer.count(SEG)} {SEG}"
        ]
    if strange := sorted(set(by_hand) - set(range(len(texts) + 1))):
        return [f"it has no phrase {strange[0]} to vouch for in by_hand: phrases are 1 to {len(texts)}, and 0 is the question"]
    categories = [str(name) for name in dict.fromkeys(frame.categories.tolist())]
    found = [] if 0 in by_hand else list(_question_complaints(frame, sample, categories))
    for number, (text, phrase) in enumerate(zip(texts, sample.phrases, strict=True), start=1):
        if number in by_hand:
            continue
        reference = parse(text, categories)
        if reference is None:
            found.append(f"phrase {number}, {text!r}, cannot be checked: say it in other words, or add {number} to by_hand")
        elif (objects := meant(frame, reference)) != phrase.members:
            fits = "no object alone" if objects is None else f"objects {sorted(objects)}"
            found.append(f"phrase {number}, {text!r}, means {fits}, not {sorted(phrase.members)}: say it otherwise, or add {number} to by_hand")
    return found


def _question_complaints(frame: Frame, sample: Sample, categories: Sequence[str]) -> Iterator[str]:
    if not sample.question.strip() or SEG in sample.question or "<p>" in sample.question:
        yield f"its question is to be a text without <p> and {SEG}, got {sample.question!r}"
    if sample.level == "scene":
        return
    objects = sample.phrases[0].members
    asked = list(_asked_for(sample.question, categories))
    if not asked or any(meant(frame, reference) != objects for reference in asked):
        wrong = f"asks for other objects than {sorted(objects)}" if asked else "cannot be checked"
        yield f"its question, {sample.question!r}, {wrong}: say it otherwise, or add 0 to by_hand"


def _asked_for(question: str, categories: Sequence[str]) -> Iterator[Reference]:
    """All that a question refers to: from the left, the longest runs of words that can be read."""
    words = re.sub(r"[?!.:;]", " ", question).split()
    start = 0
    while start < len(words):
        read = ((end, parse(" ".join(words[start:end]), categories)) for end in range(len(words), start, -1))
        start, reference = next(((end, reference) for end, reference in read if reference is not None), (start + 1, None))
        if reference is not None:
            yield reference


def phrases_of(answer: str) -> list[str]:
    """The phrase before each [SEG], where there is one."""
    return [" ".join(text.split()) for text in PHRASE.findall(answer)]


def read_review(path: Path) -> dict[str, Reviewed]:
    """review.jsonl by sample. Raises ValueError for a line that is not that, or a sample that is there twice."""
    found: dict[str, Reviewed] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            reviewed = _LINE.validate_json(line)
        except ValidationError as error:
            wrong = error.errors()[0]
            why = ": ".join([*map(str, wrong["loc"]), wrong["msg"]])
            raise ValueError(f"{path}, line {number}: wanted an object with id, question, answer and by_hand, got {line[:60]!r} ({why})") from error
        if reviewed.id in found:
            raise ValueError(f"{path}, line {number}: {reviewed.id} is there twice")
        found[reviewed.id] = reviewed
    return found


def apply_review(chip: Annotated, reviews: Mapping[str, Reviewed]) -> Annotated:
    """The chip with its reviewed texts. Raises ValueError, naming the samples, for lines that are missing and texts that do not hold against the objects."""
    samples, by_hand, wrong = [], {}, []
    for index, sample in enumerate(chip.samples):
        name = chip.name(index)
        review = _line_of(reviews, name)
        draft = replace(sample, question=review.question, answer=review.answer)
        if found := complaints(chip.frame, draft, review.by_hand):
            wrong.append(f"sample {name}: {', and '.join(found)}")
            continue
        phrases = tuple(Phrase(text, phrase.members) for text, phrase in zip(phrases_of(review.answer), sample.phrases, strict=True))
        samples.append(replace(draft, phrases=phrases))
        by_hand[index] = tuple(sorted(set(review.by_hand)))
    if wrong:
        raise ValueError("; ".join(wrong))
    return replace(chip, samples=tuple(samples), by_hand=by_hand)


def _line_of(reviews: Mapping[str, Reviewed], name: str) -> Reviewed:
    if name not in reviews:
        raise ValueError(f"{REVIEW} has no line of sample {name}")
    return reviews[name]


def rewrite(folder: Path, captioner: Captioner) -> tuple[int, int]:
    """Lets a captioner write anew every text of a folder of samples, as its review.jsonl has them now, into that file. A text that does not hold
    against the objects is not taken: the draft stays; and so do all that a person vouches for. Returns how many texts were taken, and how many not.
    What was taken before a captioner raises is kept."""
    reviews, taken, refused = read_review(folder / REVIEW), 0, 0
    try:
        for chip in read_samples(folder):
            for index, sample in enumerate(chip.samples):
                review = _line_of(reviews, chip.name(index))
                if review.by_hand:
                    continue
                marks = draw_marks(chip.frame.rgb, [chip.frame.mask(phrase.members) for phrase in sample.phrases])
                answer = re.sub(r"\s+", " ", captioner.caption(chip.frame.rgb, marks, review.answer)).strip()
                if complaints(chip.frame, replace(sample, question=review.question, answer=answer)):
                    refused += 1
                    continue
                reviews[review.id] = replace(review, answer=answer)
                taken += 1
    finally:
        path, aside = folder / REVIEW, folder / f"{REVIEW}.new"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        aside.write_text("".join(json.dumps(line | asdict(reviews[line["id"]])) + "\n" for line in lines), encoding="utf-8")
        aside.replace(path)
    return taken, refused
