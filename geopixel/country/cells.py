"""How a country is parted: cells of whole blocks on the world-anchored grid, each of them a run of its own, and the grid that all of them share.
Pure geometry: knows nothing of catalogs, folders or what becomes of a cell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from pyproj import CRS
from shapely import Geometry

from geopixel.pipeline import MapRequest
from geopixel.polygonize import SQUARE
from geopixel.tiling import METRES_PER_DEGREE, Window, project_area, touched_squares, unproject_area
from geopixel.types import BLOCK_SIZE, HALO, Grid, Tiles

CELL_BLOCKS = 8
"""Blocks along the edge of a cell: 32768 pixels, 20 km at 0.6 m, about a thousand tiles. A lost cell is little, and what it costs to begin one too."""
WIDEST_ZONE = 12.0
"""Degrees: an area wider than two UTM zones is mapped in web Mercator where no CRS is named."""
RESOLUTION_METRES = 0.6
"""Of a plan from the outline alone: NAIP's pixels."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """blocks x blocks blocks of a grid. No object's square (see polygonize.SQUARE) lies in two cells."""

    grid: Grid
    blocks: int
    column: int
    row: int
    """In cells from the CRS origin; rows grow southwards."""

    def __post_init__(self) -> None:
        if self.blocks * BLOCK_SIZE % SQUARE or self.blocks < 1 or self.blocks & (self.blocks - 1):
            raise ValueError(f"a cell is {SQUARE // BLOCK_SIZE} blocks wide, or that times a power of two, got {self.blocks}")

    @property
    def id(self) -> str:
        return f"{self.column}_{self.row}"

    @property
    def window(self) -> Window:
        """Its pixels on the grid: left, top, right, bottom."""
        edge = self.blocks * BLOCK_SIZE
        return self.column * edge, self.row * edge, (self.column + 1) * edge, (self.row + 1) * edge

    @property
    def polygon(self) -> Geometry:
        """In the CRS of the grid."""
        left, top, right, bottom = (edge * self.grid.resolution for edge in self.window)
        return shapely.box(left, -bottom, right, -top)

    def around(self) -> list[Cell]:
        """The cell and its eight neighbours."""
        return [replace(self, column=self.column + x, row=self.row + y) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def country_grid(area: Geometry, crs: str | None, resolution: float | None) -> Grid:
    """The one grid of a country. area: EPSG:4326. crs: None: the UTM zone of its middle, or EPSG:3857 where it is wider than WIDEST_ZONE.
    resolution: in units of the CRS; None: RESOLUTION_METRES, at the equator for a CRS in degrees."""
    crs = default_crs(area) if crs is None else crs
    if resolution is None:
        resolution = RESOLUTION_METRES / METRES_PER_DEGREE if CRS.from_user_input(crs).is_geographic else RESOLUTION_METRES
    return Grid(crs, resolution)


def default_crs(area: Geometry) -> str:
    """See country_grid."""
    west, south, east, north = area.bounds
    if east - west > WIDEST_ZONE or not -80 <= south <= north <= 84:
        return "EPSG:3857"
    zone = min(int(((west + east) / 2 + 180) // 6) + 1, 60)
    return f"EPSG:{(32600 if north + south >= 0 else 32700) + zone}"


def cover(area: Geometry, grid: Grid, blocks: int) -> list[Cell]:
    """The cells that hold all tiles of an area (EPSG:4326), neighbours near each other. Raises ValueError for an area that the CRS cannot hold."""
    squares = touched_squares(area, grid, blocks * BLOCK_SIZE)
    return [Cell(grid, blocks, column, row) for column, row in squares.tolist()]


def cell_request(country: MapRequest, cell: Cell) -> MapRequest:
    """What is asked for in a cell of a country: the part of the area that its tiles see, on the grid of all. The part ends beyond what the tiles of
    the cell read, so that it plans the very tiles that one run over the whole country would."""
    reach = cell.polygon.buffer((HALO + 1) * cell.grid.resolution, join_style="mitre")
    part = shapely.intersection(project_area(country.area, cell.grid.crs), reach)
    area = unproject_area(shapely.MultiPolygon([each for each in shapely.get_parts(part) if each.geom_type == "Polygon"]), cell.grid.crs)
    return replace(country, area=area, crs=cell.grid.crs, resolution=cell.grid.resolution, window=cell.window)


def count_tiles(tiles: Tiles, cells: list[Cell]) -> np.ndarray:
    """(cells, 2) int64: of the tiles of a country, how many each cell has, and how many of them are to be looked at."""
    edge = cells[0].blocks * BLOCK_SIZE
    place = {(cell.column, cell.row): index for index, cell in enumerate(cells)}
    keys, of = np.unique(np.stack([tiles.left // edge, tiles.top // edge]), axis=1, return_inverse=True)
    index = np.array([place[column, row] for column, row in keys.T.tolist()])[of.reshape(-1)]
    return np.stack([np.bincount(index, minlength=len(cells)), np.bincount(index, tiles.to_read, len(cells)).astype(np.int64)], axis=1)
