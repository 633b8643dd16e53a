"""Measures what a model or a finished map is worth: published data sets and chips (datasets.py) by the scores of the papers (referring.py,
grounded.py), maps against what is known to be there (truth.py, maps.py). Every figure is a share of 1; every docstring names its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from geopixel.evaluation.datasets import DATASETS, Grounded, Referring, read_chips, read_dataset
from geopixel.evaluation.grounded import evaluate_grounded, find_embedder, grounded_scores
from geopixel.evaluation.maps import evaluate_map, evaluate_run
from geopixel.evaluation.referring import evaluate_referring, referring_scores
from geopixel.evaluation.truth import Truth, read_truth, rendered_truth

__all__ = [
    "DATASETS",
    "Grounded",
    "Referring",
    "Truth",
    "evaluate_grounded",
    "evaluate_map",
    "evaluate_model",
    "evaluate_referring",
    "evaluate_run",
    "find_embedder",
    "grounded_scores",
    "read_chips",
    "read_dataset",
    "read_truth",
    "referring_scores",
    "refuse_foreign",
    "rendered_truth",
]


FOREIGN = {"run": ("masks", "model", "limit"), "dataset": ("masks", "labels", "window", "prompt"), "images": ("labels", "window")}
"""Settings of an evaluation that another kind of it has: they would be passed over."""


def refuse_foreign(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that is given, not None, and that the kind of evaluation has no use for. settings: by their names."""
    kind = next(kind for kind in FOREIGN if settings[kind] is not None)
    for name in FOREIGN[kind]:
        if settings[name] is not None:
            raise ValueError(f"--{kind} has no use for --{name}: leave it out")


def evaluate_model(
    name: str | None, samples: Sequence[Referring] | Sequence[Grounded], embedder: str, progress: Callable[[str, int, int], None]
) -> tuple[str, dict[str, Any]]:
    """The name of the model and its scores on samples of one kind. name: None for the default one; embedder: of phrases, see find_embedder.

    Loads the model last: what is missing besides is said before. Raises CheckpointError and ValueError as the parts do.
    """
    grounded = [sample for sample in samples if isinstance(sample, Grounded)]
    embed = find_embedder(embedder) if grounded else None
    import torch

    from geopixel.model import GeoPixel
    from geopixel.model.config import default_model

    model = GeoPixel.from_pretrained(name or default_model("cuda" if torch.cuda.is_available() else "cpu"))

    def done(count: int) -> None:
        progress("samples", count, len(samples))

    if embed is not None:
        return model.name, evaluate_grounded(model, grounded, embed, done)
    return model.name, evaluate_referring(model, [sample for sample in samples if isinstance(sample, Referring)], done)
