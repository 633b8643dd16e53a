"""A country is the map of its cells: no tile is missing or twice, objects that cross cells are whole, what is finished is not begun again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import geopandas as gpd
import numpy as np
import pystac
import pytest
import zarr
from scipy import ndimage

from geopixel import ledger
from geopixel.country import map_country, verify_country
from geopixel.country.cells import Cell
from geopixel.errors import RunConflictError
from geopixel.pipeline import SerialRunner, make_plan
from geopixel.storage import Folder
from geopixel.types import Grid, Tile
from geopixel.verification import verify
from tests.conftest import NANO, quiet
from tests.country.conftest import BLOCKS, EDGE, RESOLUTION, catalog_of, country_request, map_it


def run_folders(country: Path) -> list[Path]:
    return sorted(path.parent for path in country.glob("cells/*/*/run.json"))


def tiles_of(run: Path) -> list[Tile]:
    return list(ledger.load_plan(Folder(str(run))))


def tables(country: Path) -> gpd.GeoDataFrame:
    return gpd.pd.concat([gpd.read_parquet(path) for path in sorted(country.glob("features/*.parquet"))])


def test_cells_have_the_tiles_of_one_run_over_the_whole(country: Path, catalog: Path) -> None:
    whole = make_plan(country_request(catalog), NANO, SerialRunner(), quiet).tiles
    parts = [tile for run in run_folders(country) for tile in tiles_of(run)]
    assert len(run_folders(country)) == 2
    assert sorted(parts) == sorted(whole)


def test_every_cell_is_a_verified_run(country: Path) -> None:
    for run in run_folders(country):
        assert verify(Folder(str(run))).holes == []


def test_objects_across_cells_are_whole(country: Path) -> None:
    """The country's features are the 4-connected objects of both cells' masks side by side, which know of no cells."""
    masks, lefts = [], []
    for run in run_folders(country):
        array = zarr.open_group(run / "masks.zarr", mode="r")["mask"]
        masks.append(array[:] == 1)
        lefts.append((array.attrs["spatial:transform"][2], array.attrs["spatial:transform"][5]))
    assert len({top for _, top in lefts}) == 1
    found = tables(country)
    crossing = 0
    for index, prompt in enumerate(("tree", "water")):
        width = round((lefts[1][0] - lefts[0][0]) / RESOLUTION)
        canvas = np.zeros((masks[0].shape[1], width + masks[1].shape[2]), bool)
        canvas[:, : masks[0].shape[2]] = masks[0][index]
        canvas[: masks[1].shape[1], width:] = masks[1][index]
        label, count = ndimage.label(canvas)
        mine = found[found["prompt"] == prompt]
        assert len(mine) == count > 0
        areas = np.sort(ndimage.sum_labels(canvas, label, np.arange(1, count + 1))) * RESOLUTION**2
        np.testing.assert_allclose(np.sort(mine["area_m2"]), areas, rtol=2e-3)  # the scale of UTM
        bounds = mine.to_crs("EPSG:32633").bounds
        crossing += int(((bounds["minx"] < EDGE - 1) & (bounds["maxx"] > EDGE + 1)).sum())
    assert crossing
    assert found["id"].is_unique
    assert found[found["touches_edge"]].shape[0] >= crossing


def test_duckdb_reads_the_country_in_one_glob(country: Path) -> None:
    told = duckdb.sql(f"SELECT prompt, count(*) FROM '{country}/features/*.parquet' GROUP BY prompt ORDER BY prompt").fetchall()
    assert told == list(tables(country).groupby("prompt").size().items())


def test_the_collection_has_every_item(country: Path) -> None:
    collection = pystac.Collection.from_file(str(country / "collection.json"))
    items = list(collection.get_items())
    assert {item.id for item in items} == {run.name for run in run_folders(country)}
    assert all(item.collection_id == collection.id == "small" for item in items)
    assert all(item.get_collection() is not None for item in items)


def test_cells_parquet_counts_what_the_runs_hold(country: Path) -> None:
    cells = gpd.read_parquet(country / "cells.parquet").set_index("cell")
    for run in run_folders(country):
        finished = json.loads((run / "run.json").read_text())["finished"]
        row = cells.loc[run.parent.name]
        assert {name.removeprefix("tiles_"): row[name] for name in cells.columns if name.startswith("tiles_")} == finished["tiles"]
        assert (row["state"], row["shown"], row["planned"]) == ("mapped", run.name, len(tiles_of(run)))


def test_the_page_shows_every_cell_and_needs_no_network(country: Path) -> None:
    page = (country / "index.html").read_text()
    assert "2 mapped" in page
    for run in run_folders(country):
        assert f"cells/{run.parent.name}/{run.name}/report.html" in page
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)


class Watched(SerialRunner):
    """The serial run, which tells at how many tiles it looked, and may be cut off."""

    def __init__(self, stop: Callable[[int], bool] = lambda looked: False) -> None:
        super().__init__()
        self.looked, self.stop = 0, stop

    def _look(self, *arguments):  # type: ignore[no-untyped-def]
        for receipt in super()._look(*arguments):
            self.looked += 1
            if self.stop(self.looked):
                raise KeyboardInterrupt
            yield receipt


def outlined(country: Path) -> float:
    """Square metres of all features."""
    return float(sum(gpd.read_parquet(path).area_m2.sum() for path in country.glob("features/*.parquet")))


def test_a_country_goes_on_where_it_was_cut_off(country: Path, catalog: Path, tmp_path: Path) -> None:
    request = country_request(catalog)
    total = sum(tile.decided is None for run in run_folders(country) for tile in tiles_of(run))
    with pytest.raises(KeyboardInterrupt):
        map_it(request, tmp_path, Watched(lambda looked: looked == total - 2))
    again = Watched()
    map_it(request, tmp_path, again)
    assert again.looked in (1, 2)  # what was stored is not looked at again, also where nobody had heard of it yet
    for path in country.glob("features/*.parquet"):
        assert (tmp_path / "features" / path.name).read_bytes() == path.read_bytes()
    done = Watched()
    assert map_it(request, tmp_path, done).worked == done.looked == 0
    map_it(country_request(catalog, threshold=0.7), tmp_path, done)
    assert done.looked == 0
    assert 0 < outlined(tmp_path) < outlined(country)  # square metres: the number of outlines may rise or stay


def test_another_request_is_refused_and_changes_nothing(country: Path, catalog: Path) -> None:
    before = {path: path.read_bytes() for path in country.rglob("*.json") if path.parent.name != "lease"}
    with pytest.raises(RunConflictError, match="prompts is"):
        map_it(country_request(catalog, prompts=("tree",)), country)
    with pytest.raises(RunConflictError, match="cell_blocks is 4"):
        map_country(country_request(catalog), Folder(str(country)), NANO, SerialRunner(), quiet, blocks=8)
    assert {path: path.read_bytes() for path in before} == before


def holes(country: Path, *, mending: bool = False) -> list[str]:
    return verify_country(Folder(str(country)), quiet, mending).holes


def test_verify_finds_what_is_missing(country: Path, catalog: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(country, copy)
    assert holes(copy) == []
    part = next(copy.glob("features/*.parquet"))
    part.unlink()
    assert holes(copy) == [f"features/{part.name} is missing"]
    next(copy.glob("cells/*/*/predictions/ok/*.arrow")).unlink()
    assert any("tiles planned" in hole for hole in holes(copy))
    shard = max(copy.glob("cells/*/*/masks.zarr/mask/c/**/*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    record = next(path for path in copy.glob("cells/*/cell.json") if path.parent not in shard.parents)
    record.unlink()
    assert any("is planned" in hole for hole in holes(copy, mending=True))
    map_it(country_request(catalog), copy)
    assert holes(copy) == []


def test_a_cell_without_imagery_and_one_that_cannot_be_read(catalog: Path, tmp_path: Path) -> None:
    """A hole is in the record, and in what the job ends with; what can be mapped is."""
    few = catalog_of(catalog, tmp_path / "scenes", 1)
    east = few.parent / "demo"
    request = country_request(few)
    request = replace(request, area=request.area.union(request.area.envelope.buffer(0.06)))
    summary = map_it(request, tmp_path / "out")
    assert summary.cells["nodata"] > 0
    assert summary.cells["mapped"] + summary.cells["nodata"] == sum(summary.cells.values())
    for path in east.glob("*/visual.tif"):
        path.unlink()
    broken = map_it(request, tmp_path / "broken")
    assert broken.tiles["failed"] > 0
    assert "holes" in broken.cells
    assert {record.state for record in broken.failed} == {"holes"}


def test_a_cell_is_whole_squares() -> None:
    with pytest.raises(ValueError, match="a cell is 4 blocks wide, or that times a power of two, got 2"):
        Cell(Grid("EPSG:3857", 1.0), 2, 0, 0)
    with pytest.raises(ValueError, match="got 12"):
        Cell(Grid("EPSG:3857", 1.0), 12, 0, 0)
    assert Cell(Grid("EPSG:3857", 1.0), BLOCKS, -1, 2).window == (-16384, 32768, 0, 49152)
