"""What a run says to the person who started it: progress while it works, the plan, and a short table at the end. Prints; decides nothing."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from geopixel.cost import Spent
from geopixel.country import CountryPlan, CountrySummary
from geopixel.events import LOG, SUBMITTED
from geopixel.pipeline import Plan, Summary
from geopixel.pipeline.planning import FLOPS_PER_SECOND
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, State

SECONDS_PER_LINE = 10.0
"""Between two lines of progress where the output is a log and no terminal."""
LOG_WIDTH = 160
CELLS_NAMED = 10
"""Of those that came to nothing: the others are in the table."""


class ProgressDisplay:
    """Bars in a terminal, a line now and then in a log, a record where the run is submitted. Called as pipeline.Progress; use as a context."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=self.console
        )
        self.tasks: dict[str, TaskID] = {}
        self.said = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.console.is_terminal:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total)
            self.bars.update(self.tasks[stage], completed=done, total=total)
        elif done in (0, total) or time.monotonic() - self.said > SECONDS_PER_LINE:
            self.said = time.monotonic()
            if SUBMITTED in os.environ:
                LOG.info("%s: %d/%d", stage, done, total, extra={"stage": stage, "done": done, "total": total})
            else:
                print(f"{stage}: {done}/{total}", file=sys.stderr, flush=True)


def print_plan(plan: Plan, stored: Folder | None, gpu_price: float | None) -> None:
    """What a run would do, for --dry-run. stored: where plan.parquet was written. gpu_price: of a GPU-hour."""
    table = Table("", "planned", title="Plan", title_justify="left")
    for what, planned, _ in _rows(plan, None, gpu_price):
        table.add_row(what, planned)
    _to_stdout().print(table)
    print(f"    tiles: {stored.url}/plan.parquet" if stored else "    tiles: not written: a run is there, and keeps its plan")


def print_summary(summary: Summary, folder: Folder, gpu_price: float | None) -> None:
    """The table of the plan against what happened, what was found, and where it is."""
    table = Table("", "planned", "happened", title="Map", title_justify="left")
    for row in _rows(summary.plan, summary.spent, gpu_price):
        table.add_row(*row)
    planned = sum(summary.tiles.values())
    states = ", ".join(f"{count} {state}" for state, count in summary.tiles.items() if count)
    table.add_row("tiles", str(planned), f"{states} ({summary.worked} looked at now)")
    for prompt, count in summary.features.items():
        table.add_row(prompt, "", f"{count} features, {summary.km2[prompt]:.4g} km2")
    if summary.busy is not None:
        table.add_row("model busy", "", f"{100 * summary.busy:.0f} % of the time of the workers that have it")
    if summary.seconds:
        table.add_row("seconds", "", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary.seconds.items()))
    _to_stdout().print(table)
    if not summary.seconds:
        print("finished before: nothing was left to do")
    outputs = {"features.parquet": "polygons", "masks.zarr": "rasters", "coverage.parquet": "tiles", "report.html": "page"}
    for name, what in outputs.items() if summary.published else [("coverage.parquet", "tiles")]:
        print(f"{what:>9}: {folder.url}/{name}")


def print_country_plan(plan: CountryPlan, stored: Folder | None, gpu_price: float | None) -> None:
    """What mapping a country would take, by its outline; the last line says all of it. stored: where the tables were written."""
    table = Table("", "planned", title="Plan of the outline, as if there were plain imagery everywhere", title_justify="left")
    sizes = Counter(plan.tiles.size[plan.tiles.to_read].tolist())
    hours = {device: plan.flops / rate / 3600 for device, rate in FLOPS_PER_SECOND.items()}
    table.add_row("grid", f"{plan.grid.crs}, {plan.grid.resolution:g} units a pixel")
    table.add_row("cells", f"{len(plan.cells)} of {plan.cells[0].blocks * BLOCK_SIZE} pixels")
    table.add_row("tiles to look at", _sizes(dict(sorted(sizes.items()))))
    table.add_row("model", f"about {hours['cuda']:.3g} GPU-hours, or {_duration(hours['cpu'])} of a CPU core (assumed rates)")
    if gpu_price is not None:
        table.add_row("cost", f"about {hours['cuda'] * gpu_price:.4g} at {gpu_price:g} a GPU-hour")
    _to_stdout().print(table)
    print(f"    cells: {stored.url}/cells.parquet, tiles: plan.parquet" if stored else "    cells: not written: a country is there, and keeps its records")
    read = sizes.total()
    print(
        f"planned {len(plan.cells)} cells, {len(plan.tiles)} tiles ({read} to look at, {len(plan.tiles) - read} outside), {plan.km2:.6g} km2, "
        f"about {hours['cuda']:.3g} GPU-hours"
    )


def print_country(summary: CountrySummary, folder: Folder, gpu_price: float | None) -> None:
    """What became of a country's cells, and where its map is."""
    table = Table("", "all submissions", title="Country", title_justify="left")
    cells = ", ".join(f"{count} {state}" for state, count in summary.cells.items())
    table.add_row("cells", f"{cells} ({summary.worked} worked on now)")
    tiles = ", ".join(f"{count} {state}" for state, count in summary.tiles.items() if count)
    table.add_row("tiles", f"{sum(summary.tiles.values())}: {tiles} ({summary.looked} looked at now)")
    for prompt, count in summary.features.items():
        table.add_row(prompt, f"{count} features")
    table.add_row("ground", f"{_km2(summary.km2)} looked at, {_bytes(summary.read_bytes)} read")
    table.add_row("model", f"{_duration(summary.model_hours)}{_each(summary.model_hours, summary.km2, _duration)}")
    if gpu_price is not None:
        price = summary.model_hours * gpu_price
        table.add_row("cost", f"{_number(price)} at {gpu_price:g} an hour{_each(price, summary.km2, _number)}")
    if summary.busy is not None:
        table.add_row("model busy", f"{100 * summary.busy:.0f} % of the time of the workers that have it")
    table.add_row("seconds", f"{summary.seconds:.1f}")
    _to_stdout().print(table)
    outputs = {"features/*.parquet": "polygons", "cells.parquet": "cells", "index.html": "page", "collection.json": "catalog"}
    for name, what in (outputs | ({"changes": "changes"} if summary.changes else {})).items():
        print(f"{what:>9}: {folder.url}/{name}")
    for record in summary.failed[:CELLS_NAMED]:
        why = record.reason or f"{record.tiles.get('failed', 0)} tiles failed"
        print(f"cell {record.cell} is {record.state}: {why}", file=sys.stderr)
    if len(summary.failed) > CELLS_NAMED:
        print(f"... and {len(summary.failed) - CELLS_NAMED} more, see cells.parquet", file=sys.stderr)


def _rows(plan: Plan, spent: Spent | None, gpu_price: float | None) -> Iterator[tuple[str, str, str]]:
    """What, planned, happened."""
    cost, grid = plan.cost, plan.run.grid
    days = sorted(scene.day for scene in plan.run.scenes)
    sources = sum(len(scene.sources) for scene in plan.run.scenes)
    yield "scenes", f"{len(days)} ({sources} items), {days[0]} to {days[-1]}" if days else "none", ""
    for guess in plan.run.guesses:
        yield "guessed", guess, ""
    yield "grid", f"{grid.crs}, {grid.resolution:g} units a pixel", ""
    yield "tiles to look at", f"{cost.to_read}: {_sizes(cost.sizes)}", f"{sum(spent.sizes.values())}: {_sizes(spent.sizes)}" if spent else ""
    yield "ground", _km2(cost.km2), _km2(spent.km2) if spent else ""
    yield "skipped", _skipped(cost.skipped_km2), _skipped(spent.not_seen_km2) if spent else ""
    yield "to read", f"about {_bytes(cost.read_bytes)}, {cost.megapixels:.4g} megapixels", _bytes(spent.read_bytes) if spent else ""
    yield "survey", _bytes(cost.survey_bytes), ""
    gpu, cpu = cost.device_hours["cuda"], cost.device_hours["cpu"]
    took = f"{_duration(spent.model_hours)} of {_device(spent)}{_each(spent.model_hours, spent.km2, _duration)}" if spent else ""
    yield "model", f"about {_duration(gpu)} of a GPU, or {_duration(cpu)} of a CPU core (assumed rates)", took
    if gpu_price is not None:
        paid = "" if spent is None else "nothing: no GPU took part"
        if spent and spent.on_gpu:
            paid = f"{_number(spent.model_hours * gpu_price)} at {gpu_price:g} an hour{_each(spent.model_hours * gpu_price, spent.km2, _number)}"
        yield "cost", f"about {_number(gpu * gpu_price)} at {gpu_price:g} an hour of a GPU{_each(gpu * gpu_price, cost.km2, _number)}", paid
    yield "to store", f"about {_bytes(cost.output_bytes)}", _bytes(spent.output_bytes) if spent else ""


def _sizes(sizes: Mapping[int, int]) -> str:
    return ", ".join(f"{count} of {size} px" for size, count in sizes.items()) or "none"


def _km2(area: float) -> str:
    return f"{area:.3g} km2"


def _skipped(areas: Mapping[State, float]) -> str:
    why = {"outside": "outside the area", "nodata": "no imagery", "cloud": "under cloud", "failed": "failed"}
    return ", ".join(f"{_km2(area)} {why[state]}" for state, area in areas.items()) or "nothing"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def print_scores(title: str, scores: Mapping[str, float | None]) -> None:
    """Scores of a model on a data set: counts as they are, shares in percent."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in scores.items():
        table.add_row(name, "-" if value is None else str(value) if isinstance(value, int) else f"{100 * value:.2f} %")
    print(title)
    _to_stdout().print(table)


def print_map_scores(report: Mapping[str, Any]) -> None:
    """Figures of a map, as evaluation.evaluate_run gives them: all of one prompt, or the most important of each. In brackets 95 % intervals."""
    console = _to_stdout()
    if "prompts" in report:
        console.print(_map_overview(report["prompts"]))
        print(f"mean IoU {report['mIoU']:.3f}")
        return
    squares = report["squares"]
    print(f"{report['prompt']}: {report['area_m2']:.0f} m2 with labels, {100 * report['answered']:.1f} % of them answered")
    console.print(_map_figures(report))
    print(f"In brackets: 95 % intervals, from drawing the {squares['count']} squares of {squares['edge_m']:.0f} m anew.")
    console.print(_map_thresholds(report))
    print(f"Best threshold {report['best_threshold']:g}: IoU {report['best_IoU']:.3f} (the run's {report['threshold']:g}: {report['IoU']:.3f}).", end=" ")
    print("It was chosen on these labels: elsewhere expect a little less.")
    print(f"Expected calibration error {_share(report['ECE'])}.")


def _map_overview(prompts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table()
    for column in ("prompt", "IoU", "objects F1", "precision", "recall", "objects found / true", "area error"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for prompt, figures in prompts.items():
        measured = [_with_interval(figures, name) for name in ("IoU", "F1")]
        shares = [_share(figures[name]) for name in ("precision", "recall")]
        table.add_row(prompt, *measured, *shares, f"{figures['objects_found']} / {figures['objects_true']}", _signed(figures["area_error"]))
    return table


def _map_figures(report: Mapping[str, Any]) -> Table:
    table = Table()
    for column in ("", "pixels", "objects (IoU >= 0.5)"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("IoU", _with_interval(report, "IoU"), "")
    for name in ("precision", "recall"):
        table.add_row(name, _with_interval(report, f"pixel_{name}"), _with_interval(report, name))
    table.add_row("F1", "", _with_interval(report, "F1"))
    table.add_row("found", f"{report['area_found_m2']:.0f} m2", str(report["objects_found"]))
    table.add_row("true", f"{report['area_true_m2']:.0f} m2", str(report["objects_true"]))
    low, high = report["interval95"]["area_error"]
    table.add_row("area error", f"{_signed(report['area_error'])} [{_signed(low)}, {_signed(high)}]", "")
    return table


def _map_thresholds(report: Mapping[str, Any]) -> Table:
    """Every fourth threshold, and of the pixels whose confidence lies between it and the next, the share that is true."""
    table = Table()
    for column in ("threshold", "precision", "recall", "IoU", "mean confidence", "share true", "pixels"):
        table.add_column(column, justify="right")
    points = [{"threshold": 0.0, "precision": None, "recall": None, "IoU": None}, *report["thresholds"]][::4]
    for point, end in zip(points, [*(following["threshold"] for following in points[1:]), 2.0], strict=True):
        inside = [each for each in report["calibration"] if point["threshold"] <= each["confidence"] < end]
        pixels = sum(each["pixels"] for each in inside)
        means = [sum(each[name] * each["pixels"] for each in inside) / pixels if pixels else None for name in ("confidence", "true_share")]
        table.add_row(f"{point['threshold']:.3f}", *[_share(value) for value in (point["precision"], point["recall"], point["IoU"], *means)], str(pixels))
    return table


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    low, high = figures["interval95"][name]
    return "-" if figures[name] is None else f"{_share(figures[name])} [{_share(low)}, {_share(high)}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.0f} %"


def _to_stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH)


def _device(spent: Spent) -> str:
    return "a GPU" if spent.on_gpu else "a CPU core"


def _each(amount: float, km2: float, text: Callable[[float], str]) -> str:
    """... and a square kilometre."""
    return f", {text(amount / km2)} a km2" if km2 else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _duration(hours: float) -> str:
    for unit, length in (("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * length:
            return f"{_number(hours / length)} {unit}"
    return f"{hours * 3600:.3g} s"
