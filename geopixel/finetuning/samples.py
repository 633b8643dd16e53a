"""What a model is taught: pictures, conversations about them and the masks of the answers, from the published format or from chips of one class.
Lists are made at once and checked, pictures and masks are read when they are needed. Knows no network and no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from geopixel.labels import decode_mask, draw_masks, pair_chips, present, read_image, read_json, read_mask, some
from geopixel.model.config import GeoPixelConfig
from geopixel.model.geopixel import SEGMENT_ANSWER, SEGMENT_PROMPT
from geopixel.model.supervision import Sample, conversation, make_sample
from geopixel.model.tokenizer import SEG, Tokenizer

ABSENT_ANSWER = "It is not there."
"""To the question for a class that the picture does not hold; any answer without [SEG] means that."""

ASKING, ANSWERING = ("human", "user"), ("bot", "gpt", "assistant")
"""Who speaks in a conversation; the published data say human or user, and bot."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One picture and a conversation about it."""

    name: str
    """Where it stands: what messages about it say."""
    image: Path
    turns: tuple[tuple[str, str], ...]
    """Questions and answers."""
    masks: Callable[[], np.ndarray]
    """Reads (N, height, width) bool, one mask for every [SEG] of the answers, in their order."""


def read_published(path: Path) -> list[Lesson]:
    """The samples of a JSON list in the published format: each {id, conversations: [{from, value}, ...], image} and, where answers have [SEG],
    `segmentation`, a list of COCO run lengths, or `polygons`, a JSON file with "polygons": for each [SEG] a list of rings of (x, y) in pixels.
    Paths are relative to the list. Raises ValueError naming the sample that is not so, or whose masks are not as many as its [SEG]."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of samples, got {type(entries).__name__}")
    lessons = []
    for number, entry in enumerate(entries):
        name = f"{path}, sample {number}" + (f" (id {entry['id']})" if isinstance(entry, dict) and "id" in entry else "")
        try:
            lessons.append(_lesson(entry, name, path.parent))
        except KeyError as error:
            raise ValueError(f"{name}: it lacks {error}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
    return some(lessons, f"{path} holds no sample")


def _lesson(entry: Any, name: str, folder: Path) -> Lesson:
    turns, image = _turns(entry["conversations"]), present(folder / entry["image"])
    wanted = sum(answer.count(SEG) for _, answer in turns)
    masks: Callable[[], np.ndarray]
    if "segmentation" in entry:
        segmentations = entry["segmentation"]
        found, masks = len(segmentations), partial(_decode_masks, segmentations, image)
    elif "polygons" in entry:
        objects = read_json(folder / entry["polygons"])["polygons"]
        found, masks = len(objects), partial(draw_masks, objects, image)
    else:
        found, masks = 0, partial(_decode_masks, (), image)
    if found != wanted:
        raise ValueError(f"every {SEG} has one mask, got {found} masks for {wanted} {SEG}")
    return Lesson(name, image, turns, masks)


def _turns(messages: Sequence[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    speakers = [message["from"] for message in messages]
    if not messages or len(messages) % 2 or not all(who in (ANSWERING if i % 2 else ASKING) for i, who in enumerate(speakers)):
        raise ValueError(f"a conversation is questions (from {' or '.join(ASKING)}) each with its answer (from {ANSWERING[0]}), got {', '.join(speakers)}")
    values = [message["value"] for message in messages]
    return tuple(zip(values[::2], values[1::2], strict=True))


def _decode_masks(segmentations: Sequence[Any], image: Path) -> np.ndarray:
    height, width = read_image(image).shape[:2]
    return np.array([decode_mask(segmentation, height, width) for segmentation in segmentations], bool).reshape(-1, height, width)


def read_class_chips(images: Path, masks: Path, prompt: str) -> list[Lesson]:
    """Pictures and the masks of the same name, which are not 0 where the prompt is: each is asked for it, and answered that it is not there where
    the mask is empty. Raises ValueError where a picture has no mask, or there is none."""
    lessons = []
    for image, mask in pair_chips(images, masks):
        there = bool(read_mask(mask).any())
        lessons.append(Lesson(str(image), image, (class_turn(prompt, there),), partial(_class_masks, mask, there)))
    return lessons


def class_turn(prompt: str, there: bool) -> tuple[str, str]:
    """The question for a class, and the answer."""
    return SEGMENT_PROMPT.format(prompt), SEGMENT_ANSWER if there else ABSENT_ANSWER


def _class_masks(path: Path, there: bool) -> np.ndarray:
    mask = read_mask(path)[None]
    return mask if there else mask[:0]


def hold_out(lessons: Sequence[Lesson], pattern: str) -> tuple[list[Lesson], list[Lesson]]:
    """Those to learn from, and those to validate with: of pictures whose name fits the pattern ("zanzibar_*"). Raises ValueError where one is empty."""
    kept = [fnmatch(lesson.image.name, pattern) or fnmatch(lesson.image.stem, pattern) for lesson in lessons]
    learnt, held = ([lesson for lesson, out in zip(lessons, kept, strict=True) if out == which] for which in (False, True))
    if not learnt or not held:
        raise ValueError(f"{pattern!r} must hold out some of the pictures and not all, got {len(held)} of {len(lessons)}")
    return learnt, held


class Samples(Dataset[Sample]):
    """Lessons as the network wants them, read one by one. Raises ValueError naming the lesson that cannot be."""

    def __init__(self, lessons: Sequence[Lesson], tokenizer: Tokenizer, config: GeoPixelConfig) -> None:
        self.lessons, self.tokenizer, self.config = lessons, tokenizer, config

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, index: int) -> Sample:
        lesson = self.lessons[index]
        try:
            return make_sample(read_image(lesson.image), conversation(lesson.turns), lesson.masks(), self.tokenizer, self.config)
        except ValueError as error:
            raise ValueError(f"{lesson.name}: {error}") from error
