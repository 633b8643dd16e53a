"""Laws on a tiny network that is taught its answer by hand: every [SEG] has its mask, questions and images do not disturb one another,
a draft changes nothing, and what cannot be asked is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from geopixel.errors import CheckpointError
from geopixel.model import Answer, GeoPixel, generation, processor
from geopixel.model.checkpoint import save_checkpoint
from geopixel.model.config import find_model, read_model_config
from geopixel.model.geopixel import DESCRIBE_PROMPT, PRESENCE_PROMPT, SEGMENT_ANSWER, SEGMENT_PROMPT, SEGMENT_TOKENS
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER

from .tiny import CONFIG, image, network, teach, tokenizer, tokenizer_model

IMAGES = [image(40, 60, 1), image(70, 50, 2)]
SIZE = CONFIG.grounding.mask_size


def taught(answer: str) -> GeoPixel:
    """A model that always answers this."""
    made = network()
    teach(made, [tokenizer().encode(ASSISTANT)[-1], *tokenizer().encode(answer + ANSWER_END), tokenizer().eos])
    return GeoPixel(made, tokenizer(), "taught")


@pytest.fixture(scope="module")
def finder() -> GeoPixel:
    return taught(SEGMENT_ANSWER)


def same(actual: Answer, expected: Answer) -> None:
    assert (actual.text, actual.phrases, actual.height, actual.width) == (expected.text, expected.phrases, expected.height, expected.width)
    for name in ("logits", "scores", "object_scores"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), atol=1e-3, rtol=1e-3)


def test_segment(finder: GeoPixel) -> None:
    answers = finder.segment(IMAGES, ["tank", "road", "two ships"])
    assert [len(row) for row in answers] == [3, 3]
    for picture, row in zip(IMAGES, answers, strict=True):
        for answer in row:
            assert answer.text == "It is [SEG] ."
            assert answer.phrases == []
            assert answer.logits.shape == (1, SIZE, SIZE)
            assert answer.scores.shape == answer.object_scores.shape == (1,)
            assert {values.dtype for values in (answer.logits, answer.scores, answer.object_scores, answer.masks)} == {np.dtype(np.float32)}
            assert answer.masks.shape == (1, *picture.shape[:2])
            assert ((answer.masks >= 0) & (answer.masks <= 1)).all()
    # Neither images nor questions have one mask between them.
    different = [answer.logits for row in answers for answer in row]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(different) for b in different[:i])


def test_company_changes_nothing(finder: GeoPixel) -> None:
    concepts = ["tank", "road", "two ships"]
    together = finder.segment(IMAGES, concepts)
    for picture, row in zip(IMAGES, together, strict=True):
        for concept, answer in zip(concepts, row, strict=True):
            same(finder.segment([picture], [concept])[0][0], answer)


@pytest.mark.parametrize("draft", ["", SEGMENT_ANSWER + ANSWER_END, "It is", "It is there.", "[SEG] no water"])
def test_a_draft_changes_nothing(finder: GeoPixel, draft: str) -> None:
    prompts = [SEGMENT_PROMPT.format("road"), "two ships?"]
    expected = finder.ask(IMAGES[:1], prompts)[0]
    for answer, plain in zip(finder.ask(IMAGES[:1], prompts, draft=draft)[0], expected, strict=True):
        same(answer, plain)


def test_segment_asks_the_referring_question(finder: GeoPixel) -> None:
    asked = finder.ask(IMAGES[:1], [SEGMENT_PROMPT.format("road")], max_new_tokens=SEGMENT_TOKENS)[0][0]
    same(finder.segment(IMAGES[:1], ["road"])[0][0], asked)


def test_phrases_and_masks_of_a_description() -> None:
    answer = taught("a <p> tank </p> [SEG]").ask(IMAGES[:1], ["two ships?"])[0][0]
    assert answer.text == "a <p> tank </p> [SEG]"
    assert answer.phrases == ["tank"]
    assert len(answer.logits) == 1


def test_a_prompt_list_for_each_image(finder: GeoPixel) -> None:
    rows = finder.segment(IMAGES, [["tank", "road"], ["two ships"]])
    assert [len(row) for row in rows] == [2, 1]
    for picture, concepts, row in zip(IMAGES, [["tank", "road"], ["two ships"]], rows, strict=True):
        for answer, alone in zip(row, finder.segment([picture], concepts)[0], strict=True):
            same(answer, alone)


def test_images_in_one_batch_are_answered_as_if_alone(finder: GeoPixel) -> None:
    """Of different sizes, hence of different lengths; where one has no mask, too."""
    batched = taught(SEGMENT_ANSWER)
    batched.batch_size = 3
    pictures = [*IMAGES, image(30, 90, 3)]
    for row, alone in zip(batched.segment(pictures, ["tank", "road"]), finder.segment(pictures, ["tank", "road"]), strict=True):
        for answer, expected in zip(row, alone, strict=True):
            same(answer, expected)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = taught(SEGMENT_ANSWER)
    model.batch_size = 8
    tried: list[int] = []
    vision = model.network.vision.forward

    def narrow(crops: torch.Tensor, grids: list[tuple[int, int]]) -> list[torch.Tensor]:
        tried.append(len(grids))
        if len(grids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return vision(crops, grids)

    pictures = [image(20, 30, seed) for seed in range(5)]
    expected = model.segment(pictures, ["road"])
    monkeypatch.setattr(model.network.vision, "forward", narrow)
    for row, fitting in zip(model.segment(pictures, ["road"]), expected, strict=True):
        same(row[0], fitting[0])
    assert tried == [5, 2, 1, 1, 1, 1, 1]
    assert model.batch_size == 1

    def full(*_: object) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.network.vision, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        model.segment(pictures, ["road"])


def test_history_comes_before_the_prompt(finder: GeoPixel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of mbzuai-oryx/GeoPixel: every turn as it was, then the question."""
    asked: list[list[int]] = []
    answer = generation.answer

    def listening(*arguments: Any, **named: Any) -> list[list[generation.Answer]]:
        asked.extend(arguments[3][0])
        return answer(*arguments, **named)

    monkeypatch.setattr(generation, "answer", listening)
    finder.ask(IMAGES[:1], ["the road?"], history=[("a tank?", "It is [SEG].")])
    start, middle, end = "[UNUSED_TOKEN_146]user\n", "[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n", "[UNUSED_TOKEN_145]"
    assert tokenizer().decode(asked[0]) == tokenizer().decode(
        tokenizer().encode(f"{start}a tank?{middle}It is [SEG].{end}\n{start}the road?{middle}")
    )


def test_describe_asks_for_phrases_with_masks() -> None:
    model = taught("a <p> tank </p> [SEG]")
    described = model.describe(IMAGES, max_new_tokens=20)
    assert [answer.phrases for answer in described] == [["tank"], ["tank"]]
    same(described[0], model.ask(IMAGES[:1], [DESCRIBE_PROMPT], max_new_tokens=20)[0][0])


def test_presence_is_the_probability_of_yes(finder: GeoPixel) -> None:
    """Oracle: the whole sequence in one forward, nothing shared."""
    concepts = ["tank", "two ships at the pier"]
    found = finder.presence(IMAGES, concepts)
    assert found.shape == (2, 2)
    assert found.dtype == np.float32
    network, words = finder.network, tokenizer()
    for picture, row in zip(IMAGES, found, strict=True):
        crops, grid = processor.clip_crops(picture, finder.config.hd_num, finder.config.vision.crop_size)
        for concept, probability in zip(concepts, row, strict=True):
            ids = words.encode(USER + PRESENCE_PROMPT.format(concept) + ASSISTANT)
            start, text = network.language.tok_embeddings(torch.tensor([words.bos])), network.language.tok_embeddings(torch.tensor(ids))
            x = torch.cat([start, network.vision(crops, [grid])[0], text])[None]
            place = torch.arange(x.shape[1])[None]
            hidden = network.language(x, image_mask=(place > 0) & (place < x.shape[1] - len(ids)))
            yes, no = network.language.output(hidden[0, -1])[[words.encode("Yes")[0], words.encode("No")[0]]]
            assert probability == pytest.approx(float((yes - no).sigmoid()), abs=1e-4)


def test_beyond_the_positions_of_dynamic_scaling_the_answer_is_the_slow_one(caplog: pytest.LogCaptureFixture) -> None:
    """A cache refuses there (see test_language.py); ask says that it is slow, and answers as the forward over the whole sequence does."""
    limit = 1 + CONFIG.image_tokens(2, 2) + 30
    scaled = replace(CONFIG, language=replace(CONFIG.language, rope_factor=2.0, max_positions=limit))
    made = network(config=scaled)
    model = GeoPixel(made, tokenizer(), "scaled")
    short = len(tokenizer().encode(USER + "road" + ASSISTANT))
    model.ask([image(40, 40)], ["road"], max_new_tokens=30 - short)
    assert not caplog.records
    answer = model.ask([image(40, 40)], ["road"], max_new_tokens=40)[0][0]
    assert "dynamic NTK" in caplog.text
    crops, grid = processor.clip_crops(image(40, 40), scaled.hd_num, scaled.vision.crop_size)
    prefix = torch.cat([made.language.tok_embeddings(torch.tensor([tokenizer().bos])), made.vision(crops, [grid])[0]])
    ids = tokenizer().encode(USER + "road" + ASSISTANT)
    given: list[int] = []
    for _ in range(40):
        x = torch.cat([prefix, made.language.tok_embeddings(torch.tensor(ids + given))])[None]
        place = torch.arange(x.shape[1])[None]
        given.append(int(made.language.output(made.language(x, image_mask=(place > 0) & (place < len(prefix)))[0, -1]).argmax()))
        if given[-1] == tokenizer().eos:
            break
    assert answer.text == tokenizer().decode(given, skip_special=True).replace(ANSWER_END, "").strip()


def test_nothing_found_has_no_masks() -> None:
    answer = taught("no water").segment(IMAGES[:1], ["tank"])[0][0]
    assert answer.text == "no water"
    assert answer.logits.shape == (0, SIZE, SIZE)
    assert answer.scores.shape == answer.object_scores.shape == (0,)
    assert answer.masks.shape == (0, *IMAGES[0].shape[:2])


def test_an_answer_cut_off_at_its_mask_has_it(finder: GeoPixel) -> None:
    limit = len(tokenizer().encode("It is [SEG]"))
    answer = finder.ask(IMAGES[:1], ["road"], max_new_tokens=limit)[0][0]
    assert answer.text == "It is [SEG]"
    np.testing.assert_allclose(answer.logits, finder.ask(IMAGES[:1], ["road"])[0][0].logits, atol=1e-3, rtol=1e-3)
    assert len(finder.ask(IMAGES[:1], ["road"], max_new_tokens=limit - 1)[0][0].logits) == 0


def test_bfloat16(finder: GeoPixel) -> None:
    made = network()
    made.load_state_dict(finder.network.state_dict())
    answer = GeoPixel(made.bfloat16(), tokenizer(), "half").segment(IMAGES[:1], ["road"])[0][0]
    assert answer.text == "It is [SEG] ."
    assert answer.logits.dtype == np.float32
    assert np.isfinite(answer.masks).all()


@pytest.mark.parametrize(
    ("images", "prompts", "named"),
    [
        ([], ["road"], "at least one image"),
        (IMAGES, [], r"prompts .* got \[\]"),
        (IMAGES, ["road", " \n"], r"prompts .* got \['road', ' \\n'\]"),
        ([IMAGES[0].astype(np.float32)], ["road"], "uint8 .* got float32"),
        ([IMAGES[0], IMAGES[0][..., 0]], ["road"], r"got uint8 \(40, 60\)"),
        ([IMAGES[0].transpose(2, 0, 1)], ["road"], r"got uint8 \(3, 40, 60\)"),
        (["scene.png"], ["road"], "got str"),
        (IMAGES, "road", "prompts must be a list, got the string 'road'"),
        (IMAGES, [["road"]], r"one for each of 2, got \[\['road'\]\]"),
        (IMAGES, [["road"], []], r"got \[\['road'\], \[\]\]"),
        (IMAGES, ["road", ["tank"]], r"got \['road', \['tank'\]\]"),
        (IMAGES, ["road", ["tank"], ["tree"]], r"got \['road', \['tank'\], \['tree'\]\]"),
        (IMAGES, ["road", None], r"got \['road', None\]"),
        (IMAGES, ["road\udcff"], "surrogates not allowed"),
    ],
    ids=["no images", "no prompts", "empty prompt", "float image", "grey image", "bands first", "path", "string", "too few", "none for one", "mixed",
         "mixed, as many as images", "nothing", "half a character"],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(finder: GeoPixel, images: list[Any], prompts: list[str], named: str) -> None:
    for method in (finder.ask, finder.segment, finder.presence):
        with pytest.raises(ValueError, match=named):
            method(images, prompts)


def test_what_does_not_fit_the_context_is_refused(finder: GeoPixel) -> None:
    wide = image(100, 1000)
    rows, columns = 4, 35
    prompt = tokenizer().encode("[UNUSED_TOKEN_146]user\nroad" + ASSISTANT)
    tokens = 1 + CONFIG.image_tokens(rows, columns) + len(prompt) + 20
    with pytest.raises(ValueError, match=f"fit {CONFIG.max_length} tokens, got {tokens} for {rows} x {columns} crops"):
        finder.ask([wide], ["road"], max_new_tokens=20)
    with pytest.raises(ValueError, match="an answer of 500"):
        finder.ask(IMAGES[:1], ["road"], max_new_tokens=500)

    config = CONFIG.image_tokens(1, 1)
    exact = replace(finder.config, hd_num=1, max_length=1 + config + len(prompt) + 20)
    made = network(config=exact)
    small = image(20, 20)
    GeoPixel(made, tokenizer(), "exact").ask([small], ["road"], max_new_tokens=20)
    with pytest.raises(ValueError, match="an answer of 21"):
        GeoPixel(made, tokenizer(), "exact").ask([small], ["road"], max_new_tokens=21)


def test_an_answer_has_at_least_one_token(finder: GeoPixel) -> None:
    with pytest.raises(ValueError, match="max_new_tokens .* got 0"):
        finder.ask(IMAGES[:1], ["road"], max_new_tokens=0)


def test_from_pretrained(finder: GeoPixel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, finder.network, tokenizer_model(), torch.float32)
    loaded = GeoPixel.from_pretrained(str(tmp_path), device="cpu")
    assert (loaded.name, loaded.device.type, loaded.dtype) == (str(tmp_path), "cpu", torch.float32)
    assert GeoPixel.from_pretrained(str(tmp_path), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert read_model_config(str(tmp_path)) == loaded.config == finder.config
    same(loaded.segment(IMAGES[:1], ["road"])[0][0], finder.segment(IMAGES[:1], ["road"])[0][0])
    assert loaded.attention == "sdpa"
    assert GeoPixel.from_pretrained(str(tmp_path), device="cpu", attention="math").attention == "math"
    for wrong in ({"dtype": "float"}, {"attention": "flash"}, {"attention": "flash_attention_2"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            GeoPixel.from_pretrained(str(tmp_path), device="cpu", **wrong)


@pytest.mark.parametrize("name", ["nano2", "no/such/folder", "owner/no such model"])
def test_unknown_models_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"unknown model {name!r}.*nano"):
        find_model(name)
    with pytest.raises(CheckpointError):
        GeoPixel.from_pretrained(name)
    with pytest.raises(CheckpointError):
        read_model_config(name)


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="'nobody/nothing-like-it' is neither a folder nor"):
        GeoPixel.from_pretrained("nobody/nothing-like-it")


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        GeoPixel.from_pretrained(str(tmp_path))
