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

from geopixel.assignment import Assignment, assign_sources
from geopixel.errors import ReadError
from geopixel.raster import enumerate_sources, only, read_origins, scenes_near
from geopixel.tally import tallied
from geopixel.types import BLOCK_SIZE, CLOUDED, NO_SCENE, TILE_SIZES, Grid, Scene

CELL = min(TILE_SIZES)
"""Pixels of the grid along the edge of a cell."""
COARSENING = 16
"""Pixels of the grid along the edge of a coarse pixel."""
EDGE = CELL // COARSENING
"""Coarse pixels along the edge of a cell."""
CHUNK = 2 * BLOCK_SIZE // CELL
"""Cells along the edge of a chunk: 514 coarse pixels, about a block of an overview; of smaller ones more would read the same block.
Chunks lie on multiples of their size from the CRS origin, whatever is asked for: a cell's values
come from its chunk alone, so two surveys agree on every cell they share."""
LAYERS = ("seen", "clouded", "near", "inner", "gradient", "read", "stored")
"""Of a coarse pixel: was it observed; was it, but hidden by clouds; was it or one that touches it; were it and its four neighbours observed
without clouds; if so, the gradient of luminance there, else 0. And bytes, spread evenly over the chunk: stored ones that the survey read, and
those that its observed ground takes at the resolution of the grid."""
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green, blue (ITU-R BT.601)."""


def survey_scenes(
    scenes: Sequence[Scene], grid: Grid, cells: tuple[int, int, int, int], *, scheduler: str | Callable[..., Any] | None = None
) -> xr.Dataset:
    """Looks at the cells [column0, column1) x [row0, row1) of the grid, given as (column0, row0, column1, row1), in cells of CELL pixels.

    Returns float32 variables over (y, x), whose coordinates are the cells' rows and columns:
    valid, the share 0..1 of the cell that was observed, clouds included; 0 only where no coarse pixel in the cell, or touching it, has data;
    cloud, the share 0..1 of what was observed that every item calls cloud or its shadow; 0 where no item has a quality band;
    detail, the mean gradient of luminance per coarse pixel, 0..1, where the cell was observed without clouds; 0 where it was not;
    stored, about the bytes that the cell takes in the files at the grid's own resolution.
    Its attribute bytes_read is what the survey itself read: overviews, where the files have them; without masks, and again for every chunk.
    Cells that need a file that cannot be read get valid 1 and detail 0: their tiles find out, and record, what is wrong.

    scheduler: what dask computes with, a name or a function such as ray_dask_get; None: threads.
    Raises ValueError when there are no cells.
    """
    column0, row0, column1, row1 = cells
    if column0 >= column1 or row0 >= row1:
        raise ValueError(f"cells must be (column0, row0, column1, row1) with something between, got {cells}")
    columns = range(column0 // CHUNK, (column1 - 1) // CHUNK + 1)
    rows = range(row0 // CHUNK, (row1 - 1) // CHUNK + 1)
    chunks = np.array([(column, row) for row in rows for column in columns])
    near = assign_sources(scenes, grid, chunks, CHUNK * CELL)
    layers = da.block([[_lazy_chunk(scenes, near, grid, column, row) for column in columns] for row in rows])
    coarse = xr.DataArray(layers, dims=("layer", "y", "x"), coords={"layer": list(LAYERS)})
    look = coarse.coarsen(y=EDGE, x=EDGE).mean().to_dataset("layer")
    look = look.assign_coords(x=np.arange(columns.start * CHUNK, columns.stop * CHUNK), y=np.arange(rows.start * CHUNK, rows.stop * CHUNK))
    (look,) = dask.compute(look, scheduler=scheduler or "threads")
    bytes_read = round(float(look.read.sum()) * EDGE**2)  # of whole chunks: that is what was read
    look = look.sel(x=slice(column0, column1 - 1), y=slice(row0, row1 - 1))
    valid = look.seen.where(look.seen > 0, look.near)
    cloud = (look.clouded / look.seen.where(look.seen > 0)).fillna(0.0)
    detail = (look.gradient / look.inner.where(look.inner > 0)).fillna(0.0)
    survey = xr.Dataset({"valid": valid, "cloud": cloud, "detail": detail, "stored": look.stored * EDGE**2}).astype(np.float32)
    return survey.assign_attrs(bytes_read=bytes_read)


def _lazy_chunk(scenes: Sequence[Scene], assigned: Assignment, grid: Grid, column: int, row: int) -> da.Array:
    """The chunk's LAYERS as one dask task that carries only the scenes it needs, or none at all where there are no scenes."""
    shape = (len(LAYERS), CHUNK * EDGE, CHUNK * EDGE)
    among = assigned.at(column * CHUNK * CELL, row * CHUNK * CELL)
    if not len(among):
        return da.zeros(shape, dtype=np.float32, chunks=shape)
    return da.from_delayed(dask.delayed(partial(_chunk, only(scenes, among), grid, column, row))(), shape, dtype=np.float32)


def _chunk(scenes: Sequence[Scene], grid: Grid, column: int, row: int) -> np.ndarray:
    """(LAYERS, y, x) float32 of the chunk's coarse pixels."""
    with tallied() as touched:
        rgb, origin, unreadable = _read_what_can_be(scenes, _coarse_geobox(grid, column * CHUNK, row * CHUNK, CHUNK))
    clear, valid = origin < CLOUDED, origin != NO_SCENE
    luminance = rgb @ LUMINANCE / 255
    across = (luminance[1:-1, 2:] - luminance[1:-1, :-2]) / 2
    down = (luminance[2:, 1:-1] - luminance[:-2, 1:-1]) / 2
    seen, clouded = valid[1:-1, 1:-1], (origin == CLOUDED)[1:-1, 1:-1]
    near = maximum_filter(valid, size=3)[1:-1, 1:-1]
    inner = clear[1:-1, 1:-1] & clear[1:-1, 2:] & clear[1:-1, :-2] & clear[2:, 1:-1] & clear[:-2, 1:-1]
    read = np.full(seen.shape, sum(each.bytes for each in touched) / seen.size)
    stored = seen * (sum(each.bytes_finer(COARSENING) for each in touched) / max(seen.sum(), 1))
    layers = np.stack([seen, clouded, near, inner, np.where(inner, np.hypot(across, down), 0), read, stored]).astype(np.float32)
    if unreadable:
        cells = layers.reshape(len(LAYERS), CHUNK, EDGE, CHUNK, EDGE)  # a view
        for y, x in np.ndindex(CHUNK, CHUNK):
            if scenes_near(unreadable, _coarse_geobox(grid, column * CHUNK + x, row * CHUNK + y, 1)):
                cells[:5, y, :, x, :] = np.array([1, 0, 1, 0, 0], np.float32)[:, None, None]
    return layers


def _coarse_geobox(grid: Grid, column: int, row: int, cells: int) -> GeoBox:
    """cells x cells cells from (column, row) on, in coarse pixels, and one more on every side: the neighbours that LAYERS speak of."""
    coarse = Grid(grid.crs, grid.resolution * COARSENING)
    return coarse.geobox(column * EDGE - 1, row * EDGE - 1, cells * EDGE + 2, cells * EDGE + 2)


def _read_what_can_be(scenes: Sequence[Scene], geobox: GeoBox) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """As read_origins, but a file that cannot be read leaves its ground to the next; the third value holds the sources that failed. What is
    not clear is CLOUDED or NO_SCENE in the second; what is has any other value."""
    rgb = np.zeros((*geobox.shape, 3), np.uint8)
    origin = np.full(geobox.shape, NO_SCENE, np.uint16)
    unreadable: list[Scene] = []
    for _, scene, source in enumerate_sources(scenes):
        if (origin < CLOUDED).all():
            break
        single = replace(scene, sources=(source,))
        try:
            colours, seen = read_origins([single], geobox)
        except ReadError:
            unreadable.append(single)
            continue
        new = (origin >= CLOUDED) & (seen < origin)  # clear before CLOUDED before NO_SCENE
        rgb[new], origin[new] = colours[new], seen[new]
    return rgb, origin, unreadable
