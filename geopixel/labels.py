"""What people marked in pictures and on maps, read into arrays: pictures and their masks, COCO segmentations, rings in pixels, polygons of vector
files. Said wrongly it is a ValueError that names the file. Knows no data set, no model and no metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import geopandas as gpd
import numpy as np
import shapely
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from pydantic import FiniteFloat, TypeAdapter, ValidationError

T = TypeVar("T")

_OBJECTS = TypeAdapter(list[list[list[tuple[FiniteFloat, FiniteFloat]]]])

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def optional(module: str, extra: str = "evaluate") -> Any:
    """A module that comes with an extra of ours. Raises ValueError, saying so, where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"this needs {module.partition('.')[0]}: pip install 'geopixel-ray[{extra}]'") from error


def read_image(path: Path) -> np.ndarray:
    """(height, width, 3) uint8. Raises ValueError for what is no picture, or has more than 8 bits, which nobody here knows how to show."""
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has pixels of more than 8 bits (Pillow's mode {picture.mode}): scale them to 0 to 255")
            return np.array(picture.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture or mask, by its header. Raises ValueError for what is no picture."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def read_mask(path: Path) -> np.ndarray:
    """(height, width) bool: whatever is not 0 in any band, opacity left out. Raises ValueError for what is no picture, and for JPEG, which writes
    other values beside every edge."""
    try:
        with Image.open(path) as picture:
            if picture.format == "JPEG":
                raise ValueError(f"{path} is a JPEG, which blurs what is 0 and what is not: masks are PNG or TIFF")
            pixels, bands = np.array(picture), picture.getbands()
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a mask: {error}") from error
    coloured = np.array([band != "A" for band in bands])
    return np.any(np.atleast_3d(pixels)[..., coloured] != 0, axis=2)


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(height, width) bool, the union of the parts of a COCO segmentation: run lengths, compressed or not, one or a list, or polygons."""
    try:
        parts = segmentation if isinstance(segmentation, list) else [segmentation]
        if not (isinstance(parts[0], dict) and isinstance(parts[0]["counts"], str | bytes)):
            parts = coco.frPyObjects(parts, height, width)
        mask: np.ndarray = coco.decode(parts).any(axis=2)
    except Exception as error:  # pycocotools raises plain Exceptions and what its C code meets
        raise ValueError(f"a segmentation is COCO run lengths or polygons, got {str(segmentation)[:60]}: {error}") from error
    if mask.shape != (height, width):
        raise ValueError(f"a segmentation has the size of its picture, {(height, width)}, got {mask.shape}")
    return mask


def draw_masks(objects: Sequence[Sequence[Sequence[Sequence[float]]]], image: Path) -> np.ndarray:
    """(N, height, width) bool: the rings of each object, filled, their borders included, as the published training draws them by cv2.fillPoly.
    Pillow draws slanted borders a little otherwise: one pixel in 200 of small polygons differs. objects: as check_rings wants them."""
    height, width = read_size(present(image))
    masks = np.zeros((len(objects), height, width), bool)
    for mask, rings in zip(masks, objects, strict=True):
        canvas = Image.new("1", (width, height))
        draw = ImageDraw.Draw(canvas)
        for ring in rings:
            points = [(int(x), int(y)) for x, y in ring]
            if len(points) > 1:
                draw.polygon(points, fill=1)
                draw.line([*points, points[0]], fill=1)
        mask[:] = np.asarray(canvas)
    return masks


def check_rings(objects: Any) -> list[list[list[tuple[float, float]]]]:
    """The rings of objects, each a list of (x, y). Raises ValueError where they are anything else, or not finite."""
    try:
        return _OBJECTS.validate_python(objects)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"polygons are, for each object, a list of rings of (x, y), got {str(wrong['input'])[:60]}") from error


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by name. Raises ValueError where there is none."""
    found = sorted(path for path in present(folder).iterdir() if path.suffix.lower() in PICTURES)
    return some(found, f"{folder} holds no picture ({', '.join(PICTURES)})")


def present(path: Path) -> Path:
    """The path. Raises ValueError where nothing is there."""
    if not path.exists():
        raise ValueError(f"{path} is not there")
    return path


def read_json(path: Path) -> Any:
    """Raises ValueError where nothing is there or it is not JSON."""
    try:
        return json.loads(present(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}" if path.exists() else str(error)) from error


def some(values: list[T], otherwise: str) -> list[T]:
    """Raises ValueError with what is said otherwise where there is none."""
    if not values:
        raise ValueError(otherwise)
    return values


def pair_chips(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pictures and the masks of the same name, whatever their suffix. Raises ValueError where a picture has no mask of its size, or there is none."""
    found, truths = find_pictures(images), {path.stem: path for path in find_pictures(masks)}
    for path in found:
        if path.stem not in truths:
            raise ValueError(f"{path} has no mask: {masks} holds no picture called {path.stem}")
        check_size(truths[path.stem], path)
    return [(path, truths[path.stem]) for path in found]


def check_size(mask: Path, image: Path) -> None:
    """Raises ValueError where a mask is not of the size of its picture."""
    if (has := read_size(mask)) != (wanted := read_size(image)):
        raise ValueError(f"{mask} is not of the size of its picture {image}: {wanted}, got {has} (height, width)")


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (height, width) bool as COCO run lengths that JSON can hold: the inverse of decode_mask."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(edge) for edge in mask.shape], "counts": encoded["counts"].decode("ascii")}


def read_vector(path: Path) -> gpd.GeoDataFrame:
    """The features of a vector file (GeoParquet, GeoJSON, GeoPackage ...), with their CRS. Raises ValueError for a file that cannot be read, has no
    geometry, names no CRS, or has coordinates that cannot be of it."""
    try:
        table = gpd.read_parquet(path) if path.suffix.lower() in (".parquet", ".geoparquet") else gpd.read_file(path)
    except Exception as error:  # pyogrio and pyarrow have kinds of their own
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(table, gpd.GeoDataFrame):  # what GDAL reads of a table
        raise ValueError(f"{path} is a table without geometry")
    if table.crs is None:
        raise ValueError(f"{path} names no coordinate reference system")
    if table.crs.is_geographic and np.nanmax(np.abs(table.total_bounds), initial=0) > 360:
        raise ValueError(f"{path} is in degrees ({table.crs.name}), as far as it says, and has coordinates of {np.abs(table.total_bounds).max():.0f}")
    return table


def solid(outlines: np.ndarray) -> np.ndarray:
    """(n,) the polygons or multipolygons that outlines are or hold, valid and flat; None for those (points, lines, far beyond their CRS) without."""
    outlines = np.array(shapely.force_2d(outlines), object)
    outlines[~np.isfinite(shapely.bounds(outlines)).all(axis=1)] = None
    outlines = shapely.make_valid(outlines, method="structure", keep_collapsed=False)
    mixed = shapely.get_type_id(outlines) == shapely.GeometryType.GEOMETRYCOLLECTION
    for index in np.flatnonzero(mixed):
        parts = shapely.get_parts(outlines[index])
        outlines[index] = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    areal = np.isin(shapely.get_type_id(outlines), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    outlines[~areal | ~(shapely.area(outlines) > 0)] = None
    return outlines


def read_polygons(path: Path, crs: str) -> np.ndarray:
    """(n,) valid shapely polygons and multipolygons of a vector file in this CRS; features of other kinds are left out. Raises ValueError as
    read_vector does, and where there is no polygon."""
    polygons = solid(read_vector(path).to_crs(crs).geometry.to_numpy())
    return np.array(some([polygon for polygon in polygons if polygon is not None], f"{path} holds no polygon"))
