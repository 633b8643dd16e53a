"""What a log says of a run, by machine and not to a person."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

FAIL = """
from geopixel.events import tell, tell_failure
from geopixel.types import TileReceipt
tell("run begins", "3f2a", planned=7)
tell_failure("3f2a", TileReceipt("512_3_-4", "failed", 'cannot open "b.tif"'))
"""


def said(before: str = "") -> list[str]:
    """Lines on stderr of a process that tells of a run and of a tile."""
    done = subprocess.run([sys.executable, "-c", before + FAIL], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_person_is_told_by_the_display_and_not_by_a_log() -> None:
    assert said() == []


def test_a_submitted_run_is_lines_of_json() -> None:
    begins, failed = map(json.loads, said("import ray; ray.LoggingConfig(encoding='JSON', log_level='INFO')._apply()"))
    assert {name: begins[name] for name in ("levelname", "message", "run_id", "planned")} == {
        "levelname": "INFO",
        "message": "run begins",
        "run_id": "3f2a",
        "planned": 7,
    }
    assert {name: failed[name] for name in ("levelname", "run_id", "tile_id", "state", "reason")} == {
        "levelname": "WARNING",
        "run_id": "3f2a",
        "tile_id": "512_3_-4",
        "state": "failed",
        "reason": 'cannot open "b.tif"',
    }
    assert datetime.fromisoformat(failed["asctime"].replace(",", "."))
