"""Parity with the published model: numbers recorded by running its code (<goldens>/FORMAT.md), for a set named by GEOPIXEL_GOLDENS or the
shared one. Sizes, seeds and ids are the set's own (spec.json). Tolerances are those of FORMAT.md, section 6.

Left out: the training transform (`train_*`), which is not built, and the sticky NTK base, which is deliberately not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from geopixel.model import generation, losses, processor
from geopixel.model.checkpoint import load_network, read_tokenizer, rename
from geopixel.model.config import GeoPixelConfig, GroundingConfig, LanguageConfig, VisionConfig, crop_grid, published_config
from geopixel.model.geopixel import GeoPixel
from geopixel.model.grounding import ImageFeatures, upsample
from geopixel.model.language import PADDING, PREFIX, KeyValueCache, rotary_frequencies
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, PHRASE, PHRASE_END, USER, Tokenizer

from .recipe import image, normal
from .tiny import PUBLISHED


@dataclass(frozen=True)
class Goldens:
    """A set of goldens and the network it was recorded from."""

    folder: Path
    spec: dict[str, Any]
    config: Callable[..., GeoPixelConfig]
    """Of a rope's name, and of fields of GeoPixelConfig."""
    network: Callable[[GeoPixelConfig], GeoPixelNetwork]

    @property
    def seed(self) -> int:
        return int(self.spec["seed"])

    def arrays(self, name: str) -> Any:
        return np.load(self.folder / f"{name}.npz")

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def goldens(request: pytest.FixtureRequest) -> Goldens:
    named = os.environ.get("GEOPIXEL_GOLDENS")
    folder = Path(named) if named else request.getfixturevalue("shared") / "goldens"
    if not (folder / "spec.json").is_file():
        pytest.skip(f"no goldens at {folder}; set GEOPIXEL_GOLDENS")
    spec = json.loads((folder / "spec.json").read_text())

    def config(rope: str, **fields: Any) -> GeoPixelConfig:
        lm, clip, sam2, choice = spec["lm"], spec["clip"], spec["sam2"]["dims"], spec["ropes"][rope]
        language = LanguageConfig(
            lm["vocab_size"],
            lm["hidden_size"],
            lm["intermediate_size"],
            lm["num_hidden_layers"],
            lm["num_attention_heads"],
            lm["num_key_value_heads"],
            lm["rms_norm_eps"],
            lm["rope_theta"],
            (choice["rope_scaling"] or {}).get("factor"),
            choice["max_position_embeddings"],
        )
        vision = VisionConfig(
            clip["hidden_size"],
            clip["intermediate_size"],
            clip["num_hidden_layers"],
            clip["num_attention_heads"],
            clip["image_size"],
            clip["patch_size"],
            clip["layer_norm_eps"],
        )
        grounding = GroundingConfig(sam2["embed_dim"], sam2["num_heads"], tuple(sam2["stages"]), tuple(sam2["global_att_blocks"]), hidden_size=sam2["d_model"])
        return GeoPixelConfig(language, vision, grounding, max_length=spec["max_length"], **fields)

    @cache
    def network(wanted: GeoPixelConfig) -> GeoPixelNetwork:
        return load_network(folder, wanted, torch.float32, torch.device("cpu"))

    return Goldens(folder, spec, config, network)


@pytest.fixture(scope="module")
def network(goldens: Goldens) -> GeoPixelNetwork:
    return goldens.network(goldens.config("none"))


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def check(actual: Tensor | np.ndarray, stored: Any, key: str, relative: float = 1e-4, absolute: float = 0.0) -> None:
    """The whole array, its sampled rows or its sampled elements, whichever the file holds, to max |d| <= relative * std + absolute."""
    array = np.asarray(actual)
    if f"{key}__shape" in stored:
        assert array.shape == tuple(stored[f"{key}__shape"])
        _, mean, spread, *_ = stored[f"{key}__stats"]
        np.testing.assert_allclose(array.mean(dtype=np.float64), mean, atol=relative * spread + absolute, rtol=0)
        array = array[stored[f"{key}__rows"]] if f"{key}__rows" in stored else array.reshape(-1)[stored[f"{key}__idx"]]
        expected = stored[f"{key}__val"]
    else:
        expected = stored[key]
        # One number alone has no spread: its own size stands for it.
        spread = expected.std() if expected.size > 1 else np.abs(expected).max()
    assert array.shape == expected.shape
    np.testing.assert_allclose(array, expected, atol=relative * spread + absolute, rtol=0)


def check_bits(logits: Tensor | np.ndarray, bits: np.ndarray) -> None:
    """Masks (N, height, width) against packed bits: 99.99 % of the pixels equal, and IoU above 0.9995 each."""
    mask = np.asarray(logits) > 0
    expected = np.unpackbits(bits, count=mask.size).reshape(mask.shape).astype(bool)
    assert (mask == expected).mean() >= 0.9999
    assert ((mask & expected).sum((1, 2)) >= 0.9995 * (mask | expected).sum((1, 2))).all()


# Pixels


def test_pixels(goldens: Goldens) -> None:
    stored, config = goldens.arrays("preprocess"), goldens.config("none")
    size = config.vision.crop_size
    cases = [case for case in goldens.json("preprocess") if not case["key"].startswith("train")]
    for width, height in sorted({(case["width"], case["height"]) for case in cases}):
        picture = image(goldens.spec["image_seed"], width, height)
        pixels = processor.sam_pixels(picture, config.grounding.image_size)
        check(pixels, stored, f"sam_{width}x{height}", 0, 1e-5)
        if f"sam_{width}x{height}_first64" in stored:
            check(pixels[:, :64, :64], stored, f"sam_{width}x{height}_first64", 0, 1e-5)
        for case in cases:
            if (case["width"], case["height"]) == (width, height):
                key, grid = case["key"], (case["grid_h"], case["grid_w"])
                assert crop_grid(width, height, case["hd_num"], size) == grid, key
                assert config.image_tokens(*grid) == case["tokens"], key
                fitted = processor.fit_to_crops(picture, case["hd_num"], size)
                assert fitted.shape == (case["out_h"], case["out_w"], 3), key
                np.testing.assert_array_equal(fitted.sum((1, 2), dtype=np.int64), stored[f"{key}_rowsum"], key)
                np.testing.assert_array_equal(fitted.sum((0, 2), dtype=np.int64), stored[f"{key}_colsum"], key)
                np.testing.assert_array_equal(fitted.reshape(-1)[stored[f"{key}_u8__idx"]], stored[f"{key}_u8__val"], key)
                if grid[0] * grid[1] <= 9:  # more would only take long
                    check(processor.normalise(fitted, processor.CLIP_MEAN, processor.CLIP_STD), stored, f"{key}_chw", 0, 1e-6)


def crops_of(goldens: Goldens, name: str, rows: int, columns: int) -> Tensor:
    """Crops of a normalised picture, global view first: what clip_crops gives for an image."""
    size = goldens.config("none").vision.crop_size
    pixels = torch.from_numpy(normal(goldens.seed, f"vision_{name}", (1, 3, size * rows, size * columns)))
    view = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False)
    local = pixels.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([view, local])


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2)], ids=str)
def test_vision(goldens: Goldens, network: GeoPixelNetwork, grid: tuple[int, int]) -> None:
    stored, name = goldens.arrays("vision"), f"v{grid[0]}x{grid[1]}"
    if f"{name}_len" not in stored:
        pytest.skip(f"the set has no {name}")
    crops = crops_of(goldens, name, *grid)
    check(crops[:1], stored, f"{name}_global_view")
    arranged = network.vision.arrange(network.vision.features(crops), *grid)
    check(arranged, stored, f"{name}_vit")
    assert len(arranged) == goldens.config("none").image_tokens(*grid) == stored[f"{name}_len"]
    check(network.vision(crops, [grid])[0], stored, f"{name}_proj")


def test_vision_of_two_images(goldens: Goldens, network: GeoPixelNetwork) -> None:
    stored = goldens.arrays("vision")
    crops = torch.cat([crops_of(goldens, "two_0", 1, 1), crops_of(goldens, "two_1", 1, 2)])
    first, second = network.vision.features(crops).split([2, 3])
    check(torch.cat([network.vision.arrange(first, 1, 1), network.vision.arrange(second, 1, 2)]), stored, "two_vit")
    assert [len(tokens) for tokens in network.vision(crops, [(1, 1), (1, 2)])] == list(stored["two_len"])


# Words


@pytest.mark.parametrize("variant", ["tokenizer", "tokenizer_dummy_prefix"])
def test_tokenizer(goldens: Goldens, variant: str) -> None:
    recorded, ids = goldens.json("tokenizer_goldens"), goldens.spec["token_ids"]
    tokenizer = Tokenizer.from_file(goldens.folder / f"{variant}.model")
    assert tokenizer.vocab_size == recorded["len"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.seg) == (recorded["bos"], recorded["eos"], ids["seg"])
    assert [tokenizer.encode(marker)[-1] for marker in (PHRASE, PHRASE_END, ANSWER_END)] == [ids["bop"], ids["eop"], ids["eoa"]]
    for case in recorded["models"][variant]["encode"]:
        assert tokenizer.encode(case["text"]) == case["chat"]
        assert [tokenizer.bos, *tokenizer.encode(case["text"])] == case["ids_bos"]
        assert tokenizer.decode(case["chat"]) == case["decode"]
        assert tokenizer.decode(case["chat"], skip_special=True) == case["decode_skip"]
        assert tokenizer.decode(case["ids_bos"], skip_special=True) == case["decode_bos_skip"]
    for case in recorded["models"][variant]["decode"]:
        assert tokenizer.decode(case["ids"]) == case["decode"]
        assert tokenizer.decode(case["ids"], skip_special=True) == case["decode_skip"]


# Language model


def inputs(stored: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(stored["inputs_embeds"]), torch.from_numpy(stored["im_mask"])


def test_language_with_every_rope(goldens: Goldens) -> None:
    stored = goldens.arrays("lm")
    x, image_mask = inputs(stored)
    ropes = [rope for rope in goldens.spec["ropes"] if f"{rope}_logits" in stored]
    assert ropes
    for rope in ropes:
        language = goldens.network(goldens.config(rope)).language
        hidden = language(x, image_mask=image_mask)
        check(hidden, stored, f"{rope}_last_hidden")
        check(language.output(hidden), stored, f"{rope}_logits")
        check(rotary_frequencies(language.config, x.shape[1], x.device), stored, f"{rope}_inv_freq", 0, 1e-6)
        if f"{rope}_len48_logits" in stored:
            check(language.output(language(x[:, :48], image_mask=image_mask[:, :48])), stored, f"{rope}_len48_logits")
        if f"{rope}_len160_logits__val" in stored:
            longer = torch.from_numpy(normal(goldens.seed, "lm_embeds_big", (1, 160, x.shape[2]), 0.7))
            check(language.output(language(longer)), stored, f"{rope}_len160_logits")


def test_language_without_image_tokens(goldens: Goldens, network: GeoPixelNetwork) -> None:
    stored = goldens.arrays("lm")
    x, image_mask = inputs(stored)
    for mask in (None, torch.zeros_like(image_mask)):
        check(network.language.output(network.language(x, image_mask=mask)), stored, "textonly_logits")


def test_language_with_a_cache(goldens: Goldens, network: GeoPixelNetwork) -> None:
    stored, language = goldens.arrays("lm"), network.language
    x, image_mask = inputs(stored)
    length = x.shape[1]
    cache = KeyValueCache(language.config, 1, length, x.dtype, x.device)
    hidden = []
    for start, end in ((0, 40), (40, 41), (41, 80), (80, length)):
        positions = torch.arange(start, end)[None]
        hidden.append(
            language(x[:, start:end], image_mask=image_mask[:, start:end], segments=torch.full_like(positions, PREFIX), positions=positions, cache=cache)
        )
    check(language.output(torch.cat(hidden, 1)), stored, "none_logits")


def test_language_with_padding(goldens: Goldens, network: GeoPixelNetwork) -> None:
    stored = goldens.arrays("lm")
    x, image_mask, real = (torch.from_numpy(stored[key]) for key in ("b2_embeds", "b2_im_mask", "b2_attention_mask"))
    real = real.bool()
    assert not real.all()
    segments = torch.where(real, PREFIX, PADDING)
    positions = torch.arange(x.shape[1]).expand(segments.shape)
    logits = network.language.output(network.language(x, image_mask=image_mask, segments=segments, positions=positions))
    expected = stored["b2_logits"][real.numpy()]
    np.testing.assert_allclose(logits[real], expected, atol=1e-4 * expected.std(), rtol=0)


# Masks


@pytest.fixture(scope="module")
def features(goldens: Goldens, network: GeoPixelNetwork) -> ImageFeatures:
    picture = image(*map(int, goldens.arrays("grounding")["image_seed_w_h"]))
    with torch.no_grad():
        return network.grounding.encode(processor.sam_pixels(picture, network.config.grounding.image_size)[None])


def test_image_features(goldens: Goldens, features: ImageFeatures) -> None:
    stored = goldens.arrays("grounding")
    check(features.embedding, stored, "image_embed")
    check(features.fine[0], stored, "high_res_0")
    check(features.fine[1], stored, "high_res_1")


@pytest.mark.parametrize("count", [1, 3])
def test_masks(goldens: Goldens, network: GeoPixelNetwork, features: ImageFeatures, count: int) -> None:
    stored, name = goldens.arrays("grounding"), f"n{count}"
    prompts = torch.from_numpy(stored[f"{name}_seg"])
    masks = network.grounding.decode(features, prompts[None])
    check(masks.logits[:, None], stored, f"{name}_low_res_masks")
    check(masks.scores[:, None], stored, f"{name}_iou")
    check(masks.object_scores[:, None], stored, f"{name}_obj_score")
    full = upsample(masks.logits, *stored["orig_hw"])
    check(full[:, None], stored, f"{name}_post")
    check_bits(full, stored[f"{name}_post_bits"])


@pytest.mark.parametrize("count", [1, 3])
def test_masks_while_training(goldens: Goldens, network: GeoPixelNetwork, features: ImageFeatures, count: int) -> None:
    """Mask 0 whatever its stability: in train mode, and where the configuration switches the fallback off."""
    stored, name = goldens.arrays("grounding"), f"n{count}"
    prompts = torch.from_numpy(stored[f"{name}_seg"])
    config = network.config
    steady = goldens.network(replace(config, grounding=replace(config.grounding, multimask_fallback=False))).grounding
    check(steady.decode(features, prompts[None]).logits[:, None], stored, f"{name}_trainmode_low_res")
    network.grounding.sam2.mask_decoder.train()
    try:
        check(network.grounding.decode(features, prompts[None]).logits[:, None], stored, f"{name}_trainmode_low_res")
    finally:
        network.eval()


def test_fallback_masks(goldens: Goldens, network: GeoPixelNetwork) -> None:
    """Both branches of the fallback, and an empty mask, on numbers made for it."""
    stored = goldens.arrays("grounding")
    masks, scores = (torch.from_numpy(stored[f"dyn_in_{kind}"])[:, None] for kind in ("masks", "iou"))
    chosen, expected = network.grounding.sam2.mask_decoder._dynamic_multimask_via_stability(masks, scores)
    check(chosen[:, 0], stored, "dyn_out_masks")
    check(expected[:, 0], stored, "dyn_out_iou")


def test_mask_prompts(goldens: Goldens, network: GeoPixelNetwork) -> None:
    stored = goldens.arrays("grounding")
    check(network.mask_prompts(torch.from_numpy(stored["fcs_in"])), stored, "fcs_out")


# Losses


def test_losses(goldens: Goldens) -> None:
    unit = goldens.json("train_step")["unit"]
    shape = (3, 20, 30)
    logits = torch.from_numpy(normal(goldens.seed, "loss_pred", shape, 3.0))
    target = torch.from_numpy(normal(goldens.seed, "loss_gt", shape) > 0.5)
    dice, bce = (loss(logits, target).item() / len(logits) for loss in (losses.dice_loss, losses.bce_loss))
    assert (dice, bce) == pytest.approx((unit["dice"], unit["bce"]), rel=1e-6)
    weights = goldens.spec["loss_weights"]
    assert weights["ce"] == losses.CE_WEIGHT
    assert losses.mask_loss(logits, target).item() == pytest.approx(weights["dice"] * unit["dice"] + weights["bce"] * unit["bce"], rel=1e-6)


# Whole answers


@dataclass(frozen=True)
class Case:
    """A recorded answer and what ours needs to give it."""

    recorded: dict[str, Any]
    config: GeoPixelConfig
    network: GeoPixelNetwork
    tokenizer: Tokenizer
    stored: Any

    @property
    def ids(self) -> list[int]:
        """Generated ids; the recorded sequence begins with <s>."""
        return list(self.recorded["sequences"][1:])

    @property
    def picture(self) -> np.ndarray:
        return image(**self.recorded["image"])

    def check(self, actual: Tensor | np.ndarray, name: str) -> None:
        check(actual, self.stored, f"{self.recorded['id']}_{name}", 1e-3)

    def check_inputs(self, embeddings: Tensor, image_mask: Tensor) -> None:
        """embeddings (1, tokens, hidden) of image and prompt; image_mask (1, tokens of the prefix)."""
        self.check(embeddings, "inputs_embeds")
        mask = F.pad(image_mask[0], (1, embeddings.shape[1] - image_mask.shape[1] + 1)).int()
        np.testing.assert_array_equal(torch.nonzero(mask.diff())[:, 0], self.stored[f"{self.recorded['id']}_im_mask_runs"])

    def check_states(self, states: Tensor) -> None:
        """States (N, hidden) at [SEG]; of an answer cut off at its [SEG], the published code lost the last."""
        lost = self.ids[-1] == self.tokenizer.seg
        assert len(states) == self.ids.count(self.tokenizer.seg) == len(self.stored[f"{self.recorded['id']}_pred_embeddings"]) + lost
        self.check(self.network.mask_prompts(states[: len(states) - lost])[:, None], "pred_embeddings")


def cases(goldens: Goldens, wanted: Callable[[dict[str, Any], bool], bool]) -> list[Case]:
    """The recorded answers for which wanted(case, dynamic NTK was active) holds; skips the test where there are none."""
    stored, tokenizer = goldens.arrays("evaluate"), read_tokenizer(goldens.folder)
    found = []
    for recorded in goldens.json("evaluate"):
        config = goldens.config(recorded["rope"], hd_num=recorded["hd_num"])
        length = recorded["prompt_len"] + len(recorded["sequences"]) - 2  # neither the placeholder <s> nor the last token is fed
        active = config.language.rope_factor is not None and length > config.language.max_positions
        if wanted(recorded, active):
            found.append(Case(recorded, config, goldens.network(config), tokenizer, stored))
    if not found:
        pytest.skip("the set has no such answer")
    return found


def about_an_image(recorded: dict[str, Any]) -> bool:
    """The one kind of question that GeoPixel.ask has: the image first, then the prompt."""
    return bool(recorded["image"]) and not recorded["history"] and "<ImageHere>" not in recorded["query"]


def test_answers(goldens: Goldens, monkeypatch: pytest.MonkeyPatch) -> None:
    """GeoPixel.ask gives the recorded ids, words and masks; an answer cut off at its [SEG] has that mask too."""
    calls: list[tuple[tuple[Any, ...], list[generation.Answer]]] = []
    answer = generation.answer

    def listening(*arguments: Any, **named: Any) -> list[generation.Answer]:
        calls.append((arguments, answer(*arguments, **named)))
        return calls[-1][1]

    monkeypatch.setattr(generation, "answer", listening)
    for case in cases(goldens, lambda recorded, active: about_an_image(recorded) and not active):
        recorded, name = case.recorded, case.recorded["id"]
        model = GeoPixel(case.network, case.tokenizer, name)
        said = model.ask([case.picture], [recorded["query"]], max_new_tokens=recorded["max_new_tokens"])[0][0]
        (language, prefix, image_mask, prompts), (generated,) = calls.pop()
        case.check_inputs(torch.cat([prefix, language.tok_embeddings(torch.tensor(prompts))], 1), image_mask)
        assert generated.ids == case.ids
        case.check_states(generated.states)
        assert case.tokenizer.decode(generated.ids, skip_special=True).replace(ANSWER_END, "") == recorded["response"]
        assert said.text == recorded["response"].strip()

        kept = len(case.stored[f"{name}_low_res_masks"])
        assert len(said.logits) == recorded["n_seg_in_output"] == kept + (case.ids[-1] == case.tokenizer.seg)
        case.check(said.logits[:kept, None], "low_res_masks")
        case.check(said.scores[:kept, None], "iou")
        case.check(said.object_scores[:kept, None], "obj")
        full = upsample(torch.from_numpy(said.logits[:kept]), said.height, said.width)
        assert list(full.shape) == recorded["masks_shape"]
        case.check(full, "masks")
        check_bits(full, case.stored[f"{name}_masks_bits"])
        np.testing.assert_allclose(said.masks[:kept], full.sigmoid(), atol=1e-6)


def prefix_of(case: Case) -> tuple[Tensor, Tensor, list[int]]:
    """Embeddings and image mask up to the image's last token, and the prompt after it: past turns, and <ImageHere> within the prompt."""
    turns = "".join(USER + question + ASSISTANT + answer + ANSWER_END + "\n" for question, answer in case.recorded["history"])
    text = turns + USER + case.recorded["query"] + ASSISTANT
    before, found, after = text.partition("<ImageHere>")
    if not found:
        before, after = "", text
    words = case.network.language.tok_embeddings(torch.tensor([case.tokenizer.bos, *case.tokenizer.encode(before)]))
    tokens = words.new_zeros((0, words.shape[1]))
    if case.recorded["image"]:
        crops, grid = processor.clip_crops(case.picture, case.config.hd_num, case.config.vision.crop_size)
        tokens = case.network.vision(crops, [grid])[0]
    image_mask = torch.arange(len(words) + len(tokens)) >= len(words)
    return torch.cat([words, tokens])[None], image_mask[None], case.tokenizer.encode(after)


def test_answers_to_other_prompts(goldens: Goldens) -> None:
    """Without an image, or with past turns before it: what GeoPixel.ask does not offer, and its parts can do."""
    for case in cases(goldens, lambda recorded, active: not about_an_image(recorded) and not active):
        prefix, image_mask, prompt = prefix_of(case)
        case.check_inputs(torch.cat([prefix, case.network.language.tok_embeddings(torch.tensor([prompt]))], 1), image_mask)
        generated = generation.answer(
            case.network.language,
            prefix,
            image_mask,
            [prompt],
            eos=case.tokenizer.eos,
            mask_token=case.tokenizer.seg,
            max_new_tokens=case.recorded["max_new_tokens"],
        )[0]
        assert generated.ids == case.ids
        assert case.tokenizer.decode(generated.ids, skip_special=True).replace(ANSWER_END, "") == case.recorded["response"]
        if case.recorded["masks_shape"]:
            case.check_states(generated.states)


def test_answers_beyond_the_cache(goldens: Goldens) -> None:
    """Where dynamic NTK is active no cache can be exact: ask says so, and the forward over the whole answer is the recorded one."""
    for case in cases(goldens, lambda recorded, active: about_an_image(recorded) and active):
        with pytest.raises(ValueError, match=f"max_positions = {case.config.language.max_positions}"):
            GeoPixel(case.network, case.tokenizer, "golden").ask([case.picture], [case.recorded["query"]])
        prefix, image_mask, prompt = prefix_of(case)
        words = case.network.language.tok_embeddings(torch.tensor([prompt + case.ids[:-1]]))
        hidden = case.network.language(torch.cat([prefix, words], 1), image_mask=F.pad(image_mask, (0, words.shape[1])))
        tail = hidden[0, -len(case.ids) :]
        case.check(tail, "last_hidden_tail")
        assert int(case.network.language.output(tail[-1]).argmax()) == case.ids[-1]


# Checkpoint


def test_every_published_key_has_its_place(goldens: Goldens) -> None:
    """The full-size published checkpoint: every key is renamed to one of the network's, of the same shape, or dropped by name; none is missing."""
    if not (goldens.folder / "state_dict_full.json").is_file():
        pytest.skip("the set has no state_dict_full.json")
    published = goldens.json("state_dict_full")["shapes"]
    values = PUBLISHED | {
        "vocab_size": published["model.tok_embeddings.weight"][0],
        "hidden_size": published["model.tok_embeddings.weight"][1],
        "intermediate_size": published["model.layers.0.feed_forward.w1.weight"][0],
        "num_hidden_layers": 1 + max(int(key.split(".")[2]) for key in published if key.startswith("model.layers.")),
    }
    with torch.device("meta"):
        wanted = {key: [size for size in tensor.shape if size > 1] for key, tensor in GeoPixelNetwork(published_config(values)).state_dict().items()}
    found = {name: [size for size in shape if size > 1] for key, shape in published.items() if (name := rename(key)) is not None}
    assert found == wanted
    dropped = [key for key in published if rename(key) is None]
    assert len(found) + len(dropped) == len(published)
