"""A folder of samples: written whole or not at all, and read back. Knows the published formats; nothing of how a text came about.

    train.json, val.json        the published training format: a list of {id, image, conversations, segmentation}, and the level of each
    train/<chip>.png, .json     a picture; its description as GeoPixelD has it (img, gcg_description, one mask for each [SEG]), with the objects that
                                are seen in it and all texts about it
    marks/<chip>-<n>.jpg        the masks of a sample, numbered in the order of its text
    review.jsonl                the texts, to be rewritten: see review.py
    samples.html                a page to look at; annotation.json: what was asked for, what it came to
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from geopixel.annotation.descriptions import Phrase, Sample
from geopixel.annotation.marks import draw_marks
from geopixel.annotation.objects import Frame, cut_object
from geopixel.annotation.page import Shown, render_page
from geopixel.labels import decode_mask, encode_mask, read_image, read_json

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
REVIEW, RECORD, PAGE = "review.jsonl", "annotation.json", "samples.html"
SHOWN = 24
"""Chips on the page, spread over all of them."""
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """A chip with its texts."""

    id: str
    split: Split
    frame: Frame
    samples: tuple[Sample, ...]
    by_hand: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """By sample, the phrases (counted from 1) that a person vouches for."""

    def name(self, index: int) -> str:
        """Of one of its samples."""
        return f"{self.id}-{index}"


def write_samples(out: Path, chips: Iterable[Annotated], record: Callable[[], Mapping[str, Any]], total: int) -> None:
    """Writes the folder aside, then renames it: where a chip raises, nothing is left. record: asked at the end, for annotation.json. total: of
    the chips, or more, to spread those that the page shows. Raises ValueError where out is there and not empty, or no chip came."""
    check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        draft = Path(aside, out.name)
        for name in (*SPLITS, "marks"):
            (draft / name).mkdir(parents=True)
        entries: dict[Split, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        shown: list[Shown] = []
        with (draft / REVIEW).open("w", encoding="utf-8") as review:
            for count, chip in enumerate(chips):
                marked = _write_chip(draft, chip, entries[chip.split])
                review.writelines(json.dumps(line) + "\n" for line in _review_lines(chip))
                if count % max(1, total // SHOWN) == 0 and len(shown) < SHOWN:
                    shown.append(Shown(chip.id, chip.split, marked, chip.samples))
        if not any(entries.values()):
            raise ValueError("no chip has anything to say something about: nothing is written")
        for split, listed in entries.items():
            _write_json(draft / f"{split}.json", listed)
        _write_json(draft / RECORD, record())
        (draft / PAGE).write_text(render_page(shown, sum(map(len, entries.values()))), encoding="utf-8")
        if out.exists():
            out.rmdir()  # empty: see check_new
        draft.rename(out)


def check_new(out: Path) -> None:
    """Raises ValueError unless out can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: samples are written into a new folder")


def _write_chip(folder: Path, chip: Annotated, entries: list[dict[str, Any]]) -> np.ndarray:
    """Everything of a chip but its place in the lists, to which its entries are added. Returns the marked picture of its description."""
    Image.fromarray(chip.frame.rgb).save(folder / chip.split / f"{chip.id}.png")
    pictures = []
    for index, sample in enumerate(chip.samples):
        masks = [chip.frame.mask(phrase.members) for phrase in sample.phrases]
        pictures.append(draw_marks(chip.frame.rgb, masks))
        Image.fromarray(pictures[-1]).save(folder / "marks" / f"{chip.name(index)}.jpg", quality=JPEG_QUALITY)
        turns = [{"from": "human", "value": sample.question}, {"from": "bot", "value": sample.answer}]
        segmentation = [encode_mask(mask) for mask in masks]
        entries.append(
            {"id": chip.name(index), "image": f"{chip.split}/{chip.id}.png", "level": sample.level, "conversations": turns, "segmentation": segmentation}
        )
    scene = next(index for index, sample in enumerate(chip.samples) if sample.level == "scene")
    described = {"img": f"{chip.id}.png", "gcg_description": chip.samples[scene].answer, "segmentation": entries[scene - len(chip.samples)]["segmentation"]}
    objects = [{"category": o.category, "full_area": o.full_area, "segmentation": encode_mask(chip.frame.mask([i]))} for i, o in enumerate(chip.frame.objects)]
    _write_json(folder / chip.split / f"{chip.id}.json", described | {"objects": objects, "samples": list(_samples_to_json(chip))})
    return pictures[scene]


def _samples_to_json(chip: Annotated) -> Iterator[dict[str, Any]]:
    for index, sample in enumerate(chip.samples):
        phrases = [{"text": phrase.text, "objects": sorted(phrase.members)} for phrase in sample.phrases]
        told = {"level": sample.level, "question": sample.question, "answer": sample.answer, "phrases": phrases}
        yield told | ({"by_hand": list(chip.by_hand[index])} if chip.by_hand.get(index) else {})


def _review_lines(chip: Annotated) -> Iterator[dict[str, Any]]:
    for index, sample in enumerate(chip.samples):
        places = {"image": f"{chip.split}/{chip.id}.png", "marks": f"marks/{chip.name(index)}.jpg"}
        texts = {"question": sample.question, "answer": sample.answer, "by_hand": list(chip.by_hand.get(index, ()))}
        yield {"id": chip.name(index), "level": sample.level, **places, **texts}


def read_samples(folder: Path) -> Iterator[Annotated]:
    """The chips of a folder that write_samples wrote, in order of split and name. Raises ValueError for any other."""
    paths = [(split, path) for split in SPLITS for path in sorted((folder / split).glob("*.json"))]
    if not (folder / RECORD).is_file() or not paths:
        raise ValueError(f"{folder} holds no samples: it is to be a folder that annotate wrote")
    for split, path in paths:
        stored = read_json(path)
        try:
            rgb = read_image(path.with_name(stored["img"]))
            height, width = rgb.shape[:2]
            objects = [cut_object(o["category"], decode_mask(o["segmentation"], height, width), o["full_area"]) for o in stored["objects"]]
            samples = [_sample_from_json(each) for each in stored["samples"]]
            by_hand = {index: tuple(each["by_hand"]) for index, each in enumerate(stored["samples"]) if "by_hand" in each}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no chip of annotate: {type(error).__name__}: {error}") from error
        yield Annotated(path.stem, split, Frame(rgb, tuple(objects)), tuple(samples), by_hand)


def _sample_from_json(stored: Mapping[str, Any]) -> Sample:
    phrases = tuple(Phrase(phrase["text"], frozenset(phrase["objects"])) for phrase in stored["phrases"])
    return Sample(stored["level"], stored["question"], stored["answer"], phrases)


def count_samples(chips: Iterable[Annotated]) -> Counter[str]:
    """How much there is of what."""
    counts: Counter[str] = Counter()
    for chip in chips:
        counts += Counter({f"chips for {chip.split}": 1, "objects": len(chip.frame.objects), "phrases": sum(len(each.phrases) for each in chip.samples)})
        counts += Counter(f"{sample.level} samples" for sample in chip.samples)
    return counts


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
