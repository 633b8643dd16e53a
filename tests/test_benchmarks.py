"""The benchmarks of the model themselves, at a tiny size on the CPU: they measure what they say, notice an answer that is not the same, and
--check fails by name. Their figures mean nothing here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch

from geopixel.model.config import crop_grid
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT
from tests.benchmarks import model, model_gpu
from tests.benchmarks.table import Figure, exit_code, markdown
from tests.model import tiny


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tables(text: str) -> list[dict[str, str]]:
    """The rows of the one markdown table in a text, by its header."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_model_against_the_published_way(capsys: pytest.CaptureFixture[str]) -> None:
    code = model.main(["--size", "tiny", "--check"])
    printed = capsys.readouterr()
    rows = {row["figure"]: row for row in tables(printed.out)}
    passes = rows.pop("language-model passes after the prefill, template accepted")
    assert (passes["ours"], passes["target"], passes["met"]) == ("1", "<= 1", "yes")
    assert int(passes["published way"]) == len(tiny.tokenizer().encode(model.SEGMENT_ANSWER + ANSWER_END))
    memory = rows.pop("peak memory of 5 prompts against 1")
    one, several = (int(memory[side].split()[-2]) for side in ("published way", "ours"))
    assert 0 < one <= several < 1000
    assert [(name, row["target"]) for name, row in rows.items()] == [
        ("1 prompt, 12 answer tokens", ">= 6x"),
        ("1 prompt, 100 answer tokens", ">= 40x"),
        ("5 prompts, 12 answer tokens each", ">= 25x"),
    ]
    for row in rows.values():
        published, ours = (float(row[side].removesuffix(" s")) for side in ("published way", "ours"))
        ratio = float(row["ratio"].removesuffix("x"))
        assert ratio == pytest.approx(published / ours, rel=0.02)
        assert row["met"] == ("yes" if ratio >= float(row["target"].strip(">= x")) else "no")
    missed = [name for name, row in [*rows.items(), ("peak memory of 5 prompts against 1", memory)] if row["met"] == "no"]
    assert rows["1 prompt, 100 answer tokens"]["met"] == "no"  # a forward of a tiny network costs the same at any length
    assert [line.split(": ")[1] for line in printed.err.splitlines() if line.startswith("missed")] == missed
    assert code == 1


@pytest.mark.parametrize(
    ("ids", "shift", "named"),
    [([1, 2], 0.0, None), ([1, 3], 0.0, "ours answered"), ([1, 2], 0.01, "masks differ by 0.01")],
    ids=["same", "other tokens", "other masks"],
)
def test_sides_that_differ_are_noticed(ids: list[int], shift: float, named: str | None) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)
    published = [model.Given([1, 2], logits)]
    ours = [model.Given(ids, logits + np.float32(shift))]
    if named is None:
        model.check_same(ours, published)
    else:
        with pytest.raises(AssertionError, match=named):
            model.check_same(ours, published)


def test_a_model_that_answers_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours without the adapters of image tokens: another function, whose words are taught all the same."""
    subject = model.build("tiny")
    model.teach_length(subject.model)
    given = [model.published_way(subject, model.PROMPTS[0], model.SHORT)]
    ask = subject.model.ask
    for name, parameter in subject.model.network.language.named_parameters():
        if "plora_b" in name:
            parameter.zero_()
    ours = model.our_way(subject, lambda: ask([subject.image], model.PROMPTS[:1], max_new_tokens=model.SHORT))
    assert ours[0].ids == given[0].ids
    with pytest.raises(AssertionError, match="masks differ"):
        model.check_same(ours, given)


def test_the_full_size_script_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    code = model_gpu.main(["--tiny", "--check", "--json", str(file)])
    printed = capsys.readouterr()
    rows = tables(printed.out)
    cases = [case.name for case in model_gpu.CASES]
    assert [(row["attention"], row["case"], row["batch"]) for row in rows] == [(k, c, b) for k in ("sdpa", "math") for c in cases for b in ("1", "2")]
    for row in rows:
        assert all(float(row[f"{stage} ms"]) > 0 for stage in model_gpu.STAGES)
        assert float(row["rest ms"]) >= 0
    assert sorted(row["case"] for row in rows if row["met"]) == sorted(cases)

    stored = json.loads(file.read_text())
    assert stored["device"] == "CPU"
    assert len(stored["measured"]) == len(rows)
    for measured, row in zip(stored["measured"], rows, strict=True):
        assert float(row["tiles/s"]) == pytest.approx(measured["tiles_per_second"], abs=0.006)
        assert measured["utilisation"] > 0
    assert {(a["kernel"], a["against"]) for a in stored["masks"]} == {("sdpa", "float32"), ("math", "float32"), ("sdpa", "math")}
    assert all(0 < a["mean_difference"] < a["max_difference"] < 1 and a["iou"] > 0.8 for a in stored["masks"])
    missed = [figure["name"] for figure in stored["figures"] if not figure["met"]]
    assert [line.split(": ")[1] for line in printed.err.splitlines() if line.startswith("missed")] == missed
    assert code == (1 if missed else 0)


def test_the_full_size_has_the_published_sizes() -> None:
    config = model_gpu.full_config()
    language, vision, grounding = config.language, config.vision, config.grounding
    assert (language.vocab_size, language.hidden_size, language.intermediate_size, language.layers) == (92547, 4096, 14336, 32)
    assert (language.heads, language.kv_heads, language.rope_factor) == (32, 8, 2.0)
    assert (vision.hidden_size, vision.intermediate_size, vision.layers, vision.heads) == (1024, 4096, 24, 16)
    assert (grounding.embed_size, grounding.heads, grounding.blocks, grounding.global_blocks) == (144, 2, (2, 6, 36, 4), (23, 33, 43))
    for case in model_gpu.CASES:
        edge = case.side * vision.crop_size
        assert crop_grid(edge, edge, case.side**2, vision.crop_size) == (case.side, case.side)


def test_a_template_that_is_not_accepted_is_noticed() -> None:
    network = model_gpu.random_network(model_gpu.tiny_config(), torch.device("cpu"))
    words = tiny.tokenizer()
    tiny.teach(network, [words.encode(ASSISTANT)[-1], *words.encode("no water"), words.eos])
    with pytest.raises(AssertionError, match="answered in one pass"):
        model_gpu.measure(network, "sdpa", model_gpu.CASES[0], 1, 1e12)


def test_kernels_are_compared_by_logits_and_pixels() -> None:
    mine, theirs = np.array([[[1.0, 2.0], [-1.0, -2.0]]]), np.array([[[1.0, -2.0], [1.0, -2.0]]])
    assert model_gpu.compare("sdpa", mine, "math", theirs) == model_gpu.Agreement("sdpa", "math", 4.0, 1.5, 1 / 3)
    assert model_gpu.compare("sdpa", -np.abs(mine), "math", -np.abs(mine)).iou == 1


def test_targets_of_the_full_size() -> None:
    """Speeds invented so that each figure is known."""
    base = model_gpu.Measurement("sdpa", "", 1, 0.0, 0.5, None, {})
    measured = [
        replace(base, kernel=kernel, case=case.name, batch=batch, tiles_per_second=speed * batch)
        for case in model_gpu.CASES
        for kernel, batch, speed in (("sdpa", 1, 6.0), ("sdpa", 4, 3.0), ("math", 1, 2.0))
    ]
    masks = [model_gpu.Agreement(kernel, "float32", 1.0, mean, 1.0) for kernel, mean in (("sdpa", 0.4), ("math", 0.2))]
    assert [figure.value for figure in model_gpu.figures(measured, masks)] == [12.0, 12.0, 12.0, 3.0, 2.0]
    assert [figure.met for figure in model_gpu.figures(measured, masks)] == [True, True, True, True, False]
    assert not any(figure.met for figure in model_gpu.figures([], []))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run on")
def test_the_full_size_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        model_gpu.main([])
    assert "needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(2.0, False, True), (1.9, False, False), (nan, False, False), (2.0, True, True), (2.1, True, False), (nan, True, False)],
)
def test_targets(value: float, at_most: bool, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    figure = Figure("speed", value, 2.0, at_most=at_most)
    assert figure.met is met
    assert exit_code([Figure("other", 3.0, 1.0), figure]) == (0 if met else 1)
    expected = "" if met else f"missed: speed: {value:.3g}x, target {'<=' if at_most else '>='} 2x\n"
    assert capsys.readouterr().err == expected


def test_a_table() -> None:
    assert markdown(["a", "long name"], [["1.5", ""]]) == "| a   | long name |\n| --- | --------- |\n| 1.5 |           |"
    with pytest.raises(ValueError, match=r"2 cells .* got \['1'\]"):
        markdown(["a", "b"], [["1"]])
