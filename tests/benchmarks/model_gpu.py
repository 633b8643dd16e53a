"""What the full-size model does on a GPU: tiles a second, where the time goes, and whether every attention kernel gives the same masks.

    python tests/benchmarks/model_gpu.py [--check] [--json FILE] [--peak-tflops 790] [--tiny]

The network has the published 7B shapes and random bfloat16 weights made on the GPU, and is taught by hand to answer the referring template,
so that the draft is accepted as it is by the released weights. Measured is GeoPixel.segment from uint8 images in host memory to masks in host
memory: nothing of the host's work is left out. A stage is timed by events on the device around the module that does it; "rest" is the wall
time that no stage has: cutting and scaling on the host, copies, the output layer, gaps. Peak memory is the allocator's, weights included.
Model FLOPs utilisation is GeoPixelConfig.flops (the work that the answer needs, not what was spent) over --peak-tflops, the rate that the
device reaches in large bf16 matrix products (790 on an H200).

Kernels are compared by their masks against those of the same weights in float32: rounding is noise, so a kernel is as good as `math`, the
formula step by step, if it lies no farther from float32 than `math` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from math import isnan, nan, prod
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the tests' tiny networks are no part of the package

from geopixel.model import GeoPixel, attention
from geopixel.model.config import GeoPixelConfig, published_config
from geopixel.model.geopixel import SEGMENT_ANSWER
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT
from tests.benchmarks.table import Figure, exit_code, markdown
from tests.model import tiny

CONCEPTS = ["building", "road", "ship", "tree", "water"]
STAGES = ["CLIP", "SAM 2", "prefill", "answers", "masks"]
ROUNDS = 3
SPEED_SECONDS = 400.0
"""What would end later than this after the start is not measured, and named: the whole run must fit in eight minutes."""


@dataclass(frozen=True, slots=True)
class Case:
    """An image of side x side crops and so many prompts."""

    side: int
    prompts: int
    target: float
    """Tiles a second on an H200: about half of the rate that it reaches in large matrix products."""

    @property
    def name(self) -> str:
        return f"{self.side}x{self.side} crops, {self.prompts} {'prompt' if self.prompts == 1 else 'prompts'}"


CASES = [Case(3, 1, 4.7), Case(3, 5, 4.4), Case(2, 1, 9.0)]
FLASH_OVER_MATH = 1.5
"""How much faster the best flash kernel must be than `math` at 3x3 crops and 1 prompt, the batch being equal. At 4,100 tokens and 32 heads
`math` writes and reads 2 GB of float32 scores several times in each of 32 layers: at 4 TB/s more than half of what the rest of a tile takes."""
NOISE = 1.5
"""How much farther from float32 than `math` a kernel's masks may lie, in the mean over all pixels."""


@dataclass(frozen=True, slots=True)
class Measurement:
    kernel: str
    case: str
    batch: int
    tiles_per_second: float
    utilisation: float
    peak_gib: float | None
    """None on the CPU, where the allocator does not say."""
    stages: dict[str, float]
    """Milliseconds a tile, in the mean; their sum is the wall time."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mask logits of a kernel in bfloat16 against another computation of the same masks."""

    kernel: str
    against: str
    max_difference: float
    mean_difference: float
    iou: float
    """Of the pixels above zero, over all masks."""


def full_config() -> GeoPixelConfig:
    """The published sizes. SAM 2's fallback to another mask is off: a choice between masks would make steps of the noise that kernels are compared by."""
    config = published_config(tiny.PUBLISHED)
    return replace(config, grounding=replace(config.grounding, multimask_fallback=False))


def tiny_config() -> GeoPixelConfig:
    config = replace(tiny.CONFIG, language=replace(tiny.LANGUAGE, vocab_size=tiny.tokenizer().vocab_size))
    return replace(config, grounding=replace(config.grounding, multimask_fallback=False))


def random_network(config: GeoPixelConfig, device: torch.device) -> GeoPixelNetwork:
    """A bfloat16 network whose weights never were anywhere but on the device; they keep the size of the states, as tiny.fill's do."""
    with torch.device("meta"):
        network = GeoPixelNetwork(config)
    network.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.normal_(0, prod(parameter.shape[1:]) ** -0.5, generator=generator)
        else:
            parameter.normal_(0 if name.endswith("bias") else 1, 0.1, generator=generator)
    for buffer in network.buffers():
        if buffer.is_floating_point():  # the matrix of SAM 2's positional encoding
            buffer.normal_(generator=generator)
        else:  # position_ids of the tower
            buffer.copy_(torch.arange(buffer.shape[-1])[None])
    tokenizer = tiny.tokenizer()
    tiny.teach(network, [tokenizer.encode(ASSISTANT)[-1], *tokenizer.encode(SEGMENT_ANSWER + ANSWER_END), tokenizer.eos])
    return network.eval()


def images(config: GeoPixelConfig, side: int, count: int) -> list[np.ndarray]:
    """Noise of exactly side x side crops."""
    edge = side * config.vision.crop_size
    return [tiny.image(edge, edge, seed) for seed in range(count)]


def model_for(network: GeoPixelNetwork, kernel: str, side: int, batch: int) -> GeoPixel:
    """A model that cuts images into side x side crops and looks at so many at once."""
    network.config = replace(network.config, hd_num=side * side)
    model = GeoPixel(network, tiny.tokenizer(), "random weights", kernel)
    model.batch_size = batch
    return model


def available_kernels(network: GeoPixelNetwork) -> list[str]:
    """Names of the attention kernels that can run here, the fastest first, `math` last."""
    parameter = next(network.parameters())
    names = []
    for name in sorted(attention.KERNELS, key=["flash_attention_2", "sdpa", "math"].index):
        try:
            names.append(attention.choose(name, parameter.device, parameter.dtype))
        except ValueError as error:
            note(f"{name} is left out: {error}")
    return names


@contextmanager
def watched(network: GeoPixelNetwork) -> Iterator[Callable[[], dict[str, list[float]]]]:
    """Times the parts of the network while the block runs. What it gives tells the milliseconds of every pass through each of them."""
    cuda = next(network.parameters()).is_cuda
    marks: list[tuple[str, Any]] = []

    def mark(name: str) -> None:
        if cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append((name, event))
        else:
            marks.append((name, perf_counter()))

    def language_stage(kwargs: dict[str, Any]) -> str:
        return "answers" if kwargs.get("image_mask") is None else "prefill"

    parts: list[tuple[nn.Module, Callable[[dict[str, Any]], str]]] = [
        (network.vision, lambda _: "CLIP"),
        (network.language, language_stage),
        (network.grounding.sam2.vision_encoder, lambda _: "SAM 2"),
        (network.grounding.sam2.mask_decoder, lambda _: "masks"),
    ]
    hooks = []
    for module, stage in parts:
        hooks.append(module.register_forward_pre_hook(lambda _module, _args, kwargs, stage=stage: mark(stage(kwargs)), with_kwargs=True))
        hooks.append(module.register_forward_hook(lambda *_: mark("rest")))

    def times() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for (name, begin), (_, end) in pairwise(marks):
            if name != "rest":
                found[name].append(begin.elapsed_time(end) if cuda else 1e3 * (end - begin))
        return found

    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()


def measure(network: GeoPixelNetwork, kernel: str, case: Case, batch: int, peak_flops: float) -> Measurement | None:
    """ROUNDS of one batch, the speed that of the median; None where it does not fit in the GPU's memory."""
    model = model_for(network, kernel, case.side, batch)
    tiles, concepts = images(network.config, case.side, batch), CONCEPTS[: case.prompts]
    cuda = model.device.type == "cuda"
    seconds = []
    try:
        model.segment(tiles, concepts)  # warm
        if model.batch_size < batch:
            return None
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with watched(network) as times:
            for _ in range(ROUNDS):
                start = perf_counter()
                answers = model.segment(tiles, concepts)
                seconds.append(perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    passes = times()
    if len(passes["answers"]) != ROUNDS or any(len(answer.logits) != 1 for row in answers for answer in row):
        raise AssertionError(f"the template should be answered in one pass behind the prefill, got {len(passes['answers'])} in {ROUNDS} rounds")
    per_tile = median(seconds) / batch
    stages = {stage: sum(passes[stage]) / ROUNDS / batch for stage in STAGES}
    edge = tiles[0].shape[0]
    return Measurement(
        kernel,
        case.name,
        batch,
        1 / per_tile,
        network.config.flops(edge, edge, case.prompts) / per_tile / peak_flops,
        torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        {**stages, "rest": 1e3 * mean(seconds) / batch - sum(stages.values())},
    )


def measure_all(network: GeoPixelNetwork, kernels: Sequence[str], batches: Sequence[int], peak_flops: float) -> list[Measurement]:
    """Every kernel, case and batch size, until memory or time is used up."""
    end = perf_counter() + SPEED_SECONDS
    found: list[Measurement] = []
    for kernel in kernels:
        for case in CASES:
            per_tile = 0.0
            for batch in batches:
                label = f"{kernel}, {case.name}, batch {batch}"
                if perf_counter() + per_tile * batch * (1 + ROUNDS) > end:
                    note(f"{label} and larger are left out: no time")
                    break
                measured = measure(network, kernel, case, batch, peak_flops)
                if measured is None:
                    note(f"{label} does not fit in memory")
                    torch.cuda.empty_cache()
                    break
                note(f"{label}: {measured.tiles_per_second:.2f} tiles/s")
                per_tile = 1 / measured.tiles_per_second
                found.append(measured)
    return found


def compare(kernel: str, mine: np.ndarray, against: str, theirs: np.ndarray) -> Agreement:
    difference = np.abs(mine - theirs)
    union = ((mine > 0) | (theirs > 0)).sum()
    iou = ((mine > 0) & (theirs > 0)).sum() / union if union else 1.0
    return Agreement(kernel, against, float(difference.max()), float(difference.mean()), float(iou))


def compare_masks(network: GeoPixelNetwork, kernels: Sequence[str]) -> list[Agreement]:
    """Every kernel's masks against float32, and against `math` in bfloat16. Turns the network into float32."""
    tiles = images(network.config, 3, 1)

    def masks(kernel: str) -> np.ndarray:
        """(prompts, S, S) mask logits."""
        return np.concatenate([answer.logits for answer in model_for(network, kernel, 3, 1).segment(tiles, CONCEPTS)[0]])

    found = {kernel: masks(kernel) for kernel in kernels}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.backends.cudnn.allow_tf32 = False
    network.float()
    reference = masks("math")
    return [compare(kernel, found[kernel], "float32", reference) for kernel in kernels] + [
        compare(kernel, found[kernel], "math", found["math"]) for kernel in kernels if kernel != "math"
    ]


def best(measured: Sequence[Measurement], case: Case) -> Measurement | None:
    return max((m for m in measured if m.case == case.name), key=lambda m: m.tiles_per_second, default=None)


def figures(measured: Sequence[Measurement], agreements: Sequence[Agreement]) -> list[Figure]:
    """What the model must come to; a figure that was not measured is nan and misses its target."""
    found = []
    for case in CASES:
        fastest = best(measured, case)
        found.append(Figure(case.name, fastest.tiles_per_second if fastest else nan, case.target, unit=" tiles/s"))
    speeds = {(m.kernel, m.batch): m.tiles_per_second for m in measured if m.case == CASES[0].name}
    batch = max((batch for kernel, batch in speeds if kernel == "math"), default=0)
    flash = max((speed for (kernel, size), speed in speeds.items() if kernel != "math" and size == batch), default=nan)
    found.append(Figure(f"flash over math at {CASES[0].name}, batch {batch}", flash / speeds.get(("math", batch), nan), FLASH_OVER_MATH))
    errors = {a.kernel: a.mean_difference for a in agreements if a.against == "float32"}
    for kernel in errors.keys() - {"math"}:
        found.append(Figure(f"distance of {kernel}'s masks from float32, over math's", errors[kernel] / errors["math"], NOISE, at_most=True))
    return found


def report(measured: Sequence[Measurement], agreements: Sequence[Agreement], found: Sequence[Figure]) -> str:
    """One table, the fastest of each case with its target, and the rest in sentences."""
    fastest = [best(measured, case) for case in CASES]
    rows = []
    for m in measured:
        figure = found[fastest.index(m)] if m in fastest else None
        speed = [f"{m.tiles_per_second:.2f}", f"{100 * m.utilisation:.0f} %", "" if m.peak_gib is None else f"{m.peak_gib:.1f}"]
        times = [f"{milliseconds:.1f}" for milliseconds in m.stages.values()]
        rows.append([m.kernel, m.case, str(m.batch), *speed, *times, figure.wanted if figure else "", figure.verdict if figure else ""])
    header = ["attention", "case", "batch", "tiles/s", "MFU", "peak GiB", *(f"{stage} ms" for stage in [*STAGES, "rest"]), "target", "met"]
    lines = [markdown(header, rows), ""]
    lines += [f"{figure.name}: {figure.measured} (target {figure.wanted}): {figure.verdict}" for figure in found[len(CASES) :]]
    for a in agreements:
        difference = f"logits differ by {a.max_difference:.3g} at most, {a.mean_difference:.3g} in the mean"
        lines.append(f"masks of {a.kernel} against {a.against}: {difference}; IoU {a.iou:.4f}")
    return "\n".join(lines)


def surroundings(device: torch.device) -> dict[str, str]:
    try:
        flash = version("flash-attn")
    except PackageNotFoundError:
        flash = "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"date": str(date.today()), "device": name, "torch": torch.__version__, "flash-attn": flash, "CUDA": torch.version.cuda or "none"}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of the full-size model on a CUDA GPU, kernel by kernel.")
    parser.add_argument("--tiny", action="store_true", help="the same on the CPU at a tiny size, in seconds: shows that the script works, and no speed")
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="bf16 rate of the device in large matrix products (default: %(default)s, an H200's)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file too")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("the full size needs a CUDA GPU, and torch sees none; --tiny runs on the CPU")
    device = torch.device("cpu" if options.tiny else "cuda")
    start = perf_counter()
    network = random_network(tiny_config() if options.tiny else full_config(), device)
    kernels = available_kernels(network)
    note(f"{sum(p.numel() for p in network.parameters()) / 1e9:.3f} B parameters, {perf_counter() - start:.0f} s")
    measured = measure_all(network, kernels, [1, 2] if options.tiny else [1, 4, 8, 16], 1e12 * options.peak_tflops)
    agreements = compare_masks(network, kernels)
    found = figures(measured, agreements)
    place = surroundings(device)
    print(", ".join(f"{name}: {value}" for name, value in place.items()) + f"; MFU of {options.peak_tflops:g} TFLOP/s\n")
    print(report(measured, agreements, found))
    note(f"{perf_counter() - start:.0f} s in all")
    if options.json:
        judged = [{**asdict(figure), "value": None if isnan(figure.value) else figure.value, "met": figure.met} for figure in found]
        everything = {**place, "peak_tflops": options.peak_tflops, "figures": judged}
        everything |= {"measured": [asdict(m) for m in measured], "masks": [asdict(a) for a in agreements]}
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    return exit_code(found) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
