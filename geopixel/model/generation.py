"""Greedy answers to several prompts about each of several images, decoded together, each image's keys and values shared by its prompts.
Knows token ids and hidden states; nothing of text, pixels or masks.

A draft (the answer that is likely) is fed together with the prompt and checked in the same forward: the longest prefix that greedy
decoding would have given is accepted, the rest is decoded token by token. The result is greedy decoding's, with or without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geopixel.model.language import PADDING, KeyValueCache, LanguageModel


@dataclass(frozen=True, slots=True)
class Answer:
    ids: list[int]
    """Generated token ids, the end token included where the model gave it."""
    states: Tensor
    """(count of mask tokens in ids, hidden): final hidden states at positions whose input token is the mask token, in order."""


@dataclass(slots=True)
class _Line:
    """One prompt while it is being answered."""

    row: int
    """Of its image."""
    segment: int
    position: int
    """Of the next token that is fed."""
    feed: list[int]
    """Tokens to be fed next; none: the answer is complete."""
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def answer(
    language: LanguageModel,
    prefixes: Sequence[Tensor],
    image_masks: Sequence[Tensor],
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    eos: int,
    mask_token: int,
    max_new_tokens: int,
    draft: Sequence[int] = (),
) -> list[list[Answer]]:
    """Greedy answers, at most max_new_tokens each: answers[image][prompt].

    prefixes: per image (tokens, hidden), the embeddings that its prompts share; image_masks: per image (tokens,) bool, True on image
    tokens; prompts: per image the token ids behind the prefix, each prompt at least one.
    """
    draft = list(draft)[: max_new_tokens - 1]
    longest = max(sum(len(ids) + len(draft) for ids in asked) for asked in prompts)
    cache = prefill(language, prefixes, image_masks, longest + max(map(len, prompts)) * max_new_tokens)
    lines = [_Line(row, i, len(prefixes[row]), [*ids, *draft]) for row, asked in enumerate(prompts) for i, ids in enumerate(asked)]
    _check_drafts(language, cache, lines, draft, eos, mask_token)
    while True:
        for line in lines:
            ended = line.ids[-1] == eos or len(line.ids) >= max_new_tokens
            # A mask token that ends the answer still gets its forward: the published code loses that mask.
            if ended and len(line.states) == line.ids.count(mask_token):
                line.feed = []
        running = [line for line in lines if line.feed]
        if not running:
            break
        states = [state[0] for state in _feed(language, cache, running)[0]]
        following = language.output(torch.stack(states)).argmax(-1).tolist()
        for line, state, token in zip(running, states, following, strict=True):
            if line.feed[0] == mask_token:
                line.states.append(state)
            line.feed = [token]
            if line.ids[-1] != eos and len(line.ids) < max_new_tokens:
                line.ids.append(token)
    empty = prefixes[0].new_zeros((0, prefixes[0].shape[1]))
    answers: list[list[Answer]] = [[] for _ in prompts]
    for line in lines:
        answers[line.row].append(Answer(line.ids, torch.stack(line.states) if line.states else empty))
    return answers


@torch.inference_mode()
def first_logits(
    language: LanguageModel, prefixes: Sequence[Tensor], image_masks: Sequence[Tensor], prompts: Sequence[Sequence[Sequence[int]]]
) -> list[Tensor]:
    """Per image (prompts, vocabulary): logits of the first token of each answer. Arguments as those of answer."""
    cache = prefill(language, prefixes, image_masks, max(sum(map(len, asked)) for asked in prompts))
    lines = [_Line(row, i, len(prefixes[row]), list(ids)) for row, asked in enumerate(prompts) for i, ids in enumerate(asked)]
    states, _, _ = _feed(language, cache, lines)
    return list(language.output(torch.stack([state[-1] for state in states])).split([len(asked) for asked in prompts]))


def prefill(language: LanguageModel, prefixes: Sequence[Tensor], image_masks: Sequence[Tensor], spare: int) -> KeyValueCache:
    """Keys and values of the prefixes, with room for `spare` tokens behind the longest. One plain causal pass: shorter ones are padded at
    their end, where no query of theirs can see it."""
    x = torch.nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)
    image_mask = torch.nn.utils.rnn.pad_sequence(list(image_masks), batch_first=True)
    rows, longest, _ = x.shape
    cache = KeyValueCache(language.config, rows, longest + spare, x.dtype, x.device)
    language(x, image_mask=image_mask, cache=cache)
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=x.device)
    cache.forget(slice(0, longest), torch.arange(longest, device=x.device) < lengths[:, None])
    return cache


def _check_drafts(language: LanguageModel, cache: KeyValueCache, lines: Sequence[_Line], draft: Sequence[int], eos: int, mask_token: int) -> None:
    """Feeds every prompt with the draft behind it; each line has then as much of the draft as greedy decoding gives, and one token more."""
    states, places, slots = _feed(language, cache, lines)
    checked = [state[-len(draft) - 1 :] for state in states]
    greedy = language.output(torch.cat(checked)).argmax(-1).view(len(lines), 1 + len(draft)).tolist()
    keep = torch.ones((cache.segments.shape[0], slots.stop - slots.start), dtype=torch.bool, device=cache.segments.device)
    for line, state, place, tokens in zip(lines, checked, places, greedy, strict=True):
        accepted = 0
        while accepted < len(draft) and tokens[accepted] == draft[accepted] and draft[accepted] != eos:
            accepted += 1
        line.states = [state[1 + i] for i in range(accepted) if draft[i] == mask_token]
        line.ids = [*draft[:accepted], tokens[accepted]]
        line.feed = [tokens[accepted]]
        rejected = len(draft) - accepted
        line.position -= rejected
        keep[line.row, place.stop - rejected : place.stop] = False
    cache.forget(slots, keep)


def _feed(language: LanguageModel, cache: KeyValueCache, lines: Sequence[_Line]) -> tuple[list[Tensor], list[slice], slice]:
    """Feeds what each line has to feed, packed into the row of its image. Returns per line the hidden states (tokens, hidden) and where
    they lie in the row, and the slots of the cache that all of it took."""
    rows = cache.segments.shape[0]
    widths = [0] * rows
    places = []
    for line in lines:
        places.append(slice(widths[line.row], widths[line.row] + len(line.feed)))
        widths[line.row] = places[-1].stop
    ids, segments, positions = torch.zeros((3, rows, max(widths)), dtype=torch.int64)
    segments.fill_(PADDING)
    for line, place in zip(lines, places, strict=True):
        ids[line.row, place] = torch.tensor(line.feed)
        segments[line.row, place] = line.segment
        positions[line.row, place] = torch.arange(line.position, line.position + len(line.feed))
        line.position += len(line.feed)
    device = cache.segments.device
    start = cache.length
    hidden = language(language.tok_embeddings(ids.to(device)), segments=segments.to(device), positions=positions.to(device), cache=cache)
    return [hidden[line.row, place] for line, place in zip(lines, places, strict=True)], places, slice(start, cache.length)


@torch.inference_mode()
def answer_uncached(
    language: LanguageModel,
    prefixes: Sequence[Tensor],
    image_masks: Sequence[Tensor],
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    eos: int,
    mask_token: int,
    max_new_tokens: int,
) -> list[list[Answer]]:
    """As answer, the published way: the whole sequence again for every token, one prompt after the other. Slow, and exact also where dynamic
    NTK is active: there every new length turns all keys anew, and the states of mask tokens are those of the last forward."""
    answers: list[list[Answer]] = []
    for prefix, image_mask, asked in zip(prefixes, image_masks, prompts, strict=True):
        answers.append([])
        for prompt in asked:
            ids: list[int] = []
            complete = False
            while not complete or ids[-1] == mask_token:  # a mask token that ends the answer still gets its forward
                fed = torch.tensor([*prompt, *ids], device=prefix.device)
                x = torch.cat([prefix, language.tok_embeddings(fed)])[None]
                is_image = torch.cat([image_mask, torch.zeros_like(fed, dtype=torch.bool)])[None]
                hidden = language(x, image_mask=is_image)[0]
                if complete:
                    break
                ids.append(int(language.output(hidden[-1]).argmax()))
                complete = ids[-1] == eos or len(ids) >= max_new_tokens
            is_mask = fed[len(prompt) :] == mask_token
            answers[-1].append(Answer(ids, hidden[len(prefix) + len(prompt) :][is_mask]))
    return answers
