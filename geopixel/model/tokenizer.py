"""InternLM2's tokenizer over sentencepiece, as the published model used it (transformers 4.33, slow), without its remote code.

Two kinds of markers are not words: `[UNUSED_TOKEN_14x]` are pieces of the sentencepiece model itself and keep the spaces around them;
`<s> </s> <unk> [SEG] <p> </p>` are added on top of it, and the text beside them is stripped of white space when encoding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

SEG, PHRASE, PHRASE_END = "[SEG]", "<p>", "</p>"
USER = "[UNUSED_TOKEN_146]user\n"
ASSISTANT = "[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n"
ANSWER_END = "[UNUSED_TOKEN_145]"

_CLEAN_UP = [(" " + mark, mark) for mark in (".", "?", "!", ",")] + [(" ' ", "'")] + [(" " + end, end) for end in ("n't", "'m", "'s", "'ve", "'re")]
"""transformers 4.33, PreTrainedTokenizerBase.clean_up_tokenization."""


class Tokenizer:
    """[SEG], <p> and </p> are the three ids after the sentencepiece vocabulary, in this order."""

    def __init__(self, model: bytes) -> None:
        self.pieces = SentencePieceProcessor(model_proto=model)
        size = self.pieces.vocab_size()
        self.bos, self.eos, self.seg = self.pieces.bos_id(), self.pieces.eos_id(), size
        self.added = {SEG: size, PHRASE: size + 1, PHRASE_END: size + 2}
        self.special = {self.pieces.id_to_piece(i): i for i in (self.pieces.unk_id(), self.bos, self.eos)}
        markers = sorted([*self.added, *self.special], key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, markers)) + ")")

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        return cls(path.read_bytes())

    @property
    def vocab_size(self) -> int:
        return self.pieces.vocab_size() + len(self.added)

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without <s> in front."""
        parts = self._split.split(text)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self.added.get(part, self.special.get(part, 0)))
                continue
            if i > 0:
                part = part.lstrip()
            if i < len(parts) - 1:
                part = part.rstrip()
            ids.extend(self.pieces.encode(part))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the ids; [SEG], <p> and </p> stand apart by single spaces; skip_special drops <s>, </s> and <unk>."""
        names = {i: name for name, i in self.added.items()}
        special = {i: name for name, i in self.special.items()}
        texts: list[str] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                texts.append(self._join(run, special))
                run.clear()

        for i in ids:
            if i in names:
                flush()
                texts.append(names[i])
            elif not (skip_special and i in special):
                run.append(i)
        flush()
        return " ".join(texts)

    def _join(self, ids: Sequence[int], special: dict[int, str]) -> str:
        """Pieces to text as the published tokenizer joins them: one space before a run that ends in <s>, </s> or <unk>, none before a point."""
        text, after_special = "", False
        run: list[int] = []
        for i in ids:
            if i in special:
                text += ("" if after_special else " ") + self.pieces.decode(run) + special[i]
                run = []
            else:
                run.append(i)
            after_special = i in special
        text += self.pieces.decode(run)
        for spaced, joined in _CLEAN_UP:
            text = text.replace(spaced, joined)
        return text
