"""How right a finished map is: intersection over union of its masks with what is known to be there, pixel by pixel over its area. Truth is the
class raster of rendered scenes, or polygons of one prompt. Knows the run folder; writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import zarr
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.features import geometry_mask
from rasterio.vrt import WarpedVRT

from geopixel import ledger, mosaic
from geopixel.demo import CLASSES
from geopixel.errors import NoScenesError
from geopixel.pipeline import Run, check_finished, load_run
from geopixel.search import find_scenes
from geopixel.storage import Folder

Truth = Callable[[GeoBox, str], np.ndarray]
"""(geobox, prompt) -> (height, width) int8: 1 there, 0 not there, -1 not known."""


@dataclass(frozen=True, slots=True)
class Score:
    intersection: int
    found: int
    """Pixels that the map shows."""
    true: int
    """Pixels that are there."""

    @property
    def iou(self) -> float:
        """1 where nothing was there and nothing was found."""
        union = self.found + self.true - self.intersection
        return self.intersection / union if union else 1.0


def evaluate(folder: Folder, truth: Truth) -> dict[str, Score]:
    """Scores of every prompt of a run over its area. Ground without an answer (failed, no data) counts as not found.
    Raises ValueError where the run is not finished."""
    check_finished(folder)
    run = load_run(folder)
    root: Any = zarr.open_group(folder.zarr(mosaic.MASKS), mode="r")
    resolution, _, left, _, _, top = root["mask"].attrs["spatial:transform"]
    counts = {prompt: np.zeros(3, np.int64) for prompt in run.request.prompts}
    for block in mosaic.blocks_of(ledger.load_plan(folder)):
        geobox = block.geobox
        column, row = block.left - round(left / resolution), block.top - round(-top / resolution)
        inside = geometry_mask([run.area], geobox.shape, geobox.affine, invert=True)
        for index, prompt in enumerate(run.request.prompts):
            known = truth(geobox, prompt)
            looked = inside & (known >= 0)
            found = looked & (root["mask"][index, row : row + geobox.shape[0], column : column + geobox.shape[1]] == 1)
            there = looked & (known == 1)
            counts[prompt] += [(found & there).sum(), found.sum(), there.sum()]
    return {prompt: Score(*map(int, values)) for prompt, values in counts.items()}


def rendered_truth(run: Run) -> Truth:
    """The class rasters of the demo scenes that a run was made from. Raises ValueError where its catalog has none or a prompt is no class."""
    if unknown := [prompt for prompt in run.request.prompts if prompt not in CLASSES]:
        raise ValueError(f"rendered scenes know {', '.join(CLASSES)}, not {unknown[0]!r}")
    try:
        scenes = find_scenes(run.request.catalog, run.request.area, assets=("truth",), bands=(1,))
    except (NoScenesError, ValueError) as error:
        raise ValueError(f"catalog {run.request.catalog} holds no truth: {error}") from error
    paths = [asset.href for scene in scenes for source in scene.sources for asset in source.assets]

    def look_up(geobox: GeoBox, prompt: str) -> np.ndarray:
        known = np.full(geobox.shape, -1, np.int8)
        for path in paths:
            with rasterio.open(path) as source, _onto(source, geobox) as warped:
                codes, seen = warped.read(1), warped.dataset_mask() > 0
            empty = seen & (known < 0)
            known[empty] = codes[empty] == CLASSES[prompt]
        return known

    return look_up


def polygon_truth(path: str) -> Truth:
    """Polygons of a vector file: 1 inside them, 0 elsewhere, for whatever prompt. Raises ValueError where the file cannot be read."""
    try:
        polygons = gpd.read_file(path).geometry
    except Exception as error:  # pyogrio's kinds are its own
        raise ValueError(f"truth {path!r} cannot be read: {str(error).splitlines()[0]}") from error
    if polygons.crs is None or polygons.empty:
        raise ValueError(f"truth {path!r} needs polygons and a CRS, got {len(polygons)} and {polygons.crs}")

    def look_up(geobox: GeoBox, prompt: str) -> np.ndarray:
        return geometry_mask(polygons.to_crs(str(geobox.crs)), geobox.shape, geobox.affine, invert=True).astype(np.int8)

    return look_up


def _onto(source: rasterio.DatasetReader, geobox: GeoBox) -> WarpedVRT:
    height, width = geobox.shape
    return WarpedVRT(source, crs=str(geobox.crs), transform=geobox.affine, height=height, width=width, resampling=Resampling.nearest)


