"""What became of features from one map of a cell to the next: which are the same things, and what happened to the others. Two outlines are of one thing
where they overlap most of all; ground that the new map did not see says nothing of what was there. Knows two tables and two run folders."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
import zarr
from pyproj import Transformer

from geopixel import features
from geopixel.mosaic import MASKS
from geopixel.pipeline import load_run
from geopixel.storage import Folder
from geopixel.types import STATUS_CODES

KINDS = ("added", "removed", "modified", "unobserved")
"""added: there was none; removed: its ground was seen again and it is gone; modified: another outline; unobserved: its ground was not seen again, so it
stays in the map as it was. What is the same is not listed."""
SAME_THING = 0.3
"""Intersection over union from which on two outlines may be of one thing: a building that grew by two thirds still is."""
SAME_OUTLINE = 0.8
"""... from which on nothing happened: two maps of an unchanged building, from other imagery, differ by a pixel or two all around."""


@dataclass(frozen=True, slots=True)
class _Pairs:
    old: np.ndarray
    new: np.ndarray
    overlap: np.ndarray
    """Intersection over union."""


def compare(before: pa.Table, after: pa.Table, old: Folder, new: Folder) -> tuple[pa.Table, gpd.GeoDataFrame]:
    """The map with the ids that its features had before, and what was not seen again added to it; and the changes.

    before, after: tables of features.SCHEMA. old, new: the run folders that they show. The changes: id, kind (of KINDS), prompt, area_before_m2 and
    area_after_m2 (NaN where there was none), overlap (intersection over union, 0 without a partner), seen_before (for what is added: the old map saw
    its ground), geometry (the newest known) in OGC:CRS84.
    """
    shapes = [shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False)) for table in (before, after)]
    pairs = _match(shapes[0], shapes[1], before["prompt"].to_numpy(zero_copy_only=False), after["prompt"].to_numpy(zero_copy_only=False))
    gone = np.setdiff1d(np.arange(len(before)), pairs.old)
    fresh = np.setdiff1d(np.arange(len(after)), pairs.new)
    seen_again, seen_before = _observed(new, shapes[0][gone]), _observed(old, shapes[1][fresh])

    ids = after["id"].to_numpy(zero_copy_only=False).astype(object)
    ids[pairs.new] = before["id"].to_numpy(zero_copy_only=False)[pairs.old]
    taken = set(before["id"].to_pylist())
    ids[fresh] = [f"{each}+" if each in taken else each for each in ids[fresh]]  # another thing that begins at the same pixel of the same scenes
    after = after.set_column(0, after.schema.field("id"), pa.array(ids, pa.string()))

    changed = pairs.overlap < SAME_OUTLINE
    rows = [
        _rows("added", after, shapes[1], fresh, seen_before=seen_before),
        _rows("removed", before, shapes[0], gone[seen_again]),
        _rows("modified", after, shapes[1], pairs.new[changed], other=before.take(pa.array(pairs.old[changed])), overlap=pairs.overlap[changed]),
        _rows("unobserved", before, shapes[0], gone[~seen_again]),
    ]
    kept = before.take(pa.array(gone[~seen_again]))
    frame = gpd.GeoDataFrame({name: np.concatenate([each[name] for each in rows]) for name in rows[0]}, geometry="geometry", crs="OGC:CRS84")
    return features.in_order(pa.concat_tables([after, kept])), frame


def encode_changes(changes: gpd.GeoDataFrame) -> bytes:
    """As GeoParquet 1.1 with a bounding box per row."""
    sink = BytesIO()
    changes.to_parquet(sink, write_covering_bbox=True, index=False)
    return sink.getvalue()


def _match(old: np.ndarray, new: np.ndarray, old_prompts: np.ndarray, new_prompts: np.ndarray) -> _Pairs:
    """One to one, those that overlap most first."""
    one, other = shapely.STRtree(new).query(old, predicate="intersects")
    same = old_prompts[one] == new_prompts[other]
    one, other = one[same], other[same]
    shared = shapely.area(shapely.intersection(old[one], new[other]))  # in degrees: a ratio of areas at one place
    overlap = shared / (shapely.area(old[one]) + shapely.area(new[other]) - shared)
    pairs: list[tuple[int, int, float]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for index in np.argsort(-overlap, kind="stable"):
        if overlap[index] < SAME_THING:
            break
        if one[index] not in taken[0] and other[index] not in taken[1]:
            taken[0].add(one[index])
            taken[1].add(other[index])
            pairs.append((one[index], other[index], overlap[index]))
    columns = np.array(pairs).reshape(-1, 3).T
    return _Pairs(columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2])


def _observed(folder: Folder, shapes: np.ndarray) -> np.ndarray:
    """(n,) bool: the run saw the ground at a point inside each shape, OGC:CRS84."""
    if not len(shapes):
        return np.zeros(0, bool)
    run = load_run(folder)
    status: Any = zarr.open_group(folder.zarr(MASKS), mode="r")["status"]
    resolution, _, west, _, _, north = status.attrs["spatial:transform"]
    points = shapely.get_coordinates(shapely.point_on_surface(shapes))
    x, y = Transformer.from_crs("OGC:CRS84", run.grid.crs, always_xy=True).transform(*points.T)
    column, row = np.floor((x - west) / resolution).astype(np.int64), np.floor((north - y) / resolution).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (row < status.shape[0]) & (column < status.shape[1])
    seen = np.zeros(len(shapes), bool)
    seen[inside] = np.isin(status.vindex[row[inside], column[inside]], (STATUS_CODES["ok"], STATUS_CODES["empty"]))
    return seen


def _rows(
    kind: str,
    table: pa.Table,
    shapes: np.ndarray,
    rows: np.ndarray,
    *,
    other: pa.Table | None = None,
    overlap: np.ndarray | None = None,
    seen_before: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Changes of one kind. other: what the rows were before."""
    some = table.take(pa.array(rows))
    area, nothing = pc.cast(some["area_m2"], pa.float64()).to_numpy(), np.full(len(rows), np.nan)
    gone = kind in ("removed", "unobserved")
    return {
        "id": some["id"].to_numpy(zero_copy_only=False).astype(object),
        "kind": np.full(len(rows), kind, object),
        "prompt": some["prompt"].to_numpy(zero_copy_only=False).astype(object),
        "area_before_m2": area if gone else nothing if other is None else other["area_m2"].to_numpy(),
        "area_after_m2": nothing if gone else area,
        "overlap": np.zeros(len(rows)) if overlap is None else overlap,
        "seen_before": np.ones(len(rows), bool) if seen_before is None else seen_before,
        "geometry": shapes[rows],
    }
