"""Imagery and labels to chips: squares of a world-anchored grid with their pixels and the objects in them. A chip lies where labels are complete;
a label that its edge cuts, or that nodata covers, is kept as far as it is seen and says how much there is of it. Knows nothing of words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from shapely import Geometry

from geopixel.annotation.labels import LONLAT, Labels
from geopixel.annotation.objects import Frame, SceneObject, cut_object
from geopixel.raster import read_scenes, scenes_near
from geopixel.tiling import project_area
from geopixel.types import Asset, Grid, Scene, Source

BLOCK_CHIPS = 4
"""Chips along an edge of the blocks of ground that go whole to training or to validation: neighbours share what their common edge cuts."""
RASTERS = (".tif", ".tiff")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a chip lies: in chips from the CRS origin; rows grow southwards."""

    row: int
    column: int

    @property
    def id(self) -> str:
        return f"{self.column}_{self.row}"

    def geobox(self, grid: Grid, size: int) -> GeoBox:
        return grid.geobox(self.column * size, self.row * size, size, size)


@dataclass(frozen=True, slots=True, eq=False)
class Chip:
    """What is seen at a place."""

    id: str
    frame: Frame
    """rgb is 0 where nothing was observed."""
    valid: float
    """Share of its pixels that were observed."""


def folder_scenes(folder: Path, bands: Sequence[int] = (), stretch: tuple[float, float] | None = None) -> list[Scene]:
    """The GeoTIFFs of a folder as one scene, in the order of their names: where they overlap, the first valid pixel wins.

    bands: one or three 1-based bands; (): those that the files call red, green and blue, else the first three, else the first alone.
    stretch: raw values shown as black and white, where pixels are not 8-bit.
    Raises ValueError where there is no such folder or file, or a file does not say where on Earth it is.
    """
    if not folder.is_dir():
        raise ValueError(f"imagery {folder} is no folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in RASTERS)
    if not paths:
        raise ValueError(f"imagery {folder} holds no GeoTIFF ({', '.join(RASTERS)})")
    return [Scene(folder.name, "1970-01-01", tuple(_file_source(path, tuple(bands)) for path in paths), stretch)]


def _file_source(path: Path, bands: tuple[int, ...]) -> Source:
    try:
        with rasterio.open(path) as raster:
            if raster.crs is None:
                raise ValueError(f"imagery {path} names no coordinate reference system")
            colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
            named = tuple(raster.colorinterp.index(colour) + 1 for colour in colours if colour in raster.colorinterp)
            bands = bands or (named if len(named) == 3 else (1, 2, 3) if raster.count >= 3 else (1,))
            if max(bands) > raster.count:
                raise ValueError(f"imagery {path} has {raster.count} bands, wanted {','.join(map(str, bands))}")
            ground = shapely.segmentize(shapely.box(*raster.bounds), max(*raster.shape) * raster.res[0] / 16)
            footprint = shapely.geometry.shape(transform_geom(raster.crs, LONLAT, shapely.geometry.mapping(ground)))
            return Source(path.name, footprint, (Asset(str(path), bands),), str(raster.crs), float(raster.res[0]))
    except rasterio.RasterioIOError as error:
        raise ValueError(f"imagery {path} cannot be read: {error}") from error


def plan_chips(grid: Grid, window: Geometry, size: int) -> list[Place]:
    """Places of the chips of size x size pixels that lie wholly in the window (EPSG:4326), row by row. Raises ValueError where none does."""
    area = project_area(window, grid.crs)
    edge = size * grid.resolution
    left, bottom, right, top = (value / edge for value in area.bounds)
    columns, rows = (np.arange(int(np.floor(low)), int(np.ceil(high))) for low, high in ((left, right), (-top, -bottom)))
    places = [Place(row, column) for row in rows.tolist() for column in columns.tolist()]
    x, y = (np.array([[place.column, place.row] for place in places]) * edge).reshape(-1, 2).T
    shapely.prepare(grown := area.buffer(grid.resolution / 2, join_style="mitre"))  # an edge that is straight in degrees bends on the grid
    inside = shapely.covers(grown, shapely.box(x, -y - edge, x + edge, -y))
    if not inside.any():
        width, height = area.bounds[2] - area.bounds[0], area.bounds[3] - area.bounds[1]
        told = f"{width / grid.resolution:.0f} x {height / grid.resolution:.0f} pixels of {grid.resolution:g} in {grid.crs}"
        raise ValueError(f"no chip of {size} pixels lies wholly in the window of {told}: smaller chips, or a larger window")
    return [place for place, fits in zip(places, inside, strict=True) if fits]


def split_places(places: Sequence[Place], share: float, seed: int) -> set[Place]:
    """About this share of the places, for validation: whole blocks of BLOCK_CHIPS x BLOCK_CHIPS chips, drawn by the seed. At least one block of
    each kind where there is more than one and the share is not 0."""
    blocks: dict[tuple[int, int], list[Place]] = {}
    for place in places:
        blocks.setdefault((place.row // BLOCK_CHIPS, place.column // BLOCK_CHIPS), []).append(place)
    order = sorted(blocks, key=lambda block: hashlib.sha256(f"{seed} {block}".encode()).digest())
    taken: set[Place] = set()
    for block in order[: len(order) - 1]:
        if not share or len(taken) >= share * len(places):
            break
        taken.update(blocks[block])
    return taken


def cut_chips(places: Sequence[Place], scenes: Sequence[Scene], labels: Labels, grid: Grid, size: int) -> Iterator[Chip]:
    """A chip for each place, in order. Raises ReadError for imagery that cannot be read."""
    local = labels.to_crs(grid.crs)
    outlines, names = local.table.geometry.to_numpy(), local.table["category"].to_numpy()
    tree = shapely.STRtree(outlines)
    for place in places:
        geobox = place.geobox(grid, size)
        rgb, seen = read_scenes(scenes_near(scenes, geobox), geobox)
        frame = shapely.box(*geobox.boundingbox.bbox)
        near = sorted(tree.query(frame, predicate="intersects").tolist())
        objects = [_seen_object(str(names[index]), outlines[index], geobox, seen) for index in near]
        yield Chip(place.id, Frame(rgb, tuple(each for each in objects if each is not None)), float(seen.mean()))


def _seen_object(category: str, outline: Geometry, geobox: GeoBox, seen: np.ndarray) -> SceneObject | None:
    """The pixels whose centres a label covers, in the chip and where something was observed; None where that is nowhere."""
    height, width = seen.shape
    here = shapely.clip_by_rect(outline, *geobox.pad(2).boundingbox.bbox)  # a forest has thousands of holes elsewhere
    pixels = shapely.transform(here, lambda xy: np.stack((~geobox.affine) @ (xy[:, 0], xy[:, 1]), axis=-1))
    left, top, right, bottom = (0.0, 0.0, 0.0, 0.0) if here.is_empty else pixels.bounds
    columns = slice(max(int(np.floor(left)), 0), min(int(np.ceil(right)), width))
    rows = slice(max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), height))
    if columns.start >= columns.stop or rows.start >= rows.stop:
        return None
    moved = shapely.transform(pixels, lambda xy: xy - (columns.start, rows.start))
    drawn = rasterize([(moved, 1)], (rows.stop - rows.start, columns.stop - columns.start), dtype="uint8").astype(bool)
    shown = drawn & seen[rows, columns]
    if not shown.any():
        return None
    whole = np.zeros(seen.shape, bool)
    whole[rows, columns] = shown
    cut = left < 0 or top < 0 or right > width or bottom > height or bool((drawn & ~shown).any())
    return cut_object(category, whole, outline.area / abs(geobox.affine.a * geobox.affine.e) if cut else None)
