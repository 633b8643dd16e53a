"""What a person reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from geopixel.console import ProgressDisplay, print_plan, print_summary
from geopixel.pipeline import SerialRunner, Summary, make_plan
from geopixel.storage import Folder
from tests.conftest import NANO, demo_request, quiet


def test_progress_in_a_log_is_a_line_at_the_ends_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as progress:
        for done in range(101):
            progress("tiles", done, 100)
    assert capsys.readouterr().err.splitlines() == ["tiles: 0/100", "tiles: 100/100"]


def test_the_plan_says_what_will_be_done(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(demo_request(catalog), NANO, SerialRunner(), quiet)
    print_plan(plan)
    said = capsys.readouterr().out
    for words in (f"{plan.cost.to_read}: ", "EPSG:32633", "megapixels", "2024-06-01", "an assumed rate"):
        assert words in said


def test_the_summary_names_states_features_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    states = {"ok": 3, "empty": 1, "nodata": 0, "cloud": 0, "outside": 2, "failed": 1}
    print_summary(Summary(states, {"building": 12}, {"building": 0.034}, {"plan": 1.0, "look": 2.0}, 5, 0.93), Folder("/maps/x"))  # type: ignore[arg-type]
    said = capsys.readouterr().out
    for words in ("7 = 3 ok, 1 empty, 2 outside, 1 failed (5 looked at now)", "93 %", "12 features, 0.034 km2", "/maps/x/features.parquet", "look 2.0"):
        assert words in said
    assert "nodata" not in said
