"""The published training step as small functions: a conversation about an image becomes a sample, samples become embeddings, those become
logits and masks, and those the losses (mbzuai-oryx/GeoPixel, train.py). Knows one forward pass; nothing of data sets, of optimizers, or of
which weights are trained.

Training differs from asking in four ways, all published: crops are cut by another rule (processor.training_crops), the image comes first and
`<s>` after it, a network in train mode gives mask token 0 however unstable its mask is, and masks are compared at the image's own size. One
thing is not here: the dropout of 0.05 in front of Partial LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from geopixel.model import processor
from geopixel.model.config import GeoPixelConfig
from geopixel.model.grounding import upsample
from geopixel.model.losses import BCE_WEIGHT, DICE_WEIGHT, IGNORED, answer_loss, bce_loss, dice_loss
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer

PAD = 0
"""Token behind the shorter conversations of a batch, <unk>: nothing attends to it and no label asks for it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and a conversation about it. All tensors lie on the CPU; forward takes them where the network is."""

    crops: Tensor
    """(1 + rows * columns, 3, crop_size, crop_size) float32, global view first"""
    grid: tuple[int, int]
    """(rows, columns) of the crops"""
    pixels: Tensor
    """(3, image_size, image_size) float32, for SAM 2"""
    ids: Tensor
    """(tokens,) int64: <s> and the conversation"""
    labels: Tensor
    """(tokens,) int64: the ids of the answers, IGNORED elsewhere; not shifted"""
    masks: Tensor
    """(N, height, width) bool at the image's own size, True inside: one for every [SEG] of the answers, in their order"""


@dataclass(frozen=True, slots=True)
class Sequences:
    """What the language model reads: image, <s>, conversation, padding."""

    embeddings: Tensor
    """(samples, tokens, hidden)"""
    image_mask: Tensor
    """(samples, tokens) bool, True on image tokens"""
    labels: Tensor
    """(samples, tokens) int64: the token of that very place where it is to be learnt, IGNORED elsewhere"""


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, not weighted yet: answers is the mean over the labels of the batch, bce and dice are means over its masks."""

    answers: Tensor
    bce: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """As published: 1.0 answers + 2.0 bce + 0.5 dice."""
        return self.answers + BCE_WEIGHT * self.bce + DICE_WEIGHT * self.dice


def conversation(turns: Sequence[tuple[str, str]]) -> str:
    """The text of a conversation of (question, answer) turns, in the template of the published data."""
    return "".join(USER + question + ASSISTANT + answer + ANSWER_END + "\n" for question, answer in turns) + "</s>"


def answer_labels(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Labels of a conversation that begins with <s>: its answers with the marker that closes each, and </s>; IGNORED elsewhere.

    As published (mask_human_targets), which counts six tokens from the end of a question to its answer. An answer that begins with a marker
    has one less, because the tokenizer strips the newline before it: there the count takes the marker too, and it is not learnt. Of a
    conversation cut off in a question the first token of that question stays a label, <s> in the first.
    """
    end = tokenizer.encode(ANSWER_END)[-1]
    opening = tokenizer.encode(ASSISTANT)
    opened = len(opening) - opening.index(end)
    labels = list(ids)
    ends, question = 0, 0  # question: where the present one begins
    for i, token in enumerate(ids):
        if token == end:
            if ends % 2 == 0:
                labels[question : i + opened] = [IGNORED] * len(labels[question : i + opened])
            else:
                question = i + 1
            ends += 1
        elif token == tokenizer.eos:
            return labels[: i + 1] + [IGNORED] * (len(ids) - i - 1)
    if ends % 2 == 0:
        labels[question + 1 :] = [IGNORED] * len(labels[question + 1 :])
    return labels


def make_sample(image: np.ndarray, text: str, masks: np.ndarray, tokenizer: Tokenizer, config: GeoPixelConfig) -> Sample:
    """A sample of an image (height, width, 3) uint8, the text of a conversation and masks (N, height, width) bool, True inside.

    Raises ValueError where the masks are not of the image's size, are not as many as the answers have [SEG], or the sequence would outgrow
    max_length (the published code cuts it off there, mid-answer, and counts masks that then have no [SEG]).
    """
    processor.check_image(image)
    if masks.dtype != bool or masks.shape[1:] != image.shape[:2]:
        raise ValueError(f"masks are (N, {image.shape[0]}, {image.shape[1]}) bool like their image, got {masks.dtype} {masks.shape}")
    ids = [tokenizer.bos, *tokenizer.encode(text)]
    labels = answer_labels(ids, tokenizer)
    wanted = labels.count(tokenizer.seg)
    if wanted != len(masks):
        raise ValueError(f"every [SEG] of the answers has one mask, got {len(masks)} masks for {wanted} in {text!r}")
    crops, grid = processor.training_crops(image, config.hd_num, config.vision.crop_size)
    length = config.image_tokens(*grid) + len(ids)
    if length > config.max_length:
        raise ValueError(f"image and conversation must fit {config.max_length} tokens, got {length} for {grid[0]} x {grid[1]} crops")
    pixels = processor.sam_pixels(image, config.grounding.image_size)
    return Sample(crops, grid, pixels, torch.tensor(ids), torch.tensor(labels), torch.from_numpy(masks))


def embed(network: GeoPixelNetwork, samples: Sequence[Sample]) -> Sequences:
    """Samples to sequences; the shorter ones are padded at their end, where no token before sees it."""
    embedding = network.language.tok_embeddings
    place = embedding.weight
    images = network.vision(torch.cat([s.crops for s in samples]).to(place), [s.grid for s in samples])
    longest = max(len(image) + len(s.ids) for image, s in zip(images, samples, strict=True))
    rows, image_masks, labels = [], [], []
    for image, sample in zip(images, samples, strict=True):
        padding = longest - len(image) - len(sample.ids)
        words = embedding(torch.cat([sample.ids, sample.ids.new_full((padding,), PAD)]).to(place.device))
        rows.append(torch.cat([image, words]))
        image_masks.append(torch.arange(longest, device=place.device) < len(image))
        labels.append(torch.cat([sample.labels.new_full((len(image),), IGNORED), sample.labels]))
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return Sequences(torch.stack(rows), torch.stack(image_masks), padded.to(place.device))


def predict_masks(network: GeoPixelNetwork, samples: Sequence[Sample], states: Tensor) -> list[Tensor]:
    """Per sample mask logits (N, height, width) float32 at its image's own size, from the states (masks of all samples, hidden) at their
    [SEG], in order. SAM 2's image features are fixed, as published: no gradient reaches its encoder, nor the decoder's conv_s0 and conv_s1.
    """
    prompts = network.mask_prompts(states).split([len(s.masks) for s in samples])
    predicted = []
    for sample, asked in zip(samples, prompts, strict=True):
        height, width = sample.masks.shape[1:]
        if len(asked) == 0:
            predicted.append(asked.new_zeros((0, height, width), dtype=torch.float32))
            continue
        with torch.no_grad():
            features = network.grounding.encode(sample.pixels[None].to(states))
        predicted.append(upsample(network.grounding.decode(features, asked[None]).logits, height, width))
    return predicted


def forward(network: GeoPixelNetwork, samples: Sequence[Sample], *, seg: int) -> tuple[Losses, list[Tensor]]:
    """Losses of a batch of samples, and per sample its mask logits (N, height, width) float32; seg: id of [SEG]. A network in train mode gives the
    published losses, whose `total` is what that training minimises."""
    sequences = embed(network, samples)
    hidden = network.language(sequences.embeddings, image_mask=sequences.image_mask)
    labels = sequences.labels
    following = labels[:, 1:]
    learnt = following != IGNORED  # logits only there: the vocabulary is wide and most tokens are the image's
    answers = answer_loss(network.language.output(hidden[:, :-1][learnt]), following[learnt])
    # The state of a [SEG] is the one at the place where [SEG] is read, not where it is predicted.
    predicted = predict_masks(network, samples, hidden[labels == seg])
    pairs = [(logits, sample.masks.to(logits)) for logits, sample in zip(predicted, samples, strict=True)]
    count = max(1, sum(len(logits) for logits, _ in pairs))
    bce, dice = (torch.stack([loss(*pair) for pair in pairs]).sum() / count for loss in (bce_loss, dice_loss))
    return Losses(answers, bce, dice), predicted


def forward_losses(network: GeoPixelNetwork, samples: Sequence[Sample], *, seg: int) -> Losses:
    """The losses of forward."""
    return forward(network, samples, seg=seg)[0]
