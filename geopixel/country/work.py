"""What happens to one cell of a country: it is searched and planned, and once its tiles were looked at it is finished. Its run is a run like any
other, in a folder named after it, so that a cell that finds the same scenes again finds its map. Runs anywhere; knows nothing of other cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import pyarrow.parquet as pq

from geopixel import features, lease, ledger, polygonize, publish
from geopixel.country.cells import Cell, cell_request
from geopixel.country.record import Record, load_record, run_folder, settings_digest, store_record
from geopixel.errors import GeoPixelError, NoScenesError, RunConflictError
from geopixel.model.config import GeoPixelConfig
from geopixel.mosaic import blocks_of
from geopixel.pipeline import RUN, Limits, MapRequest, Run, SerialRunner, Work, find_run, make_plan, map_area, search_scenes, store_run
from geopixel.storage import Folder
from geopixel.types import Scene, Tile, TileReceipt, Tiles

RIM = "rim.parquet"
"""In a cell's run folder: what its objects that touch its edge are made of, for joining them with those of the cells around."""


@dataclass(frozen=True, slots=True)
class Country:
    """All that any worker needs, besides the cell."""

    folder: Folder
    request: MapRequest
    """Of the whole country, with CRS and resolution."""
    config: GeoPixelConfig
    """Sizes of the request's model."""
    weights_sha256: str
    limits: Limits
    number: int
    """Of the pass over the country."""
    max_attempts: int
    """See pipeline.Runner."""
    retry_failed: bool = False

    @property
    def name(self) -> str:
        return self.folder.url.rstrip("/").rsplit("/", 1)[-1]


def begin_cell(cell: Cell, country: Country) -> tuple[Folder, Tiles | None]:
    """Searches and plans a cell, unless this pass did so before. Returns the folder of its run and the tiles to look at, None where there are none.
    What keeps a cell from being planned becomes its record."""
    record, request = load_record(country.folder, cell.id), cell_request(country.request, cell)
    try:
        if record.run is None or record.looked < country.number:
            record = _search(cell, country, record, request)
        if record.run is None:
            store_record(country.folder, record)
            return country.folder, None
        folder = run_folder(country.folder, cell.id, record.run)
        _, tiles = _stored(folder, request)
        todo = ledger.pending(ledger.read_states(folder, tiles), retry_failed=country.retry_failed)
        ledger.forgive_attempts(folder, country.max_attempts)
        store_record(country.folder, replace(record, state="begun", reason=""))
    except Exception as error:  # one cell must not end the country
        store_record(country.folder, _failed(record, error))
        return country.folder, None
    return folder, todo or None


def finish_cell(cell: Cell, work: Work, country: Country) -> Record:
    """Makes the map of a cell whose tiles were looked at. work: what that took. Returns what became of the cell, as it is stored."""
    record = load_record(country.folder, cell.id)
    if record.run is None or record.state == "failed":
        return record
    folder, request = run_folder(country.folder, cell.id, record.run), cell_request(country.request, cell)
    try:
        summary = map_area(request, folder, country.config, _Finisher(), _nobody, limits=country.limits, work=work)
        if summary.published:
            _store_rim(folder, cell)
            publish.join_collection(folder, country.name)
    except Exception as error:
        return store_record(country.folder, _failed(record, error))
    return store_record(
        country.folder,
        replace(
            record,
            state="holes" if summary.tiles["failed"] else "mapped",
            reason="",
            shown=record.run if summary.published else record.shown,
            settings=settings_digest(country.request),
            tiles=summary.tiles,
            features=summary.features,
            km2=summary.spent.km2,
            model_hours=summary.spent.model_hours,
            read_bytes=summary.spent.read_bytes,
        ),
    )


def _search(cell: Cell, country: Country, record: Record, request: MapRequest) -> Record:
    """The record with the run that the cell's scenes make: a new one, or the last where the catalog has nothing that it did not have then."""
    record = replace(record, looked=country.number)
    try:
        findings = search_scenes(request, country.limits)
    except NoScenesError as error:  # what was mapped once stays
        return record if record.run else replace(record, state="nodata", reason=str(error))
    if record.run is not None:
        old, _ = _stored(run_folder(country.folder, cell.id, record.run), request)
        if _items(findings.scenes) <= _items(old.scenes):
            return record
    plan = make_plan(request, country.config, SerialRunner(), _nobody, country.limits, findings)
    plan = replace(plan, run=replace(plan.run, weights_sha256=country.weights_sha256))
    folder = run_folder(country.folder, cell.id, plan.run.id)
    with lease.hold(folder):
        if not folder.exists(RUN):
            store_run(folder, plan)
    return replace(record, run=plan.run.id, planned=len(plan.tiles), to_read=plan.cost.to_read)


def _items(scenes: Sequence[Scene]) -> set[tuple[str, str]]:
    return {(scene.collection, source.item) for scene in scenes for source in scene.sources}


def _stored(folder: Folder, request: MapRequest) -> tuple[Run, Tiles]:
    found = find_run(folder, request)
    if found is None:
        raise RunConflictError(f"{folder.url} holds no run any more")
    return found


class _Finisher(SerialRunner):
    """Makes a map of what was looked at, and looks at nothing: here is no model."""

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        raise GeoPixelError(f"{len(tiles)} tiles were lost on their way: submit again")


def _failed(record: Record, error: Exception) -> Record:
    if not isinstance(error, GeoPixelError | ValueError | OSError):  # a bug, not the world
        logging.getLogger(__name__).exception("cell %s", record.cell)
    return replace(record, state="failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _store_rim(folder: Folder, cell: Cell) -> None:
    parts = features.load_parts(folder, blocks_of(ledger.load_plan(folder)))
    sink = BytesIO()
    pq.write_table(polygonize.rim(parts, cell.window), sink, compression="zstd")
    folder.put(RIM, sink.getvalue())


def _nobody(stage: str, done: int, total: int) -> None:
    """Progress of one cell among many."""
