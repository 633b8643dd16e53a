"""Who may import whom. A room is a module or a package directly in geopixel/; imports point down, and a new room must be given its
place here first. Imports inside functions and under TYPE_CHECKING count too, but for torch, which some rooms load when they need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = {"types", "errors", "compiling"}
BASE = GROUND | {"access", "assignment", "dateline", "events", "labels", "profiles", "raster", "storage", "tally"}
STEPS = {"search", "survey", "tiling", "cost", "imagery", "ledger", "mosaic", "polygonize", "provenance", "features", "publish", "demo", "aoi"}
BELOW = BASE | STEPS | {"lease", "prediction", "model"}
"""What the pipeline and its neighbours stand on."""

ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "types": set(),
    "compiling": set(),
    "config": {"events"},
    "access": GROUND,
    "dateline": set(),
    "profiles": GROUND,
    "assignment": GROUND,
    "labels": set(),
    "tally": set(),
    "events": GROUND,
    "raster": GROUND | {"access", "tally"},
    "storage": GROUND,
    "lease": {"errors", "storage"},
    "model": {"errors"},
    "prediction": {"types", "model"},
    **dict.fromkeys(STEPS, BASE),
    "pipeline": BELOW,
    "conversation": BASE | {"polygonize", "publish", "model"},
    "training": BELOW | {"annotation"},  # what a phrase means, and in which words
    "finetuning": BELOW,
    "verification": BELOW | {"pipeline"},  # what a run is, is the pipeline's to say
    "evaluation": BELOW | {"pipeline"},
    "annotation": BASE | STEPS | {"config", "labels"},
    "distributed": BELOW | {"pipeline", "finetuning"},
    "country": BELOW | {"pipeline", "verification"},
    "console": BASE | {"cost", "country", "pipeline"},
}
ALLOWED["jobs"] = set(ALLOWED) - {"__init__"}
"""What each room may import of geopixel, besides itself."""

ONLY_IN = {"ray": {"distributed"}, "pystac_client": {"search"}, "torch": {"model", "prediction", "training", "finetuning"}}
"""Libraries that are some rooms' own business."""
TORCH_WHEN_NEEDED = {"pipeline", "distributed", "evaluation", "conversation"}
"""Rooms that may import torch inside a function: what reads tiles imports them too, and never needs it; nor does a refusal."""

JOB_LINES = 80


def imports(source: str, package: str) -> Iterator[tuple[str, int, bool]]:
    """Dotted name, line and whether it waits (inside a function or under TYPE_CHECKING) of everything imported by a module of package."""
    tree = ast.parse(source)
    waiting: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            waiting.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            names = [".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            yield name, node.lineno, node in waiting


def violations(source: str, room: str, package: str = "geopixel") -> list[str]:
    found = []
    for name, line, waits in imports(source, package):
        top, _, rest = name.partition(".")
        if top == "geopixel":
            other = rest.partition(".")[0]
            if other and not other.startswith("__") and other not in ALLOWED[room] | {room}:
                found.append(f"line {line}: {room} may not import geopixel.{other}")
        elif top in ONLY_IN and room not in ONLY_IN[top] and not (top == "torch" and waits and room in TORCH_WHEN_NEEDED):
            found.append(f"line {line}: {room} may not import {top}{'' if waits else ' at module level'}")
    return found


def rooms() -> list[tuple[str, Path]]:
    """Every source file with its room."""
    library = ROOT / "geopixel"
    files = [(path.relative_to(library).parts[0].removesuffix(".py"), path) for path in sorted(library.rglob("*.py"))]
    return files + [("jobs", path) for path in sorted((ROOT / "jobs").glob("*.py"))]


def test_every_room_has_its_place() -> None:
    unknown = {room for room, _ in rooms()} - set(ALLOWED)
    assert not unknown, f"new rooms {sorted(unknown)}: give each its place in ALLOWED of {Path(__file__).name}, below all who import it"


def test_imports_point_down() -> None:
    found = []
    for room, path in rooms():
        if room not in ALLOWED:  # the test above says so
            continue
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        found += [f"{path.relative_to(ROOT)}, {text}" for text in violations(path.read_text(), room, package)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "source", "good"),
    [
        ("tiling", "from geopixel.types import Tile", True),
        ("tiling", "from geopixel.survey import look", False),
        ("tiling", "from geopixel import survey", False),
        ("tiling", "import geopixel.survey as s", False),
        ("tiling", "from .survey import look", False),
        ("tiling", "from . import survey", False),
        ("tiling", "def plan():\n    from geopixel.survey import look", False),
        ("tiling", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from geopixel.pipeline import run", False),
        ("tiling", "def plan():\n    import torch", False),
        ("features", "from geopixel import __version__", True),
        ("mosaic", "from geopixel.raster import window", True),
        ("raster", "from geopixel.storage import Folder", False),
        ("types", "from geopixel.raster import window", False),
        ("model", "from geopixel.types import Tile", False),
        ("model", "from geopixel.errors import CheckpointError", True),
        ("model", "from geopixel.model.config import Config", True),
        ("prediction", "from geopixel.storage import Folder", False),
        ("pipeline", "import torch.nn", False),
        ("pipeline", "def device():\n    import torch.cuda", True),
        ("pipeline", "from geopixel.distributed import run", False),
        ("pipeline", "from geopixel.config import MapSettings", False),
        ("pipeline", "def run():\n    import ray", False),
        ("evaluation", "from geopixel.training import train", False),
        ("distributed", "import ray.data", True),
        ("distributed", "import torch", False),
        ("imagery", "from pystac_client import Client", False),
        ("search", "from pystac_client import Client", True),
        ("jobs", "from geopixel.config import load", True),
        ("jobs", "import ray", False),
    ],
)
def test_the_rules_themselves(room: str, source: str, good: bool) -> None:
    assert (violations(source, room) == []) is good


def test_relative_imports_inside_a_package_are_its_own() -> None:
    assert violations("from .vision import Tower\nfrom . import vision", "model", "geopixel.model") == []
    assert violations("from ..types import Tile", "model", "geopixel.model") != []
    assert violations("from ... import types", "model", "geopixel.model.deep") != []


@pytest.mark.parametrize(
    ("names", "unwanted"),
    [
        ({"config", *BASE, *STEPS}, {"torch", "ray"}),
        ({"pipeline", "distributed"}, {"torch"}),
    ],
    ids=["steps load neither torch nor ray", "what a reading worker imports loads no torch"],
)
def test_what_importing_loads(names: set[str], unwanted: set[str]) -> None:
    present = sorted({room for room, _ in rooms()} & names)
    modules = ", ".join(["geopixel", *(f"geopixel.{room}" for room in present)])
    code = f"import sys, {modules}; print(*sorted({unwanted} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "", f"importing {modules} loads {run.stdout.strip()}"


def test_jobs_are_short() -> None:
    for room, path in rooms():
        if room == "jobs":
            lines = len(path.read_text().splitlines())
            assert lines <= JOB_LINES, f"{path.name} has {lines} lines, more than {JOB_LINES}: its logic belongs into the library"
