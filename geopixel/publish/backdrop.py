"""What the pictures of a run are drawn on: its imagery over the area, read once and coarse, and the colours they share. Knows scenes and a
grid; nothing of features or tiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Geod, Transformer
from shapely import Geometry

from geopixel.errors import ReadError
from geopixel.raster import read_scenes
from geopixel.types import Grid, Scene, State

LONGEST = 2400
"""Pixels along the longer side of a backdrop, at most."""
MARGIN = 0.02
"""Of the area's size, around it, so that its outline can be seen."""
COLOURS = ["#ffd60a", "#00e5ff", "#ff4fd8", "#7cff3a", "#ff8a1f", "#5b8cff", "#c68bff", "#00c08b", "#ffb3c7", "#b8a200", "#8fd3ff", "#c98f5a"]
"""Of the prompts, in order. None is the red of failed tiles."""
FAILED, NO_IMAGERY, OUTLINE, INK, PAPER = "#ff2020", "#808080", "#ffffff", "#f0f0f0", "#1b1d21"

STATE_COLOURS: dict[State, str] = {"ok": "#2fb46e", "empty": "#5b8cff", "nodata": NO_IMAGERY, "cloud": "#d9d9e8", "outside": "#33373d", "failed": FAILED}
ID, SCORE = "id", "score"
"""Columns of features.parquet: the id of a feature, and the mean probability over it."""


@dataclass(frozen=True, slots=True)
class Backdrop:
    """The imagery over an area and a margin."""

    rgb: np.ndarray
    """(height, width, 3) uint8, NO_IMAGERY where nothing was observed."""
    valid: np.ndarray
    """(height, width) bool; True: the pixel was observed."""
    geobox: GeoBox
    """Square pixels of the grid's CRS, never finer than the grid's own."""

    def square_metres(self, area: Geometry) -> float:
        """Ground of an area in the CRS, by the size of a pixel in the middle: good to the percent that shares are shown with."""
        across, down = self.metres
        return float(area.area / self.geobox.affine.a**2 * across * down)

    @property
    def metres(self) -> tuple[float, float]:
        """Ground metres of a pixel in its middle, eastwards and southwards: what turns pixels into distances, in any CRS."""
        height, width = self.geobox.shape
        return metres_per_unit(str(self.geobox.crs), *(self.geobox.affine @ (width / 2, height / 2)), self.geobox.affine.a)


def read_backdrop(scenes: Iterable[Scene], grid: Grid, area: Geometry) -> Backdrop:
    """The scenes over the area, which is in the grid's CRS. A file that cannot be read leaves its ground to the next one: a picture is no
    reason to fail."""
    geobox = _window(area, grid)
    rgb, valid = np.zeros((*geobox.shape, 3), np.uint8), np.zeros(geobox.shape, bool)
    for scene in scenes:
        for source in scene.sources:
            if valid.all():
                break
            try:
                colours, seen = read_scenes([replace(scene, sources=(source,))], geobox)
            except ReadError:
                continue
            new = seen & ~valid
            rgb[new] = colours[new]
            valid |= new
    rgb[~valid] = int(NO_IMAGERY[1:3], 16)
    return Backdrop(rgb, valid, geobox)


def colour(index: int) -> str:
    """Of the prompt with that index."""
    return COLOURS[index % len(COLOURS)]


def ground_text(m2: float) -> str:
    """Ground in the unit that suits it."""
    for unit, size in (("km\u00b2", 1e6), ("ha", 1e4)):
        if m2 >= size:
            return f"{m2 / size:,.3g} {unit}" if m2 < 1000 * size else f"{m2 / size:,.0f} {unit}"
    return f"{m2:,.0f} m\u00b2"


def share_text(part: float) -> str:
    """A part of one, in percent."""
    return "< 0.1 %" if 0 < part < 0.001 else f"{100 * part:.1f} %"


def metres_per_unit(crs: str, x: float, y: float, length: float) -> tuple[float, float]:
    """Ground metres of a step of length units of the CRS at (x, y), along x and along y, on the WGS 84 ellipsoid."""
    to_degrees = Transformer.from_crs(CRS(crs), "EPSG:4326", always_xy=True)
    west, east, south, north = x - length / 2, x + length / 2, y - length / 2, y + length / 2
    longitude, latitude = to_degrees.transform([west, east, x, x], [y, y, south, north])
    _, _, metres = Geod(ellps="WGS84").inv(longitude[::2], latitude[::2], longitude[1::2], latitude[1::2])
    return float(metres[0]), float(metres[1])


def _window(area: Geometry, grid: Grid) -> GeoBox:
    """The area and a margin, LONGEST pixels along the longer side or as many as the grid has."""
    left, bottom, right, top = area.bounds
    margin = MARGIN * max(right - left, top - bottom)
    left, bottom, right, top = left - margin, bottom - margin, right + margin, top + margin
    pixel = max((right - left) / LONGEST, (top - bottom) / LONGEST, grid.resolution)
    shape = max(1, round((top - bottom) / pixel)), max(1, round((right - left) / pixel))
    return GeoBox(shape, Affine(pixel, 0, left, 0, -pixel, top), grid.crs)
