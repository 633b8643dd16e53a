"""What changed between two maps of the same ground: told apart by hand-made changes, and by a catalog that gets an item."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from geopixel.country.changes import compare, encode_changes
from geopixel.country.record import load_record
from geopixel.storage import Folder
from tests.country.conftest import catalog_of, country_request, map_it
from tests.country.test_country import Watched


@pytest.fixture(scope="module")
def before(serial: Path) -> pa.Table:
    return pq.read_table(serial / "features.parquet").replace_schema_metadata()


def redrawn(table: pa.Table, row: int, change) -> pa.Table:  # type: ignore[no-untyped-def]
    """The table with another geometry in a row, and ids of another run."""
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    shapes[row] = change(shapes[row])
    bounds = shapely.bounds(shapes)
    names = ("xmin", "ymin", "xmax", "ymax")
    columns = {
        "id": pa.array([f"other_{index}" for index in range(len(table))]),
        "geometry": pa.array(shapely.to_wkb(shapes), pa.binary()),
        "bbox": pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], fields=list(table.schema.field("bbox").type)),
    }
    assert set(names) == {field.name for field in table.schema.field("bbox").type}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table


def test_what_is_the_same_keeps_its_id_and_is_not_listed(before: pa.Table, serial: Path) -> None:
    folder = Folder(str(serial))
    after, changes = compare(before, redrawn(before, 0, lambda shape: shape), folder, folder)
    assert len(changes) == 0
    assert sorted(after["id"].to_pylist()) == sorted(before["id"].to_pylist())


def test_every_kind(before: pa.Table, serial: Path, tmp_path: Path) -> None:
    """One grows, one goes, one comes, one moves out of what was seen."""
    folder = Folder(str(serial))
    largest = int(np.argmax(before["area_m2"].to_numpy()))
    grown = redrawn(before, largest, lambda shape: shapely.affinity.scale(shape, 1.2, 1.2))
    goes = next(row for row in range(len(before)) if row != largest)
    comes = before["prompt"].to_pylist().index("water" if before["prompt"][goes].as_py() == "building" else "building")
    far = redrawn(before, comes, lambda shape: shapely.affinity.translate(shape, 1.0))  # a degree east: nobody saw it
    old = far.take(pa.array([row for row in range(len(far)) if row != goes]))
    new = grown.take(pa.array([row for row in range(len(grown)) if row != comes]))
    after, changes = compare(old, new, folder, folder)
    told = changes.set_index("kind")
    assert set(told.index) == {"added", "modified", "unobserved"}
    assert told.loc["unobserved", "id"] == f"other_{comes}"
    assert f"other_{comes}" in after["id"].to_pylist()  # it stays in the map
    assert told.loc["added", "seen_before"]
    assert told.loc["modified", "area_after_m2"] > 0
    assert 0.3 <= told.loc["modified", "overlap"] < 0.8
    assert told.loc["modified", "id"] == f"other_{largest}"
    after, changes = compare(new, old, folder, folder)
    assert changes.set_index("kind").loc["removed", "area_before_m2"] == pytest.approx(before["area_m2"][goes].as_py())
    assert len(after) == len(old)
    path = tmp_path / "changes.parquet"
    path.write_bytes(encode_changes(changes))
    assert len(gpd.read_parquet(path)) == len(changes)


def test_ids_stay_unique(before: pa.Table, serial: Path) -> None:
    """Another thing where one was: the id of the old one is not given to it."""
    folder = Folder(str(serial))
    shapes = shapely.from_wkb(before["geometry"].to_numpy(zero_copy_only=False))
    row = int(np.argmax(shapely.area(shapes)))
    moved = redrawn(before, row, lambda shape: shapely.affinity.scale(shape, 0.2, 0.2)).set_column(0, before.schema.field("id"), before["id"])
    after, changes = compare(before, moved, folder, folder)
    assert changes["kind"].tolist() == ["added", "removed"]
    assert len(set(after["id"].to_pylist())) == len(after)
    assert changes["id"].is_unique


def test_a_further_pass_maps_only_cells_with_new_items(catalog: Path, tmp_path: Path) -> None:
    few, out = catalog_of(catalog, tmp_path / "scenes", 1), tmp_path / "out"
    request = country_request(few)
    map_it(request, out)
    records = {path.parent.name: load_record(Folder(str(out)), path.parent.name) for path in out.glob("cells/*/cell.json")}
    maps = {path.name: path.read_bytes() for path in out.glob("features/*.parquet")}

    nothing = Watched()
    assert map_it(request, out, nothing, again=True).worked == 2
    assert nothing.looked == 0
    assert {path.name: path.read_bytes() for path in out.glob("features/*.parquet")} == maps
    assert not list(out.glob("changes/*"))

    catalog_of(catalog, tmp_path / "scenes", 2)  # the eastern scene has come
    watched = Watched()
    summary = map_it(request, out, watched, again=True)
    assert watched.looked > 0
    assert summary.changes
    now = {name: load_record(Folder(str(out)), name) for name in records}
    new = [name for name in now if now[name].run != records[name].run]
    assert new == [max(records)]  # the eastern cell
    changes = gpd.pd.concat([gpd.read_parquet(path) for path in out.glob("changes/3/*.parquet")])
    assert (changes["kind"] == "added").any()
    fresh = changes[(changes["kind"] == "added") & ~changes["seen_before"]]
    assert len(fresh) > 0  # ground that nobody had seen
    after = gpd.pd.concat([gpd.read_parquet(path) for path in out.glob("features/*.parquet")])
    whole = tmp_path / "whole"
    map_it(request, whole)
    at_once = gpd.pd.concat([gpd.read_parquet(path) for path in whole.glob("features/*.parquet")])
    kept = changes[changes["kind"] == "unobserved"]
    assert sorted(after[~after["id"].isin(kept["id"])]["area_m2"]) == sorted(at_once["area_m2"])  # the map is that of one pass over all
    assert after["id"].is_unique
