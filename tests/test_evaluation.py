"""Scores against known truth."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.features import geometry_mask

from geopixel.demo import CLASSES
from geopixel.evaluation import Score, evaluate, polygon_truth, rendered_truth
from geopixel.pipeline import load_run
from geopixel.storage import Folder
from tests.conftest import PROMPTS, rasters


def test_a_map_scored_against_its_own_features_is_perfect(serial: Path, tmp_path: Path) -> None:
    features = gpd.read_parquet(serial / "features.parquet")
    for prompt in PROMPTS:
        features.loc[features["prompt"] == prompt, ["prompt", "geometry"]].to_file(tmp_path / f"{prompt}.gpkg")
        assert evaluate(Folder(str(serial)), polygon_truth(str(tmp_path / f"{prompt}.gpkg")))[prompt].iou == 1.0


def test_scores_against_rendered_truth_are_those_counted_by_hand(catalog: Path, serial: Path) -> None:
    """The class rasters pasted onto the map's pixels by their coordinates alone, and counted."""
    data = rasters(serial)
    codes = np.full((data.sizes["y"], data.sizes["x"]), 255, np.uint8)
    left, top = float(data["x"][0]), float(data["y"][0])
    for path in sorted(catalog.parent.glob("demo/*/truth.tif")):
        with rasterio.open(path) as source:
            x, y = source.xy(0, 0)
            column, row = round((x - left) / 0.5), round((top - y) / 0.5)
            pixels = source.read(1)
            place = codes[row : row + source.height, column : column + source.width]
            place[pixels != 255] = pixels[pixels != 255]
    run = load_run(Folder(str(serial)))
    inside = geometry_mask([run.area], codes.shape, Affine(0.5, 0, left - 0.25, 0, -0.5, top + 0.25), invert=True) & (codes != 255)
    scores = evaluate(Folder(str(serial)), rendered_truth(run))
    for index, prompt in enumerate(PROMPTS):
        found, there = inside & (data["mask"].values[index] == 1), inside & (codes == CLASSES[prompt])
        assert scores[prompt] == Score(int((found & there).sum()), int(found.sum()), int(there.sum()))
        assert scores[prompt].true > 0


def test_truth_that_is_not_there_is_said(serial: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.gpkg"):
        polygon_truth(str(tmp_path / "nowhere.gpkg"))
