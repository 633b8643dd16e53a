"""Laws on a sentencepiece model trained here (the published code's own ids are test_golden.py's)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, PHRASE, PHRASE_END, SEG, USER, Tokenizer

from .tiny import tokenizer, tokenizer_model

words = st.text(st.characters(codec="utf-8", exclude_characters="<>[]_.?!,'\x00\N{LOWER ONE EIGHTH BLOCK}"), max_size=30)
"""Text without markers, and without what decoding cleans up on purpose."""


@given(words)
def test_text_survives(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


@given(words, words, st.sampled_from([SEG, PHRASE, PHRASE_END]), st.sampled_from(["", " ", "\n", " \n "]))
def test_space_beside_added_markers_does_not_count(before: str, after: str, marker: str, space: str) -> None:
    tok = tokenizer()
    assert tok.encode(before + space + marker + space + after) == [*tok.encode(before.rstrip()), tok.added[marker], *tok.encode(after.lstrip())]


@given(st.text(" \n", max_size=3), st.text(" \n", max_size=3))
def test_space_beside_chat_markers_counts(before: str, after: str) -> None:
    tok = tokenizer()
    (marker,) = tok.encode(ANSWER_END)
    assert tok.encode("a" + before + ANSWER_END + after + "b") == [*tok.encode("a" + before), marker, *tok.encode(after + "b")]


def test_ids_follow_the_vocabulary() -> None:
    tok = tokenizer()
    size = tok.pieces.vocab_size()
    assert [tok.encode(marker) for marker in (SEG, PHRASE, PHRASE_END)] == [[size], [size + 1], [size + 2]]
    assert tok.seg == size
    assert tok.vocab_size == size + 3
    assert tok.encode("") == []
    assert tok.encode("<s></s><unk>") == [tok.bos, tok.eos, 0] == [1, 2, 0]


def test_decoding_sets_added_markers_apart() -> None:
    tok = tokenizer()
    assert tok.decode(tok.encode("a <p> tank </p>[SEG] and <p>two ships</p> [SEG].")) == "a <p> tank </p> [SEG] and <p> two ships </p> [SEG] ."
    assert tok.decode(tok.encode("no water [SEG]" + ANSWER_END) + [tok.eos], skip_special=True) == "no water [SEG] " + ANSWER_END
    assert tok.decode([*tok.encode("a road"), tok.eos]) == " a road</s>"


def test_chat_template_is_whole_markers() -> None:
    tok = tokenizer()
    pieces = [tok.pieces.id_to_piece(i) for i in tok.encode(USER + "a road" + ASSISTANT)]
    assert [piece for piece in pieces if piece.startswith("[UNUSED")] == [f"[UNUSED_TOKEN_{i}]" for i in (146, 145, 146)]
    assert tok.decode(tok.encode(USER + "a road" + ASSISTANT)) == USER + "a road" + ASSISTANT


def test_from_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    assert Tokenizer.from_file(tmp_path / "tokenizer.model").encode("two ships [SEG]") == tokenizer().encode("two ships [SEG]")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(RuntimeError):
        Tokenizer.from_file(tmp_path / "tokenizer.model")
