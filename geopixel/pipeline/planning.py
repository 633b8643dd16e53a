"""From a request to a plan: search, survey, tiles and what they will cost. Writes nothing but the plan of a dry run."""

from __future__ import annotations

import logging
import math

import shapely
import xarray as xr
from pyproj import CRS

from geopixel import ledger
from geopixel.cost import PlanCost, estimate_cost
from geopixel.model.config import GeoPixelConfig
from geopixel.pipeline.request import USUAL, Limits, MapRequest, Plan, Progress, Run, metres_per_pixel
from geopixel.pipeline.runners import Runner
from geopixel.pipeline.stored import holds_run
from geopixel.search import Findings, search_catalog
from geopixel.storage import Folder
from geopixel.survey import survey_scenes
from geopixel.tiling import choose_grid, plan_tiles, smallest_object, survey_cells
from geopixel.types import HALO, TILE_SIZES, Tiles

FLOPS_PER_SECOND = {"cpu": 2e10, "cuda": 4e14}
"""Assumed of one device for the estimate of a plan: a CPU core at about half of its float32 peak, an H200 at half of its measured 790 TFLOP/s."""

FAR_CELLS, FAR_TIMES = 5_000_000, 50
"""Beyond so many cells around an area, and so many times as many as it has itself, it is not surveyed: that would take minutes, for what is between."""


def search_scenes(request: MapRequest, limits: Limits = USUAL) -> Findings:
    """What the catalog has for a request. Raises as search_catalog."""
    return search_catalog(
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


def make_plan(
    request: MapRequest, config: GeoPixelConfig, runner: Runner, progress: Progress, limits: Limits = USUAL, findings: Findings | None = None
) -> Plan:
    """Searches, surveys and plans; writes nothing. findings: of a search for this very request; None: it is made here. Raises ValueError for an area,
    a search or a plan beyond the limits."""
    if (vertices := shapely.get_num_coordinates(request.area)) > limits.max_vertices:
        raise ValueError(f"the area has {vertices:,} vertices, more than {limits.max_vertices:,}: simplify it, or raise --max-vertices")
    progress("search", 0, 1)
    findings = findings or search_scenes(request, limits)
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
    cells = survey_cells(request.area, grid, request.window)
    surveyed = (cells[2] - cells[0]) * (cells[3] - cells[1])
    if surveyed > FAR_CELLS and surveyed > FAR_TIMES * smallest:
        raise ValueError(
            f"the area's parts lie so far apart in {grid.crs} that {surveyed:,.0f} tiles of {TILE_SIZES[0]} pixels would be looked at for "
            f"{math.ceil(smallest):,}: map them one by one, or choose a --crs in which they lie together (at the antimeridian a UTM zone)"
        )
    progress("survey", 0, 1)
    survey = survey_scenes(scenes, grid, cells, scheduler=runner.dask_scheduler)
    tiles = plan_tiles(
        request.area,
        grid,
        survey,
        smallest_object=smallest_object(request.prompts),
        ground_sample_distance=metres_per_pixel(run),
        costs=tile_flops(config, len(request.prompts)),
        mask_size=config.grounding.mask_size,
        max_cloud=None if request.max_cloud is None else request.max_cloud / 100,
        window=request.window,
    )
    progress("survey", 1, 1)
    return Plan(run, tiles, estimate_run(run, tiles, config, survey), findings)


def store_dry_plan(folder: Folder, plan: Plan) -> bool:
    """Writes the plan's tiles to plan.parquet, as a run there would, unless the folder holds a run: its own plan stays. Says whether it wrote. Raises
    RunConflictError where the folder holds something else, as a run would."""
    if holds_run(folder):
        return False
    with folder.reached():
        ledger.store_plan(folder, plan.tiles)
    return True


def tile_flops(config: GeoPixelConfig, prompts: int) -> dict[int, float]:
    """Floating-point operations for a tile, by size; sizes that do not fit the model's context are left out."""
    edges = {size: size + 2 * HALO for size in TILE_SIZES}
    return {size: config.flops(edge, edge, prompts) for size, edge in edges.items() if config.fits(edge, edge)}


def estimate_run(run: Run, tiles: Tiles, config: GeoPixelConfig, survey: xr.Dataset) -> PlanCost:
    prompts = len(run.request.prompts)
    return estimate_cost(
        tiles,
        prompts,
        survey,
        flops=tile_flops(config, prompts),
        rates=FLOPS_PER_SECOND,
        ground_sample_distance=metres_per_pixel(run),
        mask_size=config.grounding.mask_size,
    )
