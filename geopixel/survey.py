"""A coarse look at the scenes before any tile is planned: how much of the ground was seen, and how busy it is, per cell of 512 pixels.
Knows the grid and the scenes; nothing of tiles, prompts or models. Lazy: one dask task a chunk, run by whichever scheduler is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from scipy.ndimage import maximum_filter

from geopixel.errors import ReadError
from geopixel.raster import read_scenes, scenes_near
from geopixel.types import BLOCK_SIZE, TILE_SIZES, Grid, Scene

CELL = min(TILE_SIZES)
"""Pixels of the grid along the edge of a cell."""
COARSENING = 16
"""Pixels of the grid along the edge of a coarse pixel."""
EDGE = CELL // COARSENING
"""Coarse pixels along the edge of a cell."""
CHUNK = BLOCK_SIZE // CELL
"""Cells along the edge of a chunk. Chunks lie on multiples of their size from the CRS origin, whatever is asked for: a cell's values
come from its chunk alone, so two surveys agree on every cell they share."""
LAYERS = ("seen", "near", "inner", "gradient")
"""Of a coarse pixel: was it observed; was it or one that touches it; was it and its four neighbours; if so, the gradient of luminance there, else 0."""
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green, blue (ITU-R BT.601)."""


def survey_scenes(
    scenes: Sequence[Scene], grid: Grid, cells: tuple[int, int, int, int], *, scheduler: str | Callable[..., Any] | None = None
) -> xr.Dataset:
    """Looks at the cells [column0, column1) x [row0, row1) of the grid, given as (column0, row0, column1, row1), in cells of CELL pixels.

    Returns float32 variables over (y, x), whose coordinates are the cells' rows and columns:
    valid, the share 0..1 of the cell that was observed; 0 only where no coarse pixel in the cell, or touching it, has data;
    cloud, the share 0..1 hidden by clouds: 0 throughout, for no collection read so far carries a mask of clouds;
    detail, the mean gradient of luminance per coarse pixel, 0..1, where the cell was observed; 0 where it was not.
    Cells that need a file that cannot be read get valid 1 and detail 0: their tiles find out, and record, what is wrong.

    scheduler: what dask computes with, a name or a function such as ray_dask_get; None: threads.
    Raises ValueError when there are no cells.
    """
    column0, row0, column1, row1 = cells
    if column0 >= column1 or row0 >= row1:
        raise ValueError(f"cells must be (column0, row0, column1, row1) with something between, got {cells}")
    columns = range(column0 // CHUNK, (column1 - 1) // CHUNK + 1)
    rows = range(row0 // CHUNK, (row1 - 1) // CHUNK + 1)
    layers = da.block([[_lazy_chunk(scenes, grid, column, row) for column in columns] for row in rows])
    coarse = xr.DataArray(layers, dims=("layer", "y", "x"), coords={"layer": list(LAYERS)})
    look = coarse.coarsen(y=EDGE, x=EDGE).mean().to_dataset("layer")
    look = look.assign_coords(x=np.arange(columns.start * CHUNK, columns.stop * CHUNK), y=np.arange(rows.start * CHUNK, rows.stop * CHUNK))
    look = look.sel(x=slice(column0, column1 - 1), y=slice(row0, row1 - 1)).compute(scheduler=scheduler or "threads")
    valid = look.seen.where(look.seen > 0, look.near)
    detail = (look.gradient / look.inner.where(look.inner > 0)).fillna(0.0)
    return xr.Dataset({"valid": valid, "cloud": xr.zeros_like(valid), "detail": detail}).astype(np.float32)


def _lazy_chunk(scenes: Sequence[Scene], grid: Grid, column: int, row: int) -> da.Array:
    """The chunk's LAYERS as one dask task that carries only the scenes it needs, or none at all where there are no scenes."""
    shape = (len(LAYERS), CHUNK * EDGE, CHUNK * EDGE)
    near = scenes_near(scenes, _coarse_geobox(grid, column * CHUNK, row * CHUNK, CHUNK))
    if not near:
        return da.zeros(shape, dtype=np.float32, chunks=shape)
    return da.from_delayed(dask.delayed(partial(_chunk, near, grid, column, row))(), shape, dtype=np.float32)


def _chunk(scenes: Sequence[Scene], grid: Grid, column: int, row: int) -> np.ndarray:
    """(LAYERS, y, x) float32 of the chunk's coarse pixels."""
    rgb, valid, unreadable = _read_what_can_be(scenes, _coarse_geobox(grid, column * CHUNK, row * CHUNK, CHUNK))
    luminance = rgb @ LUMINANCE / 255
    across = (luminance[1:-1, 2:] - luminance[1:-1, :-2]) / 2
    down = (luminance[2:, 1:-1] - luminance[:-2, 1:-1]) / 2
    seen = valid[1:-1, 1:-1]
    near = maximum_filter(valid, size=3)[1:-1, 1:-1]
    inner = seen & valid[1:-1, 2:] & valid[1:-1, :-2] & valid[2:, 1:-1] & valid[:-2, 1:-1]
    layers = np.stack([seen, near, inner, np.where(inner, np.hypot(across, down), 0)]).astype(np.float32)
    if unreadable:
        cells = layers.reshape(len(LAYERS), CHUNK, EDGE, CHUNK, EDGE)  # a view
        for y, x in np.ndindex(CHUNK, CHUNK):
            if scenes_near(unreadable, _coarse_geobox(grid, column * CHUNK + x, row * CHUNK + y, 1)):
                cells[:, y, :, x, :] = np.array([1, 1, 0, 0], np.float32)[:, None, None]
    return layers


def _coarse_geobox(grid: Grid, column: int, row: int, cells: int) -> GeoBox:
    """cells x cells cells from (column, row) on, in coarse pixels, and one more on every side: the neighbours that LAYERS speak of."""
    coarse = Grid(grid.crs, grid.resolution * COARSENING)
    return coarse.geobox(column * EDGE - 1, row * EDGE - 1, cells * EDGE + 2, cells * EDGE + 2)


def _read_what_can_be(scenes: Sequence[Scene], geobox: GeoBox) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """As read_scenes, but a file that cannot be read leaves its ground to the next; the third value holds the sources that failed."""
    rgb = np.zeros((*geobox.shape, 3), np.uint8)
    valid = np.zeros(geobox.shape, np.bool_)
    unreadable: list[Scene] = []
    for scene in scenes:
        for source in scene.sources:
            if valid.all():
                return rgb, valid, unreadable
            single = replace(scene, sources=(source,))
            try:
                colours, seen = read_scenes([single], geobox)
            except ReadError:
                unreadable.append(single)
                continue
            rgb = np.where(valid[..., None], rgb, colours)
            valid |= seen
    return rgb, valid, unreadable
