"""Parity with the published model: numbers recorded by running its code, in the format of <goldens>/FORMAT.md. GEOPIXEL_GOLDENS names a set;
without it the full one of the shared data is used where it is there, and else the reduced one in tests/data/goldens, which is always there.
Every size, seed and id is the set's own (spec.json); tolerances are those of FORMAT.md, section 6.

Left out: the sticky NTK base (quirk 14 of the published code), which is deliberately not built.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from geopixel.model import generation, losses, processor, supervision
from geopixel.model.checkpoint import load_network, read_tokenizer, rename
from geopixel.model.config import GeoPixelConfig, GroundingConfig, LanguageConfig, VisionConfig, crop_grid, published_config
from geopixel.model.geopixel import GeoPixel
from geopixel.model.grounding import ImageFeatures, upsample
from geopixel.model.language import PADDING, PREFIX, KeyValueCache, rotary_frequencies
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, PHRASE, PHRASE_END, USER, Tokenizer

from .recipe import image, normal, weight
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


def find_goldens() -> Path:
    if named := os.environ.get("GEOPIXEL_GOLDENS"):
        return Path(named)
    root = Path(__file__).parents[2]
    full = Path(os.environ.get("GEOPIXEL_SHARED") or root.parent / "shared") / "goldens"
    return full if (full / "spec.json").is_file() else root / "tests" / "data" / "goldens"


def weights_of(folder: Path, seed: int, spare: Path) -> Path:
    """Where a set's model.safetensors lies whole: a reduced set (weights.json) has only those weights that the recipe does not give."""
    if not (folder / "weights.json").is_file():
        return folder
    shapes = json.loads((folder / "weights.json").read_text())
    stored = load_file(folder / "model.safetensors")
    made = {key: torch.from_numpy(weight(seed, key, tuple(shape))) for key, shape in shapes.items() if key not in stored}
    save_file(made | stored, spare / "model.safetensors")
    return spare


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Goldens:
    folder = find_goldens()
    spec = json.loads((folder / "spec.json").read_text())
    weights = weights_of(folder, int(spec["seed"]), tmp_path_factory.mktemp("weights"))

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
        return load_network(weights, wanted, torch.float32, torch.device("cpu"))

    return Goldens(folder, spec, config, network)


@pytest.fixture(scope="module")
def network(goldens: Goldens) -> GeoPixelNetwork:
    return goldens.network(goldens.config("none"))


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def holds(stored: Any, key: str) -> bool:
    """Whether the file has this array, whole or sampled."""
    return any(name in stored for name in (key, f"{key}__idx", f"{key}__rows"))


def check(actual: Tensor | np.ndarray, stored: Any, key: str, relative: float = 1e-4, absolute: float = 0.0, where: Tensor | None = None) -> None:
    """The whole array, its sampled rows or its sampled elements, whichever the file holds, to max |d| <= relative * std + absolute.
    where (rows, tokens) bool: the places that count; None: all."""
    array = np.asarray(actual)
    counts = np.ones(array.shape, bool) if where is None else np.broadcast_to(where.numpy()[:, :, None], array.shape)
    if f"{key}__shape" in stored:
        assert array.shape == tuple(stored[f"{key}__shape"]), key
        _, mean, spread, *_ = stored[f"{key}__stats"]
        if where is None:
            np.testing.assert_allclose(array.mean(dtype=np.float64), mean, atol=relative * spread + absolute, rtol=0, err_msg=key)
        rows, index = stored.get(f"{key}__rows"), stored.get(f"{key}__idx")
        array, counts = (x.reshape(-1)[index] if rows is None else x[rows] for x in (array, counts))
        expected = stored[f"{key}__val"]
    else:
        expected = stored[key]
        # One number alone has no spread: its own size stands for it.
        spread = expected.std() if expected.size > 1 else np.abs(expected).max()
    assert array.shape == expected.shape, key
    np.testing.assert_allclose(array[counts], expected[counts], atol=relative * spread + absolute, rtol=0, err_msg=key)


def check_bits(logits: Tensor | np.ndarray, stored: Any, key: str) -> None:
    """Masks (N, height, width) against packed bits, or a sample of their bytes: 99.99 % of the pixels equal, and IoU above 0.9995."""
    packed = np.packbits((np.asarray(logits) > 0).reshape(-1))
    sampled = f"{key}__idx" in stored
    ours, theirs = (packed[stored[f"{key}__idx"]], stored[f"{key}__val"]) if sampled else (packed, stored[key])
    mask, expected = (np.unpackbits(x).astype(bool) for x in (ours, theirs))
    assert (mask == expected).mean() >= 0.9999, key
    assert (mask & expected).sum() >= 0.9995 * (mask | expected).sum(), key


# Pixels


def check_fitted(fitted: np.ndarray, stored: Any, case: dict[str, Any]) -> None:
    """Row and column sums and sampled pixels, all exact."""
    key = case["key"]
    assert fitted.shape == (case["out_h"], case["out_w"], 3), key
    np.testing.assert_array_equal(fitted.sum((1, 2), dtype=np.int64), stored[f"{key}_rowsum"], key)
    if f"{key}_colsum" in stored:
        np.testing.assert_array_equal(fitted.sum((0, 2), dtype=np.int64), stored[f"{key}_colsum"], key)
    np.testing.assert_array_equal(fitted.reshape(-1)[stored[f"{key}_u8__idx"]], stored[f"{key}_u8__val"], key)


def test_grids(goldens: Goldens) -> None:
    config = goldens.config("none")
    for case in goldens.json("preprocess"):
        if not case["key"].startswith("train"):
            grid = crop_grid(case["width"], case["height"], case["hd_num"], config.vision.crop_size)
            assert grid == (case["grid_h"], case["grid_w"]), case["key"]
            assert config.image_tokens(*grid) == case["tokens"], case["key"]


def test_pixels(goldens: Goldens) -> None:
    stored, config = goldens.arrays("preprocess"), goldens.config("none")
    size = config.vision.crop_size
    cases = [case for case in goldens.json("preprocess") if holds(stored, f"{case['key']}_u8")]
    for width, height in sorted({(case["width"], case["height"]) for case in cases}):
        picture = image(goldens.spec["image_seed"], width, height)
        pixels = processor.sam_pixels(picture, config.grounding.image_size)
        name = f"sam_{width}x{height}"
        check(pixels, stored, name, 0, 1e-5)
        if holds(stored, f"{name}_first64"):
            check(pixels[:, :64, :64], stored, f"{name}_first64", 0, 1e-5)
        for case in cases:
            if (case["width"], case["height"]) != (width, height):
                continue
            if case["key"].startswith("train"):
                check_fitted(processor.fit_to_training_crops(picture, case["hd_num"], size), stored, case)
                continue
            fitted = processor.fit_to_crops(picture, case["hd_num"], size)
            check_fitted(fitted, stored, case)
            if case["grid_h"] * case["grid_w"] <= 9:  # more would only take long
                check(processor.normalise(fitted, processor.CLIP_MEAN, processor.CLIP_STD), stored, f"{case['key']}_chw", 0, 1e-6)


def crops_of(goldens: Goldens, name: str, rows: int, columns: int) -> Tensor:
    """Crops of a normalised picture, global view first: what clip_crops gives for an image."""
    size = goldens.config("none").vision.crop_size
    pixels = torch.from_numpy(normal(goldens.seed, f"vision_{name}", (1, 3, size * rows, size * columns)))
    view = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False)
    local = pixels.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([view, local])


def test_vision(goldens: Goldens, network: GeoPixelNetwork) -> None:
    stored = goldens.arrays("vision")
    names = [found for found in (re.fullmatch(r"(v(\d+)x(\d+))_len", key) for key in stored) if found]
    assert names
    for found in names:
        name, grid = found[1], (int(found[2]), int(found[3]))
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
        assert tokenizer.encode(case["text"]) == case["chat"] == case["train"]
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
    ropes = [rope for rope in goldens.spec["ropes"] if holds(stored, f"{rope}_logits")]
    assert ropes
    for rope in ropes:
        language = goldens.network(goldens.config(rope)).language
        hidden = language(x, image_mask=image_mask)
        check(hidden, stored, f"{rope}_last_hidden")
        check(language.output(hidden), stored, f"{rope}_logits")
        check(rotary_frequencies(language.config, x.shape[1], x.device), stored, f"{rope}_inv_freq", 0, 1e-6)
        if holds(stored, f"{rope}_len48_logits"):
            check(language.output(language(x[:, :48], image_mask=image_mask[:, :48])), stored, f"{rope}_len48_logits")
        if holds(stored, f"{rope}_len160_logits"):
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
    check(logits, stored, "b2_logits", where=real)
    # Padding at the end needs no mask: nothing that is real comes after it.
    check(network.language.output(network.language(x, image_mask=image_mask)), stored, "b2_logits", where=real)


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
    check_bits(full, stored, f"{name}_post_bits")


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


# Training


def test_losses(goldens: Goldens) -> None:
    unit = goldens.json("train_step")["unit"]
    shape = (3, 20, 30)
    logits = torch.from_numpy(normal(goldens.seed, "loss_pred", shape, 3.0))
    target = torch.from_numpy(normal(goldens.seed, "loss_gt", shape) > 0.5)
    dice, bce = (loss(logits, target).item() / len(logits) for loss in (losses.dice_loss, losses.bce_loss))
    assert (dice, bce) == pytest.approx((unit["dice"], unit["bce"]), rel=1e-6)
    weights = goldens.spec["loss_weights"]
    assert losses.mask_loss(logits, target).item() == pytest.approx(weights["dice"] * unit["dice"] + weights["bce"] * unit["bce"], rel=1e-6)


def test_labels(goldens: Goldens) -> None:
    tokenizer = read_tokenizer(goldens.folder)
    for case in goldens.json("train_step")["mask_human_targets"]:
        assert [tokenizer.bos, *tokenizer.encode(case["text"])] == case["ids"]
        assert supervision.answer_labels(case["ids"], tokenizer) == case["targets"], case["text"]


def training_samples(goldens: Goldens, steps: dict[str, Any], name: str) -> list[supervision.Sample]:
    """The samples of a recorded step. Where the masks of a sample lie goes by its place in the step that has them all (FORMAT.md)."""
    made = []
    for case in steps[name]["samples"]:
        seed, width, height = case["image_seed"], case["width"], case["height"]
        i = steps["b2"]["samples"].index(case)
        masks = np.zeros((case["text"].count("[SEG]"), height, width), bool)
        for j, mask in enumerate(masks):
            top, left = 40 + 97 * j + 13 * i, 60 + 131 * j
            mask[top : top + 120 + 30 * i, left : left + 150 + 20 * j] = True
        config = goldens.config("none", hd_num=case["hd_num"])
        made.append(supervision.make_sample(image(seed, width, height), case["text"], masks, read_tokenizer(goldens.folder), config))
    return made


@pytest.mark.parametrize("name", ["b1", "b1b", "b2"])
def test_training_step(goldens: Goldens, network: GeoPixelNetwork, name: str) -> None:
    """Losses, and the gradient's norm of every parameter; what no gradient reaches in the published code, none reaches here."""
    steps, stored = goldens.json("train_step"), goldens.arrays("train_step")
    if name not in steps:
        pytest.skip(f"the set has no {name}")
    recorded, seg = steps[name], goldens.spec["token_ids"]["seg"]
    samples = training_samples(goldens, steps, name)
    student = copy.deepcopy(network).train().requires_grad_(True)
    with torch.enable_grad():
        found = supervision.forward_losses(student, samples, seg=seg)
        found.total.backward()

    weights = goldens.spec["loss_weights"]
    assert found.answers.item() == pytest.approx(recorded["ce_loss"], rel=1e-5)
    assert weights["bce"] * found.bce.item() == pytest.approx(recorded["mask_bce_loss"], rel=1e-5)
    assert weights["dice"] * found.dice.item() == pytest.approx(recorded["mask_dice_loss"], rel=1e-5)
    assert found.total.item() == pytest.approx(recorded["loss"], rel=1e-5)

    gradients = {key: parameter.grad for key, parameter in student.named_parameters()}
    for key, norm in recorded["grad_norms"].items():
        ours = rename(key)
        if ours is None:
            assert norm is None, f"{key} is dropped"
        elif norm is None:
            assert gradients.pop(ours) is None, key
        else:  # a bias of keys has no gradient but rounding: softmax does not see it
            gradient = gradients.pop(ours)
            assert gradient is not None, key
            assert gradient.double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-4), key
            if f"{name}_grad_{key}" in stored:
                check(gradient.view(stored[f"{name}_grad_{key}"].shape), stored, f"{name}_grad_{key}")
    assert not gradients, "parameters that the published model does not have"


@pytest.mark.parametrize("name", ["b1", "b1b", "b2"])
def test_training_sequences(goldens: Goldens, network: GeoPixelNetwork, name: str) -> None:
    """What the language model reads and is asked for: the image, <s>, the conversation, padding; [SEG] is where it is read."""
    steps, stored = goldens.json("train_step"), goldens.arrays("train_step")
    if name not in steps:
        pytest.skip(f"the set has no {name}")
    recorded, seg = steps[name], goldens.spec["token_ids"]["seg"]
    sequences = supervision.embed(network, training_samples(goldens, steps, name))
    assert sequences.labels.shape == (len(recorded["samples"]), recorded["seq_len"])
    assert (sequences.labels != losses.IGNORED).sum() == recorded["n_labels"]
    np.testing.assert_array_equal(sequences.labels, stored[f"{name}_targets"])
    np.testing.assert_array_equal((sequences.labels == seg).nonzero(), stored[f"{name}_seg_positions"])
    np.testing.assert_array_equal(F.pad(sequences.image_mask[0].int(), (1, 1)).diff().nonzero()[:, 0], stored[f"{name}_im_mask_runs_row0"])
    check(sequences.embeddings, stored, f"{name}_inputs_embeds")
    hidden = network.language(sequences.embeddings, image_mask=sequences.image_mask)
    check(network.language.output(hidden), stored, f"{name}_logits", where=torch.from_numpy(stored[f"{name}_attention_mask"]).bool())


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
    def name(self) -> str:
        return str(self.recorded["id"])

    @property
    def ids(self) -> list[int]:
        """Generated ids; the recorded sequence begins with <s>."""
        return list(self.recorded["sequences"][1:])

    @property
    def picture(self) -> np.ndarray:
        return image(**self.recorded["image"])

    @property
    def scaled(self) -> bool:
        """Whether dynamic NTK was active. Of the sequence neither the placeholder <s> nor the last token was fed."""
        words, length = self.config.language, self.recorded["prompt_len"] + len(self.ids) - 1
        return words.rope_factor is not None and length > words.max_positions

    @property
    def lost(self) -> bool:
        """Whether the published code lost the last mask, of an answer cut off at its [SEG]. Ours has it."""
        return self.ids[-1] == self.tokenizer.seg

    def check(self, actual: Tensor | np.ndarray, name: str) -> None:
        check(actual, self.stored, f"{self.name}_{name}", 1e-3)

    def said(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=True).replace(ANSWER_END, "")

    def prefix(self) -> tuple[Tensor, Tensor, list[int]]:
        """Embeddings (tokens, hidden) and image mask (tokens,) up to the image's last token, and the prompt after it: past turns, and
        <ImageHere> within the prompt."""
        turns = "".join(USER + question + ASSISTANT + answer + ANSWER_END + "\n" for question, answer in self.recorded["history"])
        text = turns + USER + self.recorded["query"] + ASSISTANT
        before, found, after = text.partition("<ImageHere>")
        if not found:
            before, after = "", text
        words = self.network.language.tok_embeddings(torch.tensor([self.tokenizer.bos, *self.tokenizer.encode(before)]))
        tokens = words.new_zeros((0, words.shape[1]))
        if self.recorded["image"]:
            crops, grid = processor.clip_crops(self.picture, self.config.hd_num, self.config.vision.crop_size)
            tokens = self.network.vision(crops, [grid])[0]
        image_mask = torch.arange(len(words) + len(tokens)) >= len(words)
        return torch.cat([words, tokens]), image_mask, self.tokenizer.encode(after)


@pytest.fixture(scope="module")
def cases(goldens: Goldens) -> list[Case]:
    stored, tokenizer = goldens.arrays("evaluate"), read_tokenizer(goldens.folder)
    found = []
    for recorded in goldens.json("evaluate"):
        config = goldens.config(recorded["rope"], hd_num=recorded["hd_num"])
        found.append(Case(recorded, config, goldens.network(config), tokenizer, stored))
    return found


def test_answers(cases: list[Case]) -> None:
    """From the parts: what is fed, the ids, the states. With a cache, or where dynamic NTK was active without, for there no cache is exact."""
    for case in cases:
        language, ids = case.network.language, case.ids
        prefix, image_mask, prompt = case.prefix()
        fed = torch.cat([prefix, language.tok_embeddings(torch.tensor(prompt + ids[:-1]))])[None]
        asked = len(prefix) + len(prompt)
        is_image = F.pad(image_mask, (0, fed.shape[1] - len(prefix)))
        case.check(fed[:, :asked], "inputs_embeds")
        np.testing.assert_array_equal(F.pad(is_image.int(), (1, 1)).diff().nonzero()[:, 0], case.stored[f"{case.name}_im_mask_runs"])
        tail = language(fed, image_mask=is_image[None])[0, -len(ids) :]
        case.check(tail, "last_hidden_tail")
        assert language.output(tail[-1]).argmax() == ids[-1], case.name
        if not case.scaled:  # else the first forward had another base than the last
            case.check(language.output(tail[0]), "next_logits_first")

        answer = generation.answer_uncached if case.scaled else generation.answer
        limits = {"eos": case.tokenizer.eos, "mask_token": case.tokenizer.seg, "max_new_tokens": case.recorded["max_new_tokens"]}
        generated = answer(language, [prefix], [image_mask], [[prompt]], **limits)[0][0]
        assert generated.ids == ids, case.name
        assert case.said(generated.ids) == case.recorded["response"]
        assert len(generated.states) == ids.count(case.tokenizer.seg) == case.recorded["n_seg_in_output"]
        if holds(case.stored, f"{case.name}_pred_embeddings"):
            kept = generated.states[: len(generated.states) - case.lost]
            case.check(case.network.mask_prompts(kept)[:, None], "pred_embeddings")


def test_asking(cases: list[Case]) -> None:
    """GeoPixel.ask gives the recorded words and masks, and the mask that the published code loses where an answer is cut off at its [SEG]."""
    for case in cases:
        recorded = case.recorded
        if not recorded["image"] or recorded["history"] or "<ImageHere>" in recorded["query"]:
            continue  # ask has the image first
        model = GeoPixel(case.network, case.tokenizer, case.name)
        said = model.ask([case.picture], [recorded["query"]], max_new_tokens=recorded["max_new_tokens"])[0][0]
        assert said.text == recorded["response"].strip()
        assert len(said.logits) == recorded["n_seg_in_output"], case.name
        kept = len(said.logits) - case.lost
        case.check(said.logits[:kept, None], "low_res_masks")
        case.check(said.scores[:kept, None], "iou")
        case.check(said.object_scores[:kept, None], "obj")
        full = upsample(torch.from_numpy(said.logits[:kept]), said.height, said.width)
        assert list(full.shape) == recorded["masks_shape"], case.name
        case.check(full, "masks")
        check_bits(full, case.stored, f"{case.name}_masks_bits")
        np.testing.assert_allclose(said.masks[:kept], full.sigmoid(), atol=1e-6)


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
