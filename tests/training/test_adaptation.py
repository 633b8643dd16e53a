"""Training on real and rendered windows: unlabelled ground teaches nothing, small windows train the very network, and a run that was stopped
becomes the same model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from geopixel.annotation.objects import SceneObject
from geopixel.model import GeoPixel
from geopixel.model.checkpoint import save_checkpoint
from geopixel.model.losses import BCE_WEIGHT, bce_loss
from geopixel.model.tokenizer import Tokenizer
from geopixel.training import Stage, adapt_nano, adaptation, windows
from geopixel.training.adaptation import Adaptation, denormals_as_zero, prepare, rate, zoomed
from geopixel.training.augmentation import RESIZED, paste, scatter
from geopixel.training.losses import SHARES, SIZES, border_loss, forward_loss, picture_loss, weighted_bce, weighted_mask_loss
from geopixel.training.real import draw_window
from geopixel.training.referring import ATOMS, LARGEST, REFERRED, references
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


def test_a_lake_has_no_more_to_say_of_sizes_than_a_house(lessons: Path) -> None:
    """However many cells it fills: of probes that know all of lakes and say the opposite of houses the loss is that of half of what there is."""
    ready = prepared(lessons, "shares of sizes")
    picture = ready.windows.picture(0)
    sizes = torch.zeros_like(picture.sizes)
    sizes[REFERRED.index("water"), :, 2:] = 100
    sizes[REFERRED.index("building"), :2, :2] = 10
    for probe, side in zip(ready.probes.sizes, (4, 8), strict=True):
        right = torch.tensor([each > bound for each in (10, 100) for bound in (*SIZES, *(each * share for share in SHARES))]).float() * 2 - 1
        signs = torch.tensor([-1.0, 1.0]).repeat_interleave(len(SIZES + SHARES))
        said = torch.zeros(len(REFERRED), len(SIZES + SHARES))
        said[[REFERRED.index("building"), REFERRED.index("water")]] = (50 * right * signs).unflatten(0, (2, -1))
        probe.forward = lambda _, said=said, side=side: said.flatten()[None, :, None, None].expand(1, -1, side, side)
    features = SimpleNamespace(embedding=torch.zeros(1, 1, 4, 4), fine=(None, torch.zeros(1, 1, 8, 8)))
    assert float(ready.probes.size_loss(features, [replace(picture, sizes=sizes)])) == pytest.approx(2 * (50 + 0) / 2)


def test_a_large_house_has_less_to_say_than_its_cells(lessons: Path) -> None:
    """Cells count by the edge of their object: three of nine here, where the other house fills one of one."""
    ready = prepared(lessons, "edges of sizes")
    picture = ready.windows.picture(0)
    sizes = torch.zeros(len(REFERRED), 32, 32)
    sizes[REFERRED.index("building"), :12, :12] = 30
    sizes[REFERRED.index("building"), 20:24, 20:24] = 10
    cells = torch.nn.functional.adaptive_max_pool2d(sizes, 8)[REFERRED.index("building")]
    bounds = torch.tensor([*SIZES, *(30 * share for share in SHARES)])[:, None, None]
    right = 2 * (cells > bounds).float() - 1
    for wrong, share in ((30, 3 / 4), (10, 1 / 4)):
        said = torch.zeros(len(REFERRED), len(bounds), 8, 8)
        said[REFERRED.index("building")] = 50 * right * torch.where(cells == wrong, -1.0, 1.0)
        for probe in ready.probes.sizes:
            probe.forward = lambda _, said=said: said.flatten(0, 1)[None]
        features = SimpleNamespace(embedding=torch.zeros(1, 1, 8, 8), fine=(None, torch.zeros(1, 1, 8, 8)))
        assert float(ready.probes.size_loss(features, [replace(picture, sizes=sizes)])) == pytest.approx(2 * 50 * share)


def test_borders_lie_around_objects_and_where_they_touch(lessons: Path) -> None:
    """Two fields side by side, a lake in open ground, houses that nobody tells apart: logits that say so lose nothing, their opposites all of it."""
    picture = prepared(lessons, "borders").windows.picture(0)
    sizes, shares = torch.zeros(len(REFERRED), 32, 32), torch.zeros_like(picture.shares[:, :1, :1]).repeat(1, 32, 32)
    for name, columns, size in (("field", slice(4, 8), 40.0), ("field", slice(8, 16), 60.0), ("water", slice(20, 28), 60.0)):
        sizes[REFERRED.index(name), 4:20, columns] = size
        shares[CONCEPTS[name] - 1, 4:20, columns] = 1
    shares[CONCEPTS["building"] - 1, 24:28, 4:16] = 1
    example = replace(picture, sizes=sizes, shares=shares, weights=torch.ones_like(shares))
    border = torch.ones(32, 32)
    border[4:20, 4:16] = border[4:20, 20:28] = 0
    border[4:20, 7:9] = 1
    untold = np.array([[24, 28], [4, 16]])
    for side in (32, 16):
        step = 32 // side
        sure = 40 * (2 * torch.nn.functional.adaptive_max_pool2d(border[None], side) - 1)[None]
        losses = [float(border_loss([logits], [example])) for logits in (sure, -sure)]
        assert losses == pytest.approx([0, 40], abs=1e-6)
        blank = torch.zeros_like(sure).requires_grad_()
        border_loss([blank], [example]).backward()
        assert not blank.grad[0, 0][tuple(slice(*ends) for ends in untold // step)].any()
        assert blank.grad.count_nonzero() == side * side - 48 // step**2


def test_borders_are_taught_in_every_stage(lessons: Path) -> None:
    ready = prepared(lessons, "taught borders", anew=True)
    compare = ready.network.grounding.sam2.vision_encoder.backbone.compare
    picture = next(example for example in map(ready.windows.referring, range(60)) if example.tokens and example.sizes.any())
    bos, seg = ready.tokenizer.bos, ready.tokenizer.seg
    small = picture_loss(ready.network, ready.probes, [picture], dice_weight=1.0, noise=0.0)
    for loss in (small, forward_loss(ready.network, ready.probes, [picture], bos=bos, seg=seg)):
        ready.network.zero_grad()
        loss.probes.backward()
        assert all(each.border.weight.grad.any() for each in compare)
    assert not any(each.border._forward_hooks for each in compare)


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


@pytest.mark.parametrize("seed", range(8))
def test_what_is_scattered_is_labelled_and_has_another_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb, truth = np.zeros((64, 48, 3), np.uint8), np.zeros((64, 48), np.uint8)
    truth[:20] = 2
    kept, other = truth.copy(), np.full((40, 40, 3), 200, np.uint8)
    house = SceneObject("building", 10, 5, np.ones((8, 12), bool), 96.0)
    laid, labels = scatter(rng, rgb, truth, other, [house], 2)
    assert not rgb.any()
    assert np.array_equal(truth, kept)
    painted = (laid == 200).all(axis=2)
    assert np.array_equal(labels, np.where(painted, 2, truth))
    assert np.array_equal(laid.any(axis=2), painted)
    assert painted.sum() != 96
    assert 0.8 * RESIZED[0] ** 2 <= painted.sum() / 96 <= 1.2 * RESIZED[1] ** 2
    assert not painted[:20].any(), "where it hides little of its kind"


def test_houses_of_other_sizes_lie_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what stood alone in the other window, that is: houses that touch are one object in labels."""
    monkeypatch.setattr(windows, "SCATTERED", 1.0)
    blank = np.zeros((80, 80, 3), np.uint8), np.zeros((80, 80), np.uint8)
    town = blank[1].copy()
    town[2:8, 2:40] = town[2:40, 2:8] = CONCEPTS["building"]
    assert not windows.scattered(blank, lambda: (blank[0], town), np.random.default_rng(0))[1].any()
    town[50:60, 50:60] = CONCEPTS["building"]
    areas = {np.count_nonzero(windows.scattered(blank, lambda: (blank[0], town), np.random.default_rng(seed))[1]) for seed in range(8)}
    assert len(areas) > 4
    assert min(areas) < 100 < max(areas)


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


def test_what_is_kept_of_the_start_is_mixed_in(lessons: Path) -> None:
    made = {}
    for kept in (0.0, 0.25, 1.0):
        work = work_of(lessons, f"kept {kept}")
        stages = {"pictures": Stage(2, 1, 1, 1e-2), "words": Stage(0, 0, 1, 1e-2), "together": Stage(0, 0, 1, 1e-2)}
        adapt_nano(lessons / "start", work / "out", work, lessons / "data", stages=stages, scenes=1, seed=3, kept=kept, report=lambda _: None)
        made[kept] = GeoPixel.from_pretrained(str(work / "out"), device="cpu").network.state_dict()
    start = GeoPixel.from_pretrained(str(lessons / "start"), device="cpu").network.state_dict()
    assert any(not torch.equal(made[0.0][name], start[name]) for name in start)
    for name, value in start.items():
        torch.testing.assert_close(made[1.0][name], value, rtol=1e-3, atol=1e-4)  # written as float16
        torch.testing.assert_close(made[0.25][name], 0.75 * made[0.0][name] + 0.25 * value, rtol=2e-3, atol=2e-4)
    for wrong in ({"kept": 1.5}, {"kept": 0.5, "anew": True}):
        with pytest.raises(ValueError, match="0 to 1"):
            adapt_nano(lessons / "start", lessons / "no", lessons / "no", lessons / "data", stages={}, scenes=1, **wrong)


def test_what_another_training_left_is_refused(lessons: Path) -> None:
    """Other sites, seeds, scenes or weights to start from, whose record the result would bear; or another network, by its code."""
    work = work_of(lessons, "another")

    def ready(seed: int, *leave_out: str) -> Adaptation:
        return prepare(lessons / "start", work, lessons / "data", scenes=1, leave_out=leave_out, seed=seed, report=lambda _: None)

    ready(0, "there").pictures(Stage(1, 0, 2, 1e-3))
    for other in (ready(0, "here"), ready(1, "there")):
        with pytest.raises(ValueError, match=r"pictures\.pt was left by another training \(.*'leave_out': \['there'\]"):
            other.pictures(Stage(2, 1, 2, 1e-3))
    same = ready(0, "there")
    stored = torch.load(work / "pictures.pt", weights_only=True)
    torch.save(stored | {"parts": {"0.weight": torch.zeros(1)}}, work / "pictures.pt")
    with pytest.raises(ValueError, match=r"pictures\.pt was left by the training of another network"):
        same.pictures(Stage(2, 1, 2, 1e-3))


def test_data_that_is_not_there_is_refused(lessons: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training/buildings"):
        prepare(lessons / "start", work_of(lessons, "nothing"), tmp_path, scenes=1, leave_out=(), seed=0, report=lambda _: None)
