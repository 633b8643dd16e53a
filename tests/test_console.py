"""What a person reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import shapely

from geopixel import ledger
from geopixel.console import ProgressDisplay, print_plan, print_summary
from geopixel.cost import PlanCost, Spent
from geopixel.pipeline import MapRequest, Plan, Run, SerialRunner, Summary, make_plan, store_dry_plan
from geopixel.storage import Folder
from geopixel.types import Asset, Grid, Scene, Source, Tile, Tiles
from tests.conftest import NANO, demo_request, quiet


def test_progress_in_a_log_is_a_line_at_the_ends_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as progress:
        for done in range(101):
            progress("tiles", done, 100)
    assert capsys.readouterr().err.splitlines() == ["tiles: 0/100", "tiles: 100/100"]


def test_the_plan_says_what_will_be_done(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(demo_request(catalog), NANO, SerialRunner(), quiet)
    folder = Folder(str(tmp_path))
    assert store_dry_plan(folder, plan)
    print_plan(plan, folder, 3.0)
    said = capsys.readouterr().out
    hours = f"about {3600 * plan.cost.device_hours['cuda']:.3g} s of a GPU"
    named = ("EPSG:32633", "megapixels", "2024-06-01", "assumed rates", "at 3 an hour of a GPU", "outside the area")
    for words in (f"{plan.cost.to_read}: ", hours, f"{tmp_path}/plan.parquet", *named):
        assert words in said
    assert "guessed" not in said
    assert ledger.load_plan(folder) == plan.tiles
    assert [path.name for path in tmp_path.iterdir()] == ["plan.parquet"]

    guessed = replace(plan, run=replace(plan.run, scenes=(replace(plan.run.scenes[0], guess="the first 3 bands are taken"),)))
    folder.put_json("run.json", {})
    assert not store_dry_plan(folder, plan)
    print_plan(guessed, None, None)
    said = capsys.readouterr().out
    assert "the first 3 bands are taken" in said
    assert "keeps its plan" in said
    assert "an hour of a GPU" not in said


def test_the_end_of_a_run_is_the_plan_against_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene("c", "2024-06-01", (Source("a", shapely.box(0, 0, 1, 1), (Asset("x.tif", (1,)),)),))
    request = MapRequest(shapely.box(0, 0, 1, 1), ("building",), "catalog.json", "nano")
    tiles = Tiles.of([Tile(Grid("EPSG:3857", 1.0), 512, 0, 0)])
    cost = PlanCost({512: 4, 1024: 1}, {"outside": 2}, 4.5, {"outside": 1.25}, 9.0, 2_500_000, 900, {"cpu": 5.0, "cuda": 0.25}, 7_000_000)
    spent = Spent({512: 3, 1024: 1}, 4.0, {"outside": 1.25, "failed": 1.0}, 2_750_000, 0.5, 6_000_000, on_gpu=True)
    states = {"ok": 3, "empty": 1, "nodata": 0, "cloud": 0, "outside": 2, "failed": 1}
    plan = Plan(Run(request, (scene,), tiles.grid), tiles, cost)
    summary = Summary(states, {"building": 12}, {"building": 0.034}, {"plan": 1.0, "look": 2.0}, 5, plan, spent, 0.93)
    print_summary(summary, Folder("/maps/x"), 2.0)
    said = capsys.readouterr().out
    rows = table(said)
    assert rows["tiles to look at"] == ["5: 4 of 512 px, 1 of 1024 px", "4: 3 of 512 px, 1 of 1024 px"]
    assert rows["skipped"] == ["1.25 km2 outside the area", "1.25 km2 outside the area, 1 km2 failed"]
    assert rows["to read"] == ["about 2.5 MB, 9 megapixels", "2.75 MB"]
    assert rows["model"] == ["about 15 min of a GPU, or 5 h of a CPU core (assumed rates)", "30 min of a GPU, 7.5 min a km2"]
    assert rows["cost"] == ["about 0.5 at 2 an hour of a GPU, 0.111 a km2", "1 at 2 an hour, 0.25 a km2"]
    assert rows["tiles"] == ["7", "3 ok, 1 empty, 2 outside, 1 failed (5 looked at now)"]
    assert rows["building"][1] == "12 features, 0.034 km2"
    for words in ("93 %", "/maps/x/features.parquet", "look 2.0"):
        assert words in said
    assert "nodata" not in said

    hours = replace(spent, on_gpu=False, model_hours=12_345.6, km2=0.0)
    print_summary(replace(summary, spent=hours), Folder("/maps/x"), 2.0)
    rows = table(capsys.readouterr().out)
    assert (rows["model"][1], rows["cost"][1]) == ("12,346 h of a CPU core", "nothing: no GPU took part")


def table(said: str) -> dict[str, list[str]]:
    """What is planned and what happened, by row."""
    return {cells[1].strip(): [cell.strip() for cell in cells[2:4]] for line in said.splitlines() if len(cells := line.split("│")) == 5}
