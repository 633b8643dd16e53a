"""What a batch of examples costs a network: the words of its answers, the masks behind their [SEG], and linear readers that exist in training only.
Knows no source of examples and no schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geopixel.model.config import GeoPixelConfig
from geopixel.model.encoder import Comparison
from geopixel.model.grounding import Grounding, ImageFeatures
from geopixel.model.language import PADDING, PREFIX
from geopixel.model.losses import BCE_WEIGHT, DICE_WEIGHT, IGNORED
from geopixel.model.network import GeoPixelNetwork
from geopixel.training.examples import Example
from geopixel.training.referring import ATOMS, REFERRED
from geopixel.training.words import CONCEPTS

SMALLEST_CELL_SHARE = 0.02
"""Share of a token's cell that a concept must cover to be counted as in it."""

ANSWER_WEIGHT = 4.0
"""Of the answer's cross-entropy: one token in eight of an answer carries its decision, so the published weight of 1 would teach presence slowly."""

DENIED_MASKS = 2
"""Masks of things that are not there, at most, that an example trains to be empty: should the answer claim one, nothing is drawn."""
DENIED_WEIGHT = 0.5
SIZE_WEIGHT = 2.0
"""Of what sizes cost, beside what holds where."""
SIZES = (8.0, 12.0, 17.0, 23.0, 33.0, 46.0, 64.0, 90.0, 128.0, 180.0)
"""Square roots of areas, in pixels: larger than which of them an object is must be legible where it lies."""
SHARES = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""The same as shares of the largest of its concept in the picture."""
TOUCHING = 1.001
"""Times the size of its neighbour that an object has at least where they are told apart."""
PROMPT_MEMORY = 0.05
"""Share of the newest batch in the remembered prompt of a concept."""


class Probes(nn.Module):
    """Linear readers that exist in training only and shorten it: what a [SEG] state asks for must be legible in it, what a cell of the image
    holds must be legible in its token, and so in SAM 2's features. Else all that is found only through the masks and answers built on it.
    Also remembers how each concept is usually asked of the mask decoder, and says how a phrase asks for some of it: so the decoder learns what
    "the largest" is while it knows no words, and the words while they know no masks."""

    prompts: Tensor
    """(concepts, grounding hidden) float32, zero until a concept was asked for"""
    atoms: Tensor
    """(1 + ATOMS, grounding hidden) float32: what a phrase adds to the prompt of its concept; the first, of no phrase, is zero"""

    def __init__(self, config: GeoPixelConfig) -> None:
        super().__init__()
        self.concept = nn.Linear(config.language.hidden_size, len(CONCEPTS))
        self.cell = nn.Linear(config.language.hidden_size, len(CONCEPTS))
        channels = config.grounding.hidden_size
        self.maps = nn.ModuleList(nn.Conv2d(count, len(CONCEPTS), 1) for count in (channels, channels // 8, channels // 4))
        self.sizes = nn.ModuleList(nn.Conv2d(count, len(REFERRED) * len(SIZES + SHARES), 1) for count in (channels, channels // 4))
        self.register_buffer("prompts", torch.zeros(len(CONCEPTS), channels))
        self.register_buffer("atoms", torch.zeros(1 + len(ATOMS), channels))

    def usual(self, batch: Sequence[Example]) -> Tensor:
        """The prompts that the masks of a batch are usually asked by, (masks, grounding hidden)."""
        concepts, atoms = [number for e in batch for number in e.concepts], [number for e in batch for number in e.atoms]
        return self.prompts[concepts] + self.atoms[atoms]

    def cell_loss(self, views: Tensor, batch: Sequence[Example]) -> Tensor:
        """views: tokens of the global views (images, side, side, hidden)."""
        shares, weights = (F.adaptive_avg_pool2d(torch.stack(x), views.shape[1]) for x in planes(batch))
        return weighted_bce(self.cell(views).permute(0, 3, 1, 2), (shares > SMALLEST_CELL_SHARE).float(), weights).mean()

    def feature_loss(self, features: ImageFeatures, batch: Sequence[Example]) -> Tensor:
        """What is where in SAM 2's features, and how large."""
        return self.map_loss(features, batch) + SIZE_WEIGHT * self.size_loss(features, batch)

    def map_loss(self, features: ImageFeatures, batch: Sequence[Example]) -> Tensor:
        shares, weights = (torch.stack(x) for x in planes(batch))
        total = shares.new_zeros(())
        for probe, x in zip(self.maps, (features.embedding, *features.fine), strict=True):
            total = total + weighted_bce(probe(x), *(F.adaptive_avg_pool2d(plane, x.shape[-1]) for plane in (shares, weights))).mean()
        return total

    def size_loss(self, features: ImageFeatures, batch: Sequence[Example]) -> Tensor:
        """Which is the largest nobody can tell who does not see how large each is, and beside which others; the masks alone teach that too slowly.
        Cells count by the edge of their object and every concept the same, else fields and lakes would be all that it is about."""
        seen = torch.stack([example.sizes for example in batch])
        absolute, relative = seen.new_tensor(SIZES)[:, None, None], seen.new_tensor(SHARES)[:, None, None] * seen.amax(dim=(2, 3))[..., None, None, None]
        bounds = torch.cat([absolute.expand(*seen.shape[:2], -1, -1, -1), relative], dim=2)
        total = seen.new_zeros(())
        for probe, x in zip(self.sizes, (features.embedding, features.fine[1]), strict=True):
            cells = F.adaptive_max_pool2d(seen, x.shape[-1])
            logits = probe(x).unflatten(1, (len(REFERRED), len(SIZES + SHARES)))
            loss = F.binary_cross_entropy_with_logits(logits, (cells[:, :, None] > bounds).float(), reduction="none").mean(dim=2)
            weights = torch.where(cells > 0, 1 / cells.clamp(min=1), 0)
            there = (cells > 0).any(dim=(0, 2, 3))
            if there.any():
                total = total + ((loss * weights).sum(dim=(0, 2, 3))[there] / weights.sum(dim=(0, 2, 3))[there]).mean()
        return total

    def concept_loss(self, states: Tensor, concepts: Tensor) -> Tensor:
        """states (questions with a mask, of all examples, hidden), concepts (questions,)."""
        return F.cross_entropy(self.concept(states), concepts)

    @torch.no_grad()
    def remember(self, prompts: Tensor, concepts: Tensor) -> None:
        """prompts (questions, grounding hidden) of the mask decoder, concepts (questions,)."""
        for concept in concepts.unique():
            now = prompts[concepts == concept].mean(dim=0)
            known = self.prompts[concept].any()
            self.prompts[concept] = torch.lerp(self.prompts[concept], now, PROMPT_MEMORY) if known else now


@contextmanager
def borders_of(grounding: Grounding) -> Iterator[list[Tensor]]:
    """What comparisons take for borders while images are encoded: logits (images, 1, side, side), none of an encoder that does not compare."""
    found: list[Tensor] = []
    compared = [each for each in grounding.modules() if isinstance(each, Comparison)]
    hooks = [each.border.register_forward_hook(lambda _layer, _given, logits: found.append(logits)) for each in compared]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def border_loss(borders: Sequence[Tensor], batch: Sequence[Example]) -> Tensor:
    """Cross-entropy of borders_of: a border is where most of a cell shows no object, and where two touch, which have different sizes. Of what is
    more than one thing nobody says where one ends."""
    size = torch.stack([example.sizes.amax(dim=0, keepdim=True) for example in batch])
    order = [list(CONCEPTS).index(name) for name in REFERRED]
    shares, weights = (torch.stack([plane[order].amax(dim=0, keepdim=True) for plane in x]) for x in planes(batch))
    empty = size == 0
    known = (weights > 0.5) & ~(empty & (shares > 0))
    least = -F.max_pool2d(-size.masked_fill(empty, float("inf")), 3, 1, 1)
    touching = (F.max_pool2d(size, 3, 1, 1) > TOUCHING * least) & ~empty
    total = size.new_zeros(())
    for logits in borders:
        side = logits.shape[-1]
        nothing, contact, told = (F.adaptive_avg_pool2d(x.float(), side) for x in (empty, touching, known))
        target = ((nothing > 0.5) | (contact > 0)).float()
        total = total + (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * told).sum() / told.sum().clamp(min=1)
    return total


def see(grounding: Grounding, probes: Probes, batch: Sequence[Example]) -> tuple[ImageFeatures, Tensor]:
    """SAM 2's features of a batch, and what it costs that not all of what they should tell is legible in them."""
    with borders_of(grounding) as borders:
        features = grounding.encode(torch.stack([example.pixels for example in batch]))
    return features, probes.feature_loss(features, batch) + border_loss(borders, batch)


def planes(batch: Sequence[Example]) -> tuple[list[Tensor], list[Tensor]]:
    """Those of the concepts."""
    count = len(CONCEPTS)
    return [example.shares[:count] for example in batch], [example.weights[:count] for example in batch]


def weighted_bce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of planes (..., height, width), the mean over the pixels of each by their weights: (...)."""
    loss = F.binary_cross_entropy_with_logits(logits, targets.clamp(0, 1), reduction="none")
    return (loss * weights).sum(dim=(-1, -2)) / weights.sum(dim=(-1, -2)).clamp(min=1e-3)


def weighted_mask_loss(logits: Tensor, targets: Tensor, weights: Tensor, dice_weight: float) -> Tensor:
    """The published BCE and Dice of masks (masks, height, width), where something is known: (masks,)."""
    probability = logits.sigmoid() * weights
    known = targets * weights
    dice = 1 - (2 * (probability * known).sum(dim=(1, 2)) + 1e-3) / ((probability + known).sum(dim=(1, 2)) + 1e-3)
    return BCE_WEIGHT * weighted_bce(logits, targets, weights) + dice_weight * dice


@dataclass(frozen=True, slots=True)
class Losses:
    answers: Tensor
    masks: Tensor
    probes: Tensor

    @property
    def total(self) -> Tensor:
        return ANSWER_WEIGHT * self.answers + self.masks + self.probes


def tower_loss(network: GeoPixelNetwork, probes: Probes, batch: list[Example]) -> Losses:
    """The towers alone: what is where, before anybody asks."""
    views = network.vision.projector(network.vision.features(torch.stack([example.crops[0] for example in batch])))
    _, seen = see(network.grounding, probes, batch)
    zero = views.new_zeros(())
    return Losses(zero, zero, probes.cell_loss(views, batch) + seen)


def forward_loss(network: GeoPixelNetwork, probes: Probes, batch: list[Example], *, bos: int, seg: int, dice_weight: float = DICE_WEIGHT) -> Losses:
    """Losses of a batch of examples, all of the network."""
    read = read_batch(network, batch, bos=bos, seg=seg)
    features, seen = see(network.grounding, probes, batch)
    probed = probes.cell_loss(read.views, batch) + seen
    prompts = network.mask_prompts(read.states)
    if len(read.concepts):
        probed = probed + probes.concept_loss(read.states, read.concepts)
        whole = torch.tensor([atom == 0 for example in batch for atom in example.atoms], device=prompts.device)
        probes.remember(prompts[whole], read.concepts[whole])
    masks = drawn_loss(network, probes, features, prompts, batch, dice_weight)
    return Losses(read.answers, masks, probed)


def talk_loss(network: GeoPixelNetwork, probes: Probes, batch: list[Example], *, bos: int, seg: int) -> Losses:
    """The words alone. The prompts of the mask decoder are held to those that probes remember: their squared error, in shares of the spread of
    the remembered ones, stands for the masks'."""
    read = read_batch(network, batch, bos=bos, seg=seg)
    probed = probes.cell_loss(read.views, batch)
    if not len(read.concepts):
        return Losses(read.answers, probed * 0, probed)
    probed = probed + probes.concept_loss(read.states, read.concepts)
    error = (network.mask_prompts(read.states) - probes.usual(batch)).square().mean()
    return Losses(read.answers, error / probes.prompts.var(dim=0).mean(), probed)


def picture_loss(network: GeoPixelNetwork, probes: Probes, batch: list[Example], *, dice_weight: float, noise: float) -> Losses:
    """SAM 2 alone, asked by the prompts that probes remember, with noise of this share of their spread."""
    features, seen = see(network.grounding, probes, batch)
    prompts = probes.usual(batch)
    prompts = prompts + noise * probes.prompts.std(dim=0) * torch.randn_like(prompts)
    masks = drawn_loss(network, probes, features, prompts, batch, dice_weight)
    return Losses(masks.new_zeros(()), masks, seen)


def drawn_loss(network: GeoPixelNetwork, probes: Probes, features: ImageFeatures, prompts: Tensor, batch: Sequence[Example], dice_weight: float) -> Tensor:
    """Mean loss of the masks that prompts (one for each of the batch's masks, hidden) give, and of some that must be empty."""
    asked = [(row, plane, 1.0) for row, e in enumerate(batch) for plane in e.planes]
    denied = [(row, concept, DENIED_WEIGHT) for row, e in enumerate(batch) for concept in e.denied[:DENIED_MASKS] if probes.prompts[concept].any()]
    if not asked + denied:
        return prompts.sum() * 0
    rows, wanted, importance = zip(*asked, *denied, strict=True)
    remembered = probes.prompts[list(wanted[len(asked) :])]
    owner = torch.tensor(rows, device=prompts.device)
    masks = network.grounding.decode(features.take(owner), torch.cat([prompts, remembered])[:, None])
    targets, weights = (torch.stack([getattr(batch[row], x)[plane] for row, plane in zip(rows, wanted, strict=True)]) for x in ("shares", "weights"))
    share = prompts.new_tensor(importance) / sum(importance)
    return (share * weighted_mask_loss(masks.logits, targets, weights, dice_weight)).sum()


@dataclass(frozen=True, slots=True)
class Read:
    """What the language model made of a batch."""

    answers: Tensor
    """Cross-entropy of the answers' tokens, the mean by their importance."""
    states: Tensor
    """(masks of all examples, hidden): hidden states at [SEG], in order"""
    concepts: Tensor
    """(masks,)"""
    views: Tensor
    """(images, side, side, hidden): tokens of the global views"""


def read_batch(network: GeoPixelNetwork, batch: Sequence[Example], *, bos: int, seg: int) -> Read:
    """The questions of an image are packed behind its tokens, as generation packs them."""
    language = network.language
    images = network.vision(torch.cat([e.crops for e in batch]), [e.grid for e in batch])
    packed = pack(batch, [1 + len(image) for image in images], bos).to(images[0].device)
    embeddings = torch.index_put(language.tok_embeddings(packed.ids), (packed.image_mask,), torch.cat(images))
    hidden = language(embeddings, image_mask=packed.image_mask, segments=packed.segments, positions=packed.positions)
    side = network.vision.side
    views = torch.stack([image[: side * (side + 1)].view(side, side + 1, -1)[:, :side] for image in images])
    answered = packed.labels != IGNORED
    tokens = F.cross_entropy(language.output(hidden[answered]).float(), packed.labels[answered], reduction="none")
    importance = packed.importance[answered]
    answers = (tokens * importance).sum() / importance.sum()
    is_seg = (packed.ids == seg) & (packed.segments != PADDING)
    concepts = torch.tensor([concept for example in batch for concept in example.concepts], dtype=torch.int64, device=hidden.device)
    return Read(answers, hidden[is_seg], concepts, views)


@dataclass(frozen=True, slots=True)
class Packed:
    """What the language model reads of a batch: per image <s>, its tokens, and all questions, none of which sees another. All (images, tokens)."""

    ids: Tensor
    labels: Tensor
    """The token that comes next where it is part of an answer, IGNORED elsewhere."""
    importance: Tensor
    """float32: weight of the answer that the label is of."""
    segments: Tensor
    positions: Tensor
    image_mask: Tensor
    """bool, True on image tokens"""

    def to(self, device: torch.device) -> Packed:
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(batch: Sequence[Example], starts: Sequence[int], bos: int) -> Packed:
    """starts: per image the tokens of <s> and the image."""
    start, length = max(starts), max(sum(map(len, e.tokens)) for e in batch)
    ids = torch.zeros((len(batch), start + length), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    importance = torch.zeros(ids.shape)
    segments = torch.full_like(ids, PADDING)
    positions = torch.zeros_like(ids)
    image_mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, 0] = bos
        segments[row, : starts[row]] = PREFIX
        positions[row, : starts[row]] = torch.arange(starts[row])
        image_mask[row, 1 : starts[row]] = True
        at = start
        for segment, (tokens, answer_start, weight) in enumerate(zip(example.tokens, example.answer_starts, example.importance, strict=True)):
            span = slice(at, at + len(tokens))
            ids[row, span] = torch.tensor(tokens)
            labels[row, at + answer_start - 1 : at + len(tokens) - 1] = torch.tensor(tokens[answer_start:])
            importance[row, span] = weight
            segments[row, span] = segment
            positions[row, span] = starts[row] + torch.arange(len(tokens))
            at += len(tokens)
    return Packed(ids, labels, importance, segments, positions, image_mask)
