"""What is known to be there: polygons of a vector file, or the class rasters of rendered scenes. Knows the run that it is to be compared with,
nothing of what that found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.features import shapes
from rasterio.vrt import WarpedVRT
from shapely import Geometry

from geopixel.demo import CLASSES
from geopixel.errors import NoScenesError
from geopixel.labels import read_polygons
from geopixel.pipeline import Run
from geopixel.search import find_scenes


@dataclass(frozen=True, slots=True)
class Truth:
    """What is there of one prompt. All in one CRS, that of the run's grid."""

    polygons: np.ndarray
    """(n,) valid shapely polygons and multipolygons, one an object."""
    known: Geometry
    """Where they are complete: nothing is said of the ground outside."""


def read_truth(labels: Path, window: Path | None, run: Run) -> Truth:
    """Polygons of a vector file (GeoParquet, GeoJSON, GeoPackage ...), complete in those of window, or everywhere without one; features of other
    kinds (points, lines) are left out. Raises ValueError as read_polygons does, and without a window where no polygon lies in the run's area: labels
    of another place would make any map a bad one."""
    polygons = read_polygons(labels, run.grid.crs)
    if window is None and not shapely.intersects(run.area, polygons).any():
        raise ValueError(f"no polygon of {labels} lies in the area of the run: where that is right, say with a window where the labels are complete")
    return Truth(polygons, shapely.union_all(read_polygons(window, run.grid.crs)) if window else run.area)


def rendered_truth(run: Run, prompt: str) -> Truth:
    """What the demo's rendered scenes show, from their class rasters. Raises ValueError where the run's catalog has none or the prompt is no class."""
    if prompt not in CLASSES:
        raise ValueError(f"rendered scenes know {', '.join(CLASSES)}, not {prompt!r}: give --labels")
    try:
        scenes = find_scenes(run.request.catalog, run.request.area, assets=("truth",), bands=(1,))
    except (NoScenesError, ValueError) as error:
        raise ValueError(f"catalog {run.request.catalog} holds no truth ({error}): give --labels") from error
    left, bottom, right, top = (round(value / run.grid.resolution) for value in run.area.bounds)
    geobox = run.grid.geobox(left - 1, -top - 1, right - left + 2, top - bottom + 2)
    codes, seen = np.zeros(geobox.shape, np.uint8), np.zeros(geobox.shape, bool)
    for path in (asset.href for scene in scenes for source in scene.sources for asset in source.assets):
        with rasterio.open(path) as source, _onto(source, geobox) as warped:
            new = (warped.dataset_mask() > 0) & ~seen
            codes[new] = warped.read(1)[new]
            seen |= new
    return Truth(_trace(seen & (codes == CLASSES[prompt]), geobox), shapely.union_all(_trace(seen, geobox)))


def _trace(mask: np.ndarray, geobox: GeoBox) -> np.ndarray:
    return np.array([shapely.geometry.shape(outline) for outline, _ in shapes(mask.astype(np.uint8), mask, connectivity=4, transform=geobox.affine)])


def _onto(source: rasterio.DatasetReader, geobox: GeoBox) -> WarpedVRT:
    height, width = geobox.shape
    return WarpedVRT(source, crs=str(geobox.crs), transform=geobox.affine, height=height, width=width, resampling=Resampling.nearest)
