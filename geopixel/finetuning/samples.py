"""What a model is taught: pictures, conversations about them and the masks of the answers, from the published format or from chips of one class.
Lists are made at once and checked, pictures and masks are read when they are needed. Knows no network and no optimizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from geopixel.labels import check_rings, decode_mask, draw_masks, pair_chips, present, read_image, read_json, read_mask, read_size, some
from geopixel.model.config import GeoPixelConfig
from geopixel.model.geopixel import SEGMENT_ANSWER, SEGMENT_PROMPT
from geopixel.model.supervision import Sample, conversation, make_sample
from geopixel.model.tokenizer import SEG, Tokenizer

ABSENT_ANSWER = "It is not there."
"""To the question for a class that the picture does not hold; any answer without [SEG] means that."""

ASKING, ANSWERING = ("human", "user"), ("bot", "gpt", "assistant")
"""Who speaks in a conversation; the published data say human or user, and bot."""

MARKERS = ("[UNUSED_TOKEN_", "</s>")
"""Of the template: see conversation."""


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
    content: str
    """A digest of all that is said here, of the masks, and of the size of the picture's file: another one where any of it changes."""


def read_published(path: Path) -> list[Lesson]:
    """The samples of a JSON list in the published format: each {id, conversations: [{from, value}, ...], image} and, where answers have [SEG],
    `segmentation`, a list of COCO run lengths, or `polygons`, a JSON file with "polygons": for each [SEG] a list of rings of (x, y) in pixels.
    Paths are relative to the list. Raises ValueError naming the sample that is not so, or whose masks are not as many as its [SEG]; pixels and run
    lengths are not read yet."""
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
    size = read_size(image)
    wanted = sum(answer.count(SEG) for _, answer in turns)
    masks: Callable[[], np.ndarray]
    objects: Sequence[Any]
    if "segmentation" not in entry and "polygons" in entry:
        objects = check_rings(read_json(folder / entry["polygons"])["polygons"])
        masks = partial(draw_masks, objects, image)
    else:
        objects = entry.get("segmentation", ())
        for segmentation in objects:
            if isinstance(segmentation, dict) and tuple(segmentation["size"]) != size:
                raise ValueError(f"a segmentation has the size of its picture, {size}, got {segmentation['size']}")
        masks = partial(_decode_masks, objects, size)
    if len(objects) != wanted:
        raise ValueError(f"every {SEG} has one mask, got {len(objects)} masks for {wanted} {SEG}")
    return Lesson(name, image, turns, masks, _digest(image, turns, json.dumps(objects).encode()))


def _digest(image: Path, turns: Sequence[tuple[str, str]], masks: bytes) -> str:
    told = json.dumps([image.name, image.stat().st_size, turns]).encode()
    return hashlib.sha256(told + masks).hexdigest()


def _turns(messages: Sequence[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    speakers = [message["from"] for message in messages]
    if not messages or len(messages) % 2 or not all(who in (ANSWERING if i % 2 else ASKING) for i, who in enumerate(speakers)):
        raise ValueError(f"a conversation is questions (from {' or '.join(ASKING)}) each with its answer (from {ANSWERING[0]}), got {', '.join(speakers)}")
    values = [message["value"] for message in messages]
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"what is said is text, got {value!r}")
        if marks := [mark for mark in MARKERS if mark in value]:
            raise ValueError(f"{marks[0]} is a marker of the conversation's own and cannot be said in it, got {value[:60]!r}")
    if any(answer.lstrip().startswith(SEG) for answer in values[1::2]):
        raise ValueError(f"an answer begins with words: the published labels leave its first marker out, and a {SEG} there would have no mask")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _decode_masks(segmentations: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.array([decode_mask(segmentation, height, width) for segmentation in segmentations], bool).reshape(-1, height, width)


def read_class_chips(images: Path, masks: Path, prompt: str) -> list[Lesson]:
    """Pictures and the masks of the same name, which are not 0 where the prompt is: each is asked for it, and answered that it is not there where
    the mask is empty. Raises ValueError where a picture has no mask, or there is none."""
    lessons = []
    for image, mask in pair_chips(images, masks):
        there = bool(read_mask(mask).any())
        turns = (class_turn(prompt, there),)
        lessons.append(Lesson(str(image), image, turns, partial(_class_masks, mask, there), _digest(image, turns, mask.read_bytes())))
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
        except (ValueError, OSError) as error:
            raise ValueError(f"{lesson.name}: {error}") from error
