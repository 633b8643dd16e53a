"""What the faulted runs of the tests share: what befalls the workers of a cluster, runs that are half done, and waiting without guessing how long."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from geopixel.storage import Folder

PATIENCE = 300.0
"""Seconds; of a busy machine."""
JOURNAL, KILLER = "GEOPIXEL_TEST_JOURNAL", "GEOPIXEL_TEST_KILLER"


def befall() -> None:
    """For every worker of a job, before its first task: it notes its process and each tile that it has stored in the file that JOURNAL names, and
    the tile that KILLER names ends whoever is about to predict it."""
    from geopixel import ledger
    from geopixel.pipeline import tiles

    journal, killer = os.environ[JOURNAL], os.environ[KILLER]
    store, predict = ledger.store_prediction, tiles._predict

    def store_and_note(folder, prediction):  # type: ignore[no-untyped-def]
        store(folder, prediction)
        with open(journal, "a") as file:  # noqa: PTH123  # one short write: lines of several workers do not mix
            file.write(f"{os.getpid()} {prediction.tile_id}\n")

    def end_or_predict(predictor, pictures):  # type: ignore[no-untyped-def]
        if killer in {picture.tile.id for picture, _ in pictures}:
            os.kill(os.getpid(), signal.SIGKILL)
        return predict(predictor, pictures)

    ledger.store_prediction, tiles._predict = store_and_note, end_or_predict


def read_journal(path: Path) -> list[tuple[int, str]]:
    """Process and tile, in the order in which tiles were stored."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), tile) for pid, tile in (line.split() for line in lines)]


def wait_for(what: Callable[[], bool], alive: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert alive(), "it ended before what was waited for"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def half_done(serial: Path, out: Path, missing: Iterable[str] | None = None) -> Folder:
    """A copy of a finished run as it was when these tiles, or all, were still to be looked at."""
    out.mkdir(parents=True)
    for name in ("plan.parquet", "scenes.parquet"):
        shutil.copy(serial / name, out)
    folder = Folder(str(out))
    stored = Folder(str(serial)).get_json("run.json")
    folder.put_json("run.json", {name: value for name, value in stored.items() if name != "finished"} | {"submissions": []})
    for path in serial.glob("predictions/*/*.arrow"):
        if missing is not None and path.stem not in missing:
            (out / path.relative_to(serial)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, out / path.relative_to(serial))
    return folder


def tiles_of(serial: Path) -> list[str]:
    """Ids of the tiles that were looked at, in the order of their names."""
    return sorted(path.stem for path in serial.glob("predictions/*/*.arrow"))


def stored(folder: Path) -> dict[str, int]:
    """Predictions by name, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("predictions/*/*.arrow")}
