"""The Predictor on the bundled model: states, shapes, and the quantisation of logits."""

from __future__ import annotations

import numpy as np
import pytest

from geopixel.errors import CheckpointError
from geopixel.model import Answer
from geopixel.prediction import Predictor, quantise
from geopixel.types import ABSENT, CLOUDED, HALO, LOGIT_SCALE, NO_SCENE, Grid, Tile, TileImage

TILE = Tile(Grid("EPSG:32633", 0.5), 512, 3, -7)
EDGE = 512 + 2 * HALO


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load("nano", ["water", "building"])


def answer(logits: np.ndarray) -> Answer:
    count = len(logits)
    return Answer("", [], logits.astype(np.float32), np.zeros(count, np.float32), np.zeros(count, np.float32), EDGE, EDGE)


def test_a_tile_without_pixels_is_nodata(predictor: Predictor) -> None:
    blank = TileImage(TILE, np.zeros((EDGE, EDGE, 3), np.uint8), np.full((EDGE, EDGE), NO_SCENE, np.uint16))
    prediction = predictor.predict([blank])[0]
    assert (prediction.state, prediction.logits, prediction.scene) == ("nodata", None, None)
    assert prediction.reason


def test_a_tile_of_which_only_clouds_are_seen_is_cloud(predictor: Predictor) -> None:
    scene = np.full((EDGE, EDGE), NO_SCENE, np.uint16)
    scene[3, 4] = CLOUDED
    assert predictor.predict([TileImage(TILE, np.zeros((EDGE, EDGE, 3), np.uint8), scene)])[0].state == "cloud"


def test_a_tile_gives_equal_logits_each_time(predictor: Predictor) -> None:
    from geopixel.demo import render_scene

    rgb = render_scene(1_000_002, size=EDGE, gsd=0.5).rgb
    scene = np.full((EDGE, EDGE), 2, np.uint16)
    first, second = (predictor.predict([TileImage(TILE, rgb, scene)])[0] for _ in range(2))
    assert first.state in ("ok", "empty")
    assert (first.scene == scene).all()  # type: ignore[union-attr]
    if first.logits is not None:
        assert first.logits.shape == (2, 128, 128)
        np.testing.assert_array_equal(first.logits, second.logits)


def test_quantised_logits_are_near_and_keep_their_side() -> None:
    logits = np.random.default_rng(0).normal(0, 8, (1, 32, 32))
    stored = quantise(answer(logits)).astype(np.float64) / LOGIT_SCALE
    expected = logits[0].clip(-127 / LOGIT_SCALE, 127 / LOGIT_SCALE)
    assert np.abs(stored - expected).max() <= 0.5 / LOGIT_SCALE + 1e-6
    assert stored.min() > ABSENT / LOGIT_SCALE


def test_several_masks_of_a_prompt_are_one_union() -> None:
    logits = np.random.default_rng(1).normal(0, 4, (3, 16, 16))
    np.testing.assert_array_equal(quantise(answer(logits)) > 0, (np.rint(logits * LOGIT_SCALE) > 0).any(axis=0))


def test_a_prompt_that_is_not_there_is_absent_everywhere() -> None:
    assert (quantise(answer(np.zeros((0, 8, 8)))) == ABSENT).all()


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="nonesuch"):
        Predictor.load("nonesuch", ["water"])
