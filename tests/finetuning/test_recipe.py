"""Which weights are trained, held against the list of the published code; and the order and the rate of steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from geopixel.finetuning.recipe import PROJECTIONS, Recipe, Steps, apply_recipe, touch, trained
from geopixel.model.checkpoint import rename
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.supervision import forward_losses
from tests.model.test_supervision import sample
from tests.model.tiny import network, tokenizer

RECIPE = Recipe(epochs=3, batch=4, micro_batch=2)


@pytest.fixture
def student() -> GeoPixelNetwork:
    made = network()
    apply_recipe(made, RECIPE)
    return made


def test_what_is_trained_and_what_is_frozen(student: GeoPixelNetwork) -> None:
    names = set(trained(student))
    lora = {name for name in names if ".lora_" in name}
    layers = len(student.language.layers)
    assert len(lora) == 2 * len(PROJECTIONS) * layers
    assert all(re.search(r"language\.layers\.\d+\.(attention|feed_forward)\.(wqkv|wo|w1|w2|w3)\.lora_[AB]\.default\.weight$", name) for name in lora)
    whole = {"language.tok_embeddings", "language.output", "text_hidden_fcs", "grounding.sam2.mask_decoder"}
    whole |= {"vision.projector", "vision.row_end", "vision.separator"}
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == (name in lora or any(name == part or name.startswith(part + ".") for part in whole)), name


def test_what_is_trained_is_what_the_published_code_trains(shared: Path, student: GeoPixelNetwork) -> None:
    """goldens/trainable_params.json: recorded from the published code; layers are called N there."""
    recorded = json.loads((shared / "goldens" / "trainable_params.json").read_text())["trainable"]
    published = set()
    for name in recorded:
        plain = re.sub(r"\.lora_[AB]\.default", "", name.removeprefix("base_model.model."))
        ours = rename(plain.replace(".N.", ".0."))
        assert ours is not None, name
        published.add(re.sub(r"\.\d+\.", ".N.", ours) + ("+lora" if ".lora_" in name else ""))
    found = set()
    for name in trained(student):
        adapted = ".lora_" in name
        found.add(re.sub(r"\.\d+\.", ".N.", re.sub(r"\.lora_[AB]\.default", "", name)) + ("+lora" if adapted else ""))
    assert {name.replace("proj_in", "P").replace("proj_out", "P").replace("layers.N", "P") for name in found} == {
        name.replace("proj_in", "P").replace("proj_out", "P").replace("layers.N", "P") for name in published
    }


def test_a_fresh_adapter_changes_nothing_and_a_step_only_what_is_trained(student: GeoPixelNetwork) -> None:
    plain, batch = network(), [sample([("a road", "It is [SEG].")])]
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    found = forward_losses(student.eval(), batch, seg=tokenizer().seg)
    expected = forward_losses(plain, batch, seg=tokenizer().seg)
    torch.testing.assert_close(found.total, expected.total)
    steps = Steps(trained(student))
    (found.total + touch(student)).backward()
    assert all(parameter.grad is not None for name, parameter in trained(student).items() if "mask_decoder" in name)
    steps.take(1e-2)
    changed = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed < set(trained(student))
    assert {name.partition(".")[0] for name in changed} == {"language", "text_hidden_fcs", "grounding", "vision"}
    assert not any("base_layer" in name or "vision_encoder" in name or "vision.tower" in name for name in changed)


def test_a_batch_without_masks_gives_every_weight_a_gradient(student: GeoPixelNetwork) -> None:
    found = forward_losses(student.train(), [sample([("a road", "no water")])], seg=tokenizer().seg)
    (found.total + touch(student)).backward()
    without = {name for name, parameter in trained(student).items() if parameter.grad is None}
    assert not without


def test_a_step_that_diverged_is_not_taken(student: GeoPixelNetwork) -> None:
    steps = Steps(trained(student))
    before = {name: value.clone() for name, value in steps.save()[0].items()}
    for parameter in steps.parameters.values():
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(ValueError, match=r"diverged: the gradient is nan at a learning rate of 0\.1"):
        steps.take(0.1)
    assert all(torch.equal(value, before[name]) for name, value in steps.save()[0].items())


def test_bfloat16_weights_follow_float32_ones() -> None:
    """Steps far below what bfloat16 resolves add up."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    steps = Steps({"weight": weight})
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        steps.take(1e-4)
    assert steps.weights["weight"].dtype == torch.float32
    torch.testing.assert_close(weight.float(), torch.full((4,), 1 - 100e-4), atol=4e-3, rtol=0)
    assert weight[0] < 1


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    samples = 10
    drawn = [index for step in range(RECIPE.steps(samples)) for part in RECIPE.drawn(step, samples) for index in part]
    epochs = [drawn[at : at + samples] for at in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [len(part) for part in RECIPE.drawn(0, samples)] == [2, 2]
    assert len(drawn) == 32  # three epochs, and the step that they end in


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=4)
    rates = [recipe.rate(step, 44) for step in range(44)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[24] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01
    assert Recipe(learning_rate=1.0, warmup=100).rate(0, 20) == 0.5, "a short training warms up for a tenth of it"


def test_a_batch_is_whole_micro_batches() -> None:
    with pytest.raises(ValueError, match="whole micro-batches of 3, got 4"):
        Recipe(batch=4, micro_batch=3)
