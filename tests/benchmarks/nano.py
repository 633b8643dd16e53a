"""What the bundled model is worth on imagery that its training kept back: buildings on sites left out, Dubai tiles, things that are not there, and
how long a tile takes. Rendered scenes and maps are measured by `make map` and jobs/evaluate.py --run.

    python tests/benchmarks/nano.py --data ../shared [--left-out zanzibar=FOLDER --left-out nepal2=FOLDER] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from geopixel.demo import CLASSES, render_scene
from geopixel.evaluation.referring import Overlap, referring_scores
from geopixel.model import GeoPixel
from geopixel.training.real import Ground, dubai_grounds, naip_grounds, read_picture
from geopixel.training.referring import LARGEST, Referred, references
from geopixel.training.words import CONCEPTS, OTHER, STRANGE, UNLABELLED
from tests.benchmarks.table import Figure, exit_code, markdown

DUBAI = ("building", "road", "vegetation", "water", "land")
STRANGE_ASKED = 4
"""Things that nothing here holds, asked of every picture."""
WINDOW = 512
"""Pixels along an edge of the rendered pictures that are asked for single objects."""
PHRASED_SEEDS = range(1_000_100, 1_000_112)
"""Of the rendered scenes that are."""
KINDS = ("largest", "outermost", "place")
"""Of phrases."""
ABSENT_CHIPS = 8
"""Every so many chips are asked for what they do not hold."""


def answers(model: GeoPixel, picture: np.ndarray, words: Sequence[str]) -> list[np.ndarray]:
    """A mask (height, width) bool for every word, empty where the model denies it."""
    (row,) = model.segment([picture], list(words))
    return [np.any(answer.masks > 0.5, axis=0, keepdims=True)[0] if len(answer.logits) else np.zeros(picture.shape[:2], bool) for answer in row]


def chips(folder: Path, site: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every chip of a site: (256, 256, 3) uint8 and (256, 256) bool."""
    with (folder / "index.csv").open() as file:
        for row in csv.DictReader(file):
            if row["site"] == site:
                mask = np.array(Image.open(folder / "msk" / f"{row['name']}.png").convert("L")) > 0
                yield read_picture(folder / "img" / f"{row['name']}.jpg"), mask


def building_iou(model: GeoPixel, pictures: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """All intersections over all unions."""
    overlaps = [Overlap.of(answers(model, picture, ["building"])[0], mask) for picture, mask in pictures]
    return float(referring_scores(overlaps)["oIoU"] or 0)


def class_ious(model: GeoPixel, grounds: Iterable[Ground], names: Sequence[str]) -> dict[str, float]:
    """IoU of every class over all labelled pixels of the grounds."""
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for ground in grounds:
        labelled = ground.truth != UNLABELLED
        for name, found in zip(names, answers(model, ground.rgb, names), strict=True):
            overlap = Overlap.of(found & labelled, ground.truth == CONCEPTS[name])
            counts[name] += overlap.intersection, overlap.union
    return {name: float(both / max(1, either)) for name, (both, either) in counts.items()}


def empty_share(model: GeoPixel, pictures: Iterable[tuple[np.ndarray, Sequence[str]]]) -> tuple[int, int]:
    """Of the words that name nothing in their picture, how many found nothing, and how many there were."""
    found = [mask.any() for picture, words in pictures if words for mask in answers(model, picture, words)]
    return len(found) - sum(map(int, found)), len(found)


def absent_words(data: Path) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Pictures kept back from training, with words for what none of them holds and for what their labels say is not there."""
    rng = np.random.default_rng(0)
    for ground in [*dubai_grounds(data / "training" / "dubai", kept_back=True), *naip_grounds(data / "imagery" / "naip-north-dakota", kept_back=True)]:
        there = set(np.unique(ground.truth))
        missing = [name for name in ground.known if CONCEPTS[name] not in there]
        yield ground.rgb, [*missing, *rng.choice(STRANGE, STRANGE_ASKED, replace=False).tolist()]
    for picture, mask in list(chips(data / "training" / "buildings", "banepa"))[::ABSENT_CHIPS]:
        yield picture, ([] if mask.any() else ["building"]) + rng.choice(STRANGE, 1).tolist()


Pictured = tuple[np.ndarray, np.ndarray, list[Referred]]
"""A picture and its labels, with all that can be asked of its objects without ambiguity."""


def asked_of(rgb: np.ndarray, truth: np.ndarray, known: Sequence[str]) -> Pictured:
    return rgb, truth, list(references(rgb, truth, known, np.random.default_rng(0)))


def real_phrases(data: Path) -> Iterator[Pictured]:
    """Of imagery kept back from training."""
    for ground in dubai_grounds(data / "training" / "dubai", kept_back=True):
        yield asked_of(ground.rgb, ground.truth, ground.known)
    for rgb, mask in chips(data / "training" / "buildings", "banepa"):
        yield asked_of(rgb, np.where(mask, CONCEPTS["building"], OTHER).astype(np.uint8), ("building",))


def rendered_phrases() -> Iterator[Pictured]:
    """Of rendered scenes that neither training nor the demo shows."""
    for scene in map(render_scene, PHRASED_SEEDS):
        for top, left in np.ndindex(*(edge // WINDOW for edge in scene.truth.shape)):
            window = slice(top * WINDOW, (top + 1) * WINDOW), slice(left * WINDOW, (left + 1) * WINDOW)
            yield asked_of(scene.rgb[window], scene.truth[window], tuple(CLASSES))


def understood(model: GeoPixel, asked: Iterable[Pictured]) -> dict[str, float]:
    """By what phrases say: how many there are; of the answers mean IoU with what is meant, and the mean shares that are drawn of that and of the
    concept's other objects; the same of the answers to the bare concept, which is what one gets who is not listened to."""
    scores = defaultdict[str, list[float]](list)
    for rgb, truth, pictured in asked:
        concepts = sorted({each.reference.category for each in pictured})
        words = [*(each.words for each in pictured), *concepts]
        drawn = dict(zip(words, answers(model, rgb, words), strict=True)) if words else {}
        for each in pictured:
            (atom,) = each.reference.atoms
            kind = "place" if atom.kind == "place" else "largest" if atom == LARGEST else "outermost"
            others = (truth == CONCEPTS[each.reference.category]) & ~each.mask
            for name, said in (("", each.words), (", bare", each.reference.category)):
                overlap = Overlap.of(drawn[said], each.mask)
                scores[f"{kind}{name}"].append(overlap.intersection / max(1, overlap.union))
                scores[f"{kind}{name}, meant drawn"].append(float(drawn[said][each.mask].mean()))
                scores[f"{kind}{name}, others drawn"].append(float(drawn[said][others].mean()))
    return {name: float(np.mean(values)) for name, values in scores.items()} | {f"{kind}, asked": len(scores[kind]) for kind in KINDS}


def seconds(model: GeoPixel, prompts: Sequence[str], repeats: int = 3) -> float:
    """Median CPU time of a tile of 1024 pixels, over all threads: no less than its wall time on an idle machine, and what else runs does not count."""
    tile = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    model.segment([tile], list(prompts))
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        model.segment([tile], list(prompts))
        taken.append(time.process_time() - began)
    return sorted(taken)[repeats // 2]


def measure(data: Path, model: GeoPixel, left_out: dict[str, GeoPixel]) -> tuple[list[Figure], dict[str, object]]:
    """The figures with a target, and all that they were made of."""
    sites = {site: building_iou(one, chips(data / "training" / "buildings", site)) for site, one in left_out.items()}
    classes = class_ious(model, dubai_grounds(data / "training" / "dubai", kept_back=True), DUBAI)
    empty, asked = empty_share(model, absent_words(data))
    one, five = seconds(model, DUBAI[:1]), seconds(model, DUBAI)
    figures = [
        Figure(f"building IoU, chips of {', '.join(sites)} left out, mean", float(np.mean(list(sites.values()))), 0.55, ""),
        Figure("Dubai, tile kept back, mIoU of five classes", float(np.mean(list(classes.values()))), 0.50, ""),
        Figure(f"absent things that give an empty mask ({asked} prompts)", empty / asked, 0.90, ""),
        Figure("1024 px tile, 1 prompt", one, 2, " s", at_most=True),
        Figure("1024 px tile, 5 prompts", five, 3, " s", at_most=True),
    ]
    naip = class_ious(model, naip_grounds(data / "imagery" / "naip-north-dakota", kept_back=True), ("water", "vegetation"))
    said = {"phrases, real": understood(model, real_phrases(data)), "phrases, rendered": understood(model, rendered_phrases())}
    return figures, {**said, "left out": sites, "dubai": classes, "naip": naip, "absent": [empty, asked], "seconds": [one, five]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled imagery: training/buildings, training/dubai, imagery/naip-north-dakota in it")
    parser.add_argument("--model", default="nano", help="trained without banepa (default: %(default)s)")
    parser.add_argument("--left-out", metavar="SITE=MODEL", action="append", default=[], help="a model trained without the chips of another site")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = GeoPixel.from_pretrained(options.model, device="cpu")
    others = {site: GeoPixel.from_pretrained(name, device="cpu") for site, _, name in (pair.partition("=") for pair in options.left_out)}
    figures, details = measure(options.data, model, {"banepa": model, **others})
    print(markdown(("figure", "measured", "target", "met"), [(x.name, x.measured, x.wanted, x.verdict) for x in figures]))
    for name, values in details.items():
        print(f"{name}: " + (", ".join(f"{k} {v:.3g}" for k, v in values.items()) if isinstance(values, dict) else str(values)))
    if options.json:
        options.json.write_text(json.dumps(details, indent=1) + "\n")
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
