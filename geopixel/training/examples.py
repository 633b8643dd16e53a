"""A labelled picture becomes an example: questions about it, the answers that it deserves, and the masks that belong to them.
Knows no source of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geopixel.model import processor
from geopixel.model.config import GeoPixelConfig
from geopixel.model.geopixel import DESCRIBE_PROMPT, NO, PRESENCE_PROMPT, SEGMENT_ANSWER, SEGMENT_PROMPT, YES
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer
from geopixel.training.referring import REFERRED, Referred, objects_of, one_thing, references
from geopixel.training.words import ABSENT_ANSWER, CONCEPTS, STRANGE, UNLABELLED, WORDINGS, describe

DESCRIBED = 0.15
"""Share of the examples that are described as a whole; the others are asked concept by concept."""

SMALLEST_SHARE = {"vehicle": 3e-4}
DEFAULT_SMALLEST_SHARE = 2e-3
"""Share of the image from which on a concept must be found; with less of it than that, and more than none, the question is not asked."""

DENIAL = 0.3
"""Weight of the answer that a known thing is not there; all others have 1. To overlook a thing costs a map more than to look for it in vain: of what
is not there the mask decoder draws nothing."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image, the questions asked about it and what should come back."""

    crops: Tensor
    """(1 + rows * columns, 3, crop, crop) float32"""
    grid: tuple[int, int]
    """(rows, columns)"""
    pixels: Tensor
    """(3, image_size, image_size) float32"""
    tokens: list[list[int]]
    """Per question: prompt and answer ids."""
    answer_starts: list[int]
    """Per question: where in its tokens the answer begins."""
    importance: list[float]
    """Per question: weight of its answer."""
    concepts: list[int]
    """Concept of every mask of the answers, in their order, counted from 0."""
    atoms: list[int]
    """What every mask is of its concept: 0 all of it, else one more than the place in referring.ATOMS of what its phrase says."""
    denied: list[int]
    """Concepts that were asked for in vain, counted from 0."""
    shares: Tensor
    """(planes, S, S) float32: share of each mask cell that is covered: by each concept, then by what each phrase means."""
    weights: Tensor
    """(planes, S, S) float32: share of each mask cell of which that is known."""
    sizes: Tensor
    """(REFERRED, S, S) float32: how large the object of that concept in each mask cell is, as the square root of its area in pixels; 0 where none
    is, or more than one thing."""

    @property
    def planes(self) -> list[int]:
        """Plane of every mask of the answers: a concept's own, or behind them one of what only a phrase means."""
        behind = count(len(CONCEPTS))
        return [next(behind) if atom else concept for concept, atom in zip(self.concepts, self.atoms, strict=True)]

    def to(self, device: torch.device) -> Example:
        """With its tensors there."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("crops", "pixels", "shares", "weights", "sizes")})


class Teacher:
    """Makes examples for one model: its sizes and its tokenizer."""

    def __init__(self, config: GeoPixelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    def example(self, rgb: np.ndarray, truth: np.ndarray, known: Sequence[str], rng: np.random.Generator, phrases: int = 0) -> Example:
        """rgb (height, width, 3) uint8; truth (height, width) uint8, codes of CONCEPTS, OTHER or UNLABELLED; known: the concepts that the labels
        tell. rng chooses the questions and their wordings. A description needs labels that tell of more than one concept. phrases: at most so many
        single objects, or parts of the picture, are asked for beside the concepts."""
        shares = covered(truth)
        asked, present = askable(shares, known)
        denied: list[str] = []
        referred: list[Referred] = []
        if present and len(known) > 1 and rng.random() < DESCRIBED:
            present.sort(key=lambda name: -shares[name])
            dialogues, importance = [self.dialogue(DESCRIBE_PROMPT, describe(present))], [1.0]
        else:
            denied = [name for name in asked if name not in present]
            answers = [SEGMENT_ANSWER if name in present else ABSENT_ANSWER for name in asked]
            words = [rng.choice(WORDINGS[name]) for name in asked]
            dialogues = [self.dialogue(SEGMENT_PROMPT.format(word), answer) for word, answer in zip(words, answers, strict=True)]
            dialogues.append(self.dialogue(SEGMENT_PROMPT.format(rng.choice(STRANGE)), ABSENT_ANSWER))
            name = str(rng.choice([*asked, "strange"]))
            word = rng.choice(STRANGE if name == "strange" else WORDINGS[name])
            dialogues.append(self.dialogue(PRESENCE_PROMPT.format(word), f"{YES if name in present else NO}."))
            importance = [DENIAL if name in denied else 1.0 for name in (*asked, "strange", name)]
            referred = list(islice(references(rgb, truth, known, rng), phrases))
            dialogues += [self.dialogue(SEGMENT_PROMPT.format(each.words), SEGMENT_ANSWER) for each in referred]
            importance += [1.0] * len(referred)
        starts, tokens = zip(*dialogues, strict=True)
        crops, grid = processor.clip_crops(rgb, self.config.hd_num, self.config.vision.crop_size)
        pixels = processor.sam_pixels(rgb, self.config.grounding.image_size)
        shares_and_weights = planes(truth, known, pixels.shape[-1] // 4, referred)
        masks = (*wanted(present, referred), numbers(denied), *shares_and_weights, sizes(truth, known, pixels.shape[-1]))
        return Example(crops, grid, pixels, list(tokens), list(starts), importance, *masks)

    def picture(self, rgb: np.ndarray, truth: np.ndarray, known: Sequence[str], edge: int, rng: np.random.Generator, phrases: int = 0) -> Example:
        """The same without words, for the mask decoder alone: SAM 2 sees edge x edge pixels."""
        asked, present = askable(covered(truth), known)
        denied = [name for name in asked if name not in present]
        referred = list(islice(references(rgb, truth, known, rng), phrases))
        pixels = processor.sam_pixels(rgb, edge)
        shares_and_weights = planes(truth, known, edge // 4, referred)
        return Example(torch.zeros(0), (0, 0), pixels, [], [], [], *wanted(present, referred), numbers(denied), *shares_and_weights, sizes(truth, known, edge))

    def dialogue(self, prompt: str, answer: str) -> tuple[int, list[int]]:
        """Where the answer starts, and the ids of prompt and answer."""
        question = self.tokenizer.encode(USER + prompt + ASSISTANT)
        return len(question), question + self.tokenizer.encode(answer + ANSWER_END) + [self.tokenizer.eos]


def covered(truth: np.ndarray) -> dict[str, float]:
    """Share of the picture that each concept covers."""
    counts = np.bincount(truth.ravel(), minlength=UNLABELLED + 1)
    return {name: float(counts[code] / truth.size) for name, code in CONCEPTS.items()}


def askable(shares: Mapping[str, float], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of the known concepts those that there is enough of or nothing of, and of these the former."""
    asked = [name for name in known if not 0 < shares[name] < SMALLEST_SHARE.get(name, DEFAULT_SMALLEST_SHARE)]
    return asked, [name for name in asked if shares[name] > 0]


def numbers(names: Sequence[str]) -> list[int]:
    """Places of concepts in CONCEPTS."""
    order = list(CONCEPTS)
    return [order.index(name) for name in names]


def wanted(present: Sequence[str], referred: Sequence[Referred]) -> tuple[list[int], list[int]]:
    """Example's concepts and atoms."""
    return numbers([*present, *(each.reference.category for each in referred)]), [0] * len(present) + [each.atom + 1 for each in referred]


def planes(truth: np.ndarray, known: Sequence[str], size: int, referred: Sequence[Referred] = ()) -> tuple[Tensor, Tensor]:
    """Example's shares and weights, (planes, size, size)."""
    inside = np.stack([*(truth == code for code in CONCEPTS.values()), *(each.mask for each in referred), truth != UNLABELLED]).astype(np.float32)
    *shares, labelled = F.adaptive_avg_pool2d(torch.from_numpy(inside), size)
    told = torch.tensor([float(name in known) for name in CONCEPTS] + [1.0] * len(referred))
    return torch.stack(shares), labelled * told[:, None, None]


def sizes(truth: np.ndarray, known: Sequence[str], edge: int) -> Tensor:
    """Example's sizes, for a picture that is seen in edge x edge pixels."""
    areas = np.zeros((len(REFERRED), *truth.shape), np.float32)
    for plane, concept in zip(areas, REFERRED, strict=True):
        for each in objects_of(truth, concept) if concept in known else ():
            if one_thing(each):
                plane[each.window][each.mask] = each.area / truth.size
    return F.adaptive_max_pool2d(torch.from_numpy(areas).sqrt() * edge, edge // 4)
