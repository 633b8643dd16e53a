"""Laws of the training step on a network of a few thousand parameters (its numbers are held by test_golden.py): what is learnt of a
conversation, how a batch relates to its samples, what a gradient reaches, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geopixel.model import processor
from geopixel.model.losses import BCE_WEIGHT, DICE_WEIGHT, IGNORED
from geopixel.model.supervision import Losses, Sample, answer_labels, conversation, embed, forward_losses, make_sample, predict_masks
from geopixel.model.tokenizer import ANSWER_END

from .tiny import CONFIG, image, network, tokenizer

QUESTIONS = ("a road", "the roofs of houses", "[SEG] or no water")
ANSWERS = ("It is [SEG].", "a tank <p> at the pier </p> [SEG] and two ships [SEG] .", "no water")
SEG = tokenizer().seg
SMALL = replace(CONFIG, hd_num=1)


def sample(turns: list[tuple[str, str]], height: int = 40, width: int = 50, seed: int = 0) -> Sample:
    masks = np.random.default_rng(seed).random((sum(answer.count("[SEG]") for _, answer in turns), height, width)) > 0.5
    return make_sample(image(height, width, seed), conversation(turns), masks, tokenizer(), SMALL)


def losses(*samples: Sample) -> Losses:
    with torch.no_grad():
        return forward_losses(network().train(), samples, seg=SEG)


@given(st.lists(st.tuples(st.sampled_from(QUESTIONS), st.sampled_from(ANSWERS)), min_size=1, max_size=3))
def test_answers_are_learnt_and_questions_are_not(turns: list[tuple[str, str]]) -> None:
    tok = tokenizer()
    ids = [tok.bos, *tok.encode(conversation(turns))]
    labels = answer_labels(ids, tok)
    learnt = [label for label in labels if label != IGNORED]
    assert learnt == [i for _, answer in turns for i in tok.encode(answer + ANSWER_END)] + [tok.eos]
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    assert answer_labels([*ids, 7, 8], tok) == [*labels, IGNORED, IGNORED]


def test_a_marker_that_begins_an_answer_is_not_learnt() -> None:
    """The published count of tokens before an answer includes a newline that is not there before a marker."""
    tok = tokenizer()
    labels = answer_labels([tok.bos, *tok.encode(conversation([("a road", "<p> a tank </p>")]))], tok)
    assert [label for label in labels if label != IGNORED] == [*tok.encode("a tank </p>" + ANSWER_END), tok.eos]


def test_image_then_start_then_words_then_padding() -> None:
    made = network()
    short, long = sample([("a road", "no water")]), sample([("a road", "It is [SEG]."), ("the roofs of houses", "It is [SEG].")], seed=1)
    sequences = embed(made, [short, long])
    tokens = CONFIG.image_tokens(*short.grid)
    end = tokens + len(short.ids)
    assert sequences.embeddings.shape[:2] == sequences.labels.shape == sequences.image_mask.shape
    assert sequences.image_mask[0].nonzero()[:, 0].tolist() == list(range(tokens))
    torch.testing.assert_close(sequences.embeddings[0, tokens:end], made.language.tok_embeddings(short.ids))
    assert short.ids[0] == tokenizer().bos
    torch.testing.assert_close(sequences.embeddings[0, :tokens], made.vision(short.crops, [short.grid])[0])
    assert sequences.labels[0, tokens:end].tolist() == short.labels.tolist()
    assert (sequences.labels[0, :tokens] == IGNORED).all()
    assert (sequences.labels[0, end:] == IGNORED).all()


def test_a_batch_is_the_mean_over_its_labels_and_masks() -> None:
    one, two, none = sample([("a road", ANSWERS[0])]), sample([("a road", ANSWERS[1])], 60, 30, seed=1), sample([("a road", "no water")], seed=2)
    alone, together = [losses(one), losses(two), losses(none)], losses(one, two, none)
    labels = torch.tensor([int((s.labels != IGNORED).sum()) for s in (one, two, none)])
    masks = torch.tensor([len(s.masks) for s in (one, two, none)])
    assert masks.tolist() == [1, 2, 0]
    for found, counts, parts in (
        (together.answers, labels, [x.answers for x in alone]),
        (together.bce, masks, [x.bce for x in alone]),
        (together.dice, masks, [x.dice for x in alone]),
    ):
        torch.testing.assert_close(found, (torch.stack(parts) * counts).sum() / counts.sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.total, together.answers + BCE_WEIGHT * together.bce + DICE_WEIGHT * together.dice)


def test_masks_come_in_the_order_of_their_states() -> None:
    made = network().train()
    one, two = sample([("a road", ANSWERS[0])]), sample([("a road", ANSWERS[1])], 60, 30, seed=1)
    states = torch.randn(3, CONFIG.language.hidden_size)
    first, others = predict_masks(made, [one, two], states)
    assert (first.shape, others.shape) == ((1, 40, 50), (2, 60, 30))
    torch.testing.assert_close(first, predict_masks(made, [one], states[:1])[0])
    for state, mask in zip(states[1:], others, strict=True):
        torch.testing.assert_close(mask[None], predict_masks(made, [replace(two, masks=two.masks[:1])], state[None])[0], rtol=1e-4, atol=1e-4)


def test_what_no_gradient_reaches() -> None:
    """SAM 2's encoder and what the decoder does before it is prompted are fixed; scores and the masks of the fallback have no loss."""
    made = network().train().requires_grad_(True)
    forward_losses(made, [sample([("a road", ANSWERS[1])])], seg=SEG).total.backward()
    without = {name for name, p in made.named_parameters() if p.grad is None}
    fixed = ("vision_encoder", "no_memory_embedding", "mask_decoder.conv_s", "mask_decoder.iou_prediction_head", "mask_decoder.pred_obj_score_head")
    assert without == {name for name, _ in made.named_parameters() if name.startswith(tuple(f"grounding.sam2.{part}" for part in fixed))}


def test_answers_without_masks_teach_words_alone() -> None:
    made = network().train().requires_grad_(True)
    found = forward_losses(made, [sample([("a road", "no water")])], seg=SEG)
    found.total.backward()
    assert found.bce == found.dice == 0
    assert found.total == found.answers > 0


def test_the_losses_can_be_minimised() -> None:
    made = network().train().requires_grad_(True)
    example = sample([("a road", ANSWERS[0])])
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    seen = []
    for _ in range(8):
        found = forward_losses(made, [example], seg=SEG)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        seen.append((found.answers.item(), (found.bce + found.dice).item()))
    (words, masks), (last_words, last_masks) = seen[0], seen[-1]
    assert last_words < 0.5 * words
    assert last_masks < masks


@pytest.mark.parametrize(
    ("masks", "config", "message"),
    [
        (np.zeros((1, 40, 50), np.uint8), CONFIG, r"uint8 \(1, 40, 50\)"),
        (np.zeros((1, 50, 40), bool), CONFIG, r"\(N, 40, 50\) bool .* got bool \(1, 50, 40\)"),
        (np.zeros((40, 50), bool), CONFIG, r"got bool \(40, 50\)"),
        (np.zeros((2, 40, 50), bool), CONFIG, r"2 masks for 1 in .*It is \[SEG\]"),
        (np.zeros((1, 40, 50), bool), replace(CONFIG, max_length=20), "must fit 20 tokens, got"),
    ],
)
def test_what_is_no_sample_is_refused(masks: np.ndarray, config: object, message: str) -> None:
    text = conversation([("[SEG] a road", "It is [SEG].")])  # a [SEG] that is asked has no mask
    with pytest.raises(ValueError, match=message):
        make_sample(image(40, 50), text, masks, tokenizer(), config)  # type: ignore[arg-type]
    assert len(make_sample(image(40, 50), text, np.zeros((1, 40, 50), bool), tokenizer(), CONFIG).masks) == 1


# The crops that training sees


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 9))
def test_training_crops_share_the_white_and_keep_to_hd_num(height: int, width: int, hd_num: int) -> None:
    picture, size = image(height, width), 28
    fitted = processor.fit_to_training_crops(picture, hd_num, size)
    rows, columns = fitted.shape[0] // size, fitted.shape[1] // size
    assert fitted.shape == (rows * size, columns * size, 3)
    if min(height, width) * hd_num >= max(height, width):  # a thinner image is one crop high, and its rows still count as one each
        assert rows * columns <= hd_num
    if width < height:
        picture, fitted = picture.transpose(1, 0, 2), fitted.transpose(1, 0, 2)
    assert fitted.shape[1] <= ceil(1.5 * picture.shape[1] / size) * size
    filled = max(1, int(fitted.shape[1] / (picture.shape[1] / picture.shape[0])))
    above = (len(fitted) - filled) // 2
    assert 0 <= len(fitted) - filled < size
    stretched = Image.fromarray(np.ascontiguousarray(picture)).resize((fitted.shape[1], filled), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fitted[above : above + filled], stretched)
    assert (fitted[:above] == 255).all()
    assert (fitted[above + filled :] == 255).all()


def test_training_crops_are_cut_from_that_canvas() -> None:
    picture, size = image(90, 140), 28
    crops, (rows, columns) = processor.training_crops(picture, 6, size)
    canvas = processor.normalise(processor.fit_to_training_crops(picture, 6, size), processor.CLIP_MEAN, processor.CLIP_STD)
    assert canvas.shape == (3, rows * size, columns * size)
    assert len(crops) == 1 + rows * columns
    torch.testing.assert_close(crops[1 + columns], canvas[:, size : 2 * size, :size])
