"""A picture and questions about it: reads pictures of any kind, keeps the conversation, shows answers in colours, draws their masks over the
picture and traces them on the ground. Knows one picture and the model; nothing of tiles, catalogs or runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from PIL import Image, ImageColor, ImageDraw, ImageFont
from pyproj import Geod
from rasterio._err import CPLE_BaseError  # GDAL's own errors have no public name
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.transform import xy
from rasterio.warp import transform, transform_geom
from rich.text import Text
from scipy.ndimage import binary_erosion

from geopixel import polygonize
from geopixel.dateline import cut_at_antimeridian
from geopixel.errors import ReadError
from geopixel.model import config
from geopixel.publish import COLOURS, INK, MARKER, PAPER
from geopixel.raster import read_scenes
from geopixel.types import Asset, Grid, Scene, Source

if TYPE_CHECKING:
    from geopixel.model import GeoPixel  # loads torch: imported where a model is loaded, never by those who only read

LONLAT = "OGC:CRS84"
MIN_EDGE = 4
"""Pixels along an edge from which on there is something to see."""
MAX_PIXELS = 100_000_000
"""Several times what fits the context of the published model; more would fill the memory before the model can refuse it."""
STRETCH = (2.0, 98.0)
"""Percentiles of the valid values, all bands together, shown as black and white where they are not 8-bit: a lone picture has no collection to know it from."""
COLUMNS = {"phrase": "string", "prompt": "string", "score": "float64", "object_score": "float64", "area_m2": "float64"}
"""Of the masks on the ground, besides geometry: phrase is missing where the answer names none; score is the IoU that the decoder expects of
its mask, object_score its logit of the object being there at all; the area is on the WGS 84 ellipsoid."""

_FLAT = Grid("EPSG:3857", 2.0)
"""Where every picture is laid to be read in its own pixels. Any projected CRS would do; pixels of size one count as no place at all in GDAL."""
_FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (0, 1), (0,))
"""Axes turned round by the orientations 1 to 4 of EXIF 2.32, tag 274; 5 to 8 are the same after rows and columns changed over."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pixels of a picture are on the ground."""

    crs: CRS
    pixels: Affine | tuple[GroundControlPoint, ...]
    """From (column, row), counted from the upper left corner of the first pixel, to (x, y) in crs."""

    def to_ground(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return xy(self.pixels, rows, columns, offset="ul")


@dataclass(frozen=True, slots=True)
class Picture:
    rgb: np.ndarray
    """(height, width, 3) uint8; 0 where not valid."""
    valid: np.ndarray
    """(height, width) bool; True: the file has a pixel there. Masks end where it has none."""
    place: Place | None
    """None: the file does not say, or not by a way that leads to longitude and latitude."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One mask of an answer."""

    phrase: str | None
    colour: str
    """#rrggbb, of the phrase in the text and of the mask in the overlay."""
    mask: np.ndarray
    """(height, width) bool; True: inside the object, and valid in the picture."""
    score: float
    object_score: float


@dataclass(frozen=True, slots=True)
class Reply:
    question: str
    text: str
    """As the model gave it, markers included."""
    marks: list[Mark]
    """One for every [SEG] of the text, in order."""

    @property
    def seen(self) -> list[Mark]:
        """The marks whose mask has any pixel."""
        return [mark for mark in self.marks if mark.mask.any()]


class Conversation:
    """Questions about one picture, each asked after all that was said before."""

    def __init__(self, model: GeoPixel, picture: Picture, *, threshold: float, max_new_tokens: int) -> None:
        """threshold: probability from which on a pixel belongs to a mask. max_new_tokens: longest answer."""
        self.model, self.picture, self.threshold, self.max_new_tokens = model, picture, threshold, max_new_tokens
        self.history: list[tuple[str, str]] = []

    def ask(self, question: str) -> Reply:
        """Raises ValueError where question, picture and all that was said do not fit the model's context; the history then stays as it was."""
        answer = self.model.ask([self.picture.rgb], [question], history=self.history, max_new_tokens=self.max_new_tokens)[0][0]
        phrases = [match["phrase"] for match in MARKER.finditer(answer.text) if match["tied"] or match["bare"]]
        masks = (answer.masks >= self.threshold) & self.picture.valid
        marks = [
            Mark(phrase, COLOURS[index % len(COLOURS)], mask, float(score), float(object_score))
            for index, (phrase, mask, score, object_score) in enumerate(zip(phrases, masks, answer.scores, answer.object_scores, strict=True))
        ]
        self.history.append((question, answer.text))
        return Reply(question, answer.text, marks)


def default_model() -> str:
    """The model that a person is given who names none."""
    import torch

    return config.default_model("cuda" if torch.cuda.is_available() else "cpu")


def read_picture(path: Path) -> Picture:
    """The picture in a file that GDAL reads, in its own pixels and 8 bits: red, green and blue, else the first three bands, else the first as grey.

    Values that are not 8-bit are stretched from STRETCH. A picture without a place is turned upright as its EXIF orientation says.
    Raises ReadError, naming the file and why, for one that cannot be read, ValueError for one that is too small or too large.
    """
    with warnings.catch_warnings(), MemoryFile(ext=".vrt") as flat:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path.resolve(strict=True)) as dataset:
                _check(dataset, path)
                place, orientation = _place(dataset), dataset.tags().get("EXIF_Orientation", "")
                rgb, valid = _read_flat(dataset, flat)
        except (ReadError, RasterioError, CPLE_BaseError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error.__cause__ or error)
            raise ReadError(f"cannot read {path}: {' '.join(reason.split())}") from error
    if place is None and orientation in tuple("12345678"):  # some cameras write 0, for not known
        rgb, valid = _upright(rgb, int(orientation)), _upright(valid, int(orientation))
    return Picture(rgb, valid, place)


def _check(dataset: DatasetReader, path: Path) -> None:
    height, width = dataset.shape
    if not dataset.count or "complex" in dataset.dtypes[0]:
        raise ReadError(f"it holds {dataset.dtypes[0]} values, no colours" if dataset.count else "it holds no bands of pixels")
    if min(height, width) < MIN_EDGE:
        raise ValueError(f"a picture has at least {MIN_EDGE} x {MIN_EDGE} pixels, got {width} x {height} in {path}")
    if height * width > MAX_PIXELS:
        raise ValueError(f"a picture has at most {MAX_PIXELS:,} pixels, got {width} x {height} in {path}; map it in tiles instead")


def _place(dataset: DatasetReader) -> Place | None:
    points, points_crs = dataset.gcps
    by_points = bool(points) and (dataset.crs is None or dataset.transform.is_identity)
    crs = points_crs or dataset.crs if by_points else dataset.crs
    if crs is None or (not by_points and dataset.transform.is_identity):
        return None
    place = Place(crs, tuple(points) if by_points else dataset.transform)
    height, width = dataset.shape
    try:
        corners = transform(crs, LONLAT, *place.to_ground(np.array([0, width, width, 0]), np.array([0, 0, height, height])))
    except (CPLE_BaseError, CRSError):  # another planet, a grid of somebody's own, or a view beyond the Earth's edge
        return None
    return place if np.isfinite(corners).all() else None


def _read_flat(dataset: DatasetReader, flat: MemoryFile) -> tuple[np.ndarray, np.ndarray]:
    """rgb and valid of a Picture by way of raster.read_scenes, which reads places: flat becomes a description of the file that lies on _FLAT."""
    height, width = dataset.shape
    geobox = _FLAT.geobox(0, 0, width, height)
    rasterio.shutil.copy(dataset, flat.name, driver="VRT")
    with rasterio.open(flat.name, "r+") as laid:
        laid.crs, laid.transform = CRS.from_user_input(_FLAT.crs), Affine(*geobox.transform[:6])
    bands = _bands(dataset)
    source = Source("picture", geobox.geographic_extent.geom, (Asset(flat.name, bands),))
    rgb, valid = read_scenes([Scene("picture", "", (source,), _stretch(dataset, bands))], geobox)
    if not valid.any():
        raise ReadError("it holds no valid pixel")
    return rgb, valid


def _bands(dataset: DatasetReader) -> tuple[int, ...]:
    """1-based."""
    kinds = list(dataset.colorinterp)
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    if all(colour in kinds for colour in colours):
        return tuple(kinds.index(colour) + 1 for colour in colours)
    opaque = [band for band, kind in enumerate(kinds, start=1) if kind != ColorInterp.alpha]
    return tuple(opaque[: 3 if len(opaque) >= 3 else 1])


def _stretch(dataset: DatasetReader, bands: Sequence[int]) -> tuple[float, float] | None:
    """Raw values shown as black and white; None where they are 8-bit colours already."""
    if dataset.colorinterp[0] == ColorInterp.palette:
        return None
    if dataset.dtypes[bands[0] - 1] == "uint8":
        bits = int(dataset.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
        return None if bits == 8 else (0.0, 2.0**bits - 1)
    height, width = dataset.shape
    sample = dataset.read(bands, out_shape=(len(bands), min(height, 1024), min(width, 1024)), masked=True).compressed()
    sample = sample[np.isfinite(sample)].astype(np.float64)
    if not sample.size:
        raise ReadError("it holds no valid pixel")
    low, high = np.percentile(sample, STRETCH)
    return (float(low), float(high)) if low < high else (float(sample.min()), float(max(sample.max(), sample.min() + 1)))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """pixels (height, width, ...) as they are meant to be seen; orientation: 1 to 8, tag 274 of EXIF."""
    turned = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    return np.ascontiguousarray(np.flip(turned, _FLIPS[(orientation - 1) % 4]))


def coloured(reply: Reply) -> Text:
    """The answer for a terminal: phrases in the colours of their masks, a square for each mask without a phrase, no markers."""
    shown, end, marks = Text(), 0, iter(reply.marks)
    for match in MARKER.finditer(reply.text):
        shown.append(reply.text[end : match.start()])
        style = f"bold {next(marks).colour}" if match["tied"] or match["bare"] else ""
        shown.append("\N{BLACK SQUARE}" if match["bare"] else match["phrase"] or "", style)
        end = match.end()
    return shown.append(reply.text[end:])


def draw_overlay(picture: Picture, reply: Reply) -> Image.Image:
    """The picture, pixel for pixel, with each mask half transparent and outlined along its own outermost pixels, and a legend below."""
    height, width = picture.rgb.shape[:2]
    pixels, thickness = picture.rgb.copy(), max(1, round(max(height, width) / 600))
    for mark in reply.seen:
        pixels[mark.mask] = (pixels[mark.mask].astype(np.uint16) + ImageColor.getrgb(mark.colour)) // 2
    for mark in reply.seen:
        pixels[mark.mask & ~binary_erosion(mark.mask, iterations=thickness)] = ImageColor.getrgb(mark.colour)
    legend = _legend([(mark.colour, mark.phrase or reply.question) for mark in reply.seen], max(width, 320))  # narrower, it could not be read
    sheet = Image.new("RGB", (legend.width, height + legend.height), PAPER)
    sheet.paste(Image.fromarray(pixels), (0, 0))
    sheet.paste(legend, (0, height))
    return sheet


def _legend(entries: Sequence[tuple[str, str]], width: int) -> Image.Image:
    """A line with a swatch for each (colour, text)."""
    size = max(14, width // 60)
    line, font = 2 * size, ImageFont.load_default(size)
    panel = Image.new("RGB", (width, line * len(entries)), PAPER)
    draw = ImageDraw.Draw(panel)
    for row, (colour, text) in enumerate(entries):
        top, label = row * line + size // 2, " ".join(text.split())
        shown = label
        while draw.textlength(shown, font) > width - 3 * size:
            label = label[:-1]
            shown = label + "..."
        draw.rectangle((size // 2, top, size // 2 + size, top + size), colour)
        draw.text((2 * size, top + size // 2), shown, INK, font, anchor="lm")
    return panel


def masks_on_the_ground(picture: Picture, reply: Reply) -> gpd.GeoDataFrame:
    """COLUMNS and geometry, a row for each mask seen: the multipolygon of its 4-connected objects in OGC:CRS84, traced exactly along their pixels,
    cut where it crosses the antimeridian, outer rings counter-clockwise. Raises ValueError for a picture without a place."""
    if picture.place is None:
        raise ValueError("masks go to the ground from a picture that has a place, got one without")
    masks = np.array([mark.mask for mark in reply.seen]).reshape(-1, *picture.rgb.shape[:2])
    parts = polygonize.trace_block(masks, np.broadcast_to(np.uint8(0), masks.shape), left=0, top=0)
    polygons, owner = shapely.from_wkb(parts["geometry"].to_numpy(zero_copy_only=False)), parts["prompt"].to_numpy()
    geometry = [_lonlat(shapely.MultiPolygon(list(polygons[owner == index])), picture.place) for index in range(len(masks))]
    areas = [Geod(ellps="WGS84").geometry_area_perimeter(each)[0] for each in geometry]  # geodesic, after Karney (2013); counter-clockwise is positive
    rows = [(mark.phrase, reply.question, mark.score, mark.object_score, area) for mark, area in zip(reply.seen, areas, strict=True)]
    return gpd.GeoDataFrame(rows, columns=list(COLUMNS), geometry=geometry, crs=LONLAT).astype(COLUMNS)


def _lonlat(polygons: shapely.MultiPolygon, place: Place) -> shapely.MultiPolygon:
    """From (column, row) to longitude and latitude."""
    ground = shapely.transform(polygons, place.to_ground, interleaved=False)
    mapped = shapely.geometry.shape(transform_geom(place.crs, LONLAT, shapely.geometry.mapping(ground)))
    return shapely.MultiPolygon(list(shapely.get_parts(shapely.orient_polygons(cut_at_antimeridian(mapped)))))


def store(picture: Picture, reply: Reply, folder: Path, stem: str, number: int) -> tuple[int, list[Path]]:
    """Writes the overlay as folder/stem.<n>.png and, where the picture has a place, the masks as .parquet (GeoParquet 1.1).

    n: the first from number up that no such file has. Returns it and the paths written: none where no mask has a pixel.
    """
    if not reply.seen:
        return number, []
    folder.mkdir(parents=True, exist_ok=True)
    while any((folder / f"{stem}.{number}{suffix}").exists() for suffix in (".png", ".parquet")):
        number += 1
    overlay, table = folder / f"{stem}.{number}.png", folder / f"{stem}.{number}.parquet"
    traced = None if picture.place is None else masks_on_the_ground(picture, reply)  # before anything is written
    draw_overlay(picture, reply).save(overlay)
    if traced is None:
        return number, [overlay]
    traced.to_parquet(table, index=False, compression="zstd", write_covering_bbox=True, schema_version="1.1.0")
    return number, [overlay, table]


def remarks(picture: Picture, reply: Reply, paths: Sequence[Path], threshold: float) -> Iterator[str]:
    """What a person should know of a reply besides its words: the files that store wrote, and what they lack."""
    yield from (f"wrote {path}" for path in paths)
    if unseen := len(reply.marks) - len(reply.seen):
        yield f"{unseen} of {len(reply.marks)} masks have no pixel at {threshold:g} or above"
    if not paths:
        yield "no mask: nothing written"
    elif picture.place is None:
        yield "no GeoParquet: the picture does not say where on Earth all of it is"
