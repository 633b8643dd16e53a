"""Scores of grounded conversation against plain implementations of the same thing and worked examples."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopixel.evaluation import grounded
from geopixel.evaluation.datasets import Grounded
from geopixel.evaluation.grounded import (
    Description,
    average_precision,
    bert_embedder,
    caption_scores,
    evaluate_grounded,
    grounded_scores,
    has_java,
    mask_ious,
    matches,
    pair_mean_iou,
    recall,
    word_embedder,
)

pytest.importorskip("pycocoevalcap", reason="the extra `evaluate` is not installed")


def boxes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """(N, 20, 20) bool: masks of (top, left, bottom, right)."""
    masks = np.zeros((len(corners), 20, 20), bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def description(masks: np.ndarray, *phrases: str) -> Description:
    return Description.of(" and ".join(f"<p> {phrase} </p> [SEG]" for phrase in phrases or ["thing"] * len(masks)), masks)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.integers(0, 14, (count, 2))
    return boxes(*(tuple(map(int, (*corner, *(corner + rng.integers(3, 7, 2))))) for corner in corners))  # type: ignore[misc]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def ap50(pictures: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """AP at IoU 0.5 as COCO defines it, in loops: in each picture every answer takes the free truth that it fits best; precision over recall, made
    monotone, is read at 101 recalls."""
    right: list[bool] = []
    for found, true in pictures:
        taken: set[int] = set()
        for mask in found[:100]:
            best, partner = 0.5 - 1e-10, None
            for index, other in enumerate(true):
                if index not in taken and iou(mask, other) >= best:
                    best, partner = iou(mask, other), index
            right.append(partner is not None)
            if partner is not None:
                taken.add(partner)
    hits = np.cumsum(right)
    recalls, precisions = hits / sum(len(true) for _, true in pictures), hits / np.arange(1, len(right) + 1)
    return float(np.mean([max(precisions[recalls >= at], default=0.0) for at in np.linspace(0, 1, 101)]))


def test_average_precision_is_coco_s_counted_in_loops() -> None:
    rng = np.random.default_rng(7)
    scores = []
    for _ in range(10):
        pictures = []
        for _ in range(4):
            true = random_boxes(rng, int(rng.integers(1, 6)))
            near = np.roll(true, 1, axis=int(rng.integers(1, 3)))
            found = np.concatenate([near, random_boxes(rng, 2)])
            pictures.append((found[rng.permutation(len(found))], true))
        expected = ap50(pictures)
        scores.append(average_precision([(description(found), description(true)) for found, true in pictures]))
        assert scores[-1] == pytest.approx(expected, abs=1e-6)
    assert len({round(score, 3) for score in scores}) > 3


def test_average_precision_of_a_worked_example() -> None:
    """Wrong, right, of two true: precision is 1/2 up to recall 1/2 (51 of 101 recalls), then 0."""
    found, true = boxes((0, 0, 4, 4), (10, 10, 14, 14)), boxes((10, 10, 14, 14), (0, 10, 4, 14))
    assert average_precision([(description(found), description(true))]) == pytest.approx(51 / 101 / 2)
    assert average_precision([(description(found[:0]), description(true))]) == 0
    assert average_precision([(description(found), description(true[:0]))]) == 0


def test_mask_ious_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(1)
    found, true = rng.random((3, 20, 20)) < 0.5, rng.random((2, 20, 20)) < 0.5
    expected = [[iou(one, other) for other in true] for one in found]
    np.testing.assert_allclose(mask_ious(description(found), description(true)), expected)
    assert mask_ious(description(found), description(true[:0])).shape == (3, 0)


def test_pairs_are_those_that_sorting_all_gives() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        ious = np.where(rng.random((4, 5)) < 0.4, 0.0, rng.random((4, 5)))[: rng.integers(0, 5), : rng.integers(0, 6)]
        rows, columns, taken = set(), set(), []
        for row, column in sorted(itertools.product(*map(range, ious.shape)), key=lambda place: -ious[place]):
            if row not in rows and column not in columns and ious[row, column] > 0:
                rows.add(row)
                columns.add(column)
                taken.append(ious[row, column])
        assert pair_mean_iou(ious) == pytest.approx(np.mean(taken) if taken else 0.0)


def test_the_first_pair_that_fails_ends_the_picture() -> None:
    """GLaMM's rule: 0.9 has the wrong phrase, so 0.8 is not looked at."""
    ious = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.3], [0.0, 0.2, 0.4]])
    alike = np.ones((3, 3))
    assert matches(ious, alike) == 2
    assert matches(ious, np.where(ious == 0.9, 0.4, alike)) == 0
    assert matches(ious, np.where(ious == 0.8, 0.4, alike)) == 1
    assert matches(ious, np.where(ious == 0.4, 0.0, alike)) == 2
    assert matches(np.array([[0.7, 0.6]]), np.ones((1, 2))) == matches(np.array([[0.7], [0.6]]), np.ones((2, 1))) == 1
    assert matches(np.zeros((2, 0)), np.zeros((2, 0))) == 0


def test_recall_of_a_worked_example() -> None:
    """Three true phrases: one found under a like name, one under another, one not; and a picture without an answer."""
    true = boxes((0, 0, 8, 8), (10, 10, 18, 18), (0, 12, 4, 16))
    found = boxes((0, 0, 8, 7), (10, 10, 18, 18))
    pairs = [(description(found, "large red ship", "pier"), description(true, "a large ship", "storage tank", "crane"))]
    assert recall(pairs, word_embedder()) == 0  # the exact pair comes first, and its phrase differs
    pairs = [(description(found, "large red ship", "the storage tank"), description(true, "a large ship", "storage tank", "crane"))]
    assert recall(pairs, word_embedder()) == pytest.approx(2 / 3)
    assert recall([*pairs, (description(found[:0]), description(true[:1], "ship"))], word_embedder()) == pytest.approx(2 / 4)
    unnamed = Description.of("[SEG] and [SEG]", found)
    assert recall([(unnamed, pairs[0][1])], lambda texts: np.ones((len(texts), 3))) == 0
    assert recall([(unnamed, description(true[:0]))], word_embedder()) == 0


def test_words_in_common_make_texts_alike() -> None:
    one, same, half, other = word_embedder()(["two Large ships", "large ships two", "two cars", "a forest"])
    assert np.array_equal(one, same)
    cosine = half @ one / np.linalg.norm(half) / np.linalg.norm(one)
    assert cosine == pytest.approx(1 / np.sqrt(6))
    assert other @ one == 0


def test_the_bert_embedding_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    """Against one padded batch and its attention mask."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ship", "##s", "large", "the", "tank"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).eval()
    model.save_pretrained(tmp_path)
    texts = ["the large ships", "tank", "the tank the ship the ships"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    mask = inputs["attention_mask"][..., None]
    with torch.inference_mode():
        expected = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(bert_embedder(str(tmp_path))(texts), expected.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="the embedder '.*nowhere' cannot be loaded"):
        bert_embedder(str(tmp_path / "nowhere"))


def captions(*texts: tuple[str, str]) -> list[tuple[Description, Description]]:
    return [(Description(found, [], []), Description(true, [], [])) for found, true in texts]


@pytest.mark.slow
@pytest.mark.skipif(not has_java(), reason="METEOR and CIDEr need java")
def test_captions_of_a_worked_example() -> None:
    """Four captions of content words, none in two of them; two are found word for word, punctuation and case aside, two not at all.

    CIDEr: all n-grams of the found have a cosine of 1, times 10; of the others 0. METEOR 1.5 (alpha 0.85) over all words: precision 12 of 20, recall
    12 of 23, and no penalty for order, since a caption that is right as a whole has none.
    """
    ships, planes = "five large ships approach northern piers", "white planes park near round hangars"
    tanks, courts = "storage tanks fill industrial areas", "green tennis courts adjoin school buildings"
    wrong = ("nothing similar appears here", "several words, none right")
    scores = caption_scores(captions((ships + ".", ships), (planes.upper(), planes), (wrong[0], tanks), (wrong[1], courts)))
    precision, recall = 12 / 20, 12 / 23
    assert scores == {"CIDEr": pytest.approx(5), "METEOR": pytest.approx(precision * recall / (0.85 * precision + 0.15 * recall))}


@dataclass
class Said:
    text: str
    masks: np.ndarray


class Guide:
    """Describes a black picture by one box and a white one by none."""

    batch_size = 2

    def describe(self, images: list[np.ndarray]) -> list[Said]:
        box = np.pad(np.full((1, 8, 8), 0.9), ((0, 0), (2, 10), (2, 10)))
        return [Said("Sea.", np.zeros((0, 20, 20))) if image.any() else Said("There is <p> a ship </p> [SEG].", box) for image in images]


def test_a_model_is_described_without_java_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    samples = []
    for name, grey in (("a", 0), ("b", 255), ("c", 0)):
        Image.fromarray(np.full((20, 20, 3), grey, np.uint8)).save(tmp_path / f"{name}.png")
        samples.append(Grounded(tmp_path / f"{name}.png", "There is <p> a ship </p> [SEG].", lambda: boxes((2, 2, 10, 10))))
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[int] = []
    with caplog.at_level(logging.WARNING):
        scores = evaluate_grounded(Guide(), samples, word_embedder(), said.append)  # type: ignore[arg-type]
    assert said == [2, 3]
    assert [record.message for record in caplog.records] == [grounded.NO_JAVA]
    assert scores.pop("AP50") == pytest.approx(67 / 101)  # precision 1 up to recall 2/3: 67 of 101 recalls
    assert scores == {"pictures": 3, "mIoU": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3), "METEOR": None, "CIDEr": None}
    with pytest.raises(ValueError, match="need java"):
        caption_scores(captions(("a", "a")))


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        grounded_scores([], word_embedder())
    with pytest.raises(ValueError, match=r"every \[SEG\] has one mask, got 1 for 2"):
        Description.of("[SEG] [SEG]", boxes((0, 0, 2, 2)))
