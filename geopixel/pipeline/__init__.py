"""The whole way in order, without Ray: an area and a few words in, a run folder out. This is the specification; distributed/ runs the same
steps elsewhere. Knows the order of the steps and what a run folder holds; how tiles and blocks are spread over machines is a Runner's."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial

from geopixel import events, lease, ledger, mosaic, publish
from geopixel.cost import PlanCost, Spent
from geopixel.errors import DamagedError, StorageError
from geopixel.model.config import GeoPixelConfig
from geopixel.pipeline.outputs import PUBLISHED, count_spent, make_block, publish_run, trace_features, write_block
from geopixel.pipeline.planning import make_plan, search_scenes, store_dry_plan, tile_flops
from geopixel.pipeline.request import USUAL, Limits, MapRequest, Plan, Progress, Run, Summary, scene_from_json, scene_to_json
from geopixel.pipeline.runners import Job, Result, Runner, SerialRunner
from geopixel.pipeline.stored import CHANGEABLE, RUN, check_finished, check_same, check_weights, find_run, hash_weights, load_run, model_of, store_run
from geopixel.pipeline.tiles import MAX_ATTEMPTS, Seen, assign_tiles, predict_tiles, see_tile
from geopixel.pipeline.work import Work
from geopixel.storage import Folder
from geopixel.types import Tiles

__all__ = [
    "CHANGEABLE",
    "MAX_ATTEMPTS",
    "PUBLISHED",
    "RUN",
    "Job",
    "Limits",
    "MapRequest",
    "Plan",
    "Progress",
    "Result",
    "Run",
    "Runner",
    "Seen",
    "SerialRunner",
    "Summary",
    "Work",
    "assign_tiles",
    "check_finished",
    "check_same",
    "find_run",
    "hash_weights",
    "load_run",
    "make_block",
    "make_plan",
    "map_area",
    "model_of",
    "predict_tiles",
    "scene_from_json",
    "scene_to_json",
    "search_scenes",
    "see_tile",
    "store_dry_plan",
    "store_run",
    "tile_flops",
    "trace_features",
    "write_block",
]


def map_area(
    request: MapRequest,
    folder: Folder,
    config: GeoPixelConfig,
    runner: Runner,
    progress: Progress,
    *,
    retry_failed: bool = False,
    limits: Limits = USUAL,
    work: Work | None = None,
) -> Summary:
    """The whole way. config: sizes of the request's model. retry_failed: look again at tiles that failed in an earlier submission. work: what was looked
    at before, for this submission.

    Resumes what the folder holds, and leaves alone what is finished; where only CHANGEABLE values are others, makes anew what they change.
    Raises RunConflictError where the folder holds another run, or one that other weights began and that is not all looked at; StorageError where it
    cannot be read or written: what was done until then stays, and the next submission goes on from there.
    """
    clock = {"plan": time.monotonic()}
    found = find_run(folder, request)
    if found is not None:
        run, tiles = found
        if ledger.pending(ledger.read_states(folder, tiles), retry_failed=retry_failed):
            check_weights(folder, run)
        elif done := _finished(folder, run, tiles):
            return done
    else:
        plan = make_plan(request, config, runner, progress, limits)  # before anything is written: a refused request leaves no trace
    with lease.hold(folder) as held:
        if found is None:
            run, tiles = store_run(folder, plan)
        try:
            return _work(run, tiles, folder, runner, progress, clock, held, retry_failed, work or Work())
        except DamagedError as error:
            folder.delete(error.path)
            raise StorageError(f"{error}; it is removed: run the same command again to make it anew") from error


def _work(
    run: Run,
    tiles: Tiles,
    folder: Folder,
    runner: Runner,
    progress: Progress,
    clock: dict[str, float],
    held: lease.Lease,
    retry_failed: bool,
    work: Work,
) -> Summary:
    """What is left to do of a run. clock: when its stages began. work: what was done of it."""
    request = run.request
    todo = ledger.pending(ledger.read_states(folder, tiles), retry_failed=retry_failed)
    _reopen(folder, run)
    ledger.forgive_attempts(folder, runner.max_attempts)

    clock["look"] = time.monotonic()
    progress("tiles", 0, len(todo))
    name = run.id
    events.tell("run begins", name, folder=folder.url, planned=len(tiles), pending=len(todo))
    for receipt in runner.look(run, folder, todo) if todo else ():
        held.check()
        work.add(receipt)
        if receipt.state == "failed":
            events.tell_failure(name, receipt)
        progress("tiles", work.tiles, len(todo))
    states = ledger.read_states(folder, tiles)
    counts = ledger.recount(states)
    ledger.store_coverage(folder, states)
    published = request.allow_holes or not counts["failed"]

    clock["mosaic"] = time.monotonic()
    if published:
        blocks = mosaic.blocks_of(tiles)
        if mosaic.create_mosaic(folder, blocks, request.prompts, run.items, shards=request.shards):
            for path in folder.list("parts"):  # else they would say of blocks that are gone that they are written
                folder.delete(path)
        progress("blocks", 0, len(blocks))
        for done_blocks, _ in enumerate(runner.write(run, folder, blocks, states), start=1):
            held.check()
            progress("blocks", done_blocks, len(blocks))

    clock["publish"] = time.monotonic()
    finished = publish_run(run, folder, states, blocks, partial(work.submission, clock), progress) if published else None
    submission = work.submission(clock)
    stored = folder.get_json(RUN)
    stored["submissions"].append(submission)
    spent = count_spent(run, folder, states, stored["submissions"])
    folder.put_json(RUN, stored | ({"finished": finished | {"spent": asdict(spent)}} if finished else {}))
    runner.note("plan", submission["seconds"]["plan"])
    runner.note("publish", submission["seconds"]["publish"])
    events.tell("run ends", name, folder=folder.url, tiles=counts, published=published, **submission)
    found = finished or {"features": {}, "km2": {}}
    plan = Plan(run, tiles, PlanCost.from_json(stored["plan"]))
    return Summary(counts, found["features"], found["km2"], submission["seconds"], work.tiles, plan, spent, work.busy, published)


def _finished(folder: Folder, run: Run, tiles: Tiles) -> Summary | None:
    """What a run came to of which no tile is to be looked at, if all that this request asks for is there already."""
    request = run.request
    stored = folder.get_json(RUN)
    cogs = [mosaic.cog_path(index, prompt) for index, prompt in enumerate(request.prompts)] if request.cog else []
    captions = [publish.CAPTIONS] if request.describe else []
    outputs = (*PUBLISHED, *captions, ledger.COVERAGE, f"{mosaic.MASKS}/zarr.json", *cogs)
    if "finished" not in stored or stored["request"] != request.to_json() or not all(map(folder.exists, outputs)):
        return None
    finished = stored["finished"]
    plan, spent = Plan(run, tiles, PlanCost.from_json(stored["plan"])), Spent.from_json(finished["spent"])
    return Summary(finished["tiles"], finished["features"], finished["km2"], seconds={}, worked=0, plan=plan, spent=spent)


def _reopen(folder: Folder, run: Run) -> None:
    """From here on run.json says what is asked for now and that it is not finished, and nothing that is published looks as if it were."""
    stored = folder.get_json(RUN)
    asked = {"id": run.id, "request": run.request.to_json()}
    if "finished" in stored or any(stored[name] != value for name, value in asked.items()):
        folder.put_json(RUN, {name: value for name, value in stored.items() if name != "finished"} | asked)
    for path in (*PUBLISHED, publish.CAPTIONS, *folder.list("cog")):
        folder.delete(path)
