"""Texts rewritten by a person or a captioning model: read back and held against the objects. The masks of a sample stay as they are, in their
order; a phrase must still mean its own objects and no others, or be vouched for by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from geopixel.annotation.descriptions import SEG, Phrase, Sample
from geopixel.annotation.marks import draw_marks
from geopixel.annotation.objects import Frame
from geopixel.annotation.page import PHRASE
from geopixel.annotation.references import meant
from geopixel.annotation.samples import REVIEW, Annotated, read_samples
from geopixel.annotation.wordings import parse


class Captioner(Protocol):
    """A person behind a form, or a model that sees pictures and writes."""

    def caption(self, image: np.ndarray, marks: np.ndarray, draft: str) -> str:
        """A better text for an image (h, w, 3) uint8.

        marks: (H, W, 3) uint8, the image enlarged, with the outline and number of the mask of every phrase of the draft, in its order.
        draft: with its phrases in <p></p> and a [SEG] behind each; so is what comes back, phrases in the same order.
        """


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A line of review.jsonl: what a sample says from now on."""

    id: str
    question: str
    answer: str
    by_hand: tuple[int, ...]
    """Phrases, counted from 1, that a person vouches for: they are not held against the objects."""


def complaints(frame: Frame, sample: Sample, by_hand: Sequence[int] = ()) -> list[str]:
    """What is wrong with a sample, in words; empty where each of its phrases, read anew from the text, means its objects and no others."""
    texts = phrases_of(sample.answer)
    if sample.answer.count(SEG) != len(sample.phrases) or len(texts) != len(sample.phrases):
        return [f"it has {len(sample.phrases)} masks and needs as many phrases <p>...</p> {SEG}, got {len(texts)} phrases and {sample.answer.count(SEG)} {SEG}"]
    categories = [str(name) for name in dict.fromkeys(frame.categories.tolist())]
    found = []
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
            told = json.loads(line)
            reviewed = Reviewed(str(told["id"]), str(told["question"]), str(told["answer"]), tuple(int(each) for each in told.get("by_hand", ())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: wanted an object with id, question, answer and by_hand, got {line[:60]!r} ({error})") from error
        if reviewed.id in found:
            raise ValueError(f"{path}, line {number}: {reviewed.id} is there twice")
        found[reviewed.id] = reviewed
    return found


def apply_review(chip: Annotated, reviews: Mapping[str, Reviewed]) -> Annotated:
    """The chip with its reviewed texts. Raises ValueError, naming the sample, for one that is missing or does not hold against the objects."""
    samples, by_hand = [], {}
    for index, sample in enumerate(chip.samples):
        name = chip.name(index)
        if name not in reviews:
            raise ValueError(f"{REVIEW} has no line of sample {name}")
        review = reviews[name]
        draft = replace(sample, question=review.question, answer=review.answer)
        if wrong := complaints(chip.frame, draft, review.by_hand):
            raise ValueError(f"sample {name}: {wrong[0]}")
        phrases = tuple(Phrase(text, phrase.members) for text, phrase in zip(phrases_of(review.answer), sample.phrases, strict=True))
        samples.append(replace(draft, phrases=phrases))
        by_hand[index] = review.by_hand
    return replace(chip, samples=tuple(samples), by_hand=by_hand)


def rewrite(folder: Path, captioner: Captioner) -> tuple[int, int]:
    """Lets a captioner write anew every text of a folder of samples, into its review.jsonl. A text that does not hold against the objects is not
    taken: the draft stays. Returns how many texts were taken, and how many not."""
    reviews, taken, refused = read_review(folder / REVIEW), 0, 0
    for chip in read_samples(folder):
        for index, sample in enumerate(chip.samples):
            marks = draw_marks(chip.frame.rgb, [chip.frame.mask(phrase.members) for phrase in sample.phrases])
            answer = re.sub(r"\s+", " ", captioner.caption(chip.frame.rgb, marks, sample.answer)).strip()
            if complaints(chip.frame, replace(sample, answer=answer)):
                refused += 1
                continue
            reviews[chip.name(index)] = replace(reviews[chip.name(index)], answer=answer)
            taken += 1
    lines = [{"id": each.id, "question": each.question, "answer": each.answer, "by_hand": list(each.by_hand)} for each in reviews.values()]
    (folder / REVIEW).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return taken, refused
