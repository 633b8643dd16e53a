"""A small piece of ground with things on it, in a run folder: what the pictures of a run are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine

from geopixel import ledger
from geopixel.storage import Folder
from geopixel.types import STATES, Asset, Grid, Scene, Source, Tile, TilePrediction, Tiles

GRID = Grid("EPSG:32645", 0.5)
WEST, NORTH = GRID.resolution * 512 * 1293, -GRID.resolution * 512 * -11914
"""A corner of a tile of 512."""
AREA = shapely.box(WEST, NORTH - 384, WEST + 512, NORTH)
HOUSE = shapely.box(WEST + 100, NORTH - 200, WEST + 180, NORTH - 150)
YARD = shapely.box(WEST + 250, NORTH - 300, WEST + 330, NORTH - 220) - shapely.box(WEST + 280, NORTH - 270, WEST + 300, NORTH - 250)
FAILED_TILE = Tile(GRID, 512, 1294, -11914)
"""The second tile of the first row."""


def features_of(shapes: list[shapely.Geometry], prompts: list[str], **columns: Any) -> gpd.GeoDataFrame:
    """In longitude and latitude, as features.parquet has them; areas are those of the plane."""
    table = {"prompt": prompts, "area_m2": [shape.area for shape in shapes], "score": np.linspace(0.6, 0.9, len(shapes))}
    frame = gpd.GeoDataFrame(table | columns, geometry=shapes, crs=GRID.crs).to_crs("OGC:CRS84")
    return frame.astype({"area_m2": float, "score": float})


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Green ground with a dark blue HOUSE on it; the easternmost 128 m lie in a file that is not there."""
    path = tmp_path / "ground.tif"
    pixels = np.zeros((3, 768, 768), np.uint8)
    pixels[1] = 120
    pixels[:, 300:400, 200:360] = [[[0]], [[0]], [[90]]]
    profile = {"driver": "GTiff", "width": 768, "height": 768, "count": 3, "dtype": "uint8", "crs": GRID.crs}
    with rasterio.open(path, "w", transform=Affine(0.5, 0, WEST, 0, -0.5, NORTH), **profile) as target:
        target.write(pixels)
    everywhere = shapely.box(-180, -90, 180, 90)
    broken = Source("broken", everywhere, (Asset(str(tmp_path / "gone.tif"), (1, 2, 3)),))
    return Scene("drone", "2024-05-06", (broken, Source("ground", everywhere, (Asset(str(path), (1, 2, 3)),))))


@dataclass(frozen=True, slots=True)
class Made:
    """A run folder with features and coverage in it."""

    folder: Folder
    tiles: Tiles
    run: dict[str, Any]


def make_run(place: Path, features: gpd.GeoDataFrame, prompts: list[str], reason: str = "cannot read gone.tif") -> Made:
    """Four tiles, one of which failed for the reason."""
    folder = Folder(str(place))
    tiles = Tiles.of([Tile(GRID, 512, column, row) for row in (-11914, -11913) for column in (1293, 1294)])
    ledger.store_plan(folder, tiles)
    for tile in tiles:
        if tile == FAILED_TILE:
            ledger.store_prediction(folder, TilePrediction(tile.id, "failed", reason=reason))
        else:
            ledger.store_prediction(folder, TilePrediction(tile.id, "empty", scene=np.zeros(tile.geobox.shape, np.uint16)))
    ledger.store_coverage(folder, ledger.read_states(folder, tiles))
    features.to_parquet(place / "features.parquet")
    run = {
        "request": {"prompts": prompts, "model": "nano", "threshold": 0.5},
        "grid": {"crs": GRID.crs, "resolution": GRID.resolution},
        "plan": {"device_hours": {"cpu": 0.1, "cuda": 0.001}, "read_bytes": 3_000_000},
        "versions": {"torch": "2.13.0"},
        "finished": {"tiles": dict.fromkeys(STATES, 0) | {"empty": 3, "failed": 1}, "features": pd.Series(features["prompt"]).value_counts().to_dict()},
        "submissions": [
            {
                "tiles_looked_at": 4,
                "seconds": {"plan": 0.1, "look": 1.5, "mosaic": 0.4, "publish": 0.2},
                "read_bytes": 2_500_000,
                "worker_seconds": {"read": 0.5, "predict": 1.0},
                "computed_with": ["cpu float32 sdpa"],
            }
        ],
    }
    return Made(folder, tiles, run)
