"""How much faster the model answers than the same network run the published way, on the CPU, both sides in one process.

    python tests/benchmarks/model.py [--check] [--size mid|tiny]

The published way (mbzuai-oryx/GeoPixel, evaluate) answers one prompt at a time: the CLIP tower and SAM 2's encoder see the image again for
every question, the whole sequence goes through the language model again for every token, with logits at every position, and the states of
[SEG] are those of the last pass. It is written out below on the very modules that ours uses: same weights, same attention kernel, same
threads. The network has random weights and is taught by hand what it says, so that every answer has exactly the tokens asked for and one
[SEG]; its end token never comes, and no draft is given but where the template is the figure. Every measurement is checked: both sides
must have given the same token ids and the same masks. The sides alternate, ours first and last; medians of CPU seconds count, all threads
together: what else the machine does hardly shows in them.

Peak memory is measured in one fresh process for each number of prompts: the peak of its resident set while it answers (Linux: VmHWM, set back by
clear_refs when the model is built), less its resident set just before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from math import nan
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch
from torch.nn.functional import pad

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script: the tests' tiny networks are no part of the package

from geopixel.model import Answer, GeoPixel, processor
from geopixel.model.config import GeoPixelConfig, GroundingConfig, LanguageConfig, VisionConfig
from geopixel.model.geopixel import SEGMENT_ANSWER, SEGMENT_PROMPT
from geopixel.model.grounding import upsample
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer
from tests.benchmarks.table import Figure, exit_code, markdown
from tests.model import tiny

MID = GeoPixelConfig(
    LanguageConfig(92547, hidden_size=512, intermediate_size=1792, layers=8, heads=8, kv_heads=2, rope_factor=2.0, plora_rank=32, plora_alpha=32.0),
    VisionConfig(hidden_size=256, intermediate_size=1024, layers=6, heads=4),
    GroundingConfig(embed_size=96, heads=1, blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9), windows=(8, 4, 14, 7)),
    hd_num=9,
)
"""The language model is the published one's shape at an eighth of the width, with its vocabulary: logits at every position are a good part of
what the published way costs. SAM 2 is Hiera-T."""
SIZES = {"mid": (MID, 1024), "tiny": (tiny.CONFIG, 64)}
"""Configuration, and edge of the image in pixels."""

PROMPTS = [SEGMENT_PROMPT.format(concept) for concept in ("building", "road", "ship", "tree", "water")]
SHORT, LONG = 12, 100
"""Tokens of an answer."""
NEVER = -1
"""An id that no answer holds."""


@dataclass(frozen=True, slots=True)
class Given:
    """An answer as both sides give it."""

    ids: list[int]
    logits: np.ndarray
    """(masks, S, S) float32 before they are scaled to the image."""


class RecordingTokenizer(Tokenizer):
    """Keeps the ids of every answer: the model gives its words only."""

    def __init__(self, model: bytes) -> None:
        super().__init__(model)
        self.answers: list[list[int]] = []

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        self.answers.append(list(ids))
        return super().decode(ids, skip_special=skip_special)


@dataclass(frozen=True, slots=True)
class Subject:
    model: GeoPixel
    tokenizer: RecordingTokenizer
    image: np.ndarray


def build(size: str) -> Subject:
    """A model of this size with seeded random weights, and the image it is asked about."""
    config, edge = SIZES[size]
    tokenizer = RecordingTokenizer(tiny.tokenizer_model())
    return Subject(GeoPixel(tiny.network(0, config), tokenizer, f"{size}, random weights"), tokenizer, tiny.image(edge, edge))


def teach_length(model: GeoPixel) -> None:
    """Teaches an answer of LONG tokens, the fourth of them [SEG], that is cut where it shall end."""
    tokenizer = model.tokenizer
    start = tokenizer.encode(ASSISTANT)[-1]
    ids = [i for i in range(tokenizer.seg) if i not in (start, tokenizer.bos, tokenizer.eos)][1 - LONG :]
    ids.insert(3, tokenizer.seg)
    tiny.teach(model.network, [start, *ids])
    tokenizer.eos = NEVER


def teach_template(model: GeoPixel) -> None:
    tokenizer = model.tokenizer
    tiny.teach(model.network, [tokenizer.encode(ASSISTANT)[-1], *tokenizer.encode(SEGMENT_ANSWER + ANSWER_END), tokenizer.eos])


@torch.inference_mode()
def published_way(subject: Subject, prompt: str, max_new_tokens: int) -> Given:
    """One prompt as the published evaluate answers it, and its mask at the image's size."""
    model, image = subject.model, subject.image
    network, tokenizer, config = model.network, model.tokenizer, model.config
    features = network.grounding.encode(processor.sam_pixels(image, config.grounding.image_size)[None])
    crops, grid = processor.clip_crops(image, config.hd_num, config.vision.crop_size)
    image_tokens = network.vision(crops, [grid])[0]
    embed = network.language.tok_embeddings
    question = tokenizer.encode(USER + prompt + ASSISTANT)
    x = torch.cat([embed(torch.tensor([tokenizer.bos])), image_tokens, embed(torch.tensor(question))])[None]
    image_mask = pad(torch.ones((1, len(image_tokens)), dtype=torch.bool), (1, len(question)))
    ids: list[int] = []
    while True:
        states = network.language(x, image_mask=image_mask)
        logits = network.language.output(states).float()
        ids.append(int(logits[0, -1].argmax()))
        if len(ids) % 20 == 0:
            note(f"    {len(ids)} of {max_new_tokens} tokens")
        if ids[-1] == tokenizer.eos or len(ids) == max_new_tokens:
            break
        x = torch.cat([x, embed(torch.tensor([[ids[-1]]]))], dim=1)
        image_mask = pad(image_mask, (0, 1))
    fed = torch.tensor(ids[:-1])
    masks = network.grounding.decode(features, network.mask_prompts(states[:, -len(fed) :][:, fed == tokenizer.seg]))
    upsample(masks.logits, *image.shape[:2])  # what evaluate gives back
    return Given(ids, masks.logits.numpy())


def our_way(subject: Subject, ask: Callable[[], list[list[Answer]]]) -> list[Given]:
    """The answers to all prompts of one image, and their masks at the image's size."""
    subject.tokenizer.answers.clear()
    answers = ask()[0]
    for answer in answers:
        answer.masks  # noqa: B018  (computed where they are asked for)
    return [Given(ids, answer.logits) for ids, answer in zip(subject.tokenizer.answers, answers, strict=True)]


def check_same(ours: Sequence[Given], published: Sequence[Given]) -> None:
    """Raises AssertionError unless both sides gave the same token ids, one mask each, and masks that differ by rounding only."""
    for mine, theirs in zip(ours, published, strict=True):
        if mine.ids != theirs.ids:
            raise AssertionError(f"ours answered {mine.ids}, the published way {theirs.ids}")
        if mine.logits.shape != theirs.logits.shape or len(mine.logits) != 1:
            raise AssertionError(f"each answer has one mask, ours has {mine.logits.shape}, the published way {theirs.logits.shape}")
        difference, spread = np.abs(mine.logits - theirs.logits).max(), theirs.logits.std()
        if not difference <= 1e-3 * spread:
            raise AssertionError(f"masks differ by {difference:.2g}, their standard deviation is {spread:.2g}")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def timed(label: str, run: Callable[[], list[Given]]) -> tuple[float, list[Given]]:
    start = process_time()
    given = run()
    seconds = process_time() - start
    note(f"  {label}: {seconds:.2f} s")
    return seconds, given


def speed(subject: Subject, prompts: Sequence[str], tokens: int, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of ours and of the published way."""
    note(f"{len(prompts)} prompts, {tokens} tokens each")

    def ours() -> list[Given]:
        return our_way(subject, lambda: subject.model.ask([subject.image], prompts, max_new_tokens=tokens))

    def published() -> list[Given]:
        return [published_way(subject, prompt, tokens) for prompt in prompts]

    times: dict[str, list[float]] = {"ours": [], "published way": []}
    for _ in range(rounds):
        given = []
        for label, side in (("ours", ours), ("published way", published), ("ours", ours)):
            seconds, answers = timed(label, side)
            times[label].append(seconds)
            given.append(answers)
            if any(len(answer.ids) != tokens for answer in answers):
                raise AssertionError(f"every answer should have {tokens} tokens, {label} has {[len(answer.ids) for answer in answers]}")
        check_same(given[0], given[1])
        check_same(given[2], given[1])
    return median(times["ours"]), median(times["published way"])


def template_passes(subject: Subject) -> tuple[int, int]:
    """Passes of the language model after the first, which sees the image: ours and the published way's, for a template that is accepted."""
    note("template")
    passes: list[None] = []
    hook = subject.model.network.language.register_forward_hook(lambda *_: passes.append(None))
    try:
        ours = our_way(subject, lambda: subject.model.segment([subject.image], ["building"]))
        mine = len(passes) - 1
        passes.clear()
        published = published_way(subject, SEGMENT_PROMPT.format("building"), LONG)
        theirs = len(passes) - 1
    finally:
        hook.remove()
    check_same(ours, [published])
    return mine, theirs


def kibibytes(name: str) -> int:
    """A field of this process's status: VmRSS, the resident set, or VmHWM, its peak."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))


def peak_of_asking(size: str, prompts: int) -> int:
    """Bytes that this process needs, beyond the model, to answer so many prompts about one image."""
    subject = build(size)
    teach_length(subject.model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kibibytes("VmRSS")
    subject.model.ask([subject.image], PROMPTS[:prompts], max_new_tokens=SHORT)
    return 1024 * (kibibytes("VmHWM") - before)


def peak_in_a_fresh_process(size: str, prompts: int) -> int:
    note(f"memory of {prompts} prompts")
    command = [sys.executable, __file__, "--size", size, "--peak-of", str(prompts)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(size: str) -> tuple[list[Figure], list[tuple[str, str]]]:
    """The figures, and for each how the published way and ours came out."""
    figures: list[Figure] = []
    sides: list[tuple[str, str]] = []
    subject = build(size)
    teach_template(subject.model)
    mine, theirs = template_passes(subject)
    figures.append(Figure("language-model passes after the prefill, template accepted", mine, 1, unit="", at_most=True))
    sides.append((str(theirs), str(mine)))

    teach_length(subject.model)
    for name, asked, tokens, rounds, target in (
        (f"1 prompt, {SHORT} answer tokens", 1, SHORT, 3, 6),
        (f"1 prompt, {LONG} answer tokens", 1, LONG, 1, 40),
        (f"{len(PROMPTS)} prompts, {SHORT} answer tokens each", len(PROMPTS), SHORT, 1, 25),
    ):
        ours, published = speed(subject, PROMPTS[:asked], tokens, rounds)
        figures.append(Figure(name, published / ours, target))
        sides.append((f"{published:.3g} s", f"{ours:.3g} s"))

    with ThreadPoolExecutor() as pool:
        one, several = pool.map(lambda count: peak_in_a_fresh_process(size, count), (1, len(PROMPTS)))
    figures.append(Figure(f"peak memory of {len(PROMPTS)} prompts against 1", several / one if one else nan, 1.3, at_most=True))
    sides.append((f"1 prompt: {one / 2**20:.0f} MiB", f"{len(PROMPTS)} prompts: {several / 2**20:.0f} MiB"))
    return figures, sides


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of the model against the published way, on the CPU.")
    parser.add_argument("--size", choices=sorted(SIZES), default="mid", help="the mid size takes about 35 minutes on 2 cores")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak_of:
        print(peak_of_asking(options.size, options.peak_of))
        return 0
    figures, sides = measure(options.size)
    print(f"{date.today()}, {options.size} size, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    rows = [[figure.name, *side, figure.measured, figure.wanted, figure.verdict] for figure, side in zip(figures, sides, strict=True)]
    print(markdown(["figure", "published way", "ours", "ratio", "target", "met"], rows))
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
