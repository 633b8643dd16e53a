"""Laws: what was converted is what was read, bit for bit, whatever the source's layout; it is there whole or not at all, and takes a shard of memory."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from geopixel.errors import CheckpointError
from geopixel.model import checkpoint
from geopixel.model.checkpoint import load_model, save_checkpoint
from geopixel.model.convert import convert

from .test_checkpoint import CPU, big, network, peak, published
from .tiny import tokenizer_model

__all__ = ["big"]  # a fixture

JOB = Path(__file__).parents[2] / "jobs" / "convert_model.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A published checkpoint in float32, but for its configuration."""
    folder = tmp_path / "source"
    save_checkpoint(folder, network(), tokenizer_model(), torch.float32)
    (folder / "model.safetensors").unlink()
    torch.save(published(network()), folder / "pytorch_model.bin")
    return folder


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_converted_model_is_its_source(source: Path, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100_000)
    told: list[tuple[int, int]] = []
    size = convert(source, tmp_path / "a" / "out", dtype, lambda done, total: told.append((done, total)))
    (expected, _), (made, _) = (load_model(folder, dtype, CPU) for folder in (source, tmp_path / "a" / "out"))
    state = expected.state_dict()
    assert made.config == expected.config
    assert made.state_dict().keys() == state.keys()
    assert all(tensor.dtype == dtype and torch.equal(tensor, state[name]) for name, tensor in made.state_dict().items())
    assert size == sum(tensor.nbytes for tensor in state.values())
    assert told == [(done, len(state)) for done in range(len(state) + 1)]
    stored = [name for path in (tmp_path / "a" / "out").glob("model-*.safetensors") for name in load_file(path)]
    assert sorted(stored) == sorted(state), "our names, each once, and nothing that is not used"
    assert entries(tmp_path / "a") == {"out"}


def test_a_converted_model_converts_to_itself(source: Path, tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()  # an empty folder is as good as none
    convert(source, tmp_path / "once", torch.float16)
    convert(tmp_path / "once", tmp_path / "twice", torch.float16)
    assert entries(tmp_path / "once") == {"config.json", "tokenizer.model", "model.safetensors"}
    for name in entries(tmp_path / "once"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
        assert (tmp_path / "once" / name).stat().st_mode == (source / "config.json").stat().st_mode


def test_what_is_there_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = {path: path.read_bytes() for path in (*source.iterdir(), tmp_path / "file")}
    for out in (source, tmp_path / "file"):
        with pytest.raises(ValueError, match=f"new or an empty folder, got {out}"):
            convert(source, out, torch.bfloat16)
    assert {path: path.read_bytes() for path in (*source.iterdir(), tmp_path / "file")} == before


def test_nothing_stays_of_a_conversion_that_failed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the source is refused at once or the writing ends half-way."""

    def full(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100_000)
    with pytest.raises(OSError, match="no space"):
        convert(source, tmp_path / "out", torch.bfloat16, full)
    assert entries(tmp_path) == {"source"}
    save_file({"mood": torch.zeros(1)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="unknown.*mood"):
        convert(source, tmp_path / "out", torch.bfloat16)
    assert entries(tmp_path) == {"source"}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_memory_while_converting(big: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About one shard, here an eighth of the weights."""
    folder, kept = big
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 2 * kept // 8)
    assert peak(convert, folder / "safetensors", tmp_path / "out", torch.bfloat16) < 0.5 * 2 * kept


def job(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The job's exit code, run in this process."""
    spec = importlib.util.spec_from_file_location("convert_model", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [JOB.name, *words])
    return int(module.main())


def test_the_job(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(monkeypatch, str(source), str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    count = len(network().state_dict())
    assert f"tensors: {count}/{count}" in said.err
    assert f"{tmp_path / 'out'}: " in said.out
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nanoo", "out"], "nanoo"),
        (["nano", "taken"], "taken"),
        (["nano", "s3://bucket/out"], "s3://bucket/out"),
        (["nano", "out", "--dtype", "int8"], "'int8'"),
        (["taken", "out"], "config.json"),
    ],
    ids=["unknown model", "not empty", "not local", "unknown dtype", "no model"],
)
def test_refusals_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], named: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert job(monkeypatch, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("convert_model: error: ")
    assert named in lines[0]
    assert entries(tmp_path) == {"taken"}
