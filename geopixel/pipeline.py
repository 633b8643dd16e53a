"""The whole way in order, without Ray: an area and a few words in, a run folder out. This is the specification; distributed.py runs the same
steps elsewhere. Knows the order of the steps and what a run folder holds; how tiles and blocks are spread over machines is a Runner's."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from pyproj import CRS
from shapely import Geometry

from geopixel import features, ledger, mosaic, polygonize, provenance, publish
from geopixel.errors import ReadError, RunConflictError
from geopixel.features import Outline
from geopixel.imagery import read_tile
from geopixel.model.config import GeoPixelConfig, find_model
from geopixel.search import find_scenes
from geopixel.storage import Folder
from geopixel.survey import survey_scenes
from geopixel.tiling import PlanCost, choose_grid, estimate_cost, ground_sample_distance, plan_tiles, project_area, smallest_object, survey_cells
from geopixel.types import HALO, TILE_SIZES, Asset, Block, Grid, Scene, Source, State, Tile, TileImage, TilePrediction, TileReceipt, Tiles

if TYPE_CHECKING:
    from geopixel.prediction import Predictor  # loads torch: imported where a model is loaded, never by those who only read

RUN = "run.json"
FLOPS_PER_SECOND = {"cpu": 2e10, "cuda": 4e14}
"""Assumed of one device for the estimate of a plan: a CPU core at about half of its float32 peak, an H200 at half of its measured 790 TFLOP/s."""

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
    assets: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    stretch: tuple[float, float] | None = None
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
    def area(self) -> Geometry:
        """In the CRS of the grid."""
        return project_area(self.request.area, self.grid.crs)


@dataclass(frozen=True, slots=True)
class Plan:
    run: Run
    tiles: Tiles
    cost: PlanCost


@dataclass(frozen=True, slots=True)
class Seen:
    """A tile that was read."""

    picture: TileImage | TilePrediction
    """Or why there is none."""
    read_seconds: float


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


class Runner(Protocol):
    """Spreads tiles and blocks over whatever there is."""

    dask_scheduler: Any
    """For the survey; None: threads."""
    device: str
    """What the model runs on: cuda or cpu."""

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

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        from geopixel.prediction import Predictor

        predictor = Predictor.load(run.request.model, run.request.prompts)
        yield from predict_tiles(folder, predictor, (see_tile(run, tile) for tile in tiles))

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        for block, tiles in blocks.items():
            yield write_block(run, folder, block, tiles, states)


def map_area(request: MapRequest, folder: Folder, config: GeoPixelConfig, runner: Runner, progress: Progress) -> Summary:
    """The whole way. config: sizes of the request's model. Resumes what the folder holds; raises RunConflictError where that is another run."""
    clock = {"plan": time.monotonic()}
    plan = open_run(request, folder, config, runner, progress)
    run, tiles = plan.run, plan.tiles

    clock["look"] = time.monotonic()
    todo = ledger.pending(tiles, ledger.read_states(folder, tiles))
    progress("tiles", 0, len(todo))
    receipts = []
    for receipt in runner.look(run, folder, todo) if todo else ():
        receipts.append(receipt)
        progress("tiles", len(receipts), len(todo))

    clock["mosaic"] = time.monotonic()
    states = ledger.read_states(folder, tiles)
    blocks = mosaic.blocks_of(tiles)
    mosaic.create_mosaic(folder, blocks, request.prompts)
    progress("blocks", 0, len(blocks))
    for done, _ in enumerate(runner.write(run, folder, blocks, states), start=1):
        progress("blocks", done, len(blocks))

    clock["publish"] = time.monotonic()
    progress("publish", 0, 1)
    found = trace_features(run, folder, blocks)
    folder.put(features.FEATURES, features.encode(found))
    counts, features_found = ledger.recount(tiles, states), {prompt: pc.sum(pc.equal(found["prompt"], prompt)).as_py() or 0 for prompt in request.prompts}
    ledger.store_coverage(folder, tiles)
    name = folder.url.rstrip("/").rsplit("/", 1)[-1]
    publish.store_item(folder, name=name, area=request.area, grid=run.grid, scenes=run.scenes, features=features_found, tiles=counts)
    failed = [tile for tile in tiles if states[tile.id] == "failed"]
    publish.draw_quicklook(folder, scenes=run.scenes, grid=run.grid, area=run.area, features=_outlines(found), prompts=request.prompts, failed=failed)
    clock["end"] = time.monotonic()
    progress("publish", 1, 1)

    stages = list(clock)
    summary = Summary(
        tiles=counts,
        features=features_found,
        km2={prompt: (pc.sum(found["area_m2"].filter(pc.equal(found["prompt"], prompt))).as_py() or 0.0) / 1e6 for prompt in request.prompts},
        seconds={name: round(clock[after] - clock[name], 3) for name, after in zip(stages, stages[1:], strict=False)},
        worked=len(receipts),
    )
    spent = {"read": sum(r.read_seconds for r in receipts), "predict": sum(r.predict_seconds for r in receipts)}
    started = folder.get_json(RUN)
    submission = {
        "tiles_looked_at": len(receipts),
        "seconds": summary.seconds,
        "worker_seconds": {name: round(seconds, 3) for name, seconds in spent.items()},
        "computed_with": sorted({receipt.backend for receipt in receipts if receipt.backend}),
    }
    finished = {"tiles": summary.tiles, "features": summary.features, "km2": summary.km2}
    folder.put_json(RUN, started | {"finished": finished, "submissions": [*started["submissions"], submission]})
    return summary


def open_run(request: MapRequest, folder: Folder, config: GeoPixelConfig, runner: Runner, progress: Progress) -> Plan:
    """The plan that the folder holds, or a new one, stored. run.json is written last: a folder without it holds no run yet."""
    with folder.reached():
        holds_run = folder.exists(RUN)
        strangers = [] if holds_run else [path for path in folder.list() if path != ledger.PLAN]
    if holds_run:
        run, tiles = load_run(folder), ledger.load_plan(folder)
        was, now = run.request.to_json(), request.to_json()
        for name in now:
            if was[name] != now[name]:
                raise RunConflictError(f"{folder.url} holds another run: its {name} is {_short(was[name])}, not {_short(now[name])}; choose another --out")
        return Plan(run, tiles, _cost(run, tiles, config, runner.device))
    if strangers:
        raise RunConflictError(f"{folder.url} is not empty and holds no run: found {strangers[0]}; choose another --out")
    plan = make_plan(request, config, runner, progress)
    plan = replace(plan, run=replace(plan.run, weights_sha256=_weights_sha256(request.model)))
    with folder.reached():
        ledger.store_plan(folder, plan.tiles)
        folder.put_json(RUN, _run_json(plan))
    return plan


def _weights_sha256(model: str) -> str:
    from geopixel.model.checkpoint import weights_sha256  # loads torch

    return weights_sha256(find_model(model))


def load_run(folder: Folder) -> Run:
    """The run that a folder holds. Raises FileNotFoundError where it holds none."""
    stored = folder.get_json(RUN)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored["request"].items()}
    request = MapRequest(**values | {"area": shapely.from_wkt(values["area"])})
    return Run(request, tuple(map(scene_from_json, stored["scenes"])), Grid(**stored["grid"]), stored["weights_sha256"])


def make_plan(request: MapRequest, config: GeoPixelConfig, runner: Runner, progress: Progress) -> Plan:
    """Searches, surveys and plans; writes nothing."""
    progress("search", 0, 1)
    scenes = find_scenes(
        request.catalog,
        request.area,
        collection=request.collection,
        datetime=request.datetime,
        max_cloud=request.max_cloud,
        assets=request.assets,
        bands=request.bands,
        stretch=request.stretch,
    )
    progress("search", 1, 1)
    grid = choose_grid(scenes, request.crs, request.resolution)
    if request.orthogonalize and not CRS(grid.crs).is_projected:
        raise ValueError(f"right angles need a map in metres, and the imagery is in {grid.crs}: choose another CRS, such as EPSG:3857")
    run = Run(request, tuple(scenes), grid)
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
    return Plan(run, tiles, _cost(run, tiles, config, runner.device))


def see_tile(run: Run, tile: Tile) -> Seen:
    """Reads a tile."""
    began = time.monotonic()
    try:
        picture: TileImage | TilePrediction = read_tile(tile, run.scenes)
    except ReadError as error:
        picture = TilePrediction(tile.id, "failed", reason=str(error))
    return Seen(picture, time.monotonic() - began)


def predict_tiles(folder: Folder, predictor: Predictor, seen: Iterable[Seen]) -> Iterator[TileReceipt]:
    """Predicts and stores tiles, as many together as the model takes. A tile that was begun before without a result is tried alone, so that
    one that ends its workers costs no other its place; begun too often it is set aside."""
    seen = iter(seen)
    while batch := list(islice(seen, predictor.batch_size)):
        pictures: list[tuple[TileImage, float]] = []
        fresh: list[tuple[TileImage, float]] = []
        for one in batch:
            if isinstance(one.picture, TilePrediction):
                yield _keep(folder, one.picture, one.read_seconds)
            else:
                pictures.append((one.picture, one.read_seconds))
        for picture, seconds in pictures:
            if not ledger.attempts(folder, picture.tile.id):
                fresh.append((picture, seconds))
            elif (attempt := ledger.begin_attempt(folder, picture.tile.id)) > ledger.MAX_ATTEMPTS:
                yield _keep(folder, TilePrediction(picture.tile.id, "failed", reason=f"its worker ended {attempt - 1} times"), seconds)
            else:
                yield from _predict(folder, predictor, [(picture, seconds)])
        for picture, _ in fresh:
            ledger.begin_attempt(folder, picture.tile.id)
        if fresh:
            yield from _predict(folder, predictor, fresh)


def _predict(folder: Folder, predictor: Predictor, pictures: Sequence[tuple[TileImage, float]]) -> Iterator[TileReceipt]:
    """Predicts and stores tiles whose attempt has begun. One that does not fit the context or the memory is a hole, not the end of the run."""
    began = time.monotonic()
    try:
        predictions = predictor.predict([picture for picture, _ in pictures])
    except (ValueError, RuntimeError) as error:
        if len(pictures) > 1:
            for one in pictures:
                yield from _predict(folder, predictor, [one])
            return
        predictions = [TilePrediction(pictures[0][0].tile.id, "failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")]
    each = (time.monotonic() - began) / len(pictures)
    for prediction, (_, seconds) in zip(predictions, pictures, strict=True):
        yield _keep(folder, prediction, seconds, each, predictor.backend)


def _keep(folder: Folder, prediction: TilePrediction, read_seconds: float, predict_seconds: float = 0.0, backend: str = "") -> TileReceipt:
    """Stored before it counts."""
    ledger.store_prediction(folder, prediction)
    ledger.end_attempts(folder, prediction.tile_id)
    return TileReceipt(prediction.tile_id, prediction.state, prediction.reason, read_seconds, predict_seconds, backend)


def write_block(run: Run, folder: Folder, block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> str:
    """Blends, writes and traces one block, unless that was done from tiles in the same states. Returns its id."""
    made_from = hashlib.sha256(json.dumps([(tile.id, states[tile.id]) for tile in tiles]).encode()).hexdigest()
    if features.parts_states(folder, block) != made_from:
        predictions = {tile.id: ledger.load_prediction(folder, tile.id, states[tile.id]) for tile in tiles if tile.decided is None}
        prompts = len(run.request.prompts)
        blended = mosaic.mosaic_block(
            block, tiles, lambda tile: predictions[tile.id], prompts=prompts, threshold=run.request.threshold, area=run.area
        )
        mosaic.write_block(folder, block, blended)
        told = provenance.trace_provenance(block, tiles, predictions, prompts=prompts, area=run.area)
        parts = polygonize.trace_block(
            blended.mask, blended.confidence, left=block.left, top=block.top, scene=told.scene, scores=told.scores, edge=told.edge
        )
        features.store_parts(folder, block, parts, made_from)
    return block.id


def trace_features(run: Run, folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """The features of the run, as features.SCHEMA has them, from what the blocks hold."""
    origin = features.Origin(run.grid, run.scenes, _ground_sample_distance(run), run.request.model, run.weights_sha256, run.id)
    return features.build_features(polygonize.stitch(features.load_parts(folder, blocks)), run.request.outlines, origin)


def _outlines(found: pa.Table) -> gpd.GeoDataFrame:
    """What a picture needs of the features: prompt and geometry, in OGC:CRS84."""
    polygons = shapely.from_wkb(found["geometry"].to_numpy(zero_copy_only=False))
    return gpd.GeoDataFrame({"prompt": found["prompt"].to_numpy(zero_copy_only=False)}, geometry=polygons, crs="OGC:CRS84")


def _ground_sample_distance(run: Run) -> float:
    """Metres a pixel at the scenes, not at the area: areas that overlap and have the same scenes get the same tiles."""
    footprints = [source.footprint for scene in run.scenes for source in scene.sources]
    return ground_sample_distance(run.grid, shapely.GeometryCollection(footprints))


def tile_flops(config: GeoPixelConfig, prompts: int) -> dict[int, float]:
    """Floating-point operations for a tile, by size; sizes that do not fit the model's context are left out."""
    edges = {size: size + 2 * HALO for size in TILE_SIZES}
    return {size: config.flops(edge, edge, prompts) for size, edge in edges.items() if config.fits(edge, edge)}


def _cost(run: Run, tiles: Tiles, config: GeoPixelConfig, device: str) -> PlanCost:
    prompts = len(run.request.prompts)
    flops = tile_flops(config, prompts)
    sizes, counts = np.unique(tiles.size[tiles.to_read], return_counts=True)
    mean = float(np.average([flops[size] for size in sizes.tolist()], weights=counts)) if len(sizes) else 0.0
    return estimate_cost(
        tiles,
        prompts,
        seconds_per_tile=mean / FLOPS_PER_SECOND[device],
        ground_sample_distance=_ground_sample_distance(run),
        mask_size=config.grounding.mask_size,
    )


def _run_json(plan: Plan) -> dict[str, Any]:
    return {
        "id": plan.run.id,
        "request": plan.run.request.to_json(),
        "weights_sha256": plan.run.weights_sha256,
        "grid": asdict(plan.run.grid),
        "scenes": [scene_to_json(scene) for scene in plan.run.scenes],
        "plan": asdict(plan.cost),
        "versions": {name: version(name) for name in ("geopixel-ray", "ray", "torch", "transformers", "rasterio", "zarr")},
        "submissions": [],
    }


def scene_to_json(scene: Scene) -> dict[str, Any]:
    sources = [asdict(replace(source, footprint=None)) | {"footprint": source.footprint.wkt} for source in scene.sources]  # type: ignore[arg-type]
    return {"collection": scene.collection, "day": scene.day, "stretch": scene.stretch, "sources": sources}


def scene_from_json(values: Mapping[str, Any]) -> Scene:
    """Inverse of scene_to_json."""
    sources = []
    for source in values["sources"]:
        assets = tuple(Asset(asset["href"], tuple(asset["bands"]), asset["nodata"]) for asset in source["assets"])
        sources.append(Source(**source | {"assets": assets, "footprint": shapely.from_wkt(source["footprint"])}))
    stretch = values["stretch"]
    return Scene(values["collection"], values["day"], tuple(sources), None if stretch is None else (stretch[0], stretch[1]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
