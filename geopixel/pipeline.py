"""The whole way in order, without Ray: an area and a few words in, a run folder out. This is the specification; distributed.py runs the same
steps elsewhere. Knows the order of the steps and what a run folder holds; how tiles and blocks are spread over machines is a Runner's."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
import xarray as xr
from pyproj import CRS
from shapely import Geometry

from geopixel import features, lease, ledger, mosaic, polygonize, provenance, publish
from geopixel.assignment import Assignment, assign_sources
from geopixel.cost import PlanCost, Spent, estimate_cost, square_km
from geopixel.errors import ReadError, RunConflictError
from geopixel.features import Outline
from geopixel.imagery import read_tile
from geopixel.model.config import GeoPixelConfig, find_model
from geopixel.search import MAX_ITEMS, SCENES, Findings, search_catalog, store_scenes
from geopixel.search.choice import Rule
from geopixel.storage import Folder
from geopixel.survey import survey_scenes
from geopixel.tally import tallied
from geopixel.tiling import choose_grid, ground_sample_distance, plan_tiles, project_area, smallest_object, survey_cells
from geopixel.types import (
    BLOCK_SIZE,
    HALO,
    STATUS_CODES,
    TILE_SIZES,
    Access,
    Asset,
    Block,
    Description,
    Grid,
    Quality,
    Scene,
    Source,
    State,
    Tile,
    TileImage,
    TilePrediction,
    TileReceipt,
    Tiles,
)

if TYPE_CHECKING:
    from geopixel.prediction import Predictor  # loads torch: imported where a model is loaded, never by those who only read

RUN = "run.json"
FLOPS_PER_SECOND = {"cpu": 2e10, "cuda": 4e14}
"""Assumed of one device for the estimate of a plan: a CPU core at about half of its float32 peak, an H200 at half of its measured 790 TFLOP/s."""

MAX_ATTEMPTS = 3
"""A tile that was begun this often without a result kills its workers: it is set aside as failed."""

CHANGEABLE = ("threshold", "min_area", "fill_holes", "simplify", "orthogonalize", "allow_holes", "cog")
"""Fields of a request that a folder's run may be asked for anew with other values: nothing that was looked at depends on them."""
PUBLISHED = (features.FEATURES, publish.ITEM, publish.QUICKLOOK, publish.REPORT)
"""What a run shows to others: there only while the run is finished."""

Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its units are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """What is asked for: everything that shapes the result, and nothing else."""

    area: Geometry
    """EPSG:4326, longitude first."""
    prompts: tuple[str, ...]
    catalog: str
    model: str
    collection: str | None = None
    datetime: str | None = None
    max_cloud: float | None = None
    """Percent."""
    filter: str | None = None
    """CQL2, JSON or text."""
    choose: Rule = "newest"
    per_cell: int | None = None
    """Scenes deep, by the rule choose; None: all."""
    access: Access | None = None
    assets: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    stretch: tuple[float, float] | None = None
    profile: str | None = None
    """TOML, see profiles.py."""
    resolution: float | None = None
    crs: str | None = None
    threshold: float = 0.5
    min_area: Mapping[str, float] = field(default_factory=dict)
    """By prompt, those that are not named 0; as are the next two. Square metres."""
    fill_holes: Mapping[str, float] = field(default_factory=dict)
    """Square metres."""
    simplify: Mapping[str, float] = field(default_factory=dict)
    """Metres."""
    orthogonalize: tuple[str, ...] = ()
    """The prompts whose outlines get right angles."""
    describe: bool = False
    """Also say what every tile shows."""
    allow_holes: bool = False
    """Publish although some tiles failed."""
    shards: bool = True
    """Masks in Zarr shards, not in chunks alone."""
    cog: bool = False
    """Masks as COGs too."""

    def __post_init__(self) -> None:
        for name in ("min_area", "fill_holes", "simplify"):
            values = getattr(self, name)
            if strange := values.keys() - set(self.prompts):
                raise ValueError(f"{name} is of the prompts {self.prompts}, got {sorted(strange)}")
            object.__setattr__(self, name, {prompt: float(values.get(prompt, 0)) for prompt in self.prompts})  # one way to say the same

    @property
    def outlines(self) -> dict[str, Outline]:
        """By prompt, in order."""
        return {
            prompt: Outline(self.min_area[prompt], self.fill_holes[prompt], self.simplify[prompt], prompt in self.orthogonalize)
            for prompt in self.prompts
        }

    def to_json(self) -> dict[str, Any]:
        """JSON values; equal requests give equal ones."""
        return json.loads(json.dumps(asdict(replace(self, area=None)) | {"area": self.area.wkt}))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a plan may reach. They shape no result: a run may be resumed with others."""

    allow_hosts: tuple[str, ...] = ()
    """Where a catalog may lead: see access.Hosts."""
    max_items: int = MAX_ITEMS
    max_vertices: int = 1_000_000
    """Of the area."""
    max_tiles: int = 10_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """A request and what was found for it: all that any worker needs, besides the tiles."""

    request: MapRequest
    scenes: tuple[Scene, ...]
    grid: Grid
    weights_sha256: str = ""
    """Of the model; empty while the run is only planned."""

    @property
    def id(self) -> str:
        """Of the request and the scenes: equal for two runs that ask for the same and find the same."""
        told = {"request": self.request.to_json(), "scenes": [scene_to_json(scene) for scene in self.scenes]}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def guesses(self) -> list[str]:
        """What nobody says of the scenes' colours, and what was taken instead: one line a collection."""
        return list(dict.fromkeys(f"{scene.collection}: {scene.guess}" for scene in self.scenes if scene.guess))

    @property
    def area(self) -> Geometry:
        """In the CRS of the grid."""
        return project_area(self.request.area, self.grid.crs)

    @property
    def items(self) -> list[str]:
        """Collection and id of every item, in the order in which planes of scenes count them."""
        return [f"{scene.collection}/{source.item}" for scene in self.scenes for source in scene.sources]


@dataclass(frozen=True, slots=True)
class Plan:
    run: Run
    tiles: Tiles
    cost: PlanCost
    findings: Findings | None = None
    """What was searched for it; None for a plan that was stored before."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A tile that was read."""

    picture: TileImage | TilePrediction
    """Or why there is none."""
    read_seconds: float
    read_bytes: int
    """Of the files, as they are stored."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to."""

    tiles: dict[State, int]
    features: dict[str, int]
    """By prompt."""
    km2: dict[str, float]
    """Ground in the features of a prompt."""
    seconds: dict[str, float]
    """By stage, of this submission."""
    worked: int
    """Tiles that this submission looked at; the others were there already."""
    plan: Plan
    """What was meant, and ..."""
    spent: Spent
    """... what it took."""
    busy: float | None = None
    """Share 0..1 of their time that the workers with the model spent in it; None where it was not measured."""
    published: bool = True
    """False: tiles failed and holes are not allowed, so coverage.parquet is all there is."""


class Runner(Protocol):
    """Spreads tiles and blocks over whatever there is."""

    @property
    def dask_scheduler(self) -> Any:
        """For the survey; None: threads."""
        ...

    @property
    def device(self) -> str:
        """What the model runs on: cuda or cpu."""
        ...

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        """Reads, predicts and stores every tile; yields a receipt for each, in any order."""
        ...

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        """Writes every block; yields the id of each, in any order."""
        ...


class SerialRunner:
    """One thing after the other, in this process."""

    dask_scheduler: Any = "synchronous"
    device = "cpu"

    def __init__(self, max_attempts: int = MAX_ATTEMPTS) -> None:
        self.max_attempts = max_attempts

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        from geopixel.prediction import Predictor

        predictor = Predictor.load(run.request.model, run.request.prompts, run.request.describe)
        assigned = assign_tiles(run, tiles)
        yield from predict_tiles(folder, predictor, (see_tile(run, tile, assigned) for tile in tiles), self.max_attempts)

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        for block, tiles in blocks.items():
            yield write_block(run, folder, block, tiles, states)


def map_area(
    request: MapRequest, folder: Folder, config: GeoPixelConfig, runner: Runner, progress: Progress, *, retry_failed: bool = False, limits: Limits = Limits()
) -> Summary:
    """The whole way. config: sizes of the request's model. retry_failed: look again at tiles that failed in an earlier submission.

    Resumes what the folder holds, and leaves alone what is finished; where only CHANGEABLE values are others, makes anew what they change.
    Raises RunConflictError where the folder holds another run.
    """
    clock = {"plan": time.monotonic()}
    found = find_run(folder, request)
    if found and (done := _finished(folder, *found, retry_failed)):
        return done
    if found is None:
        plan = make_plan(request, config, runner, progress, limits)  # before anything is written: a refused request leaves no trace
    with lease.hold(folder) as held:
        run, tiles = _store_run(folder, plan) if found is None else found
        return _work(run, tiles, folder, runner, progress, clock, held, retry_failed)


def _work(
    run: Run, tiles: Tiles, folder: Folder, runner: Runner, progress: Progress, clock: dict[str, float], held: lease.Lease, retry_failed: bool
) -> Summary:
    """What is left to do of a run. clock: when its stages began."""
    request = run.request
    todo = ledger.pending(tiles, ledger.read_states(folder, tiles), retry_failed=retry_failed)
    _reopen(folder, run)

    clock["look"] = time.monotonic()
    progress("tiles", 0, len(todo))
    receipts = []
    for receipt in runner.look(run, folder, todo) if todo else ():
        held.check()
        receipts.append(receipt)
        progress("tiles", len(receipts), len(todo))
    states = ledger.read_states(folder, tiles)
    counts = ledger.recount(tiles, states)
    ledger.store_coverage(folder, tiles)
    published = request.allow_holes or not counts["failed"]

    clock["mosaic"] = time.monotonic()
    if published:
        blocks = mosaic.blocks_of(tiles)
        mosaic.create_mosaic(folder, blocks, request.prompts, run.items, shards=request.shards)
        progress("blocks", 0, len(blocks))
        for done_blocks, _ in enumerate(runner.write(run, folder, blocks, states), start=1):
            held.check()
            progress("blocks", done_blocks, len(blocks))

    clock["publish"] = time.monotonic()
    finished = _publish(run, folder, tiles, states, blocks, partial(_submission, clock, receipts), progress) if published else None
    submission = _submission(clock, receipts)
    stored = folder.get_json(RUN)
    stored |= ({"finished": finished} if finished else {}) | {"submissions": [*stored["submissions"], submission]}
    folder.put_json(RUN, stored)
    found, spent = finished or {"features": {}, "km2": {}}, _spent(run, folder, tiles, states, stored["submissions"])
    plan = Plan(run, tiles, PlanCost.from_json(stored["plan"]))
    return Summary(counts, found["features"], found["km2"], submission["seconds"], len(receipts), plan, spent, _share(receipts), published)


def _submission(clock: Mapping[str, float], receipts: Sequence[TileReceipt]) -> dict[str, Any]:
    """What this submission took until now, for run.json."""
    began = list(clock.items())
    ended = [*(begin for _, begin in began[1:]), time.monotonic()]
    return {
        "tiles_looked_at": len(receipts),
        "seconds": {stage: round(end - begin, 3) for (stage, begin), end in zip(began, ended, strict=True)},
        "worker_seconds": {
            "read": round(sum(receipt.read_seconds for receipt in receipts), 3),
            "predict": round(sum(receipt.predict_seconds for receipt in receipts), 3),
            "with_model": round(sum(receipt.worker_seconds for receipt in receipts), 3),
        },
        "read_bytes": sum(receipt.read_bytes for receipt in receipts),
        "computed_with": sorted({receipt.backend for receipt in receipts if receipt.backend}),
    }


def _share(receipts: Sequence[TileReceipt]) -> float | None:
    """Of the workers' time, what the model took."""
    total = sum(receipt.worker_seconds for receipt in receipts)
    return sum(receipt.predict_seconds for receipt in receipts if receipt.worker_seconds) / total if total else None


def _finished(folder: Folder, run: Run, tiles: Tiles, retry_failed: bool) -> Summary | None:
    """What a run came to of which no tile is to be looked at, if all that this request asks for is there already."""
    states, request = ledger.read_states(folder, tiles), run.request
    if ledger.pending(tiles, states, retry_failed=retry_failed):
        return None
    stored = folder.get_json(RUN)
    cogs = [mosaic.cog_path(index, prompt) for index, prompt in enumerate(request.prompts)] if request.cog else []
    captions = [publish.CAPTIONS] if request.describe else []
    outputs = (*PUBLISHED, *captions, ledger.COVERAGE, f"{mosaic.MASKS}/zarr.json", *cogs)
    if "finished" not in stored or stored["request"] != request.to_json() or not all(map(folder.exists, outputs)):
        return None
    finished = stored["finished"]
    plan, spent = Plan(run, tiles, PlanCost.from_json(stored["plan"])), _spent(run, folder, tiles, states, stored["submissions"])
    return Summary(finished["tiles"], finished["features"], finished["km2"], seconds={}, worked=0, plan=plan, spent=spent)


def _reopen(folder: Folder, run: Run) -> None:
    """From here on run.json says what is asked for now and that it is not finished, and nothing that is published looks as if it were."""
    stored = folder.get_json(RUN)
    asked = {"id": run.id, "request": run.request.to_json()}
    if "finished" in stored or any(stored[name] != value for name, value in asked.items()):
        folder.put_json(RUN, {name: value for name, value in stored.items() if name != "finished"} | asked)
    for path in (*PUBLISHED, publish.CAPTIONS, *folder.list("cog")):
        folder.delete(path)


def check_finished(folder: Folder) -> None:
    """Raises ValueError, which says what is missing and how to finish it, where a run never ended; FileNotFoundError where there is none."""
    if "finished" in folder.get_json(RUN):
        return
    tiles = ledger.load_plan(folder)
    states = ledger.read_states(folder, tiles)
    counts = ledger.recount(tiles, states)
    unseen, failed = len(tiles) - sum(counts.values()), counts["failed"]
    missing = [f"{count} {text}" for count, text in ((unseen, "still to be looked at"), (failed, "failed")) if count]
    told = f"of {len(tiles)} tiles {' and '.join(missing)}" if missing else "all tiles are looked at, the map is still to be written"
    mend = "run the same command again to finish it"
    if failed and not unseen:
        mend += f" with --retry-failed, or with --allow-holes to publish it with these holes marked (why they failed: {ledger.COVERAGE})"
    raise ValueError(f"the run in {folder.url} is not finished: {told}; {mend}")


def model_of(folder: Folder) -> str | None:
    """The model of the run that a folder holds; None where it holds none."""
    with folder.reached():
        return folder.get_json(RUN)["request"]["model"] if folder.exists(RUN) else None


def _publish(
    run: Run,
    folder: Folder,
    tiles: Tiles,
    states: Mapping[str, State],
    blocks: Mapping[Block, Sequence[Tile]],
    submission: Callable[[], dict[str, Any]],
    progress: Progress,
) -> dict[str, Any]:
    """What is made of the finished blocks. submission: what this one took until now. Returns what the run came to, for run.json."""
    prompts = run.request.prompts
    progress("publish", 0, 1)
    table = trace_features(run, folder, blocks)
    folder.put(features.FEATURES, features.encode(table))
    found = _outlines(table)
    for index in range(len(prompts)) if run.request.cog else ():
        mosaic.write_cog(folder, index)
    if run.request.describe:
        seen = [tile for tile in tiles if states[tile.id] in ("ok", "empty")]

        def described(tile: Tile) -> Description | None:
            return ledger.load_prediction(folder, tile.id, states[tile.id]).description

        publish.store_captions(folder, seen, described, found, threshold=run.request.threshold)
    finished = {
        "tiles": ledger.recount(tiles, states),
        "features": {prompt: pc.sum(pc.equal(table["prompt"], prompt)).as_py() or 0 for prompt in prompts},
        "km2": {prompt: (pc.sum(table["area_m2"].filter(pc.equal(table["prompt"], prompt))).as_py() or 0.0) / 1e6 for prompt in prompts},
    }
    backdrop = publish.read_backdrop(run.scenes, run.grid, run.area)
    failed = [tile for tile in tiles if states[tile.id] == "failed"]
    publish.draw_quicklook(
        folder, backdrop, area=run.area, features=found, prompts=prompts, failed=failed, scenes=run.scenes, model=run.request.model
    )
    stored, name = folder.get_json(RUN), folder.url.rstrip("/").rsplit("/", 1)[-1]
    told = stored | {"finished": finished, "submissions": [*stored["submissions"], submission()]}
    publish.store_report(folder, backdrop, name=name, run=told, area=run.area, tiles=tiles, scenes=run.scenes)
    publish.store_item(folder, name=name, run=told, area=run.request.area, grid=run.grid, scenes=run.scenes)
    progress("publish", 1, 1)
    return finished


def find_run(folder: Folder, request: MapRequest) -> tuple[Run, Tiles] | None:
    """The run and tiles that the folder holds, with the request's CHANGEABLE values; None where it holds nothing. Raises RunConflictError where
    it holds something else."""
    with folder.reached():
        holds_run = folder.exists(RUN)
        strangers = [] if holds_run else [path for path in folder.list() if path not in (ledger.PLAN, SCENES) and not path.startswith(f"{lease.LEASES}/")]
    if strangers:
        raise RunConflictError(f"{folder.url} is not empty and holds no run: found {strangers[0]}; choose another --out")
    if not holds_run:
        return None
    run, tiles = load_run(folder), ledger.load_plan(folder)
    was, now = run.request.to_json(), request.to_json()
    for name in now:
        if name not in CHANGEABLE and was[name] != now[name]:
            raise RunConflictError(f"{folder.url} holds another run: its {name} is {_short(was[name])}, not {_short(now[name])}; choose another --out")
    return replace(run, request=request), tiles


def _store_run(folder: Folder, plan: Plan) -> tuple[Run, Tiles]:
    """run.json is written last: a folder without it holds no run yet."""
    assert plan.findings is not None, "a new plan comes from a search"
    run = replace(plan.run, weights_sha256=_weights_sha256(plan.run.request.model))
    with folder.reached():
        if folder.exists(RUN):
            raise RunConflictError(f"another driver began a run in {folder.url} meanwhile: submit again to go on with it")
        store_scenes(folder, plan.findings)
        ledger.store_plan(folder, plan.tiles)
        folder.put_json(RUN, _run_json(replace(plan, run=run)))
    return run, plan.tiles


def _weights_sha256(model: str) -> str:
    from geopixel.model.checkpoint import weights_sha256  # loads torch

    return weights_sha256(find_model(model))


def load_run(folder: Folder) -> Run:
    """The run that a folder holds. Raises FileNotFoundError where it holds none."""
    stored = folder.get_json(RUN)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored["request"].items()}
    request = MapRequest(**values | {"area": shapely.from_wkt(values["area"])})
    return Run(request, tuple(map(scene_from_json, stored["scenes"])), Grid(**stored["grid"]), stored["weights_sha256"])


def make_plan(
    request: MapRequest, config: GeoPixelConfig, runner: Runner, progress: Progress, limits: Limits = Limits()
) -> Plan:
    """Searches, surveys and plans; writes nothing. Raises ValueError for an area, a search or a plan beyond the limits."""
    if (vertices := shapely.get_num_coordinates(request.area)) > limits.max_vertices:
        raise ValueError(f"the area has {vertices:,} vertices, more than {limits.max_vertices:,}: simplify it, or raise --max-vertices")
    progress("search", 0, 1)
    findings = search_catalog(
        request.catalog,
        request.area,
        collection=request.collection,
        datetime=request.datetime,
        max_cloud=request.max_cloud,
        filter=request.filter,
        choose_by=request.choose,
        per_cell=request.per_cell,
        access=request.access,
        allow_hosts=limits.allow_hosts,
        max_items=limits.max_items,
        assets=request.assets,
        bands=request.bands,
        stretch=request.stretch,
        profile=request.profile,
    )
    scenes = findings.scenes
    progress("search", 1, 1)
    grid = choose_grid(scenes, request.crs, request.resolution)
    if request.orthogonalize and not CRS(grid.crs).is_projected:
        raise ValueError(f"right angles need a map in metres, and the imagery is in {grid.crs}: choose another CRS, such as EPSG:3857")
    run = Run(request, scenes, grid)
    for guess in run.guesses:
        logging.getLogger(__name__).warning("guessed for %s", guess)
    smallest = run.area.area / (grid.resolution * TILE_SIZES[0]) ** 2
    if smallest > limits.max_tiles:
        raise ValueError(
            f"the area is {smallest:,.0f} tiles of {TILE_SIZES[0]} pixels of {grid.resolution:g} in {grid.crs}, more than {limits.max_tiles:,}: "
            "map a part of it, choose a coarser --resolution, or raise --max-tiles"
        )
    progress("survey", 0, 1)
    survey = survey_scenes(scenes, grid, survey_cells(request.area, grid), scheduler=runner.dask_scheduler)
    tiles = plan_tiles(
        request.area,
        grid,
        survey,
        smallest_object=smallest_object(request.prompts),
        ground_sample_distance=_ground_sample_distance(run),
        costs=tile_flops(config, len(request.prompts)),
        mask_size=config.grounding.mask_size,
        max_cloud=None if request.max_cloud is None else request.max_cloud / 100,
    )
    progress("survey", 1, 1)
    return Plan(run, tiles, _cost(run, tiles, config, survey), findings)


def store_dry_plan(folder: Folder, plan: Plan) -> bool:
    """Writes the plan's tiles to plan.parquet, as a run there would, unless the folder holds a run: its own plan stays. Says whether it wrote."""
    with folder.reached():
        if folder.exists(RUN):
            return False
        ledger.store_plan(folder, plan.tiles)
    return True


def assign_tiles(run: Run, tiles: Sequence[Tile]) -> Assignment:
    """The sources near each tile, by super-tile: what see_tile wants."""
    plan = Tiles.of(tiles)
    return assign_sources(run.scenes, run.grid, np.stack([plan.left // BLOCK_SIZE, plan.top // BLOCK_SIZE], axis=-1), BLOCK_SIZE)


def see_tile(run: Run, tile: Tile, assigned: Assignment) -> Seen:
    """Reads a tile. assigned: of assign_tiles, for this tile among others."""
    began = time.monotonic()
    with tallied() as touched:
        try:
            picture: TileImage | TilePrediction = read_tile(tile, run.scenes, assigned.at(tile.left, tile.top))
        except ReadError as error:
            picture = TilePrediction(tile.id, "failed", reason=str(error))
    return Seen(picture, time.monotonic() - began, sum(each.bytes for each in touched))


def predict_tiles(folder: Folder, predictor: Predictor, seen: Iterable[Seen], max_attempts: int) -> Iterator[TileReceipt]:
    """Predicts and stores tiles, as many together as the model takes. A tile that was begun before without a result is tried alone, so that
    one that ends its workers costs no other its place; begun max_attempts times it is set aside."""
    seen = iter(seen)
    while batch := list(islice(seen, predictor.batch_size)):
        pictures: list[tuple[TileImage, Seen]] = []
        fresh: list[tuple[TileImage, Seen]] = []
        for one in batch:
            if isinstance(one.picture, TilePrediction):
                yield _keep(folder, one.picture, one)
            else:
                pictures.append((one.picture, one))
        for picture, one in pictures:
            if not ledger.attempts(folder, picture.tile.id):
                fresh.append((picture, one))
            elif (attempt := ledger.begin_attempt(folder, picture.tile.id)) > max_attempts:
                yield _keep(folder, TilePrediction(picture.tile.id, "failed", reason=f"its worker ended {attempt - 1} times"), one)
            else:
                yield from _predict(folder, predictor, [(picture, one)])
        for picture, _ in fresh:
            ledger.begin_attempt(folder, picture.tile.id)
        if fresh:
            yield from _predict(folder, predictor, fresh)


def _predict(folder: Folder, predictor: Predictor, pictures: Sequence[tuple[TileImage, Seen]]) -> Iterator[TileReceipt]:
    """Predicts and stores tiles whose attempt has begun. One that does not fit the context or the memory is a hole, not the end of the run."""
    began = time.monotonic()
    try:
        predictions = predictor.predict([picture for picture, _ in pictures])
    except (ValueError, RuntimeError) as error:
        if len(pictures) > 1:
            for pair in pictures:
                yield from _predict(folder, predictor, [pair])
            return
        predictions = [TilePrediction(pictures[0][0].tile.id, "failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")]
    each = (time.monotonic() - began) / len(pictures)
    for prediction, (_, one) in zip(predictions, pictures, strict=True):
        yield _keep(folder, prediction, one, each, predictor.backend)


def _keep(folder: Folder, prediction: TilePrediction, seen: Seen, predict_seconds: float = 0.0, backend: str = "") -> TileReceipt:
    """Stored before it counts."""
    ledger.store_prediction(folder, prediction)
    ledger.end_attempts(folder, prediction.tile_id)
    times = {"read_seconds": seen.read_seconds, "predict_seconds": predict_seconds}
    return TileReceipt(prediction.tile_id, prediction.state, prediction.reason, **times, read_bytes=seen.read_bytes, backend=backend)


def write_block(run: Run, folder: Folder, block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> str:
    """Blends, writes and traces one block, unless that was done from tiles in the same states with the same threshold. Returns its id."""
    told = run.request.threshold, [(tile.id, states[tile.id]) for tile in tiles]
    made_from = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    if features.parts_states(folder, block) != made_from:
        predictions = {tile.id: ledger.load_prediction(folder, tile.id, states[tile.id]) for tile in tiles if tile.decided is None}
        prompts = len(run.request.prompts)
        blended = mosaic.mosaic_block(
            block, tiles, lambda tile: predictions[tile.id], prompts=prompts, threshold=run.request.threshold, area=run.area
        )
        mosaic.write_block(folder, block, blended)
        origin = provenance.trace_provenance(block, tiles, predictions, prompts=prompts, area=run.area)
        parts = polygonize.trace_block(
            blended.mask, blended.confidence, left=block.left, top=block.top, scene=origin.scene, scores=origin.scores, edge=origin.edge
        )
        features.store_parts(folder, block, parts, made_from)
    return block.id


def trace_features(run: Run, folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """The features of the run, as features.SCHEMA has them, from what the blocks hold."""
    origin = features.Origin(run.grid, run.scenes, _ground_sample_distance(run), run.request.model, run.weights_sha256, run.id)
    return features.build_features(polygonize.stitch(features.load_parts(folder, blocks)), run.request.outlines, origin)


def _outlines(found: pa.Table) -> gpd.GeoDataFrame:
    """What pictures and captions need of the features: id, prompt, area_m2 and geometry, in OGC:CRS84."""
    polygons = shapely.from_wkb(found["geometry"].to_numpy(zero_copy_only=False))
    columns = {name: found[name].to_numpy(zero_copy_only=False) for name in ("id", "prompt", "area_m2")}
    return gpd.GeoDataFrame(columns, geometry=polygons, crs="OGC:CRS84")


def _ground_sample_distance(run: Run) -> float:
    """Metres a pixel at the scenes, not at the area: areas that overlap and have the same scenes get the same tiles."""
    footprints = [source.footprint for scene in run.scenes for source in scene.sources]
    return ground_sample_distance(run.grid, shapely.GeometryCollection(footprints))


def tile_flops(config: GeoPixelConfig, prompts: int) -> dict[int, float]:
    """Floating-point operations for a tile, by size; sizes that do not fit the model's context are left out."""
    edges = {size: size + 2 * HALO for size in TILE_SIZES}
    return {size: config.flops(edge, edge, prompts) for size, edge in edges.items() if config.fits(edge, edge)}


def _cost(run: Run, tiles: Tiles, config: GeoPixelConfig, survey: xr.Dataset) -> PlanCost:
    prompts = len(run.request.prompts)
    return estimate_cost(
        tiles,
        prompts,
        survey,
        flops=tile_flops(config, prompts),
        rates=FLOPS_PER_SECOND,
        ground_sample_distance=_ground_sample_distance(run),
        mask_size=config.grounding.mask_size,
    )


def _spent(run: Run, folder: Folder, tiles: Tiles, states: Mapping[str, State], submissions: Sequence[Mapping[str, Any]]) -> Spent:
    """What the submissions of a run came to, by what is stored."""
    metres = _ground_sample_distance(run)
    codes = np.array([STATUS_CODES[states[tile.id]] for tile in tiles], np.uint8)
    seen = tiles[tiles.to_read & (codes != STATUS_CODES["failed"])]
    silent: tuple[State, ...] = ("outside", "nodata", "cloud", "failed")
    return Spent(
        sizes=dict(zip(*(values.tolist() for values in np.unique(seen.size, return_counts=True)), strict=True)),
        km2=square_km(seen, metres),
        not_seen_km2={state: square_km(tiles[codes == STATUS_CODES[state]], metres) for state in silent if (codes == STATUS_CODES[state]).any()},
        read_bytes=sum(submission["read_bytes"] for submission in submissions),
        model_hours=sum(submission["worker_seconds"]["predict"] for submission in submissions) / 3600,
        output_bytes=folder.size(),
    )


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


def scene_to_json(scene: Scene) -> dict[str, Any]:
    sources = [asdict(replace(source, footprint=None)) | {"footprint": source.footprint.wkt} for source in scene.sources]  # type: ignore[arg-type]
    return {"collection": scene.collection, "day": scene.day, "stretch": scene.stretch, "guess": scene.guess, "sources": sources}


def scene_from_json(values: Mapping[str, Any]) -> Scene:
    """Inverse of scene_to_json."""
    sources = []
    for source in values["sources"]:
        assets, quality = tuple(map(_asset_from_json, source["assets"])), source["quality"]
        if quality is not None:
            quality = Quality(_asset_from_json(quality["asset"]), tuple(quality["values"]), tuple(quality["bits"]))
        sources.append(Source(**source | {"assets": assets, "quality": quality, "footprint": shapely.from_wkt(source["footprint"])}))
    stretch = values["stretch"]
    return Scene(values["collection"], values["day"], tuple(sources), None if stretch is None else (stretch[0], stretch[1]), values["guess"])


def _asset_from_json(values: Mapping[str, Any]) -> Asset:
    return Asset(**{**values, "bands": tuple(values["bands"])})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
