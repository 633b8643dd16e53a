import json
from io import BytesIO
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from geopixel import ledger
from geopixel.errors import StorageError
from geopixel.storage import Folder
from geopixel.types import CLOUDED, NO_SCENE, STATES, STATUS_CODES, TILE_SIZES, UNDECIDED, Description, Grid, Tile, TilePrediction

GRID = Grid("EPSG:32645", 0.3)
TILES = [
    Tile(GRID, 2048, 10, -7, "outside"),
    Tile(GRID, 512, 44, -28),
    Tile(GRID, 512, 45, -28),
    Tile(GRID, 1024, 23, -14, "nodata"),
    Tile(GRID, 1024, 23, -13, "cloud"),
    Tile(GRID, 512, 44, -27),
]
ONE, TWO, THREE = (tile for tile in TILES if tile.decided is None)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


def prediction(tile: Tile, state: str, seed: int = 0) -> TilePrediction:
    random = np.random.default_rng(seed)
    edge = tile.size + 128
    scene = random.choice(np.array([0, 7, CLOUDED, NO_SCENE], np.uint16), (edge, edge)) if state in ("ok", "empty") else None
    logits = random.integers(-128, 128, (2, 16, 16), dtype=np.int8) if state == "ok" else None
    scores = np.array([random.random(), np.nan], np.float32) if state == "ok" else None
    described = Description("<p> roofs </p> [SEG] .", random.integers(-128, 128, (1, 16, 16), dtype=np.int8)) if state == "ok" and seed % 2 else None
    reason = "cannot open b.tif" if state in ("failed", "nodata") else ""
    return TilePrediction(tile.id, state, logits, scene, scores, reason, described)  # type: ignore[arg-type]


def equal(a: TilePrediction, b: TilePrediction) -> bool:
    described = [None if one.description is None else one.description.logits for one in (a, b)]
    if (a.description and a.description.text) != (b.description and b.description.text):
        return False
    for x, y in ((a.logits, b.logits), (a.scene, b.scene), (a.scores, b.scores), described):
        if (x is None) != (y is None) or (x is not None and y is not None and (x.tobytes() != y.tobytes() or x.dtype != y.dtype)):
            return False
    return (a.tile_id, a.state, a.reason) == (b.tile_id, b.state, b.reason)


def test_a_plan_comes_back_in_order_and_as_equal_bytes(folder: Folder) -> None:
    ledger.store_plan(folder, TILES)
    first = folder.get("plan.parquet")
    assert list(ledger.load_plan(folder)) == TILES
    ledger.store_plan(folder, ledger.load_plan(folder))
    assert folder.get("plan.parquet") == first


@pytest.mark.parametrize("decided", [None, "outside"])
def test_a_plan_of_one_kind_has_the_same_columns(folder: Folder, decided) -> None:
    ledger.store_plan(folder, TILES)
    schema = pq.read_schema(BytesIO(folder.get("plan.parquet")))
    ledger.store_plan(folder, [Tile(GRID, 512, 0, 0, decided)])
    assert pq.read_schema(BytesIO(folder.get("plan.parquet"))).equals(schema)
    assert list(ledger.load_plan(folder)) == [Tile(GRID, 512, 0, 0, decided)]


def test_plan_and_coverage_are_geoparquet_of_the_cores(folder: Folder) -> None:
    ledger.store_plan(folder, TILES)
    for tile in (ONE, TWO, THREE):
        ledger.store_prediction(folder, prediction(tile, "empty"))
    ledger.store_coverage(folder, ledger.read_states(folder, TILES))
    for path in ("plan.parquet", "coverage.parquet"):
        table = gpd.read_parquet(BytesIO(folder.get(path)))
        assert table.crs == GRID.crs
        assert table.tile_id.tolist() == [tile.id for tile in TILES]
        assert table["size"].tolist() == [tile.size for tile in TILES]
        for shape, tile in zip(table.geometry, TILES, strict=True):
            assert shapely.equals_exact(shape.normalize(), tile.core.extent.geom.normalize(), 1e-6)
        geo = json.loads(pq.read_schema(BytesIO(folder.get(path))).metadata[b"geo"])
        assert geo["version"] == "1.1.0"
        assert "bbox" in geo["columns"]["geometry"]["covering"]


def test_tiles_of_two_grids_or_none_are_no_plan(folder: Folder) -> None:
    for tiles in ([], [TILES[0], Tile(Grid("EPSG:32646", 0.3), 512, 0, 0)]):
        with pytest.raises(ValueError, match="of one grid"):
            ledger.store_plan(folder, tiles)
    with pytest.raises(StorageError):
        ledger.load_plan(folder)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["ok", "empty", "nodata", "failed"]), st.integers(0, 1000))
def test_a_prediction_comes_back_and_a_retry_is_equal_bytes(tmp_path_factory: pytest.TempPathFactory, state: str, seed: int) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    stored = prediction(ONE, state, seed)
    ledger.store_prediction(folder, stored)
    (path,) = folder.list()
    data = folder.get(path)
    loaded = ledger.load_prediction(folder, ONE.id, stored.state)
    assert equal(loaded, stored)
    ledger.store_prediction(folder, loaded)
    assert folder.get(path) == data


def test_arrays_of_any_memory_order_are_stored_alike(folder: Folder) -> None:
    plain = prediction(ONE, "ok")
    assert plain.logits is not None
    assert plain.scene is not None
    ledger.store_prediction(folder, plain)
    data = folder.get(folder.list()[0])
    ledger.store_prediction(folder, TilePrediction(ONE.id, "ok", np.asfortranarray(plain.logits), np.asfortranarray(plain.scene), plain.scores))
    assert folder.get(folder.list()[0]) == data


def test_a_plane_of_one_scene_takes_hardly_any_room(folder: Folder) -> None:
    ledger.store_prediction(folder, TilePrediction(ONE.id, "empty", scene=np.full((640, 640), 3, np.uint16)))
    assert len(folder.get(folder.list()[0])) < 4096


def test_states_are_the_plans_own_and_what_is_stored(folder: Folder) -> None:
    assert ledger.read_states(folder, TILES) == {TILES[0].id: "outside", TILES[3].id: "nodata", TILES[4].id: "cloud"}
    ledger.store_prediction(folder, prediction(ONE, "ok"))
    ledger.store_prediction(folder, prediction(TWO, "failed"))
    ledger.store_prediction(folder, prediction(Tile(GRID, 512, 99, 99), "ok"))  # of another plan
    states = ledger.read_states(folder, TILES)
    assert states == {TILES[0].id: "outside", TILES[3].id: "nodata", TILES[4].id: "cloud", ONE.id: "ok", TWO.id: "failed"}
    assert list(ledger.pending(states, retry_failed=True)) == [TWO, THREE]
    assert list(ledger.pending(states, retry_failed=False)) == [THREE]


@given(st.lists(st.tuples(st.sampled_from(TILE_SIZES), st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30, unique=True), st.data())
def test_states_are_found_by_size_column_and_row(places: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Tiles of several sizes may have the same column and row."""
    known = data.draw(st.lists(st.booleans(), min_size=len(places), max_size=len(places)))
    planned = [Tile(GRID, *place) for place, is_known in zip(places, known, strict=True) if is_known]
    if planned:
        found = ledger.States.of(planned).find(*np.array(places, np.int64).T)
        assert [planned[index].id if index >= 0 else None for index in found] == [
            Tile(GRID, *place).id if is_known else None for place, is_known in zip(places, known, strict=True)
        ]


@pytest.mark.parametrize("state", ["ok", "empty", "nodata"])
def test_a_success_supersedes_a_failure_and_stays(folder: Folder, state: str) -> None:
    ledger.store_prediction(folder, prediction(ONE, "failed"))
    ledger.store_prediction(folder, prediction(ONE, state))
    assert folder.list() == [f"predictions/{state}/{ONE.id}.arrow"]
    ledger.store_prediction(folder, prediction(ONE, "failed"))  # a late twin: both files are there
    assert ledger.read_states(folder, TILES)[ONE.id] == state


@given(st.lists(st.sampled_from([*STATES, None]), min_size=6, max_size=6))
def test_planned_is_the_sum_of_states_and_the_pending(states: list) -> None:
    known = ledger.States.of(TILES)
    known.codes[:] = [UNDECIDED if state is None else STATUS_CODES[state] for state in states]
    counts = ledger.recount(known)
    assert counts == {state: states.count(state) for state in STATES}
    assert sum(counts.values()) + len(ledger.pending(known, retry_failed=False)) == len(TILES)
    assert known == {tile.id: state for tile, state in zip(TILES, states, strict=True) if state is not None}
    assert [tile.id for tile in known.being("ok", "failed")] == [tile.id for tile, state in zip(TILES, states, strict=True) if state in ("ok", "failed")]


def test_coverage_has_a_row_and_a_reason_for_every_tile(folder: Folder) -> None:
    ledger.store_prediction(folder, prediction(ONE, "ok"))
    ledger.store_prediction(folder, prediction(TWO, "failed"))
    with pytest.raises(ValueError, match=f"none for 1 of 6, first {THREE.id}"):
        ledger.store_coverage(folder, ledger.read_states(folder, TILES))
    assert not folder.exists("coverage.parquet")
    ledger.store_prediction(folder, prediction(THREE, "nodata"))
    ledger.store_coverage(folder, ledger.read_states(folder, TILES))
    table = gpd.read_parquet(BytesIO(folder.get("coverage.parquet"))).set_index("tile_id")
    assert table.state.to_dict() == ledger.read_states(folder, TILES)
    assert table.reason[table.reason != ""].to_dict() == {TWO.id: "cannot open b.tif", THREE.id: "cannot open b.tif"}


@given(npst.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_a_plane_of_scenes_comes_back_and_one_of_a_single_scene_is_small(plane: np.ndarray) -> None:
    packed = ledger.pack_scene(plane)
    assert len(packed) == (1 if len(np.unique(plane)) == 1 else plane.size)
    assert np.array_equal(ledger.unpack_scene(packed, plane.shape), plane)
    with pytest.raises(ValueError, match="reshape|broadcast"):
        ledger.unpack_scene(np.zeros(plane.size + 1, "<u2"), plane.shape)


def test_attempts_are_counted_for_each_tile_alone_until_they_end(folder: Folder) -> None:
    assert [ledger.begin_attempt(folder, "512_1_2") for _ in range(3)] == [1, 2, 3]
    assert ledger.begin_attempt(folder, "512_1_20") == 1
    ledger.end_attempts(folder, "512_1_2")
    assert folder.list() == ["attempts/512_1_20"]
    assert ledger.begin_first_attempt(folder, "512_1_2")
    assert not ledger.begin_first_attempt(folder, "512_1_2")
    assert ledger.attempts(folder, "512_1_2") == 1


def test_a_new_submission_gives_every_tile_one_more_try(folder: Folder) -> None:
    for tile, times in (("512_0_0", 5), ("512_0_1", 1)):
        for _ in range(times):
            ledger.begin_attempt(folder, tile)
    ledger.forgive_attempts(folder, 3)
    assert [ledger.begin_attempt(folder, tile) for tile in ("512_0_0", "512_0_1", "512_0_2")] == [3, 2, 1]
