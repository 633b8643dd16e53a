"""Training on real and rendered windows: unlabelled ground teaches nothing, small windows train the very network, and a run that was stopped
becomes the same model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from geopixel.model import GeoPixel
from geopixel.model.checkpoint import save_checkpoint
from geopixel.model.losses import BCE_WEIGHT, bce_loss
from geopixel.model.tokenizer import Tokenizer
from geopixel.training import Stage, adapt_nano, adaptation, windows
from geopixel.training.adaptation import Adaptation, denormals_as_zero, prepare, rate, zoomed
from geopixel.training.augmentation import paste
from geopixel.training.losses import SHARES, SIZES, forward_loss, weighted_bce, weighted_mask_loss
from geopixel.training.real import draw_window
from geopixel.training.referring import ATOMS, LARGEST, references
from geopixel.training.rendered import SCENE_SIZE
from geopixel.training.windows import Windows
from geopixel.training.words import CONCEPTS, train_tokenizer
from tests.model import tiny
from tests.training.test_real import write_chips


def test_unlabelled_ground_teaches_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3, 8, 8, generator=generator), torch.rand(3, 8, 8, generator=generator)
    everywhere = torch.ones(3, 8, 8)
    assert weighted_bce(logits, targets, everywhere).sum() == pytest.approx(bce_loss(logits, targets).item(), rel=1e-5)
    left = everywhere.clone()
    left[:, :, 5:] = 0
    other = torch.where(left > 0, logits, -7 * logits)
    cut = (x[:, :, :5] for x in (logits, targets, everywhere))
    for loss in (weighted_bce, partial(weighted_mask_loss, dice_weight=1.0)):
        assert torch.equal(loss(logits, targets, left), loss(other, torch.where(left > 0, targets, 1 - targets), left))
    torch.testing.assert_close(weighted_bce(logits, targets, left), weighted_bce(*cut))


def test_a_mask_of_nothing_is_learnt_by_cross_entropy_and_dice() -> None:
    """Where the mask is perfect both vanish; where nothing is there, drawing costs."""
    target = torch.zeros(2, 4, 4)
    target[0, :2] = 1
    perfect = weighted_mask_loss(40 * (target - 0.5), target, torch.ones(2, 4, 4), 1.0)
    assert perfect.max() < 1e-3
    drawn = weighted_mask_loss(torch.full((2, 4, 4), 20.0), target, torch.ones(2, 4, 4), 1.0)
    assert drawn.tolist() == pytest.approx([BCE_WEIGHT * 10 + 1 / 3, BCE_WEIGHT * 20 + 1], rel=1e-3)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    stage = Stage(steps=400, decay=100, batch=1, learning_rate=1.0)
    rates = [rate(step, stage) for step in range(400)]
    assert rates[0] < 0.05
    assert rates[49:301] == [1.0] * 252
    assert rates[-1] == 0.01
    longer = replace(stage, steps=500)
    assert rates[:301] == [rate(step, longer) for step in range(301)]


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few examples tell what a tiny network's prompts are."""
    monkeypatch.setattr(adaptation, "REMEMBERED", 8)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start of tiny size in start/, chips of two sites in data/, and a scene of noise where rendered ones are kept."""
    folder = tmp_path_factory.mktemp("lessons")
    proto = train_tokenizer()
    config = replace(tiny.CONFIG, language=replace(tiny.LANGUAGE, vocab_size=Tokenizer(proto).vocab_size), max_length=2048)
    save_checkpoint(folder / "start", tiny.network(config=replace(config, grounding=replace(tiny.GROUNDING, image_size=128))), proto, torch.float32)
    (folder / "start" / "training.json").write_text('{"steps": 7}')
    chips = folder / "data" / "training" / "buildings"
    chips.mkdir(parents=True)
    write_chips(chips, {"here": [(0, 0), (0, 1)], "there": [(0, 0)]})
    scene = np.random.default_rng(0).integers(0, 7, (SCENE_SIZE // 64, SCENE_SIZE // 64, 4), dtype=np.uint8)
    np.save(folder / "0.npy", scene.repeat(64, axis=0).repeat(64, axis=1))
    return folder


def work_of(lessons: Path, name: str) -> Path:
    work = lessons / name
    work.mkdir()
    (work / "0.npy").symlink_to(lessons / "0.npy")
    return work


def prepared(lessons: Path, name: str, anew: bool = False) -> Adaptation:
    return prepare(lessons / "start", work_of(lessons, name), lessons / "data", scenes=1, leave_out=("there",), seed=3, anew=anew, report=lambda _: None)


def test_windows_are_of_the_sites_asked_for_and_the_same_wherever_they_are_drawn(lessons: Path) -> None:
    adaptation = prepared(lessons, "sites")
    assert [ground.site for ground in adaptation.windows.grounds["buildings"]] == ["here"]
    prompts = adaptation.probes.prompts
    assert torch.pdist(prompts).min() > 0
    assert prompts.isfinite().all()
    assert len(prompts) == len(CONCEPTS)
    drawer = adaptation.windows
    again = Windows(drawer.scenes, drawer.grounds, drawer.teacher, drawer.seed)
    for index in range(4):
        for one, other in ((drawer.example(index), again.example(index)), (drawer.picture(index), again.picture(index))):
            assert one.tokens == other.tokens
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.shares, other.shares)
    assert drawer.picture(0).pixels.shape == (3, 64, 64)
    assert drawer.example(0).pixels.shape == (3, 128, 128)


def test_small_windows_train_the_very_network(lessons: Path) -> None:
    adaptation = prepared(lessons, "small")
    network = adaptation.network
    own, small = dict(network.grounding.named_parameters()), dict(zoomed(network).named_parameters())
    assert own.keys() == small.keys()
    assert all(own[name] is small[name] for name in own)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adaptation.pictures(Stage(2, 1, 2, 1e-2))
    after = {name: value.clone() for name, value in network.state_dict().items()}
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"grounding"}
    assert network.grounding.encode(torch.zeros(1, 3, 128, 128)).embedding.shape[-1] == 8
    adaptation.words(Stage(1, 1, 2, 1e-2))
    spoken = network.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(after[name], spoken[name])} == {"vision", "language", "text_hidden_fcs"}


def test_numbers_next_to_nothing_are_zero_for_the_steps_only(lessons: Path) -> None:
    """Else all that the process computes later would lose them."""
    small = torch.tensor(1e-40)
    with denormals_as_zero():
        assert small * 1 == 0
    prepared(lessons, "denormal").pictures(Stage(1, 1, 1, 1e-3))
    assert small * 1 > 0


def test_a_new_encoder_stays_as_it_came_and_the_rest_learns(lessons: Path) -> None:
    """ImageNet's encoder under the mask decoder of the start, which is not lost."""
    before = {name: value.clone() for name, value in prepared(lessons, "before").network.grounding.state_dict().items()}
    adaptation = prepared(lessons, "anew", anew=True)
    grounding = adaptation.network.grounding
    known = {name for name in before if "vision_encoder" not in name}
    begun = {name: value.clone() for name, value in grounding.state_dict().items()}
    assert known < begun.keys()
    assert all(torch.equal(before[name], begun[name]) for name in known)
    assert adaptation.network.config.grounding.encoder == "efficientnet-lite0"
    adaptation.pictures(Stage(2, 1, 2, 1e-2))
    moved = {name for name, value in grounding.state_dict().items() if not torch.equal(value, begun[name])}
    assert any("mask_decoder" in name for name in moved)
    assert any("neck" in name for name in moved)
    assert any("backbone.merge" in name for name in moved)
    assert any("upward" in name for name in moved)
    assert any("compare" in name for name in moved)
    assert not any("trunk" in name for name in moved)


def test_sizes_are_legible_where_they_can_be_read(lessons: Path) -> None:
    """Probes that say of every cell what holds of it lose nothing, those that say the opposite much; where nothing is, nothing is asked."""
    ready = prepared(lessons, "sizes")
    picture = next(example for example in map(ready.windows.picture, range(60)) if example.sizes.any())
    features = zoomed(ready.network).encode(picture.pixels[None])
    losses = []
    for sign in (50.0, -50.0):
        for probe, x in zip(ready.probes.sizes, (features.embedding, features.fine[1]), strict=True):
            cells = torch.nn.functional.adaptive_max_pool2d(picture.sizes, x.shape[-1])
            largest = picture.sizes.amax(dim=(1, 2))
            bounds = torch.cat([torch.tensor(SIZES).expand(len(cells), -1), largest[:, None] * torch.tensor(SHARES)], dim=1)
            there = cells[:, None] > bounds[..., None, None]
            said = sign * (2 * there.float() - 1).flatten(0, 1)[None]
            probe.forward = lambda _, said=said: said
        losses.append(float(ready.probes.size_loss(features, [picture])))
    assert losses[0] < 1e-6
    assert losses[1] == pytest.approx(100)
    assert ready.probes.size_loss(features, [replace(picture, sizes=torch.zeros_like(picture.sizes))]) == 0


def test_sizes_are_taught_at_full_size_too(lessons: Path) -> None:
    """What is legible in small windows alone is not in those that a map is made of."""
    ready = prepared(lessons, "together sizes")
    example = next(example for example in map(ready.windows.referring, range(60)) if example.tokens and example.sizes.any())
    assert example.sizes.shape[-1] == example.shares.shape[-1]
    bos, seg = ready.tokenizer.bos, ready.tokenizer.seg
    forward_loss(ready.network, ready.probes, [example], bos=bos, seg=seg).total.backward()
    assert all(probe.weight.grad.any() for probe in ready.probes.sizes)


def test_towns_are_denser_than_the_sites(lessons: Path) -> None:
    """What is searched for and pasted into holds more building than windows drawn anywhere."""
    drawer = prepared(lessons, "dense").windows
    (ground,) = drawer.grounds["buildings"]
    left = replace(ground, truth=np.where(np.arange(ground.truth.shape[1]) < 128, ground.truth, 0).astype(np.uint8))
    there = replace(drawer, grounds={"buildings": [left]})
    code = CONCEPTS["building"]
    drawn = [(there.denser(left, np.random.default_rng(seed), 2)[1] == code).mean() for seed in range(60)]
    plain = [(draw_window(left, np.random.default_rng(seed), 2)[1] == code).mean() for seed in range(60)]
    assert np.mean(drawn) > 1.3 * np.mean(plain)


def test_windows_with_phrases_often_have_something_largest(lessons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = prepared(lessons, "largest").windows
    having = {}
    for share in (0, 1):
        monkeypatch.setattr(windows, "LARGEST_SOUGHT", share)
        drawn = [(*drawer.draw_with_largest(np.random.default_rng(seed), 1), np.random.default_rng(0)) for seed in range(40)]
        having[share] = np.mean([any(each.reference.atoms == (LARGEST,) for each in references(*window)) for window in drawn])
    assert having[1] > 2 * having[0]


def test_rendered_windows_are_full_of_what_is_sought(lessons: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = prepared(lessons, "full").windows
    monkeypatch.setattr(windows, "SOUGHT", ("water",))
    drawn = {}
    for share in (0, 1):
        monkeypatch.setattr(windows, "SOUGHT_SHARE", share)
        drawn[share] = np.mean([(drawer.fuller(np.random.default_rng(seed), 2)[1] == CONCEPTS["water"]).mean() for seed in range(40)])
    assert drawn[1] > 1.3 * drawn[0]


def test_what_a_single_object_was_asked_by_is_not_how_its_concept_is_asked(lessons: Path) -> None:
    """The remembered prompt of a concept is of the masks that are all of it."""
    ready = prepared(lessons, "single")
    example = next(each for each in map(ready.windows.example, range(20)) if len(each.concepts) > 1)
    usual, single = example.concepts[:2]
    atoms = [0, 1, *example.atoms[2:]]
    shares, weights = (torch.cat([plane, plane[single : single + 1]]) for plane in (example.shares, example.weights))
    ready.probes.prompts.zero_()
    batch = [replace(example, atoms=atoms, shares=shares, weights=weights)]
    forward_loss(ready.network, ready.probes, batch, bos=ready.tokenizer.bos, seg=ready.tokenizer.seg)
    assert ready.probes.prompts[usual].any()
    assert not ready.probes.prompts[single].any()


def test_a_phrase_adds_to_how_its_concept_is_asked(lessons: Path) -> None:
    """The same for every concept, and something else for every phrase; the whole of a concept is asked by its prompt alone."""
    probes = prepared(lessons, "adds").probes
    example = prepared(lessons, "asks").windows.picture(0)
    water, building = CONCEPTS["water"] - 1, CONCEPTS["building"] - 1
    batch = [replace(example, concepts=[water, water], atoms=[0, 1]), replace(example, concepts=[building] * 2, atoms=[1, len(ATOMS)])]
    whole, largest, other, last = probes.usual(batch)
    assert torch.equal(whole, probes.prompts[water])
    assert torch.allclose(largest - whole, other - probes.prompts[building], atol=1e-6)
    assert len(probes.atoms) == 1 + len(ATOMS)
    assert torch.pdist(probes.atoms).min() > 0
    assert not torch.allclose(other, last)


def test_what_is_pasted_is_labelled() -> None:
    rng = np.random.default_rng(0)
    (rgb, truth), (other, codes) = ((rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 3, (h, w), np.uint8)) for h, w in ((6, 9), (8, 5)))
    kept = rgb.copy(), truth.copy()
    laid, labels = paste(rgb, truth, other, codes, 2)
    assert np.array_equal(rgb, kept[0])
    assert np.array_equal(truth, kept[1])
    covered = np.zeros((6, 9), bool)
    covered[:, :5] = codes[:6] == 2
    assert np.array_equal(laid[covered], other[:6][codes[:6] == 2])
    assert np.array_equal(laid[~covered], rgb[~covered])
    assert np.array_equal(labels, np.where(covered, 2, truth))


def test_a_stopped_run_becomes_the_same_model(lessons: Path) -> None:
    """Once in one go, once stopped in two stages and resumed: equal weights, and a record of what was done."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = []
    for name in ("whole", "stopped"):
        work = work_of(lessons, name)
        if name == "stopped":
            stopped = prepare(lessons / "start", work, lessons / "data", scenes=1, leave_out=("there",), seed=3, report=lambda _: None)
            stopped.pictures(Stage(2, 0, 2, 1e-3))
            stopped.words(Stage(2, 1, 2, 1e-3))
        stages = {"pictures": Stage(4, 2, 2, 1e-3), "words": Stage(2, 1, 2, 1e-3), "together": Stage(1, 1, 2, 1e-3)}
        adapt_nano(lessons / "start", work / "out", work, lessons / "data", stages=stages, scenes=1, leave_out=("there",), seed=3, report=lambda _: None)
        made.append(GeoPixel.from_pretrained(str(work / "out"), device="cpu"))
    torch.set_num_threads(threads)
    one, other = (model.network.state_dict() for model in made)
    assert all(torch.equal(one[name], other[name]) for name in one)
    record = json.loads((lessons / "whole" / "out" / "training.json").read_text())
    assert record["start"] == {"steps": 7}
    assert record["adaptation"]["leave_out"] == ["there"]
    assert record["adaptation"]["pictures"]["steps"] == 4
    assert [row[0] for row in record["adaptation"]["pictures"]["curve"]] == [4]


def test_what_another_network_left_is_refused(lessons: Path) -> None:
    """Named, instead of a list of weights alone: the start, or the code, is not that of the folder."""
    work = work_of(lessons, "another")
    torch.save({"steps": 1, "curve": [], "parts": {"0.weight": torch.zeros(1)}, "optimizer": {}}, work / "pictures.pt")
    ready = prepare(lessons / "start", work, lessons / "data", scenes=1, leave_out=(), seed=0, report=lambda _: None)
    with pytest.raises(ValueError, match=r"pictures\.pt was left by the training of another network"):
        ready.pictures(Stage(2, 1, 2, 1e-3))


def test_data_that_is_not_there_is_refused(lessons: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training/buildings"):
        prepare(lessons / "start", work_of(lessons, "nothing"), tmp_path, scenes=1, leave_out=(), seed=0, report=lambda _: None)
