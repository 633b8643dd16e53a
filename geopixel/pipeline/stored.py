"""The run that a folder holds: found again, begun, and said to be unfinished. run.json is written last, so a folder without it holds no run yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from geopixel import lease, ledger
from geopixel.errors import RunConflictError
from geopixel.model.config import find_model
from geopixel.pipeline.request import MapRequest, Plan, Run, scene_from_json, scene_to_json
from geopixel.search import SCENES, store_scenes
from geopixel.storage import Folder
from geopixel.types import Grid, Tiles

RUN = "run.json"
CHANGEABLE = ("threshold", "min_area", "fill_holes", "simplify", "orthogonalize", "allow_holes", "cog")
"""Fields of a request that a folder's run may be asked for anew with other values: nothing that was looked at depends on them."""


def find_run(folder: Folder, request: MapRequest) -> tuple[Run, Tiles] | None:
    """The run and tiles that the folder holds, with the request's CHANGEABLE values; None where it holds nothing. Raises RunConflictError where
    it holds something else."""
    if not holds_run(folder):
        return None
    run, tiles = load_run(folder), ledger.load_plan(folder)
    check_same(folder, run.request.to_json(), request.to_json())
    return replace(run, request=request), tiles


def holds_run(folder: Folder) -> bool:
    """Whether there is a run. Raises RunConflictError where there is something else."""
    with folder.reached():
        if folder.exists(RUN):
            return True
        strangers = [path for path in folder.list() if path not in (ledger.PLAN, SCENES) and not path.startswith(f"{lease.LEASES}/")]
    if strangers:
        raise RunConflictError(f"{folder.url} is not empty and holds no run: found {strangers[0]}; choose another --out")
    return False


def check_same(folder: Folder, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises RunConflictError where requests, as JSON values, differ in more than CHANGEABLE."""
    for name in now:
        if name not in CHANGEABLE and was[name] != now[name]:
            raise RunConflictError(f"{folder.url} holds another run: its {name} is {_short(was[name])}, not {_short(now[name])}; choose another --out")


def check_weights(folder: Folder, run: Run) -> None:
    """Raises RunConflictError where the model has other weights by now than the run began with: half a map would be another model's."""
    now = hash_weights(run.request.model)
    if now != run.weights_sha256:
        told = f"its model {run.request.model} had weights {run.weights_sha256[:12]} (SHA-256), and has {now[:12]} now"
        raise RunConflictError(f"{folder.url} was begun with other weights: {told}; choose another --out")


def store_run(folder: Folder, plan: Plan) -> tuple[Run, Tiles]:
    """run.json is written last: a folder without it holds no run yet."""
    assert plan.findings is not None, "a new plan comes from a search"
    run = plan.run if plan.run.weights_sha256 else replace(plan.run, weights_sha256=hash_weights(plan.run.request.model))
    with folder.reached():
        if folder.exists(RUN):
            raise RunConflictError(f"another driver began a run in {folder.url} meanwhile: submit again to go on with it")
        store_scenes(folder, plan.findings)
        ledger.store_plan(folder, plan.tiles)
        folder.put_json(RUN, _run_json(replace(plan, run=run)))
    return run, plan.tiles


def load_run(folder: Folder) -> Run:
    """The run that a folder holds. Raises FileNotFoundError where it holds none."""
    stored = folder.get_json(RUN)
    request = MapRequest.from_json(stored["request"])
    return Run(request, tuple(map(scene_from_json, stored["scenes"])), Grid(**stored["grid"]), stored["weights_sha256"])


def model_of(folder: Folder) -> str | None:
    """The model of the run that a folder holds; None where it holds none."""
    with folder.reached():
        return folder.get_json(RUN)["request"]["model"] if folder.exists(RUN) else None


def check_finished(folder: Folder) -> None:
    """Raises ValueError, which says what is missing and how to finish it, where a run never ended; FileNotFoundError where there is none."""
    if "finished" in folder.get_json(RUN):
        return
    tiles = ledger.load_plan(folder)
    states = ledger.read_states(folder, tiles)
    counts = ledger.recount(states)
    unseen, failed = len(tiles) - sum(counts.values()), counts["failed"]
    missing = [f"{count} {text}" for count, text in ((unseen, "still to be looked at"), (failed, "failed")) if count]
    told = f"of {len(tiles)} tiles {' and '.join(missing)}" if missing else "all tiles are looked at, the map is still to be written"
    mend = "run the same command again to finish it"
    if failed and not unseen:
        mend += f" with --retry-failed, or with --allow-holes to publish it with these holes marked (why they failed: {ledger.COVERAGE})"
    raise ValueError(f"the run in {folder.url} is not finished: {told}; {mend}")


def _run_json(plan: Plan) -> dict[str, Any]:
    return {
        "id": plan.run.id,
        "request": plan.run.request.to_json(),
        "weights_sha256": plan.run.weights_sha256,
        "grid": asdict(plan.run.grid),
        "scenes": [scene_to_json(scene) for scene in plan.run.scenes],
        "plan": asdict(plan.cost),
        "guesses": plan.run.guesses,
        "versions": {name: version(name) for name in ("geopixel-ray", "ray", "torch", "transformers", "rasterio", "zarr")},
        "submissions": [],
    }


def hash_weights(model: str) -> str:
    """Digest of the weights of a model, by its name."""
    from geopixel.model.checkpoint import weights_sha256  # loads torch

    return weights_sha256(find_model(model))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
