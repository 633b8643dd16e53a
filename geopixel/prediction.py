"""Where pixels meet places: a tile's picture into the model, its low-resolution mask logits out, quantised as they are stored.
Knows tiles one by one; nothing of files, grids of tiles or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch

from geopixel.model import Answer, GeoPixel
from geopixel.types import ABSENT, CLOUDED, LOGIT_SCALE, Description, TileImage, TilePrediction


class Predictor:
    """The model with the prompts of a run. All prompts share the tile's image features."""

    def __init__(self, model: GeoPixel, prompts: Sequence[str], describe: bool = False) -> None:
        """describe: also say what every tile shows. That is a second question about the tile, so that it changes no mask."""
        self.model, self.prompts, self.describe = model, list(prompts), describe

    @classmethod
    def load(cls, model: str, prompts: Sequence[str], describe: bool = False) -> Predictor:
        """Raises CheckpointError where there is no such model."""
        loaded = GeoPixel.from_pretrained(model)
        if loaded.device.type == "cpu":
            # How a sum is split over threads decides its last bits: with one thread every worker, and the serial run, stores equal logits.
            torch.set_num_threads(1)
        return cls(loaded, prompts, describe)

    @property
    def batch_size(self) -> int:
        """Tiles that the model takes at once."""
        return self.model.batch_size

    @property
    def backend(self) -> str:
        """Device, dtype and attention kernel, as runs name them."""
        return f"{self.model.device.type} {str(self.model.dtype).removeprefix('torch.')} {self.model.attention}"

    def predict(self, images: Sequence[TileImage]) -> list[TilePrediction]:
        """Per tile: ok where the model finds any of the prompts, empty where it finds none, cloud or nodata where no pixel was observed."""
        observed = [image.valid.any() for image in images]
        seen = [image.rgb for image, is_seen in zip(images, observed, strict=True) if is_seen]
        answers = iter(self.model.segment(seen, self.prompts) if seen else ())
        descriptions = map(_description, self.model.describe(seen)) if seen and self.describe else repeat(None)
        return [
            replace(self._prediction(image, next(answers)), description=next(descriptions)) if is_seen else _unseen(image)
            for image, is_seen in zip(images, observed, strict=True)
        ]

    def _prediction(self, image: TileImage, answers: Sequence[Answer]) -> TilePrediction:
        if not any(len(answer.logits) for answer in answers):
            return TilePrediction(image.tile.id, "empty", scene=image.scene)
        scores = np.array([answer.scores.max(initial=-np.inf) if len(answer.logits) else np.nan for answer in answers], np.float32)
        return TilePrediction(image.tile.id, "ok", np.stack([quantise(answer) for answer in answers]), image.scene, scores)


def _unseen(image: TileImage) -> TilePrediction:
    if (image.scene == CLOUDED).any():
        return TilePrediction(image.tile.id, "cloud", reason="only clouds were observed")
    return TilePrediction(image.tile.id, "nodata", reason="no pixel was observed")


def _description(answer: Answer) -> Description:
    return Description(answer.text, _quantised(answer.logits))


def quantise(answer: Answer) -> np.ndarray:
    """(S, S) int8 as stored: the union of the answer's masks, or ABSENT everywhere where it has none."""
    if not len(answer.logits):
        return np.full(answer.logits.shape[1:], ABSENT, np.int8)
    return _quantised(answer.logits.max(axis=0))


def _quantised(logits: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(logits * LOGIT_SCALE), -127, 127).astype(np.int8)
