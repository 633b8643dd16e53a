"""What training leaves as files: merged weights against peft's own merge, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from geopixel.errors import CheckpointError
from geopixel.finetuning import Recipe, merge
from geopixel.finetuning.recipe import Steps, apply_recipe, trained
from geopixel.finetuning.trained import ADAM, TRAINED, find_trained, read_state, save_state
from geopixel.model.checkpoint import load_model
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.supervision import forward_losses
from tests.model.test_supervision import sample

CPU = torch.device("cpu")
RECIPE = Recipe(batch=2)


@pytest.fixture
def student(base: Path) -> GeoPixelNetwork:
    """A network in which everything trained has moved."""
    network, _ = load_model(base, torch.float32, CPU)
    apply_recipe(network, RECIPE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(network).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def stored(student: GeoPixelNetwork, base: Path, folder: Path, step: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder, step, *Steps(trained(student)).save(), model=str(base), recipe=asdict(RECIPE))
    return folder / TRAINED


def test_the_merged_model_is_the_base_with_its_adapters(student: GeoPixelNetwork, base: Path, tmp_path: Path) -> None:
    """To rounding: by losses of the network with the adapters beside its weights, and by peft's own merge, weight for weight."""
    told: list[tuple[int, int]] = []
    merge(stored(student, base, tmp_path), tmp_path / "out", torch.float32, progress=lambda done, total: told.append((done, total)))
    merged, tokenizer = load_model(tmp_path / "out", torch.float32, CPU)
    batch = [sample([("a road", "It is [SEG].")])]
    expected, found = (forward_losses(network, batch, seg=tokenizer.seg) for network in (student, merged))
    for name in ("answers", "bce", "dice"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    for module in student.modules():
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
    theirs = {name.replace(".base_layer", ""): tensor for name, tensor in student.state_dict().items() if ".lora_" not in name}
    assert merged.state_dict().keys() == theirs.keys()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], msg=name)
    assert told[-1][0] == told[-1][1] == len(theirs)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "tokenizer.model"}


def test_a_state_is_read_as_it_was_saved(student: GeoPixelNetwork, base: Path, tmp_path: Path) -> None:
    stored(student, base, tmp_path)
    step, weights, adam = read_state(tmp_path)
    assert step == 3
    expected, state = Steps(trained(student)).save()
    assert weights.keys() == expected.keys()
    assert adam.keys() == state.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert {name.rpartition(".")[2] for name in load_file(tmp_path / TRAINED) if "lora" in name} == {"lora_a", "lora_b"}
    assert (tmp_path / ADAM).is_file()


def test_the_newest_checkpoint_of_a_training_counts(student: GeoPixelNetwork, base: Path, tmp_path: Path) -> None:
    older, newer = (stored(student, base, tmp_path / name, step) for name, step in (("b", 2), ("a", 10)))
    assert find_trained(tmp_path) == newer
    assert find_trained(older) == older
    newer.write_bytes(newer.read_bytes()[:-100])  # the machine ended while it wrote
    assert find_trained(tmp_path) == older
    with pytest.raises(CheckpointError, match=r"no whole trained\.safetensors in"):
        find_trained(base)


def test_trained_weights_of_another_base_are_refused(student: GeoPixelNetwork, base: Path, tmp_path: Path) -> None:
    path = stored(student, base, tmp_path)
    notes = {"step": "1", "model": str(base), "recipe": json.dumps(asdict(RECIPE))}
    weights = load_file(path)
    weights["language.norms.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "strange.safetensors", metadata=notes)
    save_file({"text_hidden_fcs.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors", metadata=notes)
    for name, said in (("strange", r"that has no language\.norms\.weight"), ("other", r"text_hidden_fcs\.0\.weight has shape \(3,\), not \(32, 32\)")):
        with pytest.raises(CheckpointError, match=said):
            merge(tmp_path / f"{name}.safetensors", tmp_path / "out", torch.float32)
    with pytest.raises(CheckpointError, match="no file of trained weights: it does not say of which model"):
        merge(base / "model.safetensors", tmp_path / "out", torch.float32)
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list(tmp_path.glob("out/*"))
