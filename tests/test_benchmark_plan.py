"""The benchmark of planning itself, at a small size: it measures what it says, and notices a plan that is wrong. Its figures
mean nothing here."""

from __future__ import annotations

import pytest

from tests.benchmarks import plan as benchmark


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOPIXEL_SHARED", "nowhere")


def test_planning_against_the_common_way(capsys: pytest.CaptureFixture[str]) -> None:
    code = benchmark.main(["--size", "small", "--check"])
    printed = capsys.readouterr()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in printed.out.splitlines() if line.startswith("| ")}
    common, ours, measured, target, met = rows["plan the country, ratio"]
    assert float(measured.removesuffix("x")) == pytest.approx(float(common.removesuffix(" s")) / float(ours.removesuffix(" s")), rel=0.02)
    assert (target, met) == (">= 15x", "no")  # what a plan costs at least weighs more than so few tiles
    assert "missed: plan the country, ratio" in printed.err
    assert "made up" in printed.err
    assert code == 1
    assert {row[3] for row in rows.values()} >= {"<= 1 s", "<= 100 MB"}


def test_a_plan_that_lacks_a_tile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = benchmark.plan
    monkeypatch.setattr(benchmark, "plan", lambda *of: right(*of)[1:])
    with pytest.raises(AssertionError, match="not that of shapely"):
        benchmark.measure("small")
