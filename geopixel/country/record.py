"""What a country's folder says: what is asked for (country.json), and what became of every cell (cells/ID/cell.json, all of them as a table in
cells.parquet). A cell's record is the truth about it; the table is made from the records. Knows nothing of how a cell is mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Literal, get_args

import geopandas as gpd

from geopixel.country.cells import Cell
from geopixel.pipeline import CHANGEABLE, MapRequest, check_same
from geopixel.storage import Folder
from geopixel.types import STATES, State

COUNTRY = "country.json"
CELLS = "cells.parquet"

CellState = Literal["planned", "begun", "mapped", "nodata", "holes", "failed"]
"""planned: nothing was done yet; begun: its tiles are known and being looked at; mapped: its map is there, no tile failed; nodata: the catalog has
nothing there; holes: some tiles failed; failed: no map could be made of it, see the reason."""
CELL_STATES: tuple[CellState, ...] = get_args(CellState)
DONE: tuple[CellState, ...] = ("mapped", "nodata", "holes")
"""States that last until somebody asks again."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a cell."""

    cell: str
    state: CellState = "planned"
    reason: str = ""
    """For nodata and failed."""
    run: str | None = None
    """Id of its run, whose folder is cells/CELL/RUN; the last that was begun."""
    shown: str | None = None
    """Id of the run whose map the country shows: the last that was finished."""
    looked: int = 0
    """Number of the pass over the country that last searched it."""
    settings: str = ""
    """Digest of what may change on a folder, as the run was finished with."""
    planned: int = 0
    """Tiles, and ..."""
    to_read: int = 0
    """... those of them that the plan alone says nothing of."""
    tiles: Mapping[State, int] = field(default_factory=dict)
    """What became of them."""
    features: Mapping[str, int] = field(default_factory=dict)
    """By prompt, before those that cross cells are joined."""
    km2: float = 0.0
    """Ground looked at."""
    model_hours: float = 0.0
    read_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Passes:
    """How often the whole country was looked at."""

    number: int = 1
    ended: bool = False


def settings_digest(request: MapRequest) -> str:
    """Of the CHANGEABLE values."""
    values = request.to_json()
    return hashlib.sha256(json.dumps([values[name] for name in CHANGEABLE], sort_keys=True).encode()).hexdigest()[:16]


def run_folder(folder: Folder, cell: str, run: str) -> Folder:
    return Folder(f"{folder.url.rstrip('/')}/cells/{cell}/{run}")


def load_record(folder: Folder, cell: str) -> Record:
    """The record of a cell; a new one where there is none."""
    try:
        return Record(**folder.get_json(_path(cell)))
    except FileNotFoundError:
        return Record(cell)


def store_record(folder: Folder, record: Record) -> Record:
    folder.put_json(_path(record.cell), asdict(record))
    return record


def open_country(folder: Folder, request: MapRequest, blocks: int) -> Passes:
    """Begins the country, or goes on with the one that the folder holds. Raises RunConflictError where that is another one; CHANGEABLE values may
    differ."""
    asked = request.to_json() | {"cell_blocks": blocks}
    with folder.reached():
        if not folder.exists(COUNTRY):
            if strangers := [path for path in folder.list() if path != CELLS and not path.startswith(("lease/", "plan.parquet"))]:
                raise ValueError(f"{folder.url} is not empty and holds no country: found {strangers[0]}; choose another --out")
            folder.put_json(COUNTRY, {"request": asked, "pass": asdict(Passes()), "submissions": []})
            return Passes()
        stored = folder.get_json(COUNTRY)
    check_same(folder, stored["request"], asked)
    folder.put_json(COUNTRY, stored | {"request": asked})
    return Passes(**stored["pass"])


def note_pass(folder: Folder, passes: Passes, submission: Mapping[str, Any] | None = None) -> Passes:
    """Stores how far the passes are, and what a submission came to."""
    stored = folder.get_json(COUNTRY)
    submissions = list(stored["submissions"])
    if submission is not None:
        submissions.append(dict(submission) | {"ended": datetime.now(UTC).isoformat(timespec="seconds")})
    folder.put_json(COUNTRY, stored | {"pass": asdict(passes), "submissions": submissions})
    return passes


def store_cells(folder: Folder, cells: Sequence[Cell], records: Sequence[Record]) -> gpd.GeoDataFrame:
    """Writes cells.parquet, GeoParquet in the CRS of the grid: a row for every cell, its tiles by state, its features of all prompts together. Returns
    the table."""
    rows = []
    for record in records:
        row = asdict(record) | {"features": sum(record.features.values())}
        rows.append(row | {f"tiles_{state}": row["tiles"].get(state, 0) for state in STATES})
        del rows[-1]["tiles"]
    table = gpd.GeoDataFrame(rows, geometry=[cell.polygon for cell in cells], crs=cells[0].grid.crs)
    sink = BytesIO()
    table.to_parquet(sink, write_covering_bbox=True, index=False)
    folder.put(CELLS, sink.getvalue())
    return table


def _path(cell: str) -> str:
    return f"cells/{cell}/cell.json"
