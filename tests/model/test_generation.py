"""Oracle: greedy decoding token by token, every step a forward over the whole sequence without a cache. Neither drafts nor company change it.

The examples are the same at every run: where two tokens are equally likely but for rounding, the oracle would be no oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geopixel.model.generation import Answer, answer, answer_uncached, first_logits

from .tiny import LANGUAGE, language_model

VOCABULARY = LANGUAGE.vocab_size
NEVER = VOCABULARY + 1
"""An id that no answer holds."""

ids = st.integers(0, VOCABULARY - 1)
prompts = st.lists(ids, min_size=1, max_size=4)


def prefix_of(seed: int, tokens: int = 6) -> tuple[Tensor, Tensor]:
    """Embeddings (tokens, hidden); all but the first belong to an image."""
    x = torch.randn(tokens, LANGUAGE.hidden_size, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(tokens) > 0


@torch.inference_mode()
def greedy(seed: int, prompt: list[int], *, eos: int, mask_token: int, max_new_tokens: int, tokens: int = 6) -> Answer:
    language = language_model(seed)
    prefix, image_mask = prefix_of(seed, tokens)
    answer_ids: list[int] = []

    def forward() -> Tensor:
        x = torch.cat([prefix, language.tok_embeddings(torch.tensor(prompt + answer_ids))])[None]
        mask = torch.nn.functional.pad(image_mask, (0, x.shape[1] - len(prefix)))[None]
        return language(x, image_mask=mask)[0]

    while len(answer_ids) < max_new_tokens and eos not in answer_ids:
        answer_ids.append(int(language.output(forward()[-1]).argmax()))
    states = forward()[len(prefix) + len(prompt) :]
    return Answer(answer_ids, states[torch.tensor(answer_ids) == mask_token])


def ask(seed: int, asked: list[list[int]], *, draft: list[int] | None = None, **limits: int) -> list[Answer]:
    prefix, image_mask = prefix_of(seed)
    return answer(language_model(seed), [prefix], [image_mask], [asked], draft=draft or [], **limits)[0]


def check(given_answer: Answer, expected: Answer) -> None:
    assert given_answer.ids == expected.ids
    torch.testing.assert_close(given_answer.states, expected.states, atol=1e-4, rtol=1e-4)


def likely_tokens(seed: int, prompt: list[int], count: int) -> list[int]:
    """What would be answered without an end: a draft all right, and tokens worth calling the end or a mask."""
    return greedy(seed, prompt, eos=NEVER, mask_token=NEVER, max_new_tokens=count).ids


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 7), prompts, st.integers(1, 9), st.data())
def test_a_draft_changes_nothing(seed: int, prompt: list[int], limit: int, data: st.DataObject) -> None:
    likely = likely_tokens(seed, prompt, 10)
    limits = {
        "eos": data.draw(st.sampled_from([NEVER, *likely]), "eos"),
        "mask_token": data.draw(st.sampled_from(likely), "mask token"),
        "max_new_tokens": limit,
    }
    right = data.draw(st.integers(0, len(likely)), "right tokens of the draft")
    draft = likely[:right] + data.draw(st.lists(ids, max_size=3), "other tokens of the draft")
    expected = greedy(seed, prompt, **limits)
    check(ask(seed, [prompt], **limits)[0], expected)
    check(ask(seed, [prompt], draft=draft, **limits)[0], expected)


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 7), st.lists(prompts, min_size=1, max_size=4), st.data())
def test_prompts_asked_together_are_answered_as_if_alone(seed: int, asked: list[list[int]], data: st.DataObject) -> None:
    likely = likely_tokens(seed, asked[0], 8)
    limits = {
        "eos": data.draw(st.sampled_from([NEVER, *likely]), "eos"),
        "mask_token": data.draw(st.sampled_from(likely), "mask token"),
        "max_new_tokens": data.draw(st.integers(1, 8), "limit"),
    }
    draft = likely[: data.draw(st.integers(0, 8), "right tokens of the draft")]
    answers = ask(seed, asked, draft=draft, **limits)
    assert len(answers) == len(asked)
    for prompt, given_answer in zip(asked, answers, strict=True):
        check(given_answer, greedy(seed, prompt, **limits))


images = st.lists(st.tuples(st.integers(1, 9), st.lists(prompts, min_size=1, max_size=3)), min_size=1, max_size=3)
"""Tokens of each image's prefix, and its prompts."""


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 7), images, st.data())
def test_images_asked_together_are_answered_as_if_alone(seed: int, asked: list[tuple[int, list[list[int]]]], data: st.DataObject) -> None:
    """Whatever their sizes; with a cache and without one."""
    likely = likely_tokens(seed, asked[0][1][0], 6)
    limits = {"eos": likely[-1], "mask_token": data.draw(st.sampled_from(likely), "mask token"), "max_new_tokens": data.draw(st.integers(1, 6), "limit")}
    prefixes, image_masks = zip(*(prefix_of(seed, tokens) for tokens, _ in asked), strict=True)
    together = [row for _, row in asked]
    for answers in (
        answer(language_model(seed), prefixes, image_masks, together, draft=likely[:3], **limits),
        answer_uncached(language_model(seed), prefixes, image_masks, together, **limits),
    ):
        for (tokens, row), answered in zip(asked, answers, strict=True):
            assert len(row) == len(answered)
            for prompt, given_answer in zip(row, answered, strict=True):
                check(given_answer, greedy(seed, prompt, tokens=tokens, **limits))
    for (tokens, row), logits in zip(asked, first_logits(language_model(seed), prefixes, image_masks, together), strict=True):
        for prompt, x in zip(row, logits, strict=True):
            assert int(x.argmax()) == greedy(seed, prompt, eos=NEVER, mask_token=NEVER, max_new_tokens=1, tokens=tokens).ids[0]


def test_the_end_ends_an_answer_and_belongs_to_it() -> None:
    likely = likely_tokens(0, [1, 2], 8)
    for eos in likely:
        stopped = ask(0, [[1, 2]], eos=eos, mask_token=NEVER, max_new_tokens=8)[0].ids
        assert stopped == likely[: likely.index(eos) + 1]


@pytest.mark.parametrize("draft", ["none", "right"])
def test_a_mask_token_at_the_limit_has_its_state(draft: str) -> None:
    """The published code loses it."""
    for limit in range(1, 8):
        likely = likely_tokens(0, [3], limit)
        limits = {"eos": NEVER, "mask_token": likely[-1], "max_new_tokens": limit}
        given_answer = ask(0, [[3]], draft=likely if draft == "right" else [], **limits)[0]
        assert given_answer.ids == likely
        assert given_answer.states.shape == (likely.count(likely[-1]), LANGUAGE.hidden_size)
        check(given_answer, greedy(0, [3], **limits))


def test_without_mask_tokens_there_are_no_states() -> None:
    assert ask(0, [[3]], eos=NEVER, mask_token=NEVER, max_new_tokens=4)[0].states.shape == (0, LANGUAGE.hidden_size)
