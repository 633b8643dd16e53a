"""From the maps of cells to the map of a country: a part of features/ for every cell, where objects that cross cells are whole. An object belongs to the
cell of its first pixel. Where an earlier part is there, what changed since goes to changes/, and features keep the ids that they had.

Both sides of a cell's edge were decided by two runs, each from what its tiles see beyond it; nothing is blended across. So features that touch a
cell's edge keep touches_edge, also where both halves were joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geopixel import features, polygonize
from geopixel.country.cells import Cell
from geopixel.country.changes import compare, encode_changes
from geopixel.country.record import Record, run_folder
from geopixel.country.work import RIM, Country
from geopixel.features import FEATURES
from geopixel.pipeline import Run, load_run
from geopixel.pipeline.request import metres_per_pixel
from geopixel.storage import Folder
from geopixel.types import Scene

FINGERPRINT, RUNS = "geopixel:made_from", "geopixel:runs"
"""What a part says of itself: a digest of the maps and settings that it was made from, and the runs of its cells."""


def part_path(cell: str) -> str:
    return f"features/{cell}.parquet"


def changes_path(number: int, cell: str) -> str:
    return f"changes/{number}/{cell}.parquet"


def assemble_cell(cell: Cell, country: Country, records: Mapping[str, Record]) -> dict[str, int]:
    """Writes the cell's part of the country, and its changes since the part that is there, unless it is made from the same runs. records: of all cells
    by id. Returns how many features the part has, by prompt, for the changes by kind see changes.KINDS."""
    near = _near(cell, records)
    made_from, runs = _fingerprint(near), json.dumps({name: record.shown for name, record in sorted(near.items())})
    before = _stored_part(country.folder, cell.id)
    if before is not None and before.said[FINGERPRINT] == made_from:
        return _count(before.table)
    part = _join_across(cell, country, {name: run_folder(country.folder, name, str(record.shown)) for name, record in near.items()})
    if before is not None:
        old, new = (run_folder(country.folder, cell.id, json.loads(each)[cell.id]) for each in (before.said[RUNS], runs))
        part, changes = compare(before.table, part, old, new)
        if before.said[RUNS] != runs:  # else the settings are others, not the ground
            country.folder.put(changes_path(country.number, cell.id), encode_changes(changes))
    country.folder.put(part_path(cell.id), features.encode(part, {FINGERPRINT: made_from, RUNS: runs}))
    return _count(part)


def check_part(cell: Cell, folder: Folder, records: Mapping[str, Record]) -> str | None:
    """What is wrong with the part of a cell, in words; None: nothing."""
    try:
        part = _stored_part(folder, cell.id)
    except (OSError, pa.ArrowInvalid) as error:
        return f"{part_path(cell.id)} cannot be read: {error}"
    if part is None:
        return f"{part_path(cell.id)} is missing"
    return None if part.said[FINGERPRINT] == _fingerprint(_near(cell, records)) else f"{part_path(cell.id)} is not made from the maps that its cells have now"


@dataclass(frozen=True, slots=True)
class _Part:
    table: pa.Table
    said: dict[str, str]
    """FINGERPRINT and RUNS."""


def _near(cell: Cell, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of the cell and its neighbours, as far as these have a map."""
    return {each.id: records[each.id] for each in cell.around() if each.id in records and records[each.id].shown}


def _fingerprint(near: Mapping[str, Record]) -> str:
    """Of the maps that a part is made from, and the settings that they were made with."""
    told = [[name, record.shown, record.settings] for name, record in sorted(near.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _stored_part(folder: Folder, cell: str) -> _Part | None:
    try:
        table = pq.read_table(BytesIO(folder.get(part_path(cell))))
    except FileNotFoundError:
        return None
    return _Part(table.replace_schema_metadata(), {name: table.schema.metadata[name.encode()].decode() for name in (FINGERPRINT, RUNS)})


def _count(part: pa.Table) -> dict[str, int]:
    counts = part.group_by("prompt").aggregate([("id", "count")])
    return dict(zip(counts["prompt"].to_pylist(), counts["id_count"].to_pylist(), strict=True))


def _join_across(cell: Cell, country: Country, folders: Mapping[str, Folder]) -> pa.Table:
    """The features of a cell: those of its run, but for those at its edge, which are made anew from what lies on both sides of it."""
    runs = {name: load_run(folder) for name, folder in folders.items()}
    rims = {name: pq.read_table(BytesIO(folder.get(RIM))) for name, folder in folders.items()}
    sources, places = _union(runs.values())
    own = runs[cell.id]
    alone = polygonize.stitch(rims[cell.id])
    together = polygonize.stitch(pa.concat_tables(_renumber(rims[name], places[index]) for index, name in enumerate(runs)))
    left, top, right, bottom = cell.window
    row, column = (together[name].to_numpy() for name in ("row", "column"))
    mine = together.filter((row >= top) & (row < bottom) & (column >= left) & (column < right))
    origin = features.Origin(own.grid, sources, metres_per_pixel(own), country.request.model, own.weights_sha256, own.id)
    inner = pq.read_table(BytesIO(folders[cell.id].get(FEATURES))).replace_schema_metadata()
    inner = inner.filter(pc.invert(pc.is_in(_keys(inner), _object_keys(alone, country.request.prompts))))
    return features.in_order(pa.concat_tables([inner, features.build_features(mine, country.request.outlines, origin)]))


def _union(runs: Iterable[Run]) -> tuple[list[Scene], list[np.ndarray]]:
    """The sources of all runs, each once, as scenes of one source; and for every run, where its own are among them."""
    found: dict[tuple[str, str, str], int] = {}
    scenes: list[Scene] = []
    places = []
    for run in runs:
        mine = []
        for scene in run.scenes:
            for source in scene.sources:
                key = (scene.collection, scene.day, source.item)
                if key not in found:
                    found[key] = len(scenes)
                    scenes.append(Scene(scene.collection, scene.day, (source,), scene.stretch, scene.guess))
                mine.append(found[key])
        places.append(np.array(mine, np.uint16))
    return scenes, places


def _renumber(parts: pa.Table, places: np.ndarray) -> pa.Table:
    """Parts whose scenes are counted among those of all runs."""
    scenes = parts["scenes"].combine_chunks()
    numbers = pa.array(places[scenes.flatten().to_numpy()] if len(places) else [], pa.uint16())
    offsets = pa.array((scenes.offsets.to_numpy() - scenes.offsets[0].as_py()).astype(np.int32))
    return parts.set_column(parts.schema.get_field_index("scenes"), "scenes", pa.ListArray.from_arrays(offsets, numbers))


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """Prompt and first pixel of features, which their ids end with."""
    return pc.binary_join_element_wise(table["prompt"], pc.replace_substring_regex(table["id"], "^[^_]*_", ""), "_")


def _object_keys(objects: pa.Table, prompts: Sequence[str]) -> pa.Array:
    names = pa.array(prompts, pa.string()).take(objects["prompt"].combine_chunks())
    return pc.binary_join_element_wise(names, *(objects[name].combine_chunks().cast(pa.string()) for name in ("column", "row")), "_")
