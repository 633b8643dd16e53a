"""Reads what a model is asked and what it should answer: RRSIS-D, RefSegRS and GeoPixelD as they are published, and chips with masks of one
thing. Lists are made at once, pictures and masks are read when they are needed. Knows no model and no metric."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from geopixel.labels import check_rings, check_size, decode_mask, draw_masks, pair_chips, present, read_image, read_json, read_mask, some

SEG = "[SEG]"


@dataclass(frozen=True, slots=True)
class Referring:
    """One expression about one picture."""

    image: Path
    expression: str
    truth: Callable[[], np.ndarray]
    """Reads the mask: (height, width) bool, True where the expression is meant; nowhere where there is no such thing."""


@dataclass(frozen=True, slots=True)
class Grounded:
    """One description of one picture."""

    image: Path
    description: str
    """With its phrases in <p> </p> and a [SEG] behind each."""
    truth: Callable[[], np.ndarray]
    """Reads the masks: (N, height, width) bool, one for every [SEG], in their order."""


def read_rrsisd(folder: Path, split: str) -> list[Referring]:
    """The expressions of a split (train, val, test) of RRSIS-D, every sentence of a reference one of its own.

    Laid out as its loader wants it (Lsan2401/RMSIN, refer/refer.py): rrsisd/refs(unc).p, rrsisd/instances.json and
    images/rrsisd/JPEGImages. The references are a pickle: it is read without running any of it. Of masks in several parts the union counts.
    Raises ValueError where a file is missing or is not that, or the split is empty.
    """
    refs = load_plain_pickle(present(folder / "rrsisd" / "refs(unc).p"))
    instances = read_json(folder / "rrsisd" / "instances.json")
    pictures = folder / "images" / "rrsisd" / "JPEGImages"
    try:
        images = {image["id"]: image for image in instances["images"]}
        annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
        samples = []
        for ref in refs:
            if ref["split"] != split:
                continue
            image, segmentation = images[ref["image_id"]], annotations[ref["ann_id"]]["segmentation"]
            truth = partial(decode_mask, segmentation, image["height"], image["width"])
            samples += [Referring(pictures / image["file_name"], sentence["raw"], truth) for sentence in ref["sentences"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'rrsisd'} is not RRSIS-D as published: {type(error).__name__}: {error}") from error
    return some(samples, f"{folder} has no expression of split {split!r}, only {', '.join(sorted({str(ref['split']) for ref in refs})) or 'none'}")


def read_refsegrs(folder: Path, split: str) -> list[Referring]:
    """The expressions of a split (train, val, test) of RefSegRS (zhu-xlab/rrsis): lines "<id> <expression>" of output_phrase_<split>.txt,
    images/<id>.tif and masks/<id>.tif, in which whatever is not 0 is meant. Raises ValueError where a file is missing or a line is not that."""
    path = present(folder / f"output_phrase_{split}.txt")
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, expression = line.strip().partition(" ")
        if not expression.strip():
            raise ValueError(f"{path}, line {number}: wanted '<id> <expression>', got {line!r}")
        image, mask = (present(folder / kind / f"{name}.tif") for kind in ("images", "masks"))
        check_size(mask, image)
        samples.append(Referring(image, expression.strip(), partial(read_mask, mask)))
    return some(samples, f"{path} holds no expression")


def read_chips(images: Path, masks: Path, prompt: str) -> list[Referring]:
    """Pictures and the masks of the same name (whatever their suffix) that are not 0 where the prompt is. Raises ValueError where a picture has
    no mask of its size, or there is none."""
    return [Referring(path, prompt, partial(read_mask, mask)) for path, mask in pair_chips(images, masks)]


def read_geopixeld(folder: Path, split: str) -> list[Grounded]:
    """The descriptions of a split (train, test) of GeoPixelD (MBZUAI/GeoPixelD): every <split>/*.json holds gcg_description and polygons, for
    each [SEG] a list of rings of (x, y) in pixels, and names its picture, img, which lies beside it. Samples of jobs/annotate.py hold COCO run
    lengths instead, as segmentation. Raises ValueError where that is not so."""
    directory = folder / split
    if not directory.is_dir():
        there = sorted(path.name for path in present(folder).iterdir() if any(path.glob("*.json")))
        raise ValueError(f"{directory} is not there: {folder} has {' and '.join(there) or 'no split'}")
    samples = []
    for path in sorted(directory.glob("*.json")):
        annotation = read_json(path)
        try:
            image, description = annotation["img"], annotation["gcg_description"]
            objects = annotation["segmentation"] if "segmentation" in annotation else annotation["polygons"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an annotation of GeoPixelD: it lacks {error}") from error
        if not (isinstance(image, str) and isinstance(description, str) and isinstance(objects, list)):
            raise ValueError(f"{path} is not an annotation of GeoPixelD: img and gcg_description are texts, and polygons a list")
        if len(objects) != description.count(SEG):
            raise ValueError(f"{path}: every {SEG} has one mask, got {len(objects)} masks for {description.count(SEG)}")
        if "polygons" in annotation:
            try:
                check_rings(objects)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        read = _decode_masks if "segmentation" in annotation else draw_masks
        samples.append(Grounded(directory / image, description, partial(read, objects, directory / image)))
    return some(samples, f"{directory} holds no annotation")


def _decode_masks(objects: Sequence[Any], image: Path) -> np.ndarray:
    """(N, height, width) bool of run lengths."""
    height, width = read_image(image).shape[:2]
    return np.stack([decode_mask(each, height, width) for each in objects]) if objects else np.zeros((0, height, width), bool)


DATASETS: dict[str, Callable[[Path, str], list[Referring] | list[Grounded]]] = {
    "rrsis-d": read_rrsisd,
    "refsegrs": read_refsegrs,
    "geopixeld": read_geopixeld,
}


def read_dataset(name: str, folder: Path, split: str) -> list[Referring] | list[Grounded]:
    """A split of one of DATASETS. Raises ValueError for another name, and as its reader does."""
    if name not in DATASETS:
        raise ValueError(f"a data set is {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name](folder, split)


def phrases_of(text: str) -> list[str]:
    """The phrase of every [SEG] of a grounded text, in order; empty where none stands before it.

    Phrases are <p>...</p> (mbzuai-oryx/groundingLMM, eval/gcg/infer.py takes them all; here one belongs to the [SEG] behind it).
    """
    return [(match[1] or "").strip() for match in re.finditer(r"(?:<p>((?:(?!<p>).)*?)</p>\s*)?\[SEG\]", text, re.DOTALL)]


def caption_of(text: str) -> str:
    """A grounded text as plain words: without tags and [SEG], as mbzuai-oryx/groundingLMM, eval/gcg/infer.py cleans it."""
    return " ".join(re.sub(r"<.*?>", "", text).replace(SEG, "").split()).strip("'").strip()


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists, dicts: what a pickle holds without naming any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only plain lists, dicts, texts and numbers are read")


def load_plain_pickle(path: Path) -> Any:
    """A pickle of plain values. Nothing in it is imported or called. Raises ValueError for any other."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a broken pickle raises whatever it stumbles over
        raise ValueError(f"{path} is refused: {error}") from error
