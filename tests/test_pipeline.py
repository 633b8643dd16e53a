"""The whole way on two small rendered scenes with the bundled model: laws of DESIGN.md on what ends up in the run folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
import xarray as xr

from geopixel import features, ledger, mosaic
from geopixel.errors import NoScenesError, RunConflictError
from geopixel.model.config import find_model
from geopixel.pipeline import (
    MapRequest,
    Run,
    Runner,
    Seen,
    SerialRunner,
    Summary,
    load_run,
    make_plan,
    map_area,
    predict_tiles,
    scene_from_json,
    scene_to_json,
    tile_flops,
    trace_features,
)
from geopixel.storage import Folder
from geopixel.types import HALO, Grid, Tile, TileImage, TilePrediction
from geopixel.verification import verify
from tests.conftest import NANO, PROMPTS, assert_equal_maps, demo_request, quiet, rasters


def ask(catalog: Path, area: shapely.Geometry | None = None, **settings: object) -> MapRequest:
    return demo_request(catalog, **settings) if area is None else replace(demo_request(catalog, **settings), area=area)


def run(request: MapRequest, folder: Path, runner: Runner | None = None) -> Summary:
    return map_area(request, Folder(str(folder)), NANO, runner or SerialRunner(), quiet)


def test_the_folder_holds_what_design_promises(serial: Path) -> None:
    data = rasters(serial)
    assert data["mask"].dims == data["confidence"].dims == ("prompt", "y", "x")
    assert data["status"].dims == ("y", "x")
    assert list(data["prompt"].values) == list(PROMPTS)
    files = {"run.json", "plan.parquet", "coverage.parquet", "features.parquet", "item.json", "quicklook.png"}
    assert {path.name for path in serial.iterdir()} == files | {"predictions", "parts", "attempts", "masks.zarr"}
    assert list((serial / "attempts").rglob("*.*")) == []
    features = gpd.read_parquet(serial / "features.parquet")
    assert set(features["prompt"]) <= set(PROMPTS)
    assert len(features) > 20


def test_submitting_again_redoes_only_what_is_missing(catalog: Path, serial: Path, tmp_path: Path) -> None:
    shutil.copytree(serial, tmp_path / "run")
    lost = sorted((tmp_path / "run" / "predictions" / "ok").iterdir())[:2]
    kept = {path.name: path.read_bytes() for path in lost}
    for path in lost:
        path.unlink()
    assert run(ask(catalog), tmp_path / "run").worked == 2
    assert {path.name: path.read_bytes() for path in lost} == kept
    assert_equal_maps(serial, tmp_path / "run")
    assert run(ask(catalog), tmp_path / "run").worked == 0


def test_an_unreadable_file_is_a_hole_that_is_said_and_can_be_mended(catalog: Path, serial: Path, tmp_path: Path) -> None:
    shutil.copytree(catalog.parent, tmp_path / "demo")
    broken = tmp_path / "demo" / "demo" / "demo-1000008" / "visual.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:4000] + bytes(len(whole) - 4000))
    request = ask(tmp_path / "demo" / "catalog.json")
    summary = run(request, tmp_path / "run")
    assert summary.tiles["failed"] > 0
    assert summary.tiles["ok"] > 0
    coverage = gpd.read_parquet(tmp_path / "run" / "coverage.parquet")
    failed = coverage[coverage["state"] == "failed"]
    assert len(failed) == summary.tiles["failed"]
    assert failed["reason"].str.contains("visual.tif").all()
    assert any("failed" in hole for hole in verify(Folder(str(tmp_path / "run"))).holes)

    broken.write_bytes(whole)
    mended = run(request, tmp_path / "run")
    assert mended.tiles["failed"] == 0
    assert mended.worked == summary.tiles["failed"]
    assert verify(Folder(str(tmp_path / "run"))).holes == []
    xr.testing.assert_identical(rasters(serial), rasters(tmp_path / "run"))


def test_overlapping_areas_give_equal_answers(catalog: Path, serial: Path, tmp_path: Path) -> None:
    whole = load_run(Folder(str(serial))).request.area
    west, south, east, north = whole.bounds
    part = whole & shapely.box(west, south, (west + east) / 2, (south + north) / 2)
    run(ask(catalog, part), tmp_path / "part")
    one, other = xr.align(rasters(serial), rasters(tmp_path / "part"), join="inner")
    inside = (other["status"] != 0).values
    common = inside & (one["status"] != 0).values
    assert common.sum() > 100_000
    # The same edge, cut at other places, comes out of the projection a hair elsewhere: a pixel's centre may change sides.
    assert (inside & ~common).sum() <= 5
    for name in ("mask", "confidence"):
        np.testing.assert_array_equal(one[name].values[:, common], other[name].values[:, common])
    np.testing.assert_array_equal(one["status"].values[common], other["status"].values[common])


@pytest.mark.parametrize("change", [{"threshold": 0.4}, {"min_area": {"building": 5.0}}, {"resolution": 1.0}])
def test_a_folder_with_another_run_is_refused_untouched(catalog: Path, serial: Path, change: dict[str, float]) -> None:
    before = {path: path.stat().st_mtime_ns for path in serial.rglob("*")}
    with pytest.raises(RunConflictError, match=next(iter(change))):
        run(ask(catalog, **change), serial)
    assert {path: path.stat().st_mtime_ns for path in serial.rglob("*")} == before


def test_a_folder_with_strange_files_is_refused(catalog: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(RunConflictError, match=r"thesis\.txt"):
        run(ask(catalog), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_area_outside_every_scene_is_said_before_anything_is_written(catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(NoScenesError, match="no scenes"):
        run(ask(catalog, shapely.box(0, 0, 0.1, 0.1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tiles_that_do_not_fit_the_context_have_no_cost() -> None:
    """65 crops of 64 tokens of an image of 4096 + 128 pixels are more than nano's 4096."""
    flops = tile_flops(NANO, 1)
    assert list(flops) == [512, 1024, 2048]
    assert flops == {size: NANO.flops(size + 2 * HALO, size + 2 * HALO, 1) for size in flops}
    assert list(tile_flops(replace(NANO, max_length=8192), 1)) == [512, 1024, 2048, 4096]


def test_a_plan_writes_nothing_and_says_its_cost(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(ask(catalog), NANO, SerialRunner(), quiet)
    assert plan.cost.to_read == sum(tile.decided is None for tile in plan.tiles) > 0
    assert plan.cost.model_seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_scenes_survive_json(serial: Path) -> None:
    stored = load_run(Folder(str(serial)))
    assert isinstance(stored, Run)
    for scene in stored.scenes:
        assert scene_from_json(scene_to_json(scene)) == scene


def test_min_area_leaves_out_small_features_only(catalog: Path, serial: Path, tmp_path: Path) -> None:
    request = ask(catalog, min_area=dict.fromkeys(PROMPTS, 100.0))
    run(request, tmp_path / "run")
    every, large = gpd.read_parquet(serial / "features.parquet"), gpd.read_parquet(tmp_path / "run" / "features.parquet")
    assert set(large["id"]) == set(every.loc[every["area_m2"] >= 100, "id"])
    assert verify(Folder(str(tmp_path / "run"))).holes == []


def test_outlines_are_drawn_as_asked_prompt_by_prompt(serial: Path) -> None:
    """What is asked of buildings leaves water as it is; and no two buildings overlap, however they are drawn."""
    folder = Folder(str(serial))
    plain, blocks = load_run(folder), mosaic.blocks_of(ledger.load_plan(folder))
    asked = {"simplify": {"building": 1.0}, "fill_holes": {"building": 20.0}, "orthogonalize": ("building",)}
    drawn = trace_features(replace(plain, request=replace(plain.request, **asked)), folder, blocks)
    before = trace_features(plain, folder, blocks)
    water, exact_water = (table.filter(pc.equal(table["prompt"], "water")).drop_columns("run_id") for table in (drawn, before))
    assert water.equals(exact_water)
    assert set(drawn["run_id"].to_pylist()).isdisjoint(before["run_id"].to_pylist())
    buildings, exact = (shapely.from_wkb(table.filter(pc.equal(table["prompt"], "building"))["geometry"].to_pylist()) for table in (drawn, before))
    assert shapely.is_valid(buildings).all()
    assert shapely.get_num_coordinates(buildings).mean() < shapely.get_num_coordinates(exact).mean() / 2
    assert shapely.area(buildings).sum() == pytest.approx(shapely.area(shapely.union_all(buildings)), rel=1e-6)
    assert shapely.area(shapely.intersection(shapely.union_all(buildings), shapely.union_all(exact))) > 0.9 * shapely.area(exact).sum()


def test_outlines_of_no_prompt_are_refused(catalog: Path) -> None:
    with pytest.raises(ValueError, match=r"simplify.*\['road'\]"):
        ask(catalog, simplify={"road": 1.0})
    request = ask(catalog, orthogonalize=("building",), crs="EPSG:4326", resolution=5e-6)
    with pytest.raises(ValueError, match=r"right angles.*EPSG:4326"):
        make_plan(request, NANO, SerialRunner(), quiet)


def test_a_feature_tells_where_it_is_from(serial: Path) -> None:
    """Weights whose digest sha256sum gives, an item of the catalog, and the run's own id."""
    folder = Folder(str(serial))
    stored = folder.get_json("run.json")
    weights = next(find_model("nano").glob("*.safetensors"))
    assert stored["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    table = pq.read_table(serial / "features.parquet")
    assert table.schema.names == features.SCHEMA.names
    items = {source["item"] for scene in stored["scenes"] for source in scene["sources"]}
    assert {item for each in table["scene_ids"].to_pylist() for item in each} <= items
    assert (set(table["run_id"].to_pylist()), set(table["weights_sha256"].to_pylist())) == ({stored["id"]}, {stored["weights_sha256"]})
    assert pc.min(table["mask_score"]).as_py() >= 0
    assert table["touches_edge"].to_pylist().count(True) > 0


class Recorder:
    """Notes which tiles it is given together; some it cannot bear."""

    batch_size = 3
    backend = "test"

    def __init__(self, unbearable: str = "") -> None:
        self.unbearable, self.groups = unbearable, list[list[str]]()

    def predict(self, images: Sequence[TileImage]) -> list[TilePrediction]:
        self.groups.append([image.tile.id for image in images])
        if any(image.tile.id == self.unbearable for image in images):
            raise RuntimeError("too much")
        return [TilePrediction(image.tile.id, "empty", scene=image.scene) for image in images]


def pictures(count: int) -> list[Seen]:
    tiles = [Tile(Grid("EPSG:32633", 0.5), 512, column, 0) for column in range(count)]
    edge = 512 + 2 * HALO
    return [Seen(TileImage(tile, np.zeros((edge, edge, 3), np.uint8), np.zeros((edge, edge), np.uint16)), 0.1) for tile in tiles]


def ids(seen: Sequence[Seen]) -> list[str]:
    return [one.picture.tile.id for one in seen if isinstance(one.picture, TileImage)]


def test_a_tile_that_cannot_be_predicted_costs_no_other_its_place(tmp_path: Path) -> None:
    folder, seen = Folder(str(tmp_path)), pictures(5)
    names = ids(seen)
    predictor = Recorder(unbearable=names[1])
    receipts = {receipt.tile_id: receipt for receipt in predict_tiles(folder, predictor, seen)}  # type: ignore[arg-type]
    assert predictor.groups == [names[:3], [names[0]], [names[1]], [names[2]], names[3:]]
    assert {name: receipts[name].state for name in names} == dict.fromkeys(names, "empty") | {names[1]: "failed"}
    assert receipts[names[1]].reason == "RuntimeError: too much"
    assert folder.list("attempts") == []


def test_a_tile_that_was_begun_before_is_tried_alone_and_in_the_end_set_aside(tmp_path: Path) -> None:
    folder, seen = Folder(str(tmp_path)), pictures(3)
    names = ids(seen)
    for times in range(1, ledger.MAX_ATTEMPTS + 1):
        ledger.begin_attempt(folder, names[0])
        if times < ledger.MAX_ATTEMPTS:
            ledger.begin_attempt(folder, names[1])
    predictor = Recorder()
    receipts = {receipt.tile_id: receipt for receipt in predict_tiles(folder, predictor, seen)}  # type: ignore[arg-type]
    assert predictor.groups == [[names[1]], [names[2]]]
    assert [receipts[name].state for name in names] == ["failed", "empty", "empty"]
    assert receipts[names[0]].reason == f"its worker ended {ledger.MAX_ATTEMPTS} times"
