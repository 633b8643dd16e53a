"""Imagery and labelled polygons in, training samples out: texts at three levels (scene, objects, groups) whose every phrase is tied to a mask, and
means what is in it and nothing else. Knows the order of the steps; each of them knows no more than it must.

    chips -> frame of objects -> expressions that fit (references, groups) -> words (wordings, descriptions) -> samples, marks, page -> review
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapely import Geometry

from geopixel.annotation.chips import Chip, Place, cut_chips, folder_scenes, plan_chips, split_places
from geopixel.annotation.descriptions import describe
from geopixel.annotation.labels import Labels, read_labels, rendered_labels
from geopixel.annotation.review import Captioner, apply_review, complaints, read_review, rewrite
from geopixel.annotation.samples import REVIEW, Annotated, check_new, count_samples, read_samples, write_samples
from geopixel.types import Grid, Scene

__all__ = ["Captioner", "Labels", "Wanted", "annotate", "check_new", "folder_scenes", "read_labels", "rendered_labels", "review_samples", "rewrite"]

LEAST_VALID = 0.9
"""Share of a chip that must have been observed."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its units are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a folder of samples is made of: equal values, labels and imagery give equal bytes."""

    chip_size: int = 512
    """Pixels along an edge."""
    validation: float = 0.2
    """Share of the chips that is kept for validation, in whole blocks of ground."""
    objects: int = 4
    """Single objects of a chip that are spoken of, at most; and groups."""
    groups: int = 3
    limit: int | None = None
    """Chips, drawn by the seed; None: all."""
    seed: int = 0


def annotate(
    out: Path, scenes: Sequence[Scene], grid: Grid, labels: Labels, window: Geometry, wanted: Wanted, progress: Progress, about: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Writes a folder of samples (see samples.py): all of it or nothing. Returns how much there is of what.

    window: ground (EPSG:4326) on which the labels are complete; chips lie wholly in it. about: what else annotation.json is to say.
    Raises ValueError where out is there already, the window has no room for a chip, or nothing can be said; ReadError for imagery that cannot be read.
    """
    check_new(out)
    places = plan_chips(grid, window, wanted.chip_size)
    kept = split_places(places, wanted.validation, wanted.seed)
    if wanted.limit is not None and wanted.limit < len(places):
        drawn = np.random.default_rng(wanted.seed).permutation(len(places))[: wanted.limit]
        places = [places[index] for index in drawn.tolist()]
    places.sort(key=lambda place: (place in kept, place.id))  # as read_samples reads them
    counts: Counter[str] = Counter()

    def chips() -> Iterator[Annotated]:
        progress("chips", 0, len(places))
        for done, (place, chip) in enumerate(zip(places, cut_chips(places, scenes, labels, grid, wanted.chip_size), strict=True), start=1):
            annotated = _annotate_chip(place, chip, wanted, kept, counts)
            if annotated is not None:
                counts.update(count_samples([annotated]))
                yield annotated
            progress("chips", done, len(places))

    asked = {name: getattr(wanted, name) for name in Wanted.__dataclass_fields__}
    place = {"crs": grid.crs, "resolution": grid.resolution, "window": window.wkt}
    write_samples(out, chips(), lambda: {"asked": asked, **place, **(about or {}), "counts": dict(counts)}, len(places))
    return dict(counts)


def _annotate_chip(place: Place, chip: Chip, wanted: Wanted, kept: set[Place], counts: Counter[str]) -> Annotated | None:
    """A chip with its texts, or None, counted, where there is nothing to say. Every chip has a generator of its own: it says the same whatever
    other chips there are."""
    if chip.valid < LEAST_VALID:
        counts["chips left out: no imagery"] += 1
        return None
    drafts = describe(chip.frame, np.random.default_rng([wanted.seed, zlib.crc32(chip.id.encode())]), wanted.objects, wanted.groups)
    # Read anew from the words: what was composed is not to be believed. Strange names of classes may be read as something else.
    samples = [sample for sample in drafts if not complaints(chip.frame, sample)]
    if len(samples) < len(drafts):
        counts["samples left out: not clear"] += len(drafts) - len(samples)
    if not any(sample.level == "scene" for sample in samples):
        counts["chips left out: no labels"] += 1
        return None
    return Annotated(chip.id, "val" if place in kept else "train", chip.frame, tuple(samples))


def review_samples(folder: Path, out: Path, progress: Progress) -> dict[str, int]:
    """Writes the samples of a folder anew, with the texts of its review.jsonl: all of it or nothing. Returns how much there is of what.

    Raises ValueError, naming every sample, for texts that lack a [SEG], or whose phrase or question means other objects than its mask and is not by hand.
    """
    check_new(out)
    reviews, chips = read_review(folder / REVIEW), list(read_samples(folder))
    names = {chip.name(index) for chip in chips for index in range(len(chip.samples))}
    if strange := sorted(reviews.keys() - names):
        raise ValueError(f"{REVIEW} has lines of samples that {folder} does not hold: {', '.join(strange[:3])}")
    reviewed: list[Annotated] = []
    wrong: list[str] = []
    for done, chip in enumerate(chips, start=1):
        try:
            reviewed.append(apply_review(chip, reviews))
        except ValueError as error:
            wrong.append(str(error))
        progress("review", done, len(chips))
    if wrong:
        raise ValueError("; ".join(wrong))
    counts = count_samples(reviewed)
    counts["phrases by hand"] = sum(len(each) for chip in reviewed for each in chip.by_hand.values())
    write_samples(out, reviewed, lambda: {"reviewed": str(folder), "counts": dict(counts)}, len(reviewed))
    return dict(counts)
