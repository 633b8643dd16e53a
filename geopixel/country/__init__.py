"""A country as cells: each is a run of its own, all stream through one runner, and their maps become one. Knows what a country's folder holds:
country.json, cells.parquet, cells/CELL/RUN (run folders), features/CELL.parquet (the map), changes/PASS/CELL.parquet, collection.json."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import shapely
from pyproj import Geod

from geopixel import events, lease, ledger, publish
from geopixel.country.assembly import assemble_cell
from geopixel.country.audit import verify_country
from geopixel.country.cells import CELL_BLOCKS, Cell, cell_request, count_tiles, country_grid, cover, default_crs
from geopixel.country.record import (
    CELL_STATES,
    COUNTRY,
    DONE,
    CellState,
    Passes,
    Record,
    load_record,
    note_pass,
    open_country,
    settings_digest,
    store_cells,
)
from geopixel.country.work import Country, begin_cell, finish_cell
from geopixel.errors import NoScenesError
from geopixel.model.config import GeoPixelConfig
from geopixel.pipeline import USUAL, Limits, MapRequest, Progress, Runner, Work, hash_weights, search_scenes, tile_flops
from geopixel.storage import Folder
from geopixel.tiling import choose_grid, ground_sample_distance, plan_tiles, project_area, smallest_object
from geopixel.types import STATES, Grid, State, TileReceipt, Tiles

__all__ = [
    "CELL_BLOCKS",
    "COUNTRY",
    "Cell",
    "CountryPlan",
    "CountrySummary",
    "Record",
    "country_grid",
    "cover",
    "map_country",
    "model_of",
    "plan_country",
    "settle_grid",
    "store_country_plan",
    "verify_country",
]


@dataclass(frozen=True, slots=True)
class CountryPlan:
    """What an outline alone says: cells and tiles, as if there were imagery everywhere and it were plain."""

    grid: Grid
    cells: list[Cell]
    tiles: Tiles
    per_cell: list[Record]
    km2: float
    """Of the area, on the WGS 84 ellipsoid."""
    flops: float
    """Of the model, for all of them."""


@dataclass(frozen=True, slots=True)
class CountrySummary:
    """What the cells came to, all submissions together, and this one."""

    cells: dict[CellState, int]
    tiles: dict[State, int]
    features: dict[str, int]
    """By prompt, objects that cross cells counted once."""
    km2: float
    model_hours: float
    read_bytes: int
    failed: list[Record]
    """Cells of which no map could be made, or with holes."""
    worked: int
    """Cells that this submission worked on."""
    looked: int
    """Tiles that it looked at."""
    busy: float | None
    """Share 0..1 of their time that the workers with the model spent in it; None where it was not measured."""
    seconds: float
    changes: bool
    """This pass wrote a change table."""


def model_of(folder: Folder) -> str | None:
    """The model of the country that a folder holds; None where it holds none."""
    with folder.reached():
        return folder.get_json(COUNTRY)["request"]["model"] if folder.exists(COUNTRY) else None


def settle_grid(request: MapRequest, blocks: int, folder: Folder, limits: Limits = USUAL) -> MapRequest:
    """The request with the CRS and the resolution that all cells share: what it names, else those of the country that the folder holds, else a CRS by
    the outline and the pixels of the imagery in the first cell that has any. Raises NoScenesError where none has, and as search_scenes."""
    with folder.reached():
        stored = folder.get_json(COUNTRY)["request"] if folder.exists(COUNTRY) else {"crs": None, "resolution": None}
    crs = request.crs or stored["crs"] or default_crs(request.area)
    request = replace(request, crs=crs, resolution=request.resolution or stored["resolution"])
    if request.resolution is not None:
        return request
    rough = country_grid(request.area, crs, None)
    for cell in cover(request.area, rough, blocks):
        try:
            findings = search_scenes(cell_request(request, cell), limits)
        except NoScenesError:
            continue
        return replace(request, crs=crs, resolution=choose_grid(findings.scenes, crs, None).resolution)
    raise NoScenesError(f"no scenes in any cell of the country: catalog {request.catalog}, collection {request.collection or 'any'}")


def plan_country(request: MapRequest, config: GeoPixelConfig, blocks: int) -> CountryPlan:
    """Cells and tiles of an area from its outline alone: no catalog is asked. request: crs and resolution may be None, see country_grid."""
    grid = country_grid(request.area, request.crs, request.resolution)
    cells = cover(request.area, grid, blocks)
    metres = ground_sample_distance(grid, request.area)
    flops = tile_flops(config, len(request.prompts))
    tiles = plan_tiles(
        request.area,
        grid,
        None,
        smallest_object=smallest_object(request.prompts),
        ground_sample_distance=metres,
        costs=flops,
        mask_size=config.grounding.mask_size,
    )
    read = tiles[tiles.to_read]
    counts = [Record(cell.id, planned=planned, to_read=to_read) for cell, (planned, to_read) in zip(cells, count_tiles(tiles, cells).tolist(), strict=True)]
    sizes = Counter(read.size.tolist())
    km2 = abs(Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(request.area))[0]) / 1e6
    return CountryPlan(grid, cells, tiles, counts, km2, sum(count * flops[size] for size, count in sizes.items()))


def store_country_plan(folder: Folder, plan: CountryPlan) -> bool:
    """Writes cells.parquet and plan.parquet, unless the folder holds a country that was begun. Says whether it wrote."""
    with folder.reached():
        if folder.exists(COUNTRY):
            return False
        store_cells(folder, plan.cells, plan.per_cell)
        ledger.store_plan(folder, plan.tiles)
    return True


def map_country(
    request: MapRequest,
    folder: Folder,
    config: GeoPixelConfig,
    runner: Runner,
    progress: Progress,
    *,
    blocks: int = CELL_BLOCKS,
    again: bool = False,
    retry_failed: bool = False,
    limits: Limits = USUAL,
) -> CountrySummary:
    """Maps every cell of the request's area that is not mapped yet, and makes one map of all. request: with crs and resolution, see settle_grid.

    again: a further pass: every cell is searched anew, those where the catalog has items that it did not have are mapped anew, and what changed is
    written to changes/. A pass that was cut short goes on first. retry_failed: also look again at tiles that failed.
    Raises RunConflictError where the folder holds another country, or another driver works on it.
    """
    began = time.monotonic()
    cells = cover(request.area, country_grid(request.area, request.crs, request.resolution), blocks)
    with lease.hold(folder) as held:
        passes = open_country(folder, request, blocks)
        if again and passes.ended:
            passes = note_pass(folder, Passes(passes.number + 1))
        country = Country(folder, request, config, hash_weights(request.model), limits, passes.number, runner.max_attempts, retry_failed)
        records = {cell.id: load_record(folder, cell.id) for cell in cells}
        todo = [cell for cell in cells if _is_due(records[cell.id], country)]
        looked, planned = Work(), {}

        def receive(cell: Cell, count: int, receipt: TileReceipt) -> None:
            held.check()
            looked.add(receipt)
            planned[cell.id] = count
            progress("tiles", looked.tiles, sum(planned.values()))
            if receipt.state == "failed":
                events.tell_failure(str(records[cell.id].run), receipt)

        progress("cells", 0, len(todo))
        finished = runner.stream(request, todo, partial(begin_cell, country=country), partial(finish_cell, country=country), receive) if todo else ()
        for count, record in enumerate(finished, start=1):
            held.check()
            records[record.cell] = record
            progress("cells", count, len(todo))
        features = _assemble(cells, country, records, runner, progress)
        table = store_cells(folder, cells, [records[cell.id] for cell in cells])
        changed = bool(folder.list(f"changes/{passes.number}"))
        summary = _summarise(list(records.values()), features, len(todo), looked, time.monotonic() - began, changed)
        told = {name: value for name, value in asdict(summary).items() if name not in ("failed", "changes")}
        note_pass(folder, replace(passes, ended=True), told)
        title, area = f"{', '.join(request.prompts)}: {country.name}", project_area(request.area, cells[0].grid.crs)
        publish.store_overview(folder, title, table, area, _facts(request, summary, passes))
    return summary


def _is_due(record: Record, country: Country) -> bool:
    if record.state not in DONE or record.looked < country.number:
        return True
    if record.state == "holes" and country.retry_failed:
        return True
    return record.state != "nodata" and record.settings != settings_digest(country.request)


def _assemble(cells: Sequence[Cell], country: Country, records: Mapping[str, Record], runner: Runner, progress: Progress) -> dict[str, int]:
    """The parts of the country's map and its collection. Returns features by prompt."""
    shown = [cell for cell in cells if records[cell.id].shown]
    total: Counter[str] = Counter(dict.fromkeys(country.request.prompts, 0))
    progress("joining", 0, len(shown))
    for count, part in enumerate(runner.each(partial(assemble_cell, country=country, records=records), shown), start=1):
        total.update(part)
        progress("joining", count, len(shown))
    if shown:
        members = [f"cells/{cell.id}/{records[cell.id].shown}" for cell in shown]
        tables = {"features/*.parquet": "Outlines of what was found, a file for every cell", "cells.parquet": "What became of every cell"}
        publish.store_collection(country.folder, country.name, ", ".join(country.request.prompts), members, tables)
    return dict(total)


def _facts(request: MapRequest, summary: CountrySummary, passes: Passes) -> list[tuple[str, str]]:
    """What the country's page says above its drawing."""
    found = ", ".join(f"{count:,} {prompt}" for prompt, count in summary.features.items())
    tiles = ", ".join(f"{count:,} {state}" for state, count in summary.tiles.items() if count)
    grid = f"{request.crs}, {request.resolution:g} units a pixel"
    ground = f"{summary.km2:,.4g} km2, pass {passes.number} over the country"
    return [("found", found), ("tiles", tiles), ("looked at", ground), ("model", request.model), ("grid", grid)]


def _summarise(records: Sequence[Record], features: dict[str, int], worked: int, looked: Work, seconds: float, changes: bool) -> CountrySummary:
    cells = Counter(record.state for record in records)
    return CountrySummary(
        cells={state: cells[state] for state in CELL_STATES if cells[state]},
        tiles={state: sum(record.tiles.get(state, 0) for record in records) for state in STATES},
        features=features,
        km2=sum(record.km2 for record in records),
        model_hours=sum(record.model_hours for record in records),
        read_bytes=sum(record.read_bytes for record in records),
        failed=[record for record in records if record.state in ("failed", "holes", "planned", "begun")],
        worked=worked,
        looked=looked.tiles,
        busy=looked.busy,
        seconds=seconds,
        changes=changes,
    )
