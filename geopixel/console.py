"""What a run says to the person who started it: progress while it works, the plan, and a short table at the end. Prints; decides nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from geopixel.pipeline import Plan, Summary
from geopixel.storage import Folder

SECONDS_PER_LINE = 10.0
"""Between two lines of progress where the output is a log and no terminal."""
LOG_WIDTH = 160


class ProgressDisplay:
    """Bars in a terminal, a line now and then in a log. Called as pipeline.Progress; use as a context."""

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
            print(f"{stage}: {done}/{total}", file=sys.stderr, flush=True)


def print_plan(plan: Plan) -> None:
    """What a run would do, for --dry-run."""
    cost, grid = plan.cost, plan.run.grid
    table = Table(title="Plan", show_header=False, title_justify="left")
    days = sorted(scene.day for scene in plan.run.scenes)
    sources = sum(len(scene.sources) for scene in plan.run.scenes)
    table.add_row("scenes", f"{len(days)} ({sources} items), {days[0]} to {days[-1]}" if days else "none")
    table.add_row("grid", f"{grid.crs}, {grid.resolution:g} units a pixel")
    table.add_row("tiles to look at", f"{cost.to_read}: " + (", ".join(f"{count} of {size} px" for size, count in cost.sizes.items()) or "none"))
    table.add_row("tiles decided", ", ".join(f"{count} {state}" for state, count in cost.decided.items()) or "none")
    table.add_row("ground", f"{cost.km2:.3g} km2")
    table.add_row("to read", f"{cost.megapixels:.4g} megapixels")
    table.add_row("to store", f"up to {cost.stored_bytes / 1e6:.4g} MB of logits")
    table.add_row("model", f"about {_duration(cost.model_seconds)} on one device like this machine's (an assumed rate, not a measured one)")
    _to_stdout().print(table)


def print_summary(summary: Summary, folder: Folder) -> None:
    table = Table(title="Map", show_header=False, title_justify="left")
    planned = sum(summary.tiles.values())
    states = ", ".join(f"{count} {state}" for state, count in summary.tiles.items() if count)
    now = f"{summary.worked} looked at now" if summary.seconds else "finished before: nothing was left to do"
    table.add_row("tiles", f"{planned} = {states} ({now})")
    for prompt, count in summary.features.items():
        table.add_row(prompt, f"{count} features, {summary.km2[prompt]:.4g} km2")
    if summary.busy is not None:
        table.add_row("model busy", f"{100 * summary.busy:.0f} % of the time of the workers that have it")
    if summary.seconds:
        table.add_row("seconds", ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in summary.seconds.items()))
    _to_stdout().print(table)
    outputs = {"features.parquet": "polygons", "masks.zarr": "rasters", "coverage.parquet": "tiles", "quicklook.png": "picture"}
    for name, what in outputs.items() if summary.published else [("coverage.parquet", "tiles")]:
        print(f"{what:>9}: {folder.url}/{name}")


def _to_stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
