"""Scores against known truth."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import pytest

from geopixel.evaluation import evaluate, polygon_truth, rendered_truth
from geopixel.pipeline import load_run
from geopixel.storage import Folder
from tests.conftest import PROMPTS


def test_scores_equal_those_of_polygons_drawn_by_hand(serial: Path, tmp_path: Path) -> None:
    """A map scored against its own features is perfect; against the rendered truth nano's buildings are right in part."""
    folder = Folder(str(serial))
    features = gpd.read_parquet(serial / "features.parquet")
    for prompt in PROMPTS:
        features[features["prompt"] == prompt].to_file(tmp_path / f"{prompt}.gpkg")
        assert evaluate(folder, polygon_truth(str(tmp_path / f"{prompt}.gpkg")))[prompt].iou == 1.0
    scores = evaluate(folder, rendered_truth(load_run(folder)))
    assert 0.15 < scores["building"].iou < 1


def test_truth_that_is_not_there_is_said(serial: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.gpkg"):
        polygon_truth(str(tmp_path / "nowhere.gpkg"))
