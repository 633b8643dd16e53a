"""Reads the area that a map is asked for, from a vector file, WKT or a bounding box, into one valid polygon in longitude
and latitude. Says what it repaired or left out; knows nothing of catalogs, scenes or tiles."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import shapely
from pyproj import CRS, Geod
from shapely import MultiPolygon, Polygon

from geopixel.dateline import cut_at_antimeridian

LONLAT = CRS("EPSG:4326")
_WKT = re.compile(r"\s*[a-z]+\s*(z|m|zm)?\s*(\(|empty)", re.IGNORECASE)
_PARQUET = (".parquet", ".geoparquet")
_DEGREES_PER_STEP = 0.1
"""An edge of the area is straight in longitude and latitude, a geodesic is not; in steps this short they enclose the same area to 1 part in a million."""
EARTH_KM2 = 510_065_621.724
"""Surface of the WGS 84 ellipsoid."""
_STEPS_PER_SPAN = 64
"""An edge that is straight in a projected CRS is curved in longitude and latitude; in this many steps across 50 km it keeps its place to about a centimetre."""


def read_area(text: str, warn: Callable[[str], None]) -> Polygon | MultiPolygon:
    """The union of all polygons that text stands for: valid, EPSG:4326, (longitude, latitude).

    text is the path of a vector file (GeoJSON, GeoPackage, GeoParquet or what else GDAL reads; all layers count), a WKT
    geometry, or a bounding box "west,south,east,north" in degrees, commas or spaces between. A box with west > east
    crosses the antimeridian and becomes two, and so does a polygon with an edge of more than 180 degrees. warn is called
    with one line for every repair and for what is left out.

    Raises ValueError where there is no such file, it cannot be read, names no CRS or holds no polygon with an area, and
    where coordinates are not longitudes within -180..180 (-360..360 where the area crosses the antimeridian) and latitudes within -90..90.
    """
    name = f"area {_short(text)!r}"
    if _is_file(path := Path(text).expanduser()):
        name = f"area {text!r}"
        layers = _read_file(path, name, warn)
    elif (numbers := _numbers(text)) is not None:
        return _box(numbers, name)
    elif _WKT.match(text):
        layers = [(_read_wkt(text, name), LONLAT)]
    else:
        raise ValueError(f"{name} is no file, and neither WKT nor a bounding box west,south,east,north")
    kinds = sorted({geometry.geom_type for geometries, _ in layers for geometry in geometries if geometry is not None and not geometry.is_empty})
    if not kinds:
        raise ValueError(f"{name} has no features with geometry")
    polygons = np.concatenate([_lonlat(_polygons(geometries, crs, name, warn), crs, name) for geometries, crs in layers])
    if not polygons.size:
        raise ValueError(f"{name} has no area: it holds {', '.join(kinds)}, but nothing that encloses ground")
    _check_range(shapely.total_bounds(polygons), name)
    return shapely.union_all(polygons)


def area_km2(area: Polygon | MultiPolygon) -> float:
    """Square kilometres on the WGS 84 ellipsoid of an area in EPSG:4326 whose edges are straight in longitude and latitude."""
    stepped = shapely.orient_polygons(shapely.segmentize(area, _DEGREES_PER_STEP))
    geod = Geod(ellps="WGS84")
    areas = [geod.geometry_area_perimeter(part)[0] / 1e6 for part in shapely.get_parts(stepped)]
    return sum(area if area >= 0 else area + EARTH_KM2 for area in areas)  # of more than half of the Earth it gives what is missing to the whole


def _numbers(text: str) -> list[float] | None:
    """The numbers that text is made of, or None where it is something else."""
    try:
        return [float(word) for word in re.split(r"\s*,\s*|\s+", text.strip())]
    except ValueError:
        return None


def _box(numbers: list[float], name: str) -> Polygon | MultiPolygon:
    """The box (west, south, east, north), in two where it crosses the antimeridian."""
    if len(numbers) != 4:
        raise ValueError(f"{name}: a bounding box is four numbers west,south,east,north, got {len(numbers)}")
    _check_range(numbers, name)
    west, south, east, north = numbers
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    boxes = [shapely.box(left, south, right, north) for left, right in spans if left < right and south < north]
    if not boxes:
        raise ValueError(f"{name} has no area: a bounding box is west,south,east,north with south < north")
    return shapely.union_all(boxes)


def _read_wkt(text: str, name: str) -> np.ndarray:
    try:
        with np.errstate(invalid="ignore"):  # NaN is refused below, by name
            return np.array([shapely.from_wkt(text.strip())])
    except (shapely.errors.GEOSException, NotImplementedError) as error:  # of curves there are no objects
        raise ValueError(f"{name} is not readable as WKT: {_first_line(error)}") from error


def _read_file(path: Path, name: str, warn: Callable[[str], None]) -> list[tuple[np.ndarray, CRS | None]]:
    """The geometries and the CRS of every layer that has geometry; rings left open are closed, which GDAL says in a warning."""
    import geopandas
    import pyogrio

    if path.stat().st_size == 0:
        raise ValueError(f"{name} is an empty file")
    try:
        with warnings.catch_warnings(record=True) as said, np.errstate(invalid="ignore"):
            warnings.simplefilter("always")
            if path.suffix.lower() in _PARQUET:
                frames = [geopandas.read_parquet(path)]
            else:
                layers = [layer for layer, kind in pyogrio.list_layers(path) if kind is not None]
                frames = [geopandas.read_file(path, layer=layer, on_invalid="fix") for layer in layers]
    except Exception as error:  # pyogrio, pyarrow and geopandas raise kinds of their own: whichever it is, the file is not readable
        raise ValueError(f"{name} cannot be read: {_first_line(error)}") from error
    for line in dict.fromkeys(str(warning.message).split(". ")[0] for warning in said):
        warn(f"{name}: {line}")
    return [(frame.geometry.to_numpy(), frame.crs) for frame in frames]


def _polygons(geometries: np.ndarray, crs: CRS | None, name: str, warn: Callable[[str], None]) -> np.ndarray:
    """The polygons with an area among geometries, repaired where they are invalid, (n,) of shapely Polygons and MultiPolygons."""
    geometries = shapely.force_2d(geometries[~shapely.is_missing(geometries)])
    if not np.isfinite(shapely.get_coordinates(geometries)).all():
        raise ValueError(f"{name} has coordinates that are not finite numbers")
    parts = geometries
    while (shapely.get_type_id(parts) >= shapely.GeometryType.MULTIPOINT).any():
        parts = shapely.get_parts(parts)
    if crs is not None and crs.equals(LONLAT, ignore_axis_order=True):
        parts = _cut(parts, name, warn)  # before the repair: on the plane of degrees such rings may cross themselves
    # "structure" keeps ground that a ring covers twice; the default, "linework", would cut it out.
    parts = shapely.make_valid(parts, method="structure", keep_collapsed=False)
    solid = shapely.area(parts) > 0
    if solid.any():
        for geometry in geometries[~shapely.is_valid(geometries)]:
            warn(f"{name}: repaired an invalid {geometry.geom_type} ({shapely.is_valid_reason(geometry)})")
        if not solid.all():
            warn(f"{name}: left out {np.count_nonzero(~solid)} of {len(solid)} parts, which have no area")
    return parts[solid]


def _lonlat(polygons: np.ndarray, crs: CRS | None, name: str) -> np.ndarray:
    """polygons brought from crs to EPSG:4326, cut where they cross the antimeridian."""
    from rasterio.warp import transform_geom

    if not polygons.size:
        return polygons
    if crs is None or crs.is_engineering:
        raise ValueError(f"{name} names no coordinate reference system: write one into the file, EPSG:4326 for longitude and latitude")
    if crs.equals(LONLAT, ignore_axis_order=True):
        return polygons
    if crs.is_projected:
        west, south, east, north = shapely.total_bounds(polygons)
        polygons = shapely.segmentize(polygons, max(east - west, north - south) / _STEPS_PER_SPAN)
    try:
        mapped = transform_geom(crs.to_wkt(), LONLAT.to_wkt(), [shapely.geometry.mapping(polygon) for polygon in polygons])
    except Exception as error:  # rasterio raises GDAL's own errors, which have no public base
        raise ValueError(f"{name} cannot be brought from {crs.name} to longitude and latitude: {_first_line(error)}") from error
    return np.array([shapely.geometry.shape(geometry) for geometry in mapped])


def _check_range(bounds: Sequence[float] | np.ndarray, name: str) -> None:
    """bounds: (west, south, east, north), each by itself."""
    for value, limit, word in zip(bounds, (180, 90, 180, 90), ("longitude", "latitude", "longitude", "latitude"), strict=True):
        if not abs(value) <= limit:
            raise ValueError(f"{name}: {word} {value:.10g} is not within -{limit}..{limit} (longitude comes first; cut what crosses the antimeridian)")


def _cut(polygons: np.ndarray, name: str, warn: Callable[[str], None]) -> np.ndarray:
    """The same ground within -180..180. An edge from 170 to -170 goes the short way, as GeoJSON has it (RFC 7946, 3.1.9); whoever drew it may have
    meant the long one."""
    bounds = np.nan_to_num(shapely.bounds(polygons))
    if (np.abs(bounds) > (360, 90, 360, 90)).any():
        return polygons  # no longitudes and latitudes: refused later, by name
    try:
        cut = [cut_at_antimeridian(polygon) for polygon in polygons]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if any(after is not before for after, before in zip(cut, polygons, strict=True)):
        warn(f"{name}: cut at the antimeridian: an edge of more than 180 degrees of longitude is read as the short way round")
    return shapely.get_parts(np.array(cut, dtype=object))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a path can be, as WKT often is
        return False


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
