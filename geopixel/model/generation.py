"""Greedy answers to several prompts about one image, decoded together over one shared image prefix. Knows token ids and hidden states;
nothing of text, pixels or masks.

A draft (the answer that is likely) is fed together with the prompt and checked in the same forward: the longest prefix that greedy
decoding would have given is accepted, the rest is decoded token by token. The result is greedy decoding's, with or without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geopixel.model.language import KeyValueCache, LanguageModel


@dataclass(frozen=True, slots=True)
class Answer:
    ids: list[int]
    """Generated token ids, the end token included where the model gave it."""
    states: Tensor
    """(count of mask tokens in ids, hidden): final hidden states at positions whose input token is the mask token, in order."""


class _Row:
    """One prompt while it is being answered."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.states: list[Tensor] = []
        self.done = False


def prefill(language: LanguageModel, prefix: Tensor, image_mask: Tensor, spare: int) -> KeyValueCache:
    """Keys and values of a prefix (1, tokens, hidden), with room for `spare` tokens after it. image_mask (1, tokens) bool: True on image tokens."""
    cache = KeyValueCache(language.config, 1, prefix.shape[1] + spare, prefix.dtype, prefix.device)
    language(prefix, image_mask=image_mask, cache=cache)
    return cache


@torch.inference_mode()
def answer(
    language: LanguageModel,
    prefix: Tensor,
    image_mask: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    mask_token: int,
    max_new_tokens: int,
    draft: Sequence[int] = (),
) -> list[Answer]:
    """Greedy answers to all prompts (token ids after the prefix, each at least one), at most max_new_tokens each.

    prefix (1, tokens, hidden): embeddings that all prompts share; image_mask (1, tokens) bool.
    """
    draft = list(draft)[: max_new_tokens - 1]
    start, device = prefix.shape[1], prefix.device
    spare = sum(len(p) + len(draft) + max_new_tokens for p in prompts)
    cache = prefill(language, prefix, image_mask, spare)
    rows = [_Row() for _ in prompts]

    feeds = [(list(prompt) + draft, start) for prompt in prompts]
    states, slots = _feed(language, cache, feeds, device)
    keep = torch.ones((1, slots.stop - slots.start), dtype=torch.bool, device=device)
    following: list[int] = []
    offset = 0
    for row, prompt, state in zip(rows, prompts, states, strict=True):
        checked = state[len(prompt) - 1 :]
        greedy = language.output(checked).argmax(-1).tolist()
        accepted = 0
        while accepted < len(draft) and greedy[accepted] == draft[accepted] and draft[accepted] != eos:
            accepted += 1
        _take(row, draft[:accepted], checked[1 : 1 + accepted], mask_token)
        keep[0, offset + len(prompt) + accepted : offset + len(state)] = False
        offset += len(state)
        following.append(greedy[accepted])
    cache.forget(slots, keep)

    while True:
        feeds = []
        for row, prompt, token in zip(rows, prompts, following, strict=True):
            if not row.done:
                row.ids.append(token)
                row.done = token == eos or len(row.ids) >= max_new_tokens
            # A mask token that ends the answer still gets its forward: the published code loses that mask.
            feed = [token] if not row.done or (token == mask_token and len(row.states) < row.ids.count(mask_token)) else []
            feeds.append((feed, start + len(prompt) + len(row.ids) - 1))
        if not any(feed for feed, _ in feeds):
            break
        states, _ = _feed(language, cache, feeds, device)
        for i, (row, (feed, _), state) in enumerate(zip(rows, feeds, states, strict=True)):
            if feed:
                if feed[0] == mask_token:
                    row.states.append(state[0])
                following[i] = int(language.output(state[-1]).argmax())
    hidden = prefix.shape[2]
    return [Answer(row.ids, torch.stack(row.states) if row.states else prefix.new_zeros((0, hidden))) for row in rows]


def _feed(language: LanguageModel, cache: KeyValueCache, feeds: Sequence[tuple[list[int], int]], device: torch.device) -> tuple[tuple[Tensor, ...], slice]:
    """Runs the tokens of every segment, packed into one row, each from its position on; their hidden states per segment (tokens, hidden)."""
    ids = torch.tensor([[token for feed, _ in feeds for token in feed]], device=device)
    segments = torch.tensor([[i for i, (feed, _) in enumerate(feeds) for _ in feed]], device=device)
    positions = torch.tensor([[at + j for feed, at in feeds for j in range(len(feed))]], device=device)
    slots = slice(cache.length, cache.length + ids.shape[1])
    hidden = language(language.tok_embeddings(ids), segments=segments, positions=positions, cache=cache)
    return hidden[0].split([len(feed) for feed, _ in feeds]), slots


def _take(row: _Row, tokens: Sequence[int], states: Tensor, mask_token: int) -> None:
    row.ids.extend(tokens)
    row.states.extend(state for token, state in zip(tokens, states, strict=True) if token == mask_token)


