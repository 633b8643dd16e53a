"""What nano is asked, and in which words it answers. Knows no picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import sentencepiece

from geopixel.demo import CLASSES
from geopixel.model.geopixel import DESCRIBE_PROMPT, NO, PRESENCE_PROMPT, SEGMENT_ANSWER, SEGMENT_PROMPT, YES
from geopixel.model.tokenizer import SEG

CONCEPTS: dict[str, int] = {**CLASSES, "vegetation": 7, "land": 8}
"""Codes of what nano knows: the classes of rendered scenes, and two that only real imagery is labelled with."""
OTHER, UNLABELLED = 0, 255
"""Codes of ground that is nothing of CONCEPTS, and of ground of which nobody says what it is."""

WORDINGS: dict[str, tuple[str, ...]] = {
    "building": ("building", "buildings", "the buildings", "house", "houses", "the houses", "roof", "roofs", "rooftops", "built structures"),
    "road": ("road", "roads", "the roads", "street", "streets", "paved roads", "the road network"),
    "water": ("water", "the water", "water body", "water bodies", "lake", "lakes", "pond", "river", "rivers"),
    "tree": ("tree", "trees", "the trees", "tree canopy", "forest", "woods"),
    "field": ("field", "fields", "the fields", "farmland", "cropland", "crop fields", "agricultural fields"),
    "vehicle": ("vehicle", "vehicles", "the vehicles", "car", "cars", "the cars", "parked cars"),
    "vegetation": ("vegetation", "the vegetation", "plants", "greenery"),
    "land": ("land", "the land", "bare land", "bare ground"),
}
STRANGE = ("airplane", "ship", "ships", "swimming pool", "bridge", "train", "stadium", "solar panels", "beach", "glacier", "wind turbine", "storage tank")
"""Things that no training picture is asked to hold: the answer is always that they are not there."""
ABSENT_ANSWER = "It is not there."
PHRASES = {
    "building": "buildings",
    "road": "roads",
    "water": "water",
    "tree": "trees",
    "field": "fields",
    "vehicle": "vehicles",
    "vegetation": "vegetation",
    "land": "land",
}
"""What a description calls the concepts."""

DESCRIPTION = "The image shows"


def describe(names: Sequence[str]) -> str:
    """A grounded description of the concepts that are there, in the layout of the published answers."""
    things = [f"<p> {PHRASES[name]} </p> {SEG}" for name in names]
    return f"{DESCRIPTION} " + " and ".join(filter(None, [", ".join(things[:-1]), things[-1]])) + "."


def train_tokenizer(vocab_size: int = 640) -> bytes:
    """The tokenizer of the questions and answers that nano knows."""
    words = [wording for wordings in WORDINGS.values() for wording in wordings] + list(STRANGE)
    lines = [prompt.format(word) for word in words for prompt in (SEGMENT_PROMPT, PRESENCE_PROMPT)]
    lines += [DESCRIBE_PROMPT, SEGMENT_ANSWER, ABSENT_ANSWER, "user", "assistant"]
    lines += [f"{YES}.", f"{NO}.", DESCRIPTION, *PHRASES.values(), ", and"] * 20  # often enough to be pieces of their own
    return make_tokenizer(lines, vocab_size)


def make_tokenizer(lines: Sequence[str], vocab_size: int) -> bytes:
    """A sentencepiece model of these lines, laid out as InternLM2's: <unk>, <s>, </s>, bytes, pieces, chat markers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        user_defined_symbols=[f"[UNUSED_TOKEN_{i}]" for i in range(140, 147)],
        minloglevel=2,
    )
    return model.getvalue()
