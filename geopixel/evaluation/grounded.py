"""Scores of grounded conversation: descriptions whose phrases have masks, counted as GLaMM counts them, for the paper's numbers rest on that
(mbzuai-oryx/groundingLMM, eval/gcg/evaluate.py; named GLaMM below). Masks are COCO run lengths. Knows a model only as what describes pictures."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from geopixel.evaluation.datasets import Grounded, caption_of, phrases_of
from geopixel.labels import optional, read_image

if TYPE_CHECKING:
    from geopixel.model import GeoPixel  # loads torch

logger = logging.getLogger(__name__)

Embed = Callable[[Sequence[str]], np.ndarray]
"""texts -> (texts, dimensions) float, one vector each; similar texts point the same way."""

IOU_THRESHOLD = 0.5
SIMILARITY_THRESHOLD = 0.5
NO_JAVA = "METEOR and CIDEr need java, which is not on the PATH: install a Java runtime (Debian: default-jre-headless)"
_CATEGORY = 1
_HASHED_DIMENSIONS = 4096


@dataclass(frozen=True, slots=True)
class Description:
    """One description, of a model or of the truth."""

    caption: str
    """Plain words."""
    phrases: list[str]
    """Of each mask; empty where it has none."""
    masks: list[dict[str, Any]]
    """Compressed COCO run lengths: size (height, width) and counts."""

    @classmethod
    def of(cls, text: str, masks: np.ndarray) -> Description:
        """text: with <p> </p> and [SEG]; masks: (N, height, width) bool, one for every [SEG]. Raises ValueError where their number is another."""
        phrases = phrases_of(text)
        if len(phrases) != len(masks):
            raise ValueError(f"every [SEG] has one mask, got {len(masks)} for {len(phrases)} in {text[:60]!r}")
        return cls(caption_of(text), phrases, [run_lengths.encode(np.asfortranarray(mask, np.uint8)) for mask in masks])


Pair = tuple[Description, Description]
"""(found, true) of one picture."""


def grounded_scores(pairs: Sequence[Pair], embed: Embed) -> dict[str, float | None]:
    """AP50, mIoU, recall, METEOR and CIDEr of all pictures, as shares of 1 (the papers print them times 100). METEOR and CIDEr are None where Java
    is not there, see caption_scores. Raises ValueError for no pictures."""
    if not pairs:
        raise ValueError("scores need at least one picture, got none")
    return {
        "AP50": average_precision(pairs),
        "mIoU": float(np.mean([pair_mean_iou(mask_ious(*pair)) for pair in pairs])),
        "recall": recall(pairs, embed),
        **(caption_scores(pairs) if has_java() else {"METEOR": None, "CIDEr": None}),
    }


def average_precision(pairs: Sequence[Pair]) -> float:
    """AP at IoU 0.5 by pycocotools' COCOeval, "segm", one category, every score 1.0, at most 100 masks a picture (GLaMM, main, part 1).

    0 where there is no mask at all to be found. With equal scores the masks keep the order of pictures and answers.
    """
    found = [_annotation(i, mask) | {"score": 1.0} for i, (one, _) in enumerate(pairs) for mask in one.masks]
    true = [_annotation(i, mask) for i, (_, one) in enumerate(pairs) for mask in one.masks]
    if not (found and true):
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(map(_size, pairs))],
            "annotations": [annotation | {"id": i} for i, annotation in enumerate(true, start=1)],
            "categories": [{"id": _CATEGORY}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def mask_ious(found: Description, true: Description) -> np.ndarray:
    """(found masks, true masks) float64."""
    if not (found.masks and true.masks):
        return np.zeros((len(found.masks), len(true.masks)))
    return np.asarray(run_lengths.iou(found.masks, true.masks, [0] * len(true.masks)))


def pair_mean_iou(ious: np.ndarray) -> float:
    """Mean IoU of the pairs of one picture, made one to one from the best on, as long as they overlap at all (GLaMM, compute_miou). Masks left
    without a partner do not count; without a pair it is 0. ious: (found, true)."""
    ious = ious.copy()
    paired = []
    while ious.size and ious.max() > 0:
        row, column = np.unravel_index(np.argmax(ious), ious.shape)
        paired.append(ious[row, column])
        ious = np.delete(np.delete(ious, row, axis=0), column, axis=1)
    return float(np.mean(paired)) if paired else 0.0


def matches(ious: np.ndarray, similarities: np.ndarray) -> int:
    """How many pairs of one picture fit in both, one to one (GLaMM, find_best_matches). Both: (true, found).

    Pairs are taken from the best IoU on, and the first that fails either threshold ends the picture, even where a later one would fit.
    """
    ious = ious.copy()
    count = 0
    while ious.size:
        best = np.unravel_index(np.argmax(ious), ious.shape)
        if ious[best] < IOU_THRESHOLD or similarities[best] < SIMILARITY_THRESHOLD:
            break
        count += 1
        ious[best[0], :] = 0
        ious[:, best[1]] = 0
    return count


def recall(pairs: Sequence[Pair], embed: Embed) -> float:
    """Share of all true phrases that a found mask fits, IoU and similarity of the phrases both at least 0.5 (GLaMM, evaluate_recall_with_mapping).
    0 where nothing is true. A mask without a phrase fits none."""
    count = sum(matches(mask_ious(found, true).T, _similarities(true.phrases, found.phrases, embed)) for found, true in pairs)
    phrases = sum(len(true.phrases) for _, true in pairs)
    return count / phrases if phrases else 0.0


def has_java() -> bool:
    return shutil.which("java") is not None


def caption_scores(pairs: Sequence[Pair]) -> dict[str, float | None]:
    """METEOR (Denkowski and Lavie 2014) and CIDEr (Vedantam et al. 2015) of the captions by pycocoevalcap, after its PTB tokenizer, with document
    frequencies of the true captions given (GLaMM, main, part 2). The tokenizer and METEOR are Java programs. Raises ValueError without Java."""
    if not has_java():
        raise ValueError(NO_JAVA)
    tokenize = optional("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer().tokenize
    found, true = (tokenize({i: [{"caption": pair[side].caption}] for i, pair in enumerate(pairs)}) for side in (0, 1))
    meteor = optional("pycocoevalcap.meteor.meteor").Meteor().compute_score(true, found)[0]
    cider = optional("pycocoevalcap.cider.cider").Cider().compute_score(true, found)[0]
    return {"METEOR": float(meteor), "CIDEr": float(cider)}


def find_embedder(name: str) -> Embed:
    """"words": word_embedder; else the BERT of that name."""
    return word_embedder() if name == "words" else bert_embedder(name)


def bert_embedder(name: str) -> Embed:
    """Mean of the last hidden states over all tokens, [CLS] and [SEP] included, of a BERT on the hub or in a folder (GLaMM, get_bert_embedding).
    Raises ValueError where it cannot be loaded."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"the embedder {name!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error

    def embed(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            inputs = [tokenizer(text, return_tensors="pt", max_length=512, truncation=True) for text in texts]
            return np.stack([model(**each).last_hidden_state[0].mean(dim=0).float().numpy() for each in inputs])

    return embed


def word_embedder() -> Embed:
    """Words in common, without weights or network: every text as the counts of its words, hashed into a fixed number of places. For trying things
    out; figures to compare with a paper's need bert_embedder."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), _HASHED_DIMENSIONS))
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[zlib.crc32(word.encode()) % _HASHED_DIMENSIONS] += 1
        return vectors

    return embed


def evaluate_grounded(model: GeoPixel, samples: Sequence[Grounded], embed: Embed, done: Callable[[int], None]) -> dict[str, float | None]:
    """grounded_scores of a model, and how many `pictures` they are of. done: called with how many are described."""
    if has_java():
        optional("pycocoevalcap.cider.cider")  # what is missing is said before the work, not after
    else:
        logger.warning(NO_JAVA)
    pairs = list(describe_pictures(model, samples, done))
    return {"pictures": len(pairs), **grounded_scores(pairs, embed)}


def describe_pictures(model: GeoPixel, samples: Sequence[Grounded], done: Callable[[int], None]) -> Iterator[Pair]:
    """The model's description of every picture beside the true one. done: called with how many are described."""
    for first in range(0, len(samples), model.batch_size):
        batch = samples[first : first + model.batch_size]
        answers = model.describe([read_image(sample.image) for sample in batch])
        for sample, answer in zip(batch, answers, strict=True):
            yield Description.of(answer.text, answer.masks > 0.5), Description.of(sample.description, sample.truth())
        done(first + len(batch))


def _annotation(image: int, mask: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": image, "category_id": _CATEGORY, "segmentation": mask, "area": float(run_lengths.area(mask)), "iscrowd": 0}


def _size(pair: Pair) -> tuple[int, int]:
    """Height and width of a picture, as its masks have it."""
    masks = [mask for one in pair for mask in one.masks]
    return tuple(masks[0]["size"]) if masks else (0, 0)


def _similarities(true: Sequence[str], found: Sequence[str], embed: Embed) -> np.ndarray:
    """(true, found) cosines of the phrases; 0 where one is empty."""
    if not (true and found):
        return np.zeros((len(true), len(found)))
    sides = []
    for phrases in (true, found):
        vectors = embed([phrase or "-" for phrase in phrases])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        named = np.array([bool(phrase) for phrase in phrases])[:, None]
        sides.append(np.divide(vectors, norms, out=np.zeros_like(vectors), where=(norms > 0) & named))
    return sides[0] @ sides[1].T
