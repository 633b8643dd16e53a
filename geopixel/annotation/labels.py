"""What is known to be on the ground: polygons with classes, from vector files, or from the truth of the demo's rendered scenes. Knows nothing of chips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.features import shapes
from shapely import Geometry

from geopixel.annotation.wordings import singular
from geopixel.demo import CLASSES
from geopixel.labels import read_vector, solid
from geopixel.raster import read_scenes
from geopixel.search import find_scenes
from geopixel.tiling import choose_grid, project_area

LONLAT = "EPSG:4326"
RENDERED = {"tree": "trees"}
"""What patches of a class of the rendered scenes are, where they are not single objects of it."""
SMALLEST_RENDERED = 12
"""Pixels: what the truth of rendered scenes shows less of is the rim of something that lies under something else."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Objects on the ground."""

    table: gpd.GeoDataFrame
    """Columns category (str) and geometry: valid polygons and multipolygons in one CRS, which it names; one row an object."""

    def to_crs(self, crs: str) -> Labels:
        if self.table.crs == crs:
            return self
        moved = self.table.to_crs(crs)
        return Labels(moved.set_geometry(shapely.make_valid(moved.geometry.to_numpy(), method="structure", keep_collapsed=False)))

    @property
    def extent(self) -> Geometry:
        """The box around them in EPSG:4326."""
        return shapely.box(*self.table.to_crs(LONLAT).total_bounds)


def read_labels(named: Sequence[tuple[str | None, Path]], column: str, warn: Callable[[str], None]) -> Labels:
    """The polygons of vector files (GeoParquet, GeoJSON, GeoPackage ...), each with the class that all of it has, or None: the class is in column.

    A class whose name is a plural has the singular of it. Lines, points and objects without a class are left out, and so is what is there twice;
    warn is called with a line for each of these.
    Raises ValueError for a file that cannot be read, names no CRS, lacks the column or holds no polygon with a class.
    """
    tables = [_read_table(path, category, column, warn) for category, path in named]
    if not tables:
        raise ValueError("labels come from at least one file, got none")
    crs = tables[0].crs
    table = gpd.GeoDataFrame(pd.concat([each.to_crs(crs) for each in tables], ignore_index=True), crs=crs)
    same = pd.DataFrame({"category": table["category"], "outline": shapely.to_wkb(shapely.normalize(table.geometry.to_numpy()))}).duplicated()
    if same.any():
        warn(f"labels: left out {int(same.sum())} that are there twice")
    return Labels(table[~same].reset_index(drop=True))


def _read_table(path: Path, category: str | None, column: str, warn: Callable[[str], None]) -> gpd.GeoDataFrame:
    table = read_vector(path)
    if category is None and column not in table.columns:
        known = ", ".join(str(name) for name in table.columns if name != table.geometry.name) or "none"
        raise ValueError(f"labels {path} have no column {column!r} with classes, only {known}: name one with --class-column, or the class as CLASS=FILE")
    classes = [category] * len(table) if category is not None else table[column].tolist()
    names = [" ".join(str(name).replace("_", " ").casefold().split()) if isinstance(name, str) else "" for name in classes]
    for name in dict.fromkeys(names):
        if singular(name) != name:
            warn(f"labels {path}: objects of class {name!r} are called {singular(name)!r}")
    names = list(map(singular, names))
    outlines = solid(table.geometry.to_numpy())
    there = ~shapely.is_missing(outlines)
    keep = there & np.array([bool(name) for name in names], bool)
    if not keep.any():
        raise ValueError(f"labels {path} hold no polygon with a class, of {len(table)} features")
    if not keep.all():
        warn(f"labels {path}: left out {int((~there).sum())} that are no polygons and {int((there & ~keep).sum())} without a class")
    return gpd.GeoDataFrame({"category": np.array(names, object)[keep]}, geometry=outlines[keep], crs=table.crs)


def rendered_labels(catalog: str, area: Geometry) -> Labels:
    """What the demo's scenes show in an area (EPSG:4326): every patch of a class in their truth is an object; what touches is one."""
    scenes = find_scenes(catalog, area, assets=("truth",), bands=(1,))
    grid = choose_grid(scenes, None, None)
    left, bottom, right, top = (round(value / grid.resolution) for value in project_area(area, grid.crs).bounds)
    geobox = grid.geobox(left, -top, right - left, top - bottom)
    colours, seen = read_scenes(scenes, geobox)
    codes = np.where(seen, colours[..., 0], 0)
    names = {code: RENDERED.get(name, name) for name, code in CLASSES.items()}
    patches = [(names[int(code)], shapely.geometry.shape(outline)) for outline, code in shapes(codes, codes > 0, connectivity=4, transform=geobox.affine)]
    patches = [(name, outline) for name, outline in patches if outline.area >= SMALLEST_RENDERED * grid.resolution**2]
    return Labels(gpd.GeoDataFrame({"category": [name for name, _ in patches]}, geometry=[outline for _, outline in patches], crs=grid.crs))
