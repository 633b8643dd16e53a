"""What a country asks of what is ours, beside the model: CPU time a tile, GPUs kept busy, memory of the driver, a plan of a million tiles.

    python tests/benchmarks/scale.py [--check] [--size full|small]

The model only waits: in the workers a stand-in takes the place of prediction.Predictor, sleeps for every tile and gives a stored mask, so that reading
pixels, carrying them from worker to worker, storing answers and counting tiles is all that takes time. It is Ray on this machine, with emulated
GPUs, and imagery in the usual form: tiles of 1024 pixels of JPEG-compressed, tiled GeoTIFFs of 8192.

Overhead: CPU seconds a tile of the driver, of Ray's own processes and of all workers, between two receipts in the middle of a run, less what
reading such tiles takes in processes that do nothing else, one on every core: cores that share a cache are slower together. GPUs: the share of the
workers' time that the model took, between the same receipts, with four GPUs at ten tiles a second each. So many there are only while they fit into the
cores: cores / CPU seconds a tile is the most that these give. Where that is too little for the forty, a second one asks for 80 % of it, and its share is
the one that counts. Medians of three runs.

Memory of the driver: the highest of its anonymous memory (Linux: RssAnon, sampled) while it looks at all tiles of a plan whose imagery is not there: every
tile fails at once, and is a stored receipt with a reason. A country: France (see plan.py) at 0.6 m in one run folder. Planned: plan_tiles and
store_run. Recorded: states read from storage, counted, coverage.parquet written, what it came to put into run.json. The stored predictions that
this lists, one file a tile, another process has laid down before, empty; that is not counted, for workers do it while they work. Resumed: map_area
again, which finds nothing left to do. CPU seconds of that process; its memory is the highest resident set of its life (VmHWM). Every part runs in
a fresh process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import shapely

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from geopixel import ledger
from geopixel.assignment import Assignment
from geopixel.pipeline import MapRequest, Plan, Run, Work, assign_tiles, see_tile, store_run
from geopixel.search import Findings
from geopixel.storage import Folder
from geopixel.types import HALO, UNDECIDED, Asset, Grid, Scene, Source, Tile, TileImage, TilePrediction, TileReceipt, Tiles
from tests.benchmarks.table import Figure, exit_code, markdown

ROOT = Path(__file__).parents[2]
GRID = Grid("EPSG:32633", 0.5)
TILE, FILE = 1024, 8192
"""Pixels along the edge of a tile, and of a file."""
CORNER = 1_000_000 // FILE, -10_800_000 // FILE
"""Column and row of the first file, in files."""
GPUS, RATE = 4, 10.0
"""Emulated, and tiles a second of each."""
WAIT = "GEOPIXEL_BENCHMARK_WAIT"
"""Environment of the workers: seconds that the model waits for a tile."""
RESOLUTION, KM2, BUSY, H200 = 0.6, 500_000, 0.95, 4.7
"""Metres a pixel and area of the country that hours are told for; the share of the time that the model works; tiles of 3 x 3 crops that model_gpu.py wants of
GeoPixel-7B in a second."""
AHEAD = 2_000_000_000
"""Bytes of Ray's object store, of which readers fill a part ahead of the model: little of a run, so that tiles in its middle are read and predicted alike."""
READ = 64
"""Tiles that every core reads where nothing else is done."""
ROUNDS = 3
USED = 0.8
"""Of what the cores can give, where that is less than what GPUS ask for."""
MB = 1e6


@dataclass(frozen=True, slots=True)
class Size:
    files: int
    """Of FILE pixels: 64 tiles each."""
    planned: tuple[int, int]
    """Tiles of the plans that the driver's memory is compared for."""
    resolution: float
    """Of the country."""


SIZES = {"full": Size(24, (1000, 100_000), 0.6), "small": Size(1, (50, 200), 20.0)}


class Waiting:
    """Has the face of prediction.Predictor. Its answer is a disc, as the mask decoder would give it."""

    batch_size, backend = 1, "waits"

    def __init__(self) -> None:
        self.seconds = float(os.environ[WAIT])
        y, x = np.mgrid[-1:1:256j, -1:1:256j]
        self.logits = np.clip(100 * (0.5 - np.hypot(x, y)), -127, 127).astype(np.int8)[None]

    @classmethod
    def load(cls, model: str, prompts: Sequence[str], describe: bool = False) -> Waiting:
        return cls()

    def predict(self, images: Sequence[TileImage]) -> list[TilePrediction]:
        time.sleep(self.seconds * len(images))
        return [TilePrediction(image.tile.id, "ok", self.logits, image.scene, np.ones(1, np.float32)) for image in images]


def wait_instead() -> None:
    """Ray calls this in every worker first: what it imports as the model is the stand-in."""
    module = ModuleType("geopixel.prediction")
    module.Predictor = Waiting  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


@contextmanager
def ray_here(gpus: int, wait: float = 0.0) -> Iterator[None]:
    import ray

    from geopixel.distributed.runner import RAY_SETTINGS

    os.environ.update(RAY_SETTINGS)
    environment = {"PYTHONPATH": str(ROOT), WAIT: str(wait), "OMP_NUM_THREADS": "1"}
    runtime: Any = {"worker_process_setup_hook": "tests.benchmarks.scale.wait_instead", "env_vars": environment}
    options: dict[str, Any] = {"object_store_memory": AHEAD, "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_gpus=gpus, runtime_env=runtime, **options)
    try:
        yield
    finally:
        ray.shutdown()


def write_files(folder: Path, count: int) -> list[Path]:
    """Files side by side with pixels that compress as imagery does: fields of one colour, edges, some noise."""
    import rasterio
    from rasterio.enums import Resampling

    random = np.random.default_rng(0)
    coarse = random.integers(40, 200, (3, FILE // 32, FILE // 32)).astype(np.uint8)
    pixels = coarse.repeat(32, axis=1).repeat(32, axis=2) + random.integers(0, 16, (3, FILE, FILE), np.uint8)
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "jpeg", "photometric": "ycbcr"}
    first = folder / "0.tif"
    with rasterio.open(first, "w", width=FILE, height=FILE, count=3, dtype="uint8", crs=GRID.crs, transform=place_of(0).affine, **layout) as file:
        file.write(pixels)
        file.build_overviews([8], Resampling.nearest)
    data = first.read_bytes()
    for index in range(1, count):
        path = folder / f"{index}.tif"
        path.write_bytes(data)
        with rasterio.open(path, "r+") as file:
            file.transform = place_of(index).affine
    return [folder / f"{index}.tif" for index in range(count)]


def place_of(index: int) -> Any:
    """The GeoBox of a file: they lie in a row."""
    return GRID.geobox((CORNER[0] + index) * FILE, CORNER[1] * FILE, FILE, FILE)


def run_over(files: Sequence[Path]) -> tuple[Run, Tiles]:
    """A run that has these files as its scenes, and all tiles on them, file by file."""
    sources = tuple(
        Source(path.stem, place_of(index).footprint("EPSG:4326").geom, (Asset(str(path), (1, 2, 3)),), GRID.crs, GRID.resolution)
        for index, path in enumerate(files)
    )
    each = FILE // TILE
    row, column = (axis.ravel() for axis in np.mgrid[:each, :each])
    columns = np.concatenate([(CORNER[0] + index) * each + column for index in range(len(files))])
    rows = np.tile(CORNER[1] * each + row, len(files))
    area = shapely.union_all([source.footprint for source in sources])
    run = Run(MapRequest(area, ("disc",), "none", "nano"), (Scene("scale", "2026-01-01", sources),), GRID, weights_sha256="none are read")
    return run, plan_of(columns, rows)


def plan_of(columns: np.ndarray, rows: np.ndarray) -> Tiles:
    count = len(columns)
    return Tiles(GRID, np.full(count, TILE, np.int16), columns.astype(np.int32), rows.astype(np.int32), np.full(count, UNDECIDED, np.uint8))


def begin(folder: Folder, run: Run, tiles: Tiles) -> tuple[Run, Tiles]:
    """The folder of a run as one submission leaves it to its workers."""
    from geopixel.model.config import read_model_config
    from geopixel.pipeline.planning import estimate_run

    common = {"type": "Feature", "stac_version": "1.0.0", "collection": "scale", "links": [], "properties": {"datetime": "2026-01-01T00:00:00Z"}}
    items = tuple(
        {
            **common,
            "id": source.item,
            "geometry": shapely.geometry.mapping(source.footprint),
            "bbox": list(source.footprint.bounds),
            "assets": {"visual": {"href": source.assets[0].href}},
        }
        for source in run.scenes[0].sources
    )
    return store_run(folder, Plan(run, tiles, estimate_run(run, tiles, read_model_config("nano"), None), Findings(run.scenes, items, {})))


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """Gives what tells the CPU seconds so far of this process and of all that it started: Ray's own and the workers. Those that ended count as they were
    last seen, less than a second before."""
    import psutil

    seen: dict[int, float] = {}
    me, done = psutil.Process(), threading.Event()

    def look() -> float:
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seen[process.pid] = times.user + times.system
        return sum(seen.values())

    def keep_looking() -> None:
        while not done.wait(1):
            look()

    watching = threading.Thread(target=keep_looking)
    watching.start()
    try:
        yield look
    finally:
        done.set()
        watching.join()


def flow(name: str, rate: float) -> dict[str, float]:
    """Tiles through Ray while GPUS models take 1 / rate seconds a tile each; figures of the middle of the run."""
    from geopixel.distributed import RayRunner

    work, began, before = Work(), 0.0, 0.0
    with TemporaryDirectory() as place, ray_here(GPUS, 1 / rate), watched() as cpu_seconds:
        run, tiles = run_over(write_files(Path(place), SIZES[name].files))
        folder = Folder(f"{place}/run")
        begin(folder, run, tiles)
        first, last = len(tiles) * 2 // 5, len(tiles) * 4 // 5
        for count, receipt in enumerate(RayRunner().look(run, folder, tiles), start=1):
            if receipt.state != "ok":
                raise AssertionError(f"{receipt.tile_id} is {receipt.state}: {receipt.reason}")
            if count == first:
                began, before = time.monotonic(), cpu_seconds()
            elif first < count <= last:
                work.add(receipt)
            if count == last:
                wall, spent = time.monotonic() - began, cpu_seconds() - before
        if set(ledger.read_states(folder, tiles).values()) != {"ok"} or count != len(tiles):
            raise AssertionError(f"{count} receipts for {len(tiles)} tiles")
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as readers:
            reading = sum(readers.map(reading_of, [run] * cores, [tiles[core::cores][:READ] for core in range(cores)])) / cores
    return {"cpu": spent / work.tiles, "reading": reading, "rate": work.tiles / wall, "busy": work.busy or 0.0}


def reading_of(run: Run, tiles: Tiles) -> float:
    """CPU seconds of reading a tile, after a first one for which all is opened."""
    assigned: Assignment = assign_tiles(run, tiles)
    see_tile(run, tiles[0], assigned)
    began = time.process_time()
    for tile in tiles[1:]:
        see_tile(run, tile, assigned)
    return (time.process_time() - began) / (len(tiles) - 1)


def driver(count: int) -> dict[str, float]:
    """Anonymous memory of a driver that looks at so many tiles, each of which fails at once."""
    from geopixel.distributed import RayRunner

    run, _ = run_over([Path("/nowhere/0.tif")])
    run = replace(run, scenes=(replace(run.scenes[0], sources=(replace(run.scenes[0].sources[0], footprint=shapely.box(-180, -90, 180, 90)),)),))
    at = np.arange(count)
    tiles, work, highest, done = plan_of(CORNER[0] * 8 + at % 400, CORNER[1] * 8 + at // 400), Work(), 0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.05):
            highest = max(highest, memory("RssAnon"))

    with TemporaryDirectory() as place, ray_here(0):
        begin(Folder(place), run, tiles)
        watching = threading.Thread(target=sample)
        watching.start()
        began = time.monotonic()
        receipts: Iterator[TileReceipt] = RayRunner().look(run, Folder(place), tiles)
        for receipt in receipts:
            work.add(receipt)
        done.set()
        watching.join()
        wall = time.monotonic() - began
    if work.tiles != count:
        raise AssertionError(f"{work.tiles} receipts for {count} tiles")
    return {"memory": float(highest), "seconds": wall}


def nano() -> dict[str, float]:
    """CPU seconds of one core for a tile of the bundled model."""
    from geopixel.demo import DEMO_SEEDS, render_scene
    from geopixel.prediction import Predictor

    predictor = Predictor.load("nano", ["building"])
    edge = TILE + 2 * HALO
    image = TileImage(Tile(GRID, TILE, 0, 0), render_scene(DEMO_SEEDS[0], edge).rgb, np.zeros((edge, edge), np.uint16))
    if predictor.predict([image])[0].state != "ok":
        raise AssertionError("nano finds no building in a rendered scene")
    began = time.process_time()
    for _ in range(3):
        predictor.predict([image])
    return {"cpu": (time.process_time() - began) / 3}


def hours_of(km2: float, tiles_per_second: float, devices: int) -> float:
    """Of a country in tiles of TILE pixels of RESOLUTION, where the model is BUSY of the time."""
    return km2 / ((TILE * RESOLUTION / 1000) ** 2 * tiles_per_second * 3600 * devices * BUSY)


def memory(name: str) -> int:
    """Bytes, of /proc/self/status."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def country(name: str) -> dict[str, float]:
    """One run folder of a country: planned, recorded, resumed."""
    from geopixel import mosaic
    from geopixel.model.config import read_model_config
    from geopixel.pipeline import PUBLISHED, RUN, SerialRunner, map_area
    from geopixel.pipeline.outputs import count_spent
    from tests.benchmarks import plan as planning

    took: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        began, clock = time.process_time(), time.monotonic()
        made = work()
        took[stage], took[f"{stage}, clock"] = time.process_time() - began, time.monotonic() - clock
        return made

    _, area = planning.outline()
    grid, config = Grid(planning.CRS, SIZES[name].resolution), read_model_config("nano")
    source = Source("all", shapely.box(-6, 41, 10, 52), (Asset("/nowhere/0.tif", (1, 2, 3)),))
    request, scenes = MapRequest(area, ("building",), "none", "nano"), (Scene("scale", "2026-01-01", (source,)),)

    def planned() -> tuple[Run, Tiles]:
        return begin(folder, Run(request, scenes, grid), planning.plan(area, grid))

    def recorded() -> None:
        states = ledger.read_states(folder, tiles)
        ledger.store_coverage(folder, states)
        spent, stored = count_spent(run, folder, states, []), folder.get_json(RUN)
        folder.put_json(RUN, stored | {"finished": {"tiles": ledger.recount(states), "features": {}, "km2": {}, "spent": asdict(spent)}})

    with TemporaryDirectory() as place:
        folder = Folder(place)
        run, tiles = timed("planned", planned)
        laid = subprocess.run([sys.executable, __file__, "--part", "predictions", "--folder", place], check=True, capture_output=True, text=True)
        timed("recorded", recorded)
        for path in (*PUBLISHED, f"{mosaic.MASKS}/zarr.json"):
            folder.put(path, b"")
        summary = timed("resumed", lambda: map_area(request, folder, config, SerialRunner(), lambda *_: None))
        if summary.worked or sum(summary.tiles.values()) != len(tiles):
            raise AssertionError(f"{summary.worked} tiles looked at again, {summary.tiles} of {len(tiles)}")
        remove = subprocess.Popen(["rm", "-rf", f"{place}/predictions"])  # sooner than in Python
        remove.wait()
    return took | {"tiles": len(tiles), "memory": memory("VmHWM"), "laid": float(laid.stdout)}


def lay_predictions(place: str) -> float:
    """An empty file for every planned tile, nine of ten ok, the others empty: what a listing sees. Returns seconds of the clock."""
    began = time.monotonic()
    folders = {}
    for state in ("ok", "empty"):
        Path(place, "predictions", state).mkdir(parents=True)
        folders[state] = os.open(Path(place, "predictions", state), os.O_RDONLY)
    for index, tile in enumerate(ledger.load_plan(Folder(place))):
        os.close(os.open(f"{tile.id}.arrow", os.O_CREAT | os.O_WRONLY, dir_fd=folders["ok" if index % 10 else "empty"]))
    return time.monotonic() - began


def apart(part: str, **options: object) -> Any:
    """What a part gives in a process of its own."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, "--part", part, *words], capture_output=True, text=True, env={**os.environ, "RAY_ADDRESS": ""})
    if done.returncode:
        raise RuntimeError(f"{part} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def usual_flow(name: str, rate: float) -> dict[str, float]:
    """Each figure of a flow, the median of ROUNDS."""
    flows = [apart("flow", size=name, rate=rate) for _ in range(ROUNDS)]
    return {figure: median(each[figure] for each in flows) for figure in flows[0]}


def measure(name: str) -> list[Figure]:
    """The figures. How they came about is printed part by part, for the whole takes long."""
    size, cores = SIZES[name], len(os.sched_getaffinity(0))
    full = usual_flow(name, RATE)
    limit = cores / full["cpu"]
    say(
        f"{cores} cores; a tile takes {1e3 * full['cpu']:.1f} ms of CPU, {1e3 * full['reading']:.1f} of them to read it: "
        f"the cores give {limit:.0f} tiles/s at most, {GPUS} GPUs ask for {GPUS * RATE:.0f}."
    )
    say(f"At {RATE:g} tiles/s each the GPUs were {full['busy']:.1%} busy, {full['rate']:.1f} tiles/s.")
    asked, busy = GPUS * RATE, full["busy"]
    if limit * USED < asked:
        asked = limit * USED
        less = usual_flow(name, asked / GPUS)
        busy = less["busy"]
        say(f"At {asked / GPUS:.2f} tiles/s each, {USED:.0%} of what the cores give, they were {busy:.1%} busy, {less['rate']:.1f} tiles/s.")
    few, many = (apart("driver", tiles=count) for count in size.planned)
    say(
        f"Driver: {few['memory'] / MB:.0f} MB for {size.planned[0]:,} tiles, {many['memory'] / MB:.0f} MB for {size.planned[1]:,} "
        f"({many['seconds']:.0f} s for tiles that fail at once)."
    )
    whole = apart("country", size=name)
    stages = ("planned", "recorded", "resumed")
    told = ", ".join(f"{stage} {whole[stage]:.1f} s ({whole[stage + ', clock']:.1f} by the clock)" for stage in stages)
    say(f"Country of {whole['tiles']:,} tiles in one folder: {told}; {whole['tiles']:,} files listed, laid down in {whole['laid']:.0f} s.")
    core = 1 / apart("nano")["cpu"]
    km2 = (TILE * RESOLUTION / 1000) ** 2
    say(
        f"nano, measured: {core:.2f} tiles/s a core, {km2 * core * 3600:.0f} km2/h at {RESOLUTION} m (a tile is {km2:.3f} km2); "
        f"{KM2:,} km2 on 100 cores, {BUSY:.0%} busy: {hours_of(KM2, core, 100):.0f} h."
    )
    say(
        f"GeoPixel-7B, its target and not measured: {H200} tiles/s an H200, {km2 * H200 * 3600:,.0f} km2/h; "
        f"{KM2:,} km2 on 8, {BUSY:.0%} busy: {hours_of(KM2, H200, 8):.1f} h."
    )
    return [
        Figure("overhead a tile, without reading it", 1e3 * (full["cpu"] - full["reading"]), 20, " ms", at_most=True),
        Figure(f"{GPUS} GPUs busy at {asked:.3g} tiles/s", 100 * busy, 95, " %"),
        Figure(f"driver, {size.planned[1]:,} tiles above {size.planned[0]:,}", (many["memory"] - few["memory"]) / MB, 50, " MB", at_most=True),
        Figure("a country planned, recorded, resumed", sum(whole[stage] for stage in stages), 60, " s", at_most=True),
        Figure("a country, peak memory", whole["memory"] / MB, 1000, " MB", at_most=True),
    ]


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a country asks of all but the model.")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="the full size takes half an hour on two cores")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its target, and name it")
    parser.add_argument("--part", choices=("flow", "driver", "country", "predictions", "nano"), help=argparse.SUPPRESS)
    for name, kind in {"rate": float, "tiles": int, "folder": str}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts: Mapping[str, Callable[[], Any]] = {
        "flow": lambda: flow(options.size, options.rate),
        "driver": lambda: driver(options.tiles),
        "country": lambda: country(options.size),
        "nano": nano,
        "predictions": lambda: lay_predictions(options.folder),
    }
    if options.part:
        print(json.dumps(parts[options.part]()))
        return 0
    say(f"{date.today()}, model that only waits\n")
    figures = measure(options.size)
    say("")
    print(markdown(["figure", "measured", "target", "met"], [[figure.name, figure.measured, figure.wanted, figure.verdict] for figure in figures]))
    return exit_code(figures) if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
