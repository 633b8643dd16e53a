"""The survey against numpy on the whole raster, and its laws: a cell's values depend on its ground alone, no data goes unseen,
and a broken file stops nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
import dask.threaded
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds

from geopixel.raster import read_scenes
from geopixel.survey import CELL, CHUNK, COARSENING, survey_scenes
from geopixel.types import Asset, Grid, Scene, Source
from tests.test_raster import Ranges

GRID = Grid("EPSG:32618", 10.0)
COLUMN, ROW = 5 * CHUNK - 2, -3 * CHUNK + 6
"""The first cell of the rasters written here: they lie across chunk borders."""


def write(path: Path, pixels: np.ndarray, left: int, top: int) -> Source:
    """pixels (height, width, 3) uint8, 0 where missing, from pixel (left, top) of GRID on."""
    height, width, _ = pixels.shape
    geobox = GRID.geobox(left, top, width, height)
    profile = {"width": width, "height": height, "count": 3, "dtype": "uint8", "crs": GRID.crs, "transform": geobox.transform}
    with rasterio.open(path, "w", driver="GTiff", nodata=0, tiled=True, **profile) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    footprint = shapely.box(*transform_bounds(GRID.crs, "EPSG:4326", *geobox.extent.boundingbox))
    return Source(path.stem, footprint, (Asset(str(path), (1, 2, 3)),))


def scene(*sources: Source) -> Scene:
    return Scene("aerial", "2020-06-01", sources)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """3 x 4 cells: noise that grows from west to east, with a triangle that was not seen."""
    rng = np.random.default_rng(0)
    height, width = 3 * CELL, 4 * CELL
    coarse = rng.normal(0, 1, (height // COARSENING, width // COARSENING)) * np.linspace(0, 40, width // COARSENING)
    grey = np.clip(128 + np.kron(coarse, np.ones((COARSENING, COARSENING))), 1, 255)
    rgb = np.stack([grey, np.clip(grey + 20, 1, 255), grey], axis=-1).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    rgb[x + 2 * y < 700] = 0
    return rgb


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Source:
    return write(tmp_path_factory.mktemp("survey") / "whole.tif", pixels, COLUMN * CELL, ROW * CELL)


def test_cells_are_what_numpy_makes_of_the_whole_raster(source: Source, pixels: np.ndarray) -> None:
    look = survey_scenes([scene(source)], GRID, (COLUMN, ROW, COLUMN + 4, ROW + 3))

    rows, columns = pixels.shape[0] // COARSENING, pixels.shape[1] // COARSENING
    seen = pixels.any(axis=-1).reshape(rows, COARSENING, columns, COARSENING)
    total = pixels.reshape(rows, COARSENING, columns, COARSENING, 3).sum(axis=(1, 3), dtype=float)
    rgb = total / np.maximum(seen.sum(axis=(1, 3)), 1)[..., None]
    valid = np.pad(seen.any(axis=(1, 3)), 1)
    luminance = np.pad(rgb @ [0.299, 0.587, 0.114] / 255, 1)
    gradient = np.hypot(luminance[1:-1, 2:] - luminance[1:-1, :-2], luminance[2:, 1:-1] - luminance[:-2, 1:-1]) / 2
    inner = valid[1:-1, 1:-1] & valid[1:-1, 2:] & valid[1:-1, :-2] & valid[2:, 1:-1] & valid[:-2, 1:-1]
    edge = CELL // COARSENING
    for row in range(3):
        for column in range(4):
            cell = np.s_[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
            assert look.valid[row, column] == pytest.approx(valid[1:-1, 1:-1][cell].mean(), abs=1e-6)
            # Colours are whole numbers: up to half a grey level at both ends of a difference.
            assert look.detail[row, column] == pytest.approx(gradient[cell][inner[cell]].mean(), abs=1 / 255 / 2)
    assert list(look.x) == [COLUMN + i for i in range(4)]
    assert list(look.y) == [ROW + i for i in range(3)]
    assert {str(look[name].dtype) for name in ("valid", "cloud", "detail")} == {"float32"}
    assert look.valid.dims == ("y", "x")
    assert not look.cloud.any()
    assert (np.diff(look.detail[1:].mean("y")) > 0.005).all()


@pytest.mark.parametrize("cells", [(-1, 0, 3, 2), (1, 1, 2, 2), (2, -9, 30, 5), (0, 0, 4, 3)])
def test_a_cell_depends_on_its_ground_alone(source: Source, cells: tuple[int, int, int, int]) -> None:
    column0, row0, column1, row1 = cells
    whole = survey_scenes([scene(source)], GRID, (COLUMN - 3, ROW - 2, COLUMN + 6, ROW + 6))
    part = survey_scenes([scene(source)], GRID, (COLUMN + column0, ROW + row0, COLUMN + column1, ROW + row1))
    assert part.sizes == {"x": column1 - column0, "y": row1 - row0}
    x, y = np.intersect1d(whole.x, part.x), np.intersect1d(whole.y, part.y)
    assert x.size
    assert y.size
    assert whole.sel(x=x, y=y).equals(part.sel(x=x, y=y))


@pytest.mark.parametrize("scheduler", ["synchronous", dask.get, dask.threaded.get])
def test_every_scheduler_sees_the_same(source: Source, scheduler: str | Callable[..., Any]) -> None:
    cells = (COLUMN - 1, ROW, COLUMN + 5, ROW + 3)
    assert survey_scenes([scene(source)], GRID, cells, scheduler=scheduler).identical(survey_scenes([scene(source)], GRID, cells))


@pytest.mark.parametrize("sliver", [(3, 100, 5, 300), (CELL - 2, 0, 2, CELL), (200, 0, 3, CELL), (CELL // 2 + 7, 77, 1, 1)])
def test_no_data_goes_unseen(tmp_path: Path, sliver: tuple[int, int, int, int]) -> None:
    """Data less than a coarse pixel wide in a file of nothing, all of it in the middle of 3 x 3 cells: that cell is not taken for empty."""
    pixels = np.zeros((3 * CELL, 3 * CELL, 3), np.uint8)
    left, top, width, height = sliver
    pixels[CELL:, CELL:][top : top + height, left : left + width] = 99
    valid = survey_scenes([scene(write(tmp_path / "sliver.tif", pixels, COLUMN * CELL, ROW * CELL))], GRID, (COLUMN - 1, ROW - 1, COLUMN + 4, ROW + 4)).valid
    assert 0 < valid.sel(x=COLUMN + 1, y=ROW + 1) < 0.1
    assert not valid.sel(x=[COLUMN - 1, COLUMN + 3]).any()
    assert not valid.sel(y=[ROW - 1, ROW + 3]).any()


@pytest.mark.parametrize("over", [1, 7, 8, 9])
def test_a_file_that_ends_just_beyond_a_cell_is_seen_there(tmp_path: Path, over: int) -> None:
    pixels = np.full((CELL + 2 * over, CELL + 2 * over, 3), 99, np.uint8)
    source = write(tmp_path / "file.tif", pixels, COLUMN * CELL - over, ROW * CELL - over)
    valid = survey_scenes([scene(source)], GRID, (COLUMN - 1, ROW - 1, COLUMN + 2, ROW + 2)).valid
    assert (valid > 0).all()
    assert valid.sel(x=COLUMN, y=ROW) == 1


def test_a_broken_file_makes_its_cells_unknown_and_leaves_the_others(tmp_path: Path, source: Source) -> None:
    broken = write(tmp_path / "broken.tif", np.full((CELL // 2, CELL // 2, 3), 9, np.uint8), COLUMN * CELL + 100, ROW * CELL + 100)
    Path(broken.assets[0].href).write_text("no raster")
    cells = (COLUMN - 3, ROW - 3, COLUMN + 6, ROW + 6)
    sound, look = survey_scenes([scene(source)], GRID, cells), survey_scenes([scene(broken), scene(source)], GRID, cells)
    here = {"x": COLUMN, "y": ROW}
    assert float(sound.valid.sel(here)) < 1
    assert float(look.valid.sel(here)) == 1
    assert float(look.detail.sel(here)) == 0
    elsewhere = (look.x != COLUMN) | (look.y != ROW)
    assert look.where(elsewhere).equals(sound.where(elsewhere))


def test_the_first_scene_is_looked_at_where_it_has_pixels(tmp_path: Path, source: Source, pixels: np.ndarray) -> None:
    flat = write(tmp_path / "flat.tif", np.full_like(pixels, 77), COLUMN * CELL, ROW * CELL)
    cells = (COLUMN, ROW, COLUMN + 4, ROW + 3)
    busy, calm, both = (survey_scenes([scene(each) for each in order], GRID, cells) for order in ([source], [flat], [source, flat]))
    assert not calm.detail.any()
    full = busy.valid == 1
    assert full.any()
    assert both.detail.where(full).equals(busy.detail.where(full))
    assert (both.valid == 1).all()


def test_where_there_are_no_scenes_there_is_nothing() -> None:
    look = survey_scenes([], GRID, (0, -1, 2, 1))
    assert not look.valid.any()
    assert not look.detail.any()
    assert look.sizes == {"y": 2, "x": 2}
    with pytest.raises(ValueError, match=r"\(3, 0, 3, 2\)"):
        survey_scenes([], GRID, (3, 0, 3, 2))


class CountingRanges(Ranges):
    """Tells at /count how many bytes of files it has sent."""

    sent = 0

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self.path == "/count":
            return super()._send(200, str(CountingRanges.sent).encode())
        CountingRanges.sent += len(body)
        super()._send(code, body, headers)


def serve(folder: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(CountingRanges, directory=folder)) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


@pytest.fixture
def counting_server(tmp_path: Path) -> Iterator[str]:
    """In a process of its own: rasterio holds the interpreter while GDAL waits for an answer."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from tests import test_survey; test_survey.serve({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


def test_overviews_are_all_that_is_read_of_a_file_that_has_them(tmp_path: Path, counting_server: str) -> None:
    """The bytes that leave the server, and what the survey says of them."""
    pixels = np.random.default_rng(0).integers(1, 255, (3072, 3072, 3), dtype=np.uint8)
    source = write(tmp_path / "noise.tif", pixels, COLUMN * CELL, ROW * CELL)
    with rasterio.open(tmp_path / "noise.tif", "r+") as file:
        file.build_overviews([2, 4, 8, 16], Resampling.average)
    size = (tmp_path / "noise.tif").stat().st_size
    remote = replace(source, assets=(Asset(f"{counting_server}/noise.tif", (1, 2, 3)),))
    cells = (COLUMN, ROW, COLUMN + 6, ROW + 6)
    look = survey_scenes([scene(remote)], GRID, cells, scheduler="synchronous")
    with urlopen(f"{counting_server}/count") as answer:
        sent = int(answer.read())
    assert sent <= 0.05 * size
    assert 0.3 * sent < look.bytes_read <= 0.05 * size
    assert float(look.stored.sum()) == pytest.approx(pixels.size, rel=0.2)  # noise: a byte a pixel and band
    assert look.valid.equals(survey_scenes([scene(source)], GRID, cells).valid)


def test_real_imagery_is_surveyed_as_it_reads(shared: Path) -> None:
    """Zanzibar, mostly empty: the coarse look and the pixels themselves agree on what is worth a visit."""
    path = shared / "imagery" / "oam-drone" / "zanzibar" / "zanzibar_3857.tif"
    with rasterio.open(path) as file:
        grid = Grid("EPSG:3857", file.res[0])
        column, row = round(file.transform.c / file.res[0]) // CELL, round(-file.transform.f / file.res[0]) // CELL
    scenes = [scene(Source("zanzibar", shapely.box(39, -7, 40, -6), (Asset(str(path), (1, 2, 3)),)))]
    cells = (column, row + 30, column + 8, row + 38)
    look = survey_scenes(scenes, grid, cells)
    _, valid = read_scenes(scenes, grid.geobox(column * CELL, (row + 30) * CELL, 8 * CELL, 8 * CELL))
    share = valid.reshape(8, CELL, 8, CELL).mean(axis=(1, 3))
    assert np.abs(look.valid - share).max() < 0.1
    assert (look.valid.values > 0)[share > 0].all()
