"""What reading takes, counted without reading it: the bytes of the blocks that a window touches, from the file's own index. Knows open files and
grids; nothing of pixels. Somebody who wants to know opens a tally around the reads; else nothing is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import product
from math import floor

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import Interleaving
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds
from rasterio.windows import Window


@dataclass(frozen=True, slots=True)
class Touched:
    """What a read takes of one file: all the blocks that its window touches."""

    bytes: int
    """As they are stored, without masks; decoded, where the format does not tell."""
    pixels: int
    """In the blocks, and ..."""
    wanted: float
    """... in the window."""
    shrinkage: float
    """Pixels of the full resolution along the edge of a GeoBox pixel."""
    factors: tuple[int, ...]
    """By how much the levels of the file are coarser than its full resolution: 1, then its overviews."""

    def bytes_finer(self, times: int) -> float:
        """About what the same ground takes at the level that a grid so many times finer is read from."""
        ratio = level_factor(self.factors, self.shrinkage) / level_factor(self.factors, self.shrinkage / times)
        return self.bytes * self.wanted / self.pixels * ratio**2


_TALLY: ContextVar[list[Touched] | None] = ContextVar("tally", default=None)


@contextmanager
def tallied() -> Iterator[list[Touched]]:
    """Inside, what every read of this thread touches is noted in the list."""
    tally: list[Touched] = []
    token = _TALLY.set(tally)
    try:
        yield tally
    finally:
        _TALLY.reset(token)


def level_factor(factors: Sequence[int], shrinkage: float) -> int:
    """The coarsest level that is still as fine as the GeoBox: one of factors, of which 1 is the full resolution."""
    return max(factor for factor in factors if factor == 1 or factor <= shrinkage * 1.001)


def note(dataset: DatasetReader, geobox: GeoBox, bands: Sequence[int], shrinkage: float, factors: tuple[int, ...]) -> None:
    """Notes what reading geobox touches of this level of a file, if somebody asks (see tallied)."""
    tally, window = _TALLY.get(), None
    if tally is not None:
        window = _window(dataset, geobox)
    if tally is None or window is None:
        return
    height, width = dataset.block_shapes[0]
    columns = range(int(window.col_off // width), int((window.col_off + window.width - 1) // width) + 1)
    rows = range(int(window.row_off // height), int((window.row_off + window.height - 1) // height) + 1)
    interleaved = dataset.count > 1 and dataset.interleaving == Interleaving.pixel
    decoded = height * width * np.dtype(dataset.dtypes[0]).itemsize * (dataset.count if interleaved else 1)
    stored = 0
    for column, row, band in product(columns, rows, (1,) if interleaved else bands):
        size = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=min(band, dataset.count))
        stored += int(size) if size else 0 if dataset.driver == "GTiff" else decoded  # a block of a TIFF that is not there has no size
    tally.append(Touched(stored, len(columns) * len(rows) * height * width, window.width * window.height, shrinkage, factors))


def _window(dataset: DatasetReader, geobox: GeoBox) -> Window | None:
    """The pixels of the file that lie on geobox; None where there are none."""
    if dataset.crs is None:  # ground control points: anywhere
        return Window(0, 0, dataset.width, dataset.height)
    bounds = geobox.extent.boundingbox
    west, south, east, north = transform_bounds(CRS.from_user_input(str(geobox.crs)), dataset.crs, *bounds)
    if not np.isfinite([west, south, east, north]).all() or west > east:  # the grid reaches where this CRS ends: anywhere
        return Window(0, 0, dataset.width, dataset.height)
    columns, rows = zip(*[~dataset.transform @ corner for corner in ((west, south), (west, north), (east, south), (east, north))], strict=True)
    left, right = (floor(min(max(value, 0), dataset.width)) for value in (min(columns) + 0.01, max(columns) + 0.99))
    top, bottom = (floor(min(max(value, 0), dataset.height)) for value in (min(rows) + 0.01, max(rows) + 0.99))
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None
