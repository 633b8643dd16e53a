"""What became of every planned tile; the only truth about progress. The plan is one table; a prediction is one file, whose
folder is its state, so one listing is the whole ledger and a put is the moment at which a tile counts. A retry overwrites
with equal bytes. Knows nothing of pixels, models or who works on a tile."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyproj import CRS

from geopixel.errors import DamagedError, StorageError
from geopixel.storage import Folder
from geopixel.types import DECISIONS, STATES, STATUS_CODES, TILE_SIZES, UNDECIDED, Description, Grid, State, Tile, TilePrediction, Tiles

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
        pa.field("scene", pa.binary()),  # uint16 little-endian, C order, or one value for all
        pa.field("scene_shape", pa.list_(pa.int32())),  # height, width
        pa.field("scores", pa.list_(pa.float32())),  # by prompt; NaN where the prompt has no mask
        pa.field("description", pa.string()),
        pa.field("description_logits", pa.binary()),  # int8, C order
        pa.field("description_shape", pa.list_(pa.int32())),  # masks, height, width
        pa.field("crc32", pa.uint32(), nullable=False),  # of the binary columns, in order: Arrow has no checksum of its own
    ]
)


def store_plan(folder: Folder, tiles: Sequence[Tile]) -> None:
    """Writes the tiles, in their order, as GeoParquet: tile_id, size, column, row, decided (null: to be looked at), crs, resolution
    and the core's polygon in the CRS of the grid. Raises ValueError unless all tiles are of one grid."""
    plan = Tiles.of(tiles)
    states = pa.array([DECISIONS.get(code) for code in range(UNDECIDED + 1)], pa.string())

    def columns(_: int, part: Tiles) -> dict[str, pa.Array]:
        return {
            "column": pa.array(part.column, pa.int64()),
            "row": pa.array(part.row, pa.int64()),
            "decided": states.take(pa.array(part.decided)),
            "crs": pa.repeat(part.grid.crs, len(part)),
            "resolution": pa.repeat(float(part.grid.resolution), len(part)),
        }

    _put_table(folder, PLAN, plan, columns)


def load_plan(folder: Folder) -> Tiles:
    """The tiles that were stored, in their order. Raises StorageError where there is no plan."""
    try:
        stored = folder.get(PLAN)
    except FileNotFoundError as error:
        raise StorageError(f"{folder.url} lacks {PLAN}, without which its run cannot be gone on with") from error
    table = pq.read_table(BytesIO(stored), columns=["crs", "resolution", "size", "column", "row", "decided"])
    grid = Grid(table["crs"][0].as_py(), table["resolution"][0].as_py())
    size, column, row = (table[name].to_numpy() for name in ("size", "column", "row"))
    decided = np.full(len(table), UNDECIDED, np.uint8)
    for code, state in DECISIONS.items():
        if state is not None:
            decided[pc.equal(table["decided"], state).fill_null(False).to_numpy()] = code
    return Tiles(grid, size.astype(np.int16), column.astype(np.int32), row.astype(np.int32), decided)


def store_prediction(folder: Folder, prediction: TilePrediction) -> None:
    """Puts the prediction under its state; any other state supersedes an earlier failure. Equal predictions are equal bytes."""
    logits, scene, described = prediction.logits, prediction.scene, prediction.description
    row: dict[str, Any] = {
        "tile_id": prediction.tile_id,
        "state": prediction.state,
        "reason": prediction.reason,
        "logits": _bytes(logits),
        "logits_shape": None if logits is None else logits.shape,
        "scene": None if scene is None else _bytes(pack_scene(scene)),
        "scene_shape": None if scene is None else scene.shape,
        "scores": prediction.scores,
        "description": None if described is None else described.text,
        "description_logits": None if described is None else _bytes(described.logits),
        "description_shape": None if described is None else described.logits.shape,
    }
    row["crc32"] = _checksum(row)
    columns = [binary_array(row[field.name]) if pa.types.is_binary(field.type) else pa.array([row[field.name]], field.type) for field in PREDICTION_SCHEMA]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, PREDICTION_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=PREDICTION_SCHEMA))
    folder.put(_path(prediction.tile_id, prediction.state), sink.getvalue().to_pybytes())
    if prediction.state != "failed":
        folder.delete(_path(prediction.tile_id, "failed"))


def load_prediction(folder: Folder, tile_id: str, state: State) -> TilePrediction:
    """The prediction as it was stored (arrays read-only). Raises FileNotFoundError where the tile has none with this state, DamagedError where what is
    there cannot be one."""
    path = _path(tile_id, state)
    data = folder.get(path)
    try:
        return _decode(data)
    except (OSError, ValueError, LookupError, TypeError) as error:  # what pyarrow and numpy raise, and what a TilePrediction does not take
        raise DamagedError(folder.url, path, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _decode(data: bytes) -> TilePrediction:
    with pa.ipc.open_file(pa.py_buffer(data)) as reader:
        row = reader.read_all().to_pylist()[0]
    if row["crc32"] != _checksum(row):
        raise ValueError("its checksum is another")
    logits = scene = scores = described = None
    if row["logits"] is not None:
        logits = np.frombuffer(row["logits"], np.int8).reshape(row["logits_shape"])
        scores = np.array(row["scores"], np.float32)
    if row["scene"] is not None:
        scene = unpack_scene(np.frombuffer(row["scene"], "<u2"), row["scene_shape"])
    if row["description"] is not None:
        described = Description(row["description"], np.frombuffer(row["description_logits"], np.int8).reshape(row["description_shape"]))
    return TilePrediction(row["tile_id"], row["state"], logits, scene, scores, row["reason"], described)


def pack_scene(scene: np.ndarray) -> np.ndarray:
    """A plane (height, width) uint16 as little-endian values in a row, a single one where all are equal: most tiles lie within one scene, and to carry,
    check and compress megabytes of one number costs more than all else about an answer."""
    first = scene[:1, :1]
    return (first if (scene == first).all() else scene).astype("<u2", copy=False).ravel()


def unpack_scene(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The plane of pack_scene, read-only. Raises ValueError where it is of another shape."""
    return np.broadcast_to(values if values.size == 1 else values.reshape(tuple(shape)), tuple(shape))


def _checksum(row: Mapping[str, Any]) -> int:
    check = 0
    for field in PREDICTION_SCHEMA:
        if pa.types.is_binary(field.type):
            check = zlib.crc32(row[field.name] or b"", check)
    return check


def _bytes(plane: np.ndarray | None) -> memoryview | None:
    """Those of an array in C order, not copied: a tile has megabytes, of which zstd leaves kilobytes."""
    return None if plane is None else np.ascontiguousarray(plane).data.cast("B")


def binary_array(value: np.ndarray | memoryview | None) -> pa.Array:
    """An Arrow array of one binary value, over its bytes themselves: a picture is megabytes, and every copy costs as much as storing its mask."""
    if value is None:
        return pa.nulls(1, pa.binary())
    offsets = np.array([0, value.nbytes], np.int32)
    return pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(value)])


@dataclass(frozen=True, slots=True, eq=False)
class States(Mapping[str, State]):
    """State by tile id, as a column beside those of the plan, for a plan may have millions. A tile that is pending is not in it."""

    tiles: Tiles
    codes: np.ndarray
    """(n,) uint8 by tile, of STATUS_CODES; UNDECIDED: pending."""
    _order: np.ndarray
    """(n,) indexes of the tiles, by place."""
    _places: np.ndarray
    """(n,) int64, ascending: the places of these. Tiles of two sizes may have the same."""

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> States:
        """What the plan alone says."""
        plan = Tiles.of(tiles)
        places = _places(plan.column.astype(np.int64), plan.row.astype(np.int64))
        order = np.argsort(places)
        return cls(plan, plan.decided.copy(), order, places[order])

    def find(self, size: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """(m,) indexes of the tiles of these sizes, columns and rows, (m,) int64 each; -1 where the plan has none."""
        wanted = _places(column, row)
        first, found = np.searchsorted(self._places, wanted), np.full(len(wanted), -1)
        for step in range(len(TILE_SIZES)):
            at = np.minimum(first + step, len(self.tiles) - 1)
            index = self._order[at]
            same = (self._places[at] == wanted) & (self.tiles.size[index] == size)
            found[same] = index[same]
        return found

    def __getitem__(self, tile_id: str) -> State:
        size, column, row = np.array(tile_id.split("_"), np.int64)[:, None]
        index = int(self.find(size, column, row)[0])
        if index < 0 or self.codes[index] == UNDECIDED:
            raise KeyError(tile_id)
        return _STATE_OF[int(self.codes[index])]

    def __iter__(self) -> Iterator[str]:
        return (tile.id for tile in self.tiles[self.codes != UNDECIDED])

    def __len__(self) -> int:
        return int((self.codes != UNDECIDED).sum())

    def being(self, *states: State) -> Tiles:
        """The tiles that are in one of these states."""
        return self.tiles[np.isin(self.codes, [STATUS_CODES[state] for state in states])]


_STATE_OF: dict[int, State] = {code: state for state, code in STATUS_CODES.items()}
_PATH = r"^predictions/(?P<state>[a-z]+)/(?P<size>\d{3,4})_(?P<column>-?\d{1,10})_(?P<row>-?\d{1,10})\.arrow$"


def read_states(folder: Folder, tiles: Sequence[Tile]) -> States:
    """State by tile id, from one listing: the plan's own decisions, else what is stored; a tile that is not in it is pending.
    Where a failure and a success are both there, the success counts (its worker ended between put and delete)."""
    states = States.of(tiles)
    for page in folder.pages("predictions"):
        stored = pc.extract_regex(pa.array(page, pa.string()), _PATH).drop_null()
        index = states.find(*(stored.field(name).cast(pa.int64()).to_numpy() for name in ("size", "column", "row")))
        for state, code in STATUS_CODES.items():
            here = index[pc.equal(stored.field("state"), state).to_numpy(zero_copy_only=False) & (index >= 0)]
            free = states.codes[here] == UNDECIDED if state == "failed" else states.tiles.to_read[here]
            states.codes[here[free]] = code
    return states


def pending(states: States, *, retry_failed: bool) -> Tiles:
    """The tiles still to be looked at, in their order: those without a state and, with retry_failed, those that failed."""
    return states.tiles[(states.codes == UNDECIDED) | (retry_failed & (states.codes == STATUS_CODES["failed"]))]


def recount(states: States) -> dict[State, int]:
    """Planned tiles by state, all states named. Their sum is len(tiles) exactly when no tile is pending: the law of a finished run."""
    counts = np.bincount(states.codes, minlength=UNDECIDED + 1)
    return {state: int(counts[STATUS_CODES[state]]) for state in STATES}


def store_coverage(folder: Folder, states: States) -> None:
    """Writes the state of every planned tile, as GeoParquet: tile_id, size, state, reason (empty where there is nothing to say) and the core's
    polygon. Raises ValueError while a tile is pending: coverage has no holes."""
    if left := pending(states, retry_failed=False):
        raise ValueError(f"coverage needs the state of every tile, got none for {len(left)} of {len(states.tiles)}, first {left[0].id}")
    plan, codes = states.tiles, states.codes
    told = np.flatnonzero(plan.to_read & np.isin(codes, [STATUS_CODES["nodata"], STATUS_CODES["failed"]]))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        said = pool.map(lambda index: load_prediction(folder, plan[index].id, _STATE_OF[int(codes[index])]).reason, told.tolist())
        reasons = dict(zip(told.tolist(), said, strict=True))
    names = pa.array([_STATE_OF.get(code) for code in range(UNDECIDED + 1)], pa.string())

    def columns(first: int, part: Tiles) -> dict[str, pa.Array]:
        here = range(first, first + len(part))
        return {"state": names.take(pa.array(codes[first : here.stop])), "reason": pa.array([reasons.get(index, "") for index in here], pa.string())}

    _put_table(folder, COVERAGE, plan, columns)


def attempts(folder: Folder, tile_id: str) -> int:
    """How often the tile has been begun without a result."""
    try:
        return int(folder.get(f"attempts/{tile_id}"))
    except FileNotFoundError:
        return 0


def begin_first_attempt(folder: Folder, tile_id: str) -> bool:
    """Notes that a worker begins the tile, unless one has begun it before; returns whether it is the first."""
    return folder.create_json(f"attempts/{tile_id}", 1)


def begin_attempt(folder: Folder, tile_id: str) -> int:
    """Notes that a worker begins the tile; returns how often it has been begun by now."""
    number = attempts(folder, tile_id) + 1
    folder.put(f"attempts/{tile_id}", str(number).encode())
    return number


def end_attempts(folder: Folder, tile_id: str) -> None:
    """Forgets the attempts; call it once the tile's prediction is stored."""
    folder.delete(f"attempts/{tile_id}")


def forgive_attempts(folder: Folder, most: int) -> None:
    """For a new submission: what ended the last one may have been no tile's fault, so every tile gets one more try. most: as often as one may be begun."""
    for path in folder.list("attempts"):
        tile_id = path.rsplit("/", 1)[1]
        if attempts(folder, tile_id) >= most:
            folder.put(f"attempts/{tile_id}", str(most - 1).encode())


def _path(tile_id: str, state: State) -> str:
    return f"predictions/{state}/{tile_id}.arrow"


def _places(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(n,) int64 of int64 columns and rows that int32 can hold."""
    return (row << 32) | (column & 0xFFFFFFFF)


REPEATED = ("size", "decided", "crs", "resolution", "state", "reason")
"""Columns with few values: the others are not searched for such."""
WKB_POLYGON = np.dtype([("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))])
"""A polygon of one ring of five points (OGC 06-103r4, section 8.2), little-endian."""


def _put_table(folder: Folder, path: str, tiles: Tiles, columns: Callable[[int, Tiles], Mapping[str, pa.Array]]) -> None:
    """GeoParquet 1.1 with a bounding box per row: tile_id, size, the columns that are given for the tiles from an index on, geometry of the cores. Row
    group by row group: a plan of millions is never a table."""
    sink = pa.BufferOutputStream()
    writer = None
    for first in range(0, len(tiles), ROWS_PER_GROUP):
        part = tiles[first : first + ROWS_PER_GROUP]
        ids = pc.binary_join_element_wise(*(pa.array(values).cast(pa.string()) for values in (part.size, part.column, part.row)), "_")
        geometry, bbox = _cores(part)
        table = pa.table({"tile_id": ids, "size": pa.array(part.size, pa.int64()), **columns(first, part), "geometry": geometry, "bbox": bbox})
        writer = writer or pq.ParquetWriter(
            sink, table.schema.with_metadata({"geo": _geo_metadata(tiles)}), compression="zstd", use_dictionary=list(REPEATED)
        )
        writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
    if writer is not None:
        writer.close()
    folder.put(path, sink.getvalue().to_pybytes())


def _cores(tiles: Tiles) -> tuple[pa.Array, pa.Array]:
    """Their polygons as WKB, and their bounds."""
    r, left, top, size = tiles.grid.resolution, tiles.left, tiles.top, tiles.size.astype(np.int64)
    west, south, east, north = left * r, -(top + size) * r, (left + size) * r, -top * r
    polygons = np.zeros(len(tiles), WKB_POLYGON)
    polygons["order"], polygons["type"], polygons["rings"], polygons["points"] = 1, 3, 1, 5
    polygons["ring"] = np.stack([east, south, east, north, west, north, west, south, east, south], axis=-1).reshape(-1, 5, 2)
    offsets = pa.array(np.arange(len(tiles) + 1, dtype=np.int32) * WKB_POLYGON.itemsize)
    geometry = pa.Array.from_buffers(pa.binary(), len(tiles), [None, offsets.buffers()[1], pa.py_buffer(polygons)])
    return geometry, pa.StructArray.from_arrays([pa.array(values) for values in (west, south, east, north)], ["xmin", "ymin", "xmax", "ymax"])


def _geo_metadata(tiles: Tiles) -> bytes:
    """What GeoParquet 1.1 wants to be told of the file."""
    r, left, top, size = tiles.grid.resolution, tiles.left, tiles.top, tiles.size.astype(np.int64)
    geometry = {
        "encoding": "WKB",
        "crs": CRS.from_user_input(tiles.grid.crs).to_json_dict(),
        "geometry_types": ["Polygon"],
        "bbox": [float(each) for each in (left.min() * r, -(top + size).max() * r, (left + size).max() * r, -top.min() * r)],
        "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
    }
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}).encode()
