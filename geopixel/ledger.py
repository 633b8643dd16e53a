"""What became of every planned tile; the only truth about progress. The plan is one table; a prediction is one file, whose
folder is its state, so one listing is the whole ledger and a put is the moment at which a tile counts. A retry overwrites
with equal bytes. Knows nothing of pixels, models or who works on a tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import cast

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from geopixel.storage import Folder
from geopixel.types import DECISIONS, STATES, UNDECIDED, Grid, State, Tile, TilePrediction, Tiles

PLAN = "plan.parquet"
COVERAGE = "coverage.parquet"
ROWS_PER_GROUP = 10_000
"""Of the tables: small enough that their bounding boxes prune (the tiles lie along a Morton curve)."""
READ_THREADS = 16

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("logits", pa.binary()),  # int8, C order
        pa.field("logits_shape", pa.list_(pa.int32())),  # prompts, height, width
        pa.field("scene", pa.binary()),  # uint16 little-endian, C order
        pa.field("scene_shape", pa.list_(pa.int32())),  # height, width
        pa.field("scores", pa.list_(pa.float32())),  # by prompt; NaN where the prompt has no mask
    ]
)


def store_plan(folder: Folder, tiles: Sequence[Tile]) -> None:
    """Writes the tiles, in their order, as GeoParquet: tile_id, size, column, row, decided (null: to be looked at), crs, resolution
    and the core's polygon in the CRS of the grid. Raises ValueError unless all tiles are of one grid."""
    table = _table(tiles)
    plan = Tiles.of(tiles)
    table["column"], table["row"] = plan.column.astype(np.int64), plan.row.astype(np.int64)
    table["decided"] = pd.Series(plan.decided).map(DECISIONS).astype("string")
    table["crs"] = plan.grid.crs
    table["resolution"] = plan.grid.resolution
    _put_table(folder, PLAN, table)


def load_plan(folder: Folder) -> Tiles:
    """The tiles that were stored, in their order. Raises FileNotFoundError where there is no plan."""
    table = pq.read_table(BytesIO(folder.get(PLAN)), columns=["crs", "resolution", "size", "column", "row", "decided"])
    grid = Grid(table["crs"][0].as_py(), table["resolution"][0].as_py())
    size, column, row = (table[name].to_numpy() for name in ("size", "column", "row"))
    decided = np.full(len(table), UNDECIDED, np.uint8)
    for code, state in DECISIONS.items():
        if state is not None:
            decided[pc.equal(table["decided"], state).fill_null(False).to_numpy()] = code
    return Tiles(grid, size.astype(np.int16), column.astype(np.int32), row.astype(np.int32), decided)


def store_prediction(folder: Folder, prediction: TilePrediction) -> None:
    """Puts the prediction under its state; any other state supersedes an earlier failure. Equal predictions are equal bytes."""
    logits, scene = prediction.logits, prediction.scene
    row = {
        "tile_id": prediction.tile_id,
        "state": prediction.state,
        "reason": prediction.reason,
        "logits": None if logits is None else logits.tobytes(),
        "logits_shape": None if logits is None else logits.shape,
        "scene": None if scene is None else scene.astype("<u2").tobytes(),
        "scene_shape": None if scene is None else scene.shape,
        "scores": prediction.scores,
    }
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, PREDICTION_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row], PREDICTION_SCHEMA))
    folder.put(_path(prediction.tile_id, prediction.state), sink.getvalue().to_pybytes())
    if prediction.state != "failed":
        folder.delete(_path(prediction.tile_id, "failed"))


def load_prediction(folder: Folder, tile_id: str, state: State) -> TilePrediction:
    """The prediction as it was stored (arrays read-only). Raises FileNotFoundError where the tile has none with this state."""
    with pa.ipc.open_file(pa.py_buffer(folder.get(_path(tile_id, state)))) as reader:
        row = reader.read_all().to_pylist()[0]
    logits = scene = scores = None
    if row["logits"] is not None:
        logits = np.frombuffer(row["logits"], np.int8).reshape(row["logits_shape"])
        scores = np.array(row["scores"], np.float32)
    if row["scene"] is not None:
        scene = np.frombuffer(row["scene"], "<u2").reshape(row["scene_shape"])
    return TilePrediction(row["tile_id"], row["state"], logits, scene, scores, row["reason"])


def read_states(folder: Folder, tiles: Sequence[Tile]) -> dict[str, State]:
    """State by tile id, from one listing: the plan's own decisions, else what is stored; a tile that is not in it is pending.
    Where a failure and a success are both there, the success counts (its worker ended between put and delete)."""
    states: dict[str, State] = {tile.id: tile.decided for tile in tiles if tile.decided is not None}
    looked_at = {tile.id for tile in tiles if tile.decided is None}
    for path in folder.list("predictions"):
        _, state, name = path.split("/")
        tile_id = name.removesuffix(".arrow")
        if tile_id in looked_at and (state != "failed" or tile_id not in states):
            states[tile_id] = cast(State, state)
    return states


def pending(tiles: Sequence[Tile], states: Mapping[str, State], *, retry_failed: bool) -> list[Tile]:
    """The tiles still to be looked at, in their order: those without a state and, with retry_failed, those that failed."""
    again: tuple[State | None, ...] = (None, "failed") if retry_failed else (None,)
    return [tile for tile in tiles if states.get(tile.id) in again]


def recount(tiles: Sequence[Tile], states: Mapping[str, State]) -> dict[State, int]:
    """Planned tiles by state, all states named. Their sum is len(tiles) exactly when no tile is pending: the law of a finished run."""
    counts: dict[State, int] = dict.fromkeys(STATES, 0)
    for tile in tiles:
        if tile.id in states:
            counts[states[tile.id]] += 1
    return counts


def store_coverage(folder: Folder, tiles: Sequence[Tile]) -> None:
    """Writes the state of every planned tile, read from storage, as GeoParquet: tile_id, size, state, reason (empty where there is
    nothing to say) and the core's polygon. Raises ValueError while a tile is pending: coverage has no holes."""
    states = read_states(folder, tiles)
    left = pending(tiles, states, retry_failed=False)
    if left:
        raise ValueError(f"coverage needs the state of every tile, got none for {len(left)} of {len(tiles)}, first {left[0].id}")
    told = [tile.id for tile in tiles if tile.decided is None and states[tile.id] in ("nodata", "failed")]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        reasons = dict(zip(told, pool.map(lambda tile_id: load_prediction(folder, tile_id, states[tile_id]).reason, told), strict=True))
    table = _table(tiles)
    table["state"] = [states[tile.id] for tile in tiles]
    table["reason"] = [reasons.get(tile.id, "") for tile in tiles]
    _put_table(folder, COVERAGE, table)


def attempts(folder: Folder, tile_id: str) -> int:
    """How often the tile has been begun without a result."""
    return len(folder.list(f"attempts/{tile_id}"))


def begin_attempt(folder: Folder, tile_id: str) -> int:
    """Notes that a worker begins the tile; returns how often it has been begun by now."""
    number = attempts(folder, tile_id) + 1
    folder.put(f"attempts/{tile_id}/{number}", b"")
    return number


def end_attempts(folder: Folder, tile_id: str) -> None:
    """Forgets the attempts; call it once the tile's prediction is stored."""
    for path in folder.list(f"attempts/{tile_id}"):
        folder.delete(path)


def _path(tile_id: str, state: State) -> str:
    return f"predictions/{state}/{tile_id}.arrow"


def _table(tiles: Sequence[Tile]) -> gpd.GeoDataFrame:
    """tile_id, size and core polygon of tiles of one grid."""
    plan = Tiles.of(tiles)
    r, left, top, sizes = plan.grid.resolution, plan.left, plan.top, plan.size.astype(np.int64)
    cores = shapely.box(left * r, -(top + sizes) * r, (left + sizes) * r, -top * r)
    return gpd.GeoDataFrame({"tile_id": [tile.id for tile in plan], "size": sizes}, geometry=cores, crs=plan.grid.crs)


def _put_table(folder: Folder, path: str, table: gpd.GeoDataFrame) -> None:
    """GeoParquet 1.1 with a bounding box per row."""
    data = BytesIO()
    table.to_parquet(data, index=False, compression="zstd", write_covering_bbox=True, schema_version="1.1.0", row_group_size=ROWS_PER_GROUP)
    folder.put(path, data.getvalue())
