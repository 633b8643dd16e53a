"""The recount: a whole map has no hole, and every kind of damage is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import pytest
import zarr

from geopixel import ledger
from geopixel.storage import Folder
from geopixel.verification import verify


def test_verify_finds_no_hole_in_a_whole_map(serial: Path) -> None:
    verdict = verify(Folder(str(serial)))
    assert verdict.holes == []
    assert sum(verdict.tiles.values()) == len(ledger.load_plan(Folder(str(serial))))
    assert verdict.tiles["ok"] > 4


def damage_a_shard(folder: Path) -> None:
    shard = next(path for path in (folder / "masks.zarr" / "status" / "c").rglob("*") if path.is_file())
    shard.unlink()


def damage_a_mask(folder: Path) -> None:
    shard = next(path for path in (folder / "masks.zarr" / "mask" / "c").rglob("*") if path.is_file())
    shard.unlink()


def damage_a_scene(folder: Path) -> None:
    scene = zarr.open_group(folder / "masks.zarr", mode="r+")["scene"]
    scene[scene.shape[0] // 2] = 3


def lose_the_masks(folder: Path) -> None:
    shutil.rmtree(folder / "masks.zarr")


def damage_a_prediction(folder: Path) -> None:
    path = next((folder / "predictions" / "ok").iterdir())
    path.write_bytes(path.read_bytes()[:100])


def lose_a_prediction(folder: Path) -> None:
    next((folder / "predictions" / "ok").iterdir()).unlink()


def lose_a_feature(folder: Path) -> None:
    gpd.read_parquet(folder / "features.parquet").iloc[1:].to_parquet(folder / "features.parquet")


def lose_a_row_of_coverage(folder: Path) -> None:
    gpd.read_parquet(folder / "coverage.parquet").iloc[1:].to_parquet(folder / "coverage.parquet")


DAMAGES = [damage_a_shard, damage_a_scene, damage_a_mask, lose_the_masks, damage_a_prediction, lose_a_prediction, lose_a_feature, lose_a_row_of_coverage]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_every_kind_of_hole(serial: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(serial, tmp_path / "run")
    damage(tmp_path / "run")
    assert verify(Folder(str(tmp_path / "run"))).holes
