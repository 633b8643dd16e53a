"""The whole way on two small rendered scenes with the bundled model: laws of DESIGN.md on what ends up in the run folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
import shapely.affinity
import xarray as xr

from geopixel import features, ledger, mosaic
from geopixel.errors import NoScenesError, RunConflictError, StorageError
from geopixel.evaluation import evaluate_run, rendered_truth
from geopixel.model.config import find_model
from geopixel.mosaic import NONE
from geopixel.pipeline import (
    MAX_ATTEMPTS,
    PUBLISHED,
    Limits,
    MapRequest,
    Run,
    Runner,
    Seen,
    SerialRunner,
    Summary,
    check_finished,
    load_run,
    make_plan,
    map_area,
    predict_tiles,
    scene_from_json,
    scene_to_json,
    store_dry_plan,
    tile_flops,
    trace_features,
)
from geopixel.pipeline.stored import find_run
from geopixel.storage import Folder
from geopixel.types import HALO, STATUS_CODES, Grid, Tile, TileImage, TilePrediction, TileReceipt
from geopixel.verification import verify
from tests.conftest import NANO, PROMPTS, assert_equal_maps, demo_request, quiet, rasters
from tests.misfortune import wait_for


def ask(catalog: Path, area: shapely.Geometry | None = None, **settings: object) -> MapRequest:
    return demo_request(catalog, **settings) if area is None else replace(demo_request(catalog, **settings), area=area)


def run(request: MapRequest, folder: Path, runner: Runner | None = None, *, retry_failed: bool = False) -> Summary:
    return map_area(request, Folder(str(folder)), NANO, runner or SerialRunner(), quiet, retry_failed=retry_failed)


def test_the_folder_holds_what_design_promises(serial: Path) -> None:
    data = rasters(serial)
    assert data["mask"].dims == data["confidence"].dims == ("prompt", "y", "x")
    assert data["status"].dims == ("y", "x")
    assert list(data["prompt"].values) == list(PROMPTS)
    files = {"run.json", "plan.parquet", "scenes.parquet", "coverage.parquet", "features.parquet", "item.json", "quicklook.png", "report.html"}
    assert {path.name for path in serial.iterdir()} == files | {"predictions", "parts", "attempts", "lease", "masks.zarr"}
    assert list((serial / "attempts").iterdir()) == []
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


def test_a_run_is_not_finished_with_other_weights(catalog: Path, serial: Path, tmp_path: Path) -> None:
    """Such as an update brings. What is finished stays a map, and what is not is left as it was found."""
    folder = Folder(str(tmp_path / "run"))
    shutil.copytree(serial, tmp_path / "run")
    folder.put_json("run.json", folder.get_json("run.json") | {"weights_sha256": "ab" * 32})
    assert run(ask(catalog), tmp_path / "run").worked == 0
    next((tmp_path / "run" / "predictions" / "ok").iterdir()).unlink()
    before = contents(tmp_path / "run")
    with pytest.raises(RunConflictError, match=r"begun with other weights: its model nano had weights abababababab \(SHA-256\), and has [0-9a-f]{12} now"):
        run(ask(catalog), tmp_path / "run", Idle())
    assert contents(tmp_path / "run") == before


def test_an_unreadable_file_is_a_hole_that_is_said_and_can_be_mended(
    catalog: Path, serial: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "geopixel.events")
    shutil.copytree(catalog.parent, tmp_path / "demo")
    broken = tmp_path / "demo" / "demo" / "demo-1000008" / "visual.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:4000] + bytes(len(whole) - 4000))
    request = ask(tmp_path / "demo" / "catalog.json")
    summary = run(request, tmp_path / "run")
    assert summary.tiles["failed"] > 0
    assert summary.tiles["ok"] > 0
    assert not summary.published
    left = {"run.json", "plan.parquet", "scenes.parquet", "coverage.parquet", "predictions", "attempts", "lease"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == left
    with pytest.raises(ValueError, match=rf"of \d+ tiles {summary.tiles['failed']} failed; run the same command again .* --retry-failed, .* --allow-holes"):
        verify(Folder(str(tmp_path / "run")))
    with pytest.raises(ValueError, match="not finished"):
        evaluate_run(Folder(str(tmp_path / "run")), rendered_truth)

    summary = run(replace(request, allow_holes=True), tmp_path / "run")
    assert summary.published
    assert summary.worked == 0  # a failed tile is looked at again where that is asked for
    coverage = gpd.read_parquet(tmp_path / "run" / "coverage.parquet")
    failed = coverage[coverage["state"] == "failed"]
    assert len(failed) == summary.tiles["failed"]
    assert failed["reason"].str.contains("visual.tif").all()
    logged = [vars(record) for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(one["tile_id"] for one in logged) == sorted(failed["tile_id"]), "every one once, though the run was submitted twice"
    assert {one["tile_id"]: one["reason"] for one in logged} == dict(zip(failed["tile_id"], failed["reason"], strict=True))
    assert {(one["run_id"], one["state"]) for one in logged} == {(load_run(Folder(str(tmp_path / "run"))).id, "failed")}
    assert verify(Folder(str(tmp_path / "run"))).holes == [f"{summary.tiles['failed']} tiles failed"]
    data = rasters(tmp_path / "run")
    hole = (data["status"] == STATUS_CODES["failed"]).values
    assert hole.any()
    assert (data["mask"].values[:, hole] == NONE).all()

    broken.write_bytes(whole)
    mended = run(request, tmp_path / "run", retry_failed=True)
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


@pytest.mark.parametrize("change", [{"resolution": 1.0}, {"max_cloud": 5.0}, {"shards": False}])
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
    assert plan.cost.device_hours["cpu"] > plan.cost.device_hours["cuda"] > 0
    assert plan.cost.read_bytes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_vertices=3), r"the area has \d+ vertices, more than 3: .*--max-vertices"),
        (Limits(max_items=1), r"more than 1 items: .*--max-items"),
        (Limits(max_tiles=1), r"the area is \d+ tiles of 512 pixels .*, more than 1: .*--max-tiles"),
    ],
)
def test_what_is_too_large_is_refused_and_the_flag_named(catalog: Path, limits: Limits, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(ask(catalog), NANO, SerialRunner(), quiet, limits)


def test_parts_far_apart_are_refused_before_all_between_them_is_looked_at(catalog: Path) -> None:
    request = ask(catalog)
    far = shapely.affinity.translate(request.area, 10, -10)
    with pytest.raises(ValueError, match=r"lie so far apart in EPSG:32633 that [\d,]{9,} tiles of 512 pixels would be looked at for \d+: .*--crs"):
        make_plan(replace(request, area=shapely.union_all([request.area, far])), NANO, SerialRunner(), quiet)


def test_a_dry_run_writes_into_no_folder_that_a_run_refuses(catalog: Path, tmp_path: Path) -> None:
    plan = make_plan(ask(catalog), NANO, SerialRunner(), quiet)
    for name in ("notes.txt", "plan.parquet"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(RunConflictError, match=r"is not empty and holds no run: found notes\.txt"):
        store_dry_plan(Folder(str(tmp_path)), plan)
    assert (tmp_path / "plan.parquet").read_text() == "mine"


def test_what_a_run_lacks_or_what_is_torn_is_named(catalog: Path, serial: Path, tmp_path: Path) -> None:
    shutil.copytree(serial, tmp_path / "run")
    (tmp_path / "run" / "plan.parquet").unlink()
    with pytest.raises(StorageError, match=r"run lacks plan\.parquet"):
        find_run(Folder(str(tmp_path / "run")), ask(catalog))
    (tmp_path / "run" / "run.json").write_text('{"request": ')
    with pytest.raises(ValueError, match=r"run\.json in .*run is not JSON"):
        find_run(Folder(str(tmp_path / "run")), ask(catalog))


def test_a_run_is_planned_again_from_its_own_scenes(catalog: Path, serial: Path) -> None:
    """Without the catalog; the rows of scenes.parquet are the sources of the run, in their order."""
    again = make_plan(replace(ask(catalog), catalog=str(serial / "scenes.parquet")), NANO, SerialRunner(), quiet)
    stored = load_run(Folder(str(serial)))
    assert again.run.scenes == stored.scenes
    assert again.tiles == ledger.load_plan(Folder(str(serial)))
    assert gpd.read_parquet(serial / "scenes.parquet")["id"].tolist() == [source.item for scene in stored.scenes for source in scene.sources]


def test_scenes_survive_json(serial: Path) -> None:
    stored = load_run(Folder(str(serial)))
    assert isinstance(stored, Run)
    for scene in stored.scenes:
        assert scene_from_json(scene_to_json(scene)) == scene


LARGE = dict.fromkeys(PROMPTS, 100.0)
"""Square metres, by prompt."""


class Idle(SerialRunner):
    """A runner that is not to be needed."""

    @property
    def device(self) -> str:  # type: ignore[override]
        raise AssertionError("asked for its device")

    def look(self, *_: object) -> Iterator[TileReceipt]:
        raise AssertionError("asked to look at tiles")


class Ending(Idle):
    """A runner whose process ends after the first block."""

    def write(self, *arguments: Any) -> Iterator[str]:
        yield next(iter(super().write(*arguments)))
        raise KeyboardInterrupt


class Nothing(Idle):
    def write(self, *_: object) -> Iterator[str]:
        raise AssertionError("asked to write blocks")


def test_a_finished_run_needs_no_runner_and_stays_untouched(catalog: Path, serial: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in serial.rglob("*")}
    summary = run(ask(catalog), serial, Nothing())
    finished = Folder(str(serial)).get_json("run.json")["finished"]
    assert (summary.tiles, summary.features, summary.worked) == (finished["tiles"], finished["features"], 0)
    assert {path: path.stat().st_mtime_ns for path in serial.rglob("*")} == before


def contents(folder: Path) -> dict[str, bytes]:
    """All that a run's folder says of its result: what the submissions were is in run.json and on the report page, who made them in lease/."""
    of_submissions = ("run.json", "lease", "report.html", "item.json")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in of_submissions]
    item = json.loads((folder / "item.json").read_bytes())
    del item["assets"]["report.html"]
    item["properties"].pop("mlm:accelerator_summary", None)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths} | {"item.json": json.dumps(item).encode()}


def as_if_fresh(serial: Path, folder: Path, request: MapRequest) -> Path:
    """A run of another request that has looked at its tiles, and no more."""
    shutil.copytree(serial / "predictions", folder / "predictions")
    for name in ("plan.parquet", "scenes.parquet"):
        shutil.copy(serial / name, folder)
    stored = Folder(str(serial)).get_json("run.json")
    del stored["finished"]
    Folder(str(folder)).put_json("run.json", stored | {"request": request.to_json(), "submissions": []})
    run(request, folder, Idle())
    return folder


@pytest.mark.parametrize("change", [{"threshold": 0.4}, {"min_area": LARGE}, {"threshold": 0.6, "fill_holes": LARGE, "cog": True}])
def test_another_threshold_or_area_makes_anew_what_a_fresh_run_would_hold(catalog: Path, serial: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    request = ask(catalog, **change)
    fresh = as_if_fresh(serial, tmp_path / "fresh" / "run", request)
    changed = tmp_path / "changed" / "run"
    shutil.copytree(serial, changed)
    blocks = {path: path.stat().st_mtime_ns for path in (changed / "parts").iterdir()}
    assert run(request, changed, Idle()).worked == 0
    assert contents(changed) == contents(fresh)
    assert ({path: path.stat().st_mtime_ns for path in blocks} == blocks) is ("threshold" not in change)
    assert load_run(Folder(str(changed))).request == request
    assert verify(Folder(str(changed))).holes == []
    assert len(list(changed.glob("cog/*.tif"))) == (len(PROMPTS) if "cog" in change else 0)
    every, here = gpd.read_parquet(serial / "features.parquet"), gpd.read_parquet(changed / "features.parquet")
    if list(change) == ["min_area"]:
        assert set(here["id"]) == set(every.loc[every["area_m2"] >= 100, "id"])
    run(ask(catalog), changed, Idle())
    assert contents(changed) | {"item.json": b""} == contents(serial) | {"item.json": b""}, "and back"


def test_what_ends_half_way_to_another_threshold_does_not_look_finished(catalog: Path, serial: Path, tmp_path: Path) -> None:
    shutil.copytree(serial, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(ask(catalog, threshold=0.4), tmp_path / "run", Ending())
    assert not any((tmp_path / "run" / name).exists() for name in PUBLISHED)
    assert load_run(Folder(str(tmp_path / "run"))).request.threshold == 0.4
    with pytest.raises(ValueError, match="all tiles are looked at, the map is still to be written; run the same command again"):
        verify(Folder(str(tmp_path / "run")))
    run(ask(catalog), tmp_path / "run", Idle())
    assert_equal_maps(serial, tmp_path / "run")


def test_a_run_that_was_ended_says_what_is_missing(catalog: Path, serial: Path, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    shutil.copytree(serial, tmp_path / "run")
    stored = folder.get_json("run.json")
    del stored["finished"]
    folder.put_json("run.json", stored)
    for path in sorted((tmp_path / "run" / "predictions" / "ok").iterdir())[:2]:
        path.unlink()
    with pytest.raises(ValueError, match=f"of {len(ledger.load_plan(folder))} tiles 2 still to be looked at; run the same command again to finish it$"):
        check_finished(folder)


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
    return [Seen(TileImage(tile, np.zeros((edge, edge, 3), np.uint8), np.zeros((edge, edge), np.uint16)), 0.1, 7) for tile in tiles]


def ids(seen: Sequence[Seen]) -> list[str]:
    return [one.picture.tile.id for one in seen if isinstance(one.picture, TileImage)]


def test_a_tile_that_cannot_be_predicted_costs_no_other_its_place(tmp_path: Path) -> None:
    folder, seen = Folder(str(tmp_path)), pictures(5)
    names = ids(seen)
    predictor = Recorder(unbearable=names[1])
    receipts = {receipt.tile_id: receipt for receipt in predict_tiles(folder, predictor, seen, MAX_ATTEMPTS)}  # type: ignore[arg-type]
    assert predictor.groups == [names[:3], [names[0]], [names[1]], [names[2]], names[3:]]
    assert {name: receipts[name].state for name in names} == dict.fromkeys(names, "empty") | {names[1]: "failed"}
    assert receipts[names[1]].reason == "RuntimeError: too much"
    assert folder.list("attempts") == []


class Pacing(Recorder):
    """Goes on only when what came before is stored."""

    batch_size = 1

    def __init__(self, folder: Folder) -> None:
        super().__init__()
        self.folder = folder

    def predict(self, images: Sequence[TileImage]) -> list[TilePrediction]:
        begun = {path.rsplit("/", 1)[1] for path in self.folder.list("attempts")}
        assert images[0].tile.id in begun, "a tile is noted before it is tried"
        for (earlier,) in self.groups:
            wait_for(lambda name=earlier: self.folder.exists(f"predictions/empty/{name}.arrow"))  # type: ignore[misc]
        return super().predict(images)


def test_the_model_works_while_others_store(tmp_path: Path) -> None:
    """It is asked for the second tile before anybody has taken the receipt of the first."""
    folder, seen = Folder(str(tmp_path)), pictures(4)
    predictor = Pacing(folder)
    receipts = predict_tiles(folder, predictor, seen, MAX_ATTEMPTS)  # type: ignore[arg-type]
    assert next(receipts).tile_id == ids(seen)[0]
    assert len(predictor.groups) == 2
    assert [receipt.tile_id for receipt in receipts] == ids(seen)[1:]
    assert folder.list("attempts") == []


def test_an_answer_that_cannot_be_stored_is_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are those of the tiles that had been begun by then."""
    folder, seen = Folder(str(tmp_path)), pictures(7)
    store = ledger.store_prediction

    def full(folder: Folder, prediction: TilePrediction) -> None:
        if prediction.tile_id == ids(seen)[1]:
            raise StorageError("no space left")
        store(folder, prediction)

    monkeypatch.setattr(ledger, "store_prediction", full)
    with pytest.raises(StorageError, match="no space left"):
        list(predict_tiles(folder, Recorder(), seen, MAX_ATTEMPTS))  # type: ignore[arg-type]
    assert folder.list("attempts") == []


def test_a_tile_that_was_begun_before_is_tried_alone_and_in_the_end_set_aside(tmp_path: Path) -> None:
    folder, seen = Folder(str(tmp_path)), pictures(3)
    names = ids(seen)
    for times in range(1, MAX_ATTEMPTS + 1):
        ledger.begin_attempt(folder, names[0])
        if times < MAX_ATTEMPTS:
            ledger.begin_attempt(folder, names[1])
    predictor = Recorder()
    receipts = {receipt.tile_id: receipt for receipt in predict_tiles(folder, predictor, seen, MAX_ATTEMPTS)}  # type: ignore[arg-type]
    assert predictor.groups == [[names[1]], [names[2]]]
    assert [receipts[name].state for name in names] == ["failed", "empty", "empty"]
    assert receipts[names[0]].reason == f"its worker ended {MAX_ATTEMPTS} times"
