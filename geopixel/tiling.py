"""Where to look, and how closely: scenes, an area and a coarse survey in, a grid and its tiles out. Tiles come from a quadtree
that hangs on the CRS origin; what splits it is the ground (survey) and the question (prompts), never the area, so two areas
that overlap get equal tiles on their common ground. Pure geometry: knows nothing of files, pixels, models or Ray."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import shapely
import xarray as xr
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError
from shapely import Geometry

from geopixel.types import HALO, STATUS_CODES, TILE_SIZES, UNDECIDED, Grid, Scene, Source, Tiles

CELL_SIZE = TILE_SIZES[0]
"""Pixels along an edge of a survey cell: the smallest tile."""
SUPER_SIZE = TILE_SIZES[-1]
"""Pixels along an edge of a super-tile, the root of each quadtree: the largest tile."""
SUPERS_AT_ONCE = 4096
"""Super-tiles that are planned together: bounds the memory, whatever the area."""
MASK_CELLS = 4
"""Cells of the low-resolution mask that the smallest object must span: below this its outline is a guess."""
DETAIL_BUDGET = 0.96
"""Detail that a tile may show: the mean gradient magnitude of luminance (0..1, per pixel of the 1/16 look) of a cell, summed over its
cells. A sum, because the model looks at every tile with about as many tokens, whatever its size. Measured on 0.07-0.15 m drone
imagery, mean gradients are 0.02-0.06 on open land and among scattered houses, 0.06-0.10 in a dense town: the budget is 2048 pixels at 0.06."""
MAX_EDGE_DEGREES = 0.01
"""Longest edge of an area when it is reprojected, about 1 km: a straight edge then bends less than 0.1 m up to latitude 60."""

METRES_PER_DEGREE = 111_320
"""Along the equator."""

OBJECT_METRES = {
    "animal": 2, "person": 2, "solar panel": 2,
    "car": 4, "vehicle": 4, "tree": 4, "truck": 4, "van": 4,
    "pool": 5, "boat": 5, "container": 5, "path": 5, "shrub": 5, "tent": 5,
    "road": 6, "street": 6, "bus": 6, "greenhouse": 6, "shed": 6, "tank": 6, "track": 6,
    "building": 8, "house": 8, "roof": 8, "rooftop": 8, "bridge": 8, "railway": 8,
    "ship": 10, "airplane": 10, "aircraft": 10, "plane": 10, "court": 10, "stream": 10,
    "water": 20, "lake": 20, "river": 20, "pond": 20, "parking": 20, "stadium": 20, "runway": 20,
    "field": 40, "crop": 40, "cropland": 40, "farmland": 40, "forest": 40, "grass": 40, "grassland": 40, "wood": 40, "orchard": 40, "bare soil": 40,
}  # fmt: skip
"""Width in metres of a small instance of what a word names; a name of two words is matched as a phrase."""
DEFAULT_OBJECT_METRES = 8.0


def smallest_object(prompts: Sequence[str]) -> float:
    """Width in metres of the smallest thing that the prompts ask for: over all prompts, the smallest whole word (or its plural)
    of OBJECT_METRES in each, DEFAULT_OBJECT_METRES for a prompt with none. ValueError without prompts."""
    if not prompts:
        raise ValueError(f"at least one prompt is needed, got {list(prompts)}")
    return min(_prompt_metres(prompt) for prompt in prompts)


def _prompt_metres(prompt: str) -> float:
    words = re.findall(r"[a-z]+", prompt.lower())
    names = {form for word in words for form in _singulars(word)}
    names |= {f"{first} {form}" for first, second in zip(words, words[1:], strict=False) for form in _singulars(second)}
    return float(min((OBJECT_METRES[name] for name in names & OBJECT_METRES.keys()), default=DEFAULT_OBJECT_METRES))


def _singulars(word: str) -> set[str]:
    """The word and what it may be the plural of; the table says which of them is a word."""
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word), {"people": "person"}.get(word, word)}


def choose_grid(scenes: Sequence[Scene], crs: str | None, resolution: float | None) -> Grid:
    """The grid of a run: what the caller says, the rest from the scenes and never from the area.

    crs: anything PROJ knows; None: the projected CRS that most sources are in (ties: first by name), else the UTM zone of the
    centre of their footprints. resolution: in units of the CRS; None: the finest native one among the sources in that CRS,
    else the finest ground sample distance in metres converted to its units at the centre of the footprints, both to six digits.
    Raises ValueError for a CRS that is unknown or no map, and where the scenes do not say what is needed.
    """
    sources = [source for scene in scenes for source in scene.sources]
    crs = _default_crs(sources) if crs is None else _crs_name(crs)
    return Grid(crs, _default_resolution(sources, crs) if resolution is None else resolution)


def ground_sample_distance(grid: Grid, at: Geometry) -> float:
    """Metres on the ground along an edge of the pixel at the centroid of `at` (EPSG:4326), such that its square is the pixel's
    area: it differs from the resolution in EPSG:3857 (by cos latitude), in degrees and in feet.

    For equal plans on overlapping areas, `at` must be the same for both: take it from the scenes, not from the area.
    """
    transformer = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    x, y = transformer.transform(at.centroid.x, at.centroid.y)
    if not np.isfinite([x, y]).all():
        raise ValueError(f"{at.centroid.wkt} lies outside the domain of {grid.crs}")
    half = grid.resolution / 2
    lon, lat = transformer.transform([x - half, x + half, x, x], [y, y, y - half, y + half], direction="INVERSE")
    _, _, (width, height) = Geod(ellps="WGS84").inv(lon[::2], lat[::2], lon[1::2], lat[1::2])
    return float(np.sqrt(width * height))


@lru_cache
def _crs_name(crs: str) -> str:
    """One name for one CRS: its authority code where it has one."""
    try:
        parsed = CRS.from_user_input(crs)
    except CRSError as error:
        raise ValueError(f"a CRS must be one that PROJ knows, got {crs!r}") from error
    if not (parsed.is_projected or parsed.is_geographic):
        raise ValueError(f"a CRS must be projected or geographic, got {crs!r}")
    authority = parsed.to_authority(min_confidence=100)
    return ":".join(authority) if authority else crs


def _default_crs(sources: Sequence[Source]) -> str:
    counts = Counter(_crs_name(source.crs) for source in sources if source.crs is not None)
    projected = [name for name in counts if CRS.from_user_input(name).is_projected]
    if projected:
        return min(projected, key=lambda name: (-counts[name], name))
    centre = _centre(sources)
    zone = min(int((centre.x + 180) // 6) + 1, 60)
    return f"EPSG:{(32600 if centre.y >= 0 else 32700) + zone}"


def _default_resolution(sources: Sequence[Source], crs: str) -> float:
    native = [source.resolution for source in sources if source.resolution is not None and source.crs is not None and _crs_name(source.crs) == crs]
    if native:
        return _round(min(native))
    metres = [distance for source in sources if (distance := _source_metres(source)) is not None]
    if not metres:
        raise ValueError(f"no scene says its resolution in {crs} or its gsd: pass --resolution")
    unit = 1e-5 if CRS.from_user_input(crs).is_geographic else 1.0
    # A gsd is a nominal number: three digits of the conversion keep 0.3 m at 0.3 in any UTM zone, and near scenes on one grid.
    return _round(min(metres) * _round(unit / ground_sample_distance(Grid(crs, unit), _centre(sources)), 3))


def _source_metres(source: Source) -> float | None:
    if source.gsd is not None or source.crs is None or source.resolution is None:
        return source.gsd
    return ground_sample_distance(Grid(source.crs, source.resolution), source.footprint)


def _centre(sources: Sequence[Source]) -> Geometry:
    if not sources:
        raise ValueError("the scenes decide what of crs and resolution is not given, and there are none: pass --crs and --resolution")
    return shapely.GeometryCollection([source.footprint for source in sources]).centroid


def _round(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


Window = tuple[int, int, int, int]
"""Pixels [left, right) x [top, bottom) of a grid, counted from the CRS origin, as (left, top, right, bottom)."""


def survey_cells(area: Geometry, grid: Grid, window: Window | None = None) -> tuple[int, int, int, int]:
    """Half-open range (column0, row0, column1, row1) of cells of CELL_SIZE pixels, counted from the CRS origin, that holds every
    super-tile (of the window) whose core and halo the area (EPSG:4326) touches. Aligned to super-tiles. Errors as plan_tiles."""
    supers, _ = _touched(_to_pixels(area, grid), SUPER_SIZE, window)
    ratio = SUPER_SIZE // CELL_SIZE
    (column0, row0), (column1, row1) = (supers.min(axis=0) * ratio).tolist(), ((supers.max(axis=0) + 1) * ratio).tolist()
    return column0, row0, column1, row1


def touched_squares(area: Geometry, grid: Grid, size: int) -> np.ndarray:
    """(n, 2) int32 column and row, in squares of size pixels from the CRS origin, of those that with HALO around them the area (EPSG:4326) touches:
    they hold all tiles of the area. Along a Morton curve. size: SUPER_SIZE times a power of two. Errors as plan_tiles."""
    times = size // SUPER_SIZE
    if size != times * SUPER_SIZE or times < 1 or times & (times - 1):
        raise ValueError(f"squares of tiles are {SUPER_SIZE} pixels times a power of two, got {size}")
    return _touched(_to_pixels(area, grid), size, None)[0]


def plan_tiles(
    area: Geometry,
    grid: Grid,
    survey: xr.Dataset | None,
    *,
    smallest_object: float,
    ground_sample_distance: float,
    costs: Mapping[int, float],
    mask_size: int = 256,
    max_cloud: float | None = None,
    window: Window | None = None,
) -> Tiles:
    """Tiles whose cores cover, once, every super-tile whose core and halo the area touches, along a Morton curve that hangs on the CRS origin.

    area: polygon(s) in EPSG:4326. survey: float32 variables valid, cloud and detail with dims (y, x) and consecutive int
    coordinates, the row and column of a cell of CELL_SIZE pixels; valid is the observed share of the cell (0..1), cloud the
    cloudy share of what was observed, detail the mean gradient (see DETAIL_BUDGET); the last two count by valid, and not where they are NaN.
    None: nobody looked, all ground counts as seen, plain and clear. smallest_object: metres. ground_sample_distance: metres per pixel.
    costs: what the model takes for a tile of a size, in any unit; a size that is not named does not fit the model and is never read.
    mask_size: cells along an edge of the model's low-resolution mask. max_cloud: largest share (0..1) of cloud still looked at; None: any.
    window: only super-tiles that lie in it, edges at multiples of SUPER_SIZE; None: all. Windows that part the plane part the tiles.

    A tile that is read is the largest that best_size allows and whose detail stays within DETAIL_BUDGET. The others are as large as
    what is said of them is true: `outside`, the area does not touch core and halo; `nodata`, no pixel of the core was observed (it
    would answer for nothing; the cells around say little of a 64-pixel halo, and neighbours that look into this core read their own
    halo); `cloud`, there is too much of it in every observed cell of the core, or over the whole of a tile that else were read.
    Raises ValueError for an empty area, one that the CRS cannot hold or that does not touch the window, a share out of 0..1, a survey that misses
    cells, or costs without the smallest size.
    """
    if max_cloud is not None and not 0 <= max_cloud <= 1:
        raise ValueError(f"max_cloud is a share from 0 to 1, got {max_cloud}")
    shape = _to_pixels(area, grid)
    cells = None if survey is None else _Cells(survey)
    best = best_size(smallest_object, ground_sample_distance, mask_size, costs)
    supers, inside = _touched(shape, SUPER_SIZE, window)
    parts = []
    for first in range(0, len(supers), SUPERS_AT_ONCE):
        some = np.s_[first : first + SUPERS_AT_ONCE]
        ground = None if cells is None else _Ground(cells, supers[some], max_cloud)
        parts.append(_cut(shape, supers[some], inside[some], best, ground))
    size, column, row, decided = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Tiles(grid, size, column, row, decided)


def best_size(smallest_object: float, ground_sample_distance: float, mask_size: int, costs: Mapping[int, float]) -> int:
    """The largest tile in whose mask the smallest object spans MASK_CELLS cells and that costs no more than its four quarters; the smallest
    where the object spans them in none. Units as plan_tiles. ValueError for a value that is not positive, or costs without the smallest."""
    if not (smallest_object > 0 and ground_sample_distance > 0 and mask_size > 0):
        raise ValueError(f"object size, pixel size and mask size must be positive, got {smallest_object}, {ground_sample_distance}, {mask_size}")
    if CELL_SIZE not in costs or not costs.keys() <= set(TILE_SIZES):
        raise ValueError(f"the model must take tiles of {CELL_SIZE} pixels, and of no others than {TILE_SIZES}, got {list(costs)}")
    fitting = [size for size in costs if smallest_object >= MASK_CELLS * (size + 2 * HALO) * ground_sample_distance / mask_size]
    size = max(fitting, default=CELL_SIZE)
    while size // 2 in costs and 4 * costs[size // 2] < costs[size]:
        size //= 2
    return size


@lru_cache(maxsize=4)  # a country's outline is asked for again by each of its cells
def project_area(area: Geometry, crs: str) -> Geometry:
    """The area (EPSG:4326) in another CRS, its edges where they are on the ground. ValueError where it is empty or the CRS cannot hold it."""
    if not area.area > 0:
        raise ValueError(f"an area must be a polygon that is not empty, got {area.geom_type} of area {area.area}")
    transformer = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    shape = shapely.transform(shapely.segmentize(area, MAX_EDGE_DEGREES), transformer.transform, interleaved=False)
    if not np.isfinite(shapely.get_coordinates(shape)).all():
        raise ValueError(f"the area with bounds {area.bounds} does not fit into {crs}: choose another --crs")
    return shape if shape.is_valid else shapely.make_valid(shape)


def unproject_area(shape: Geometry, crs: str) -> Geometry:
    """Inverse of project_area, of a shape whose edges are straight in the CRS."""
    longest = MAX_EDGE_DEGREES * (1 if CRS.from_user_input(crs).is_geographic else METRES_PER_DEGREE)
    back = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return shapely.transform(shapely.segmentize(shape, longest), back.transform, interleaved=False)


def _to_pixels(area: Geometry, grid: Grid) -> Geometry:
    """The area in pixels of the grid (x: columns, y: rows, downwards), prepared."""
    shape = shapely.transform(project_area(area, grid.crs), lambda xy: xy / (grid.resolution, -grid.resolution))
    shapely.prepare(shape)
    return shape


# Squares of one size are an (n, 2) int32 array, column and row in squares from the CRS origin, along a Morton curve: children take the
# place of their parent, so the order never needs sorting. Next to it, (n,) bool: is the square with its halo known to lie inside
# the shape? Then so do all below it, and the shape is asked no more: only squares on its outline cost anything.


def _boxes(squares: np.ndarray, size: int) -> np.ndarray:
    """(n,) geometries: core and halo of the squares."""
    low = squares * float(size) - HALO
    high = low + (size + 2 * HALO)
    return np.asarray(shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1]))


def _children(squares: np.ndarray) -> np.ndarray:
    return (squares[:, None] * 2 + np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.int32)).reshape(-1, 2)


def _touched(shape: Geometry, smallest: int, window: Window | None) -> tuple[np.ndarray, np.ndarray]:
    """All squares of the smallest size (in the window) that the shape touches, halo included, by descent from the four that meet at the CRS origin
    and hold the shape."""
    if window is not None and any(edge % SUPER_SIZE for edge in window):
        raise ValueError(f"a window's edges are multiples of {SUPER_SIZE} pixels, got {window}")
    size = smallest
    while size < np.abs(shape.bounds).max() + HALO:
        size *= 2
    squares, inside = np.array([[-1, -1], [0, -1], [-1, 0], [0, 0]], np.int32), np.zeros(4, np.bool_)
    while True:
        edge = np.flatnonzero(~inside)
        boxes = _boxes(squares[edge], size)
        touching = np.ones(len(squares), np.bool_)
        touching[edge] = shapely.intersects(shape, boxes)
        inside[edge] = shapely.contains_properly(shape, boxes)
        if window is not None:
            left, top, right, bottom = window
            columns, rows = squares.T.astype(np.int64) * size
            touching &= (columns < right) & (columns + size > left) & (rows < bottom) & (rows + size > top)
        squares, inside = squares[touching], inside[touching]
        if not len(squares):
            raise ValueError(f"the area with bounds {shape.bounds} in pixels does not touch the window {window}")
        if size == smallest:
            return squares, inside
        squares, inside = _children(squares), np.repeat(inside, 4)
        size //= 2


BELOW = [np.zeros((1, 2), np.int32)]
"""Of the squares in a super-tile, (4 ** level, 2) column and row along the curve, by level: 0 is the super-tile, each level halves the edge."""
for _ in TILE_SIZES[1:]:
    BELOW.append(_children(BELOW[-1]))


def _cut(shape: Geometry, supers: np.ndarray, inside: np.ndarray, best: int, ground: _Ground | None) -> tuple[np.ndarray, ...]:
    """Columns size, column, row, decided of the tiles of these super-tiles, in the order of the super-tiles and along the curve in each."""
    inside = inside.copy()
    place: np.ndarray = np.arange(len(supers), dtype=np.int32)  # along the curve; the children of the square at place p are at 4 p to 4 p + 3
    leaves = []
    for level, size in enumerate(reversed(TILE_SIZES)):
        whole = np.full(len(place), size <= best)
        decided = np.full(len(place), UNDECIDED, np.uint8)
        if ground is not None:
            whole &= (size == CELL_SIZE) | (ground.detail[level][place] <= DETAIL_BUDGET)
            decided = ground.decide(level, place, whole)
        edge = np.flatnonzero(~inside)
        boxes = _boxes(_squares(supers, place[edge], level), size)
        decided[edge[~shapely.intersects(shape, boxes)]] = STATUS_CODES["outside"]
        whole |= decided != UNDECIDED
        leaves.append((place[whole] << 2 * (len(TILE_SIZES) - 1 - level), *_squares(supers, place[whole], level).T, decided[whole]))
        parted = ~whole[edge]
        inside[edge[parted]] = shapely.contains_properly(shape, boxes[parted])
        inside, place = np.repeat(inside[~whole], 4), (place[~whole, None] * 4 + np.arange(4, dtype=np.int32)).ravel()
    sizes = np.repeat(np.array(TILE_SIZES[::-1], np.int16), [len(first_cell) for first_cell, *_ in leaves])
    first_cell, *columns = (np.concatenate(parts) for parts in zip(*leaves, strict=True))
    order = np.argsort(first_cell, kind="stable")  # merges runs that are in order already
    return tuple(values[order] for values in (sizes, *columns))


def _squares(supers: np.ndarray, place: np.ndarray, level: int) -> np.ndarray:
    """(n, 2) the squares at these places."""
    return (supers.take(place >> 2 * level, axis=0) << level) + BELOW[level].take(place & 4**level - 1, axis=0)


class _Cells:
    """The survey, asked for cells."""

    def __init__(self, survey: xr.Dataset) -> None:
        self.survey = survey.transpose("y", "x").compute()
        for name in ("x", "y"):
            if (np.diff(self.survey[name]) != 1).any():
                raise ValueError(f"the survey's cells must be consecutive along {name}, got {self.survey[name].values}")
        self.origin = np.array([self.survey.x[0], self.survey.y[0]], np.int64)
        valid = self.survey["valid"].to_numpy()
        if not ((valid >= 0) & (valid <= 1)).all():
            raise ValueError(f"the survey's valid share must be 0 to 1, got {valid.min()} to {valid.max()}")

    def of(self, name: str, cells: np.ndarray) -> np.ndarray:
        """(n,) float64 values of a variable at (n, 2) column and row of cells."""
        values = self.survey[name].to_numpy()
        columns, rows = (cells - self.origin).T
        if min(columns.min(), rows.min()) < 0 or columns.max() >= values.shape[1] or rows.max() >= values.shape[0]:
            raise ValueError(f"the survey must hold all of survey_cells(area, grid), got {values.shape} cells from {self.origin.tolist()}")
        return values[rows, columns].astype(np.float64)


class _Ground:
    """What the survey says of some super-tiles and of all squares in them: by level, then by place (see _cut)."""

    def __init__(self, cells: _Cells, supers: np.ndarray, max_cloud: float | None) -> None:
        squares = supers
        for _ in TILE_SIZES[1:]:
            squares = _children(squares)
        valid = cells.of("valid", squares)
        self.valid = _pyramid(valid, np.add)
        self.detail = _pyramid(np.nan_to_num(cells.of("detail", squares)) * valid, np.add)
        """Summed over the cells, each by its observed share."""
        self.max_cloud = max_cloud
        if max_cloud is not None:
            cloud = cells.of("cloud", squares)
            self.cloud = _pyramid(np.nan_to_num(cloud) * valid, np.add)
            self.cloud_known = _pyramid(np.where(np.isnan(cloud), 0, valid), np.add)
            self.least_cloud = _pyramid(np.where(valid > 0, np.nan_to_num(cloud), np.inf), np.minimum)

    def decide(self, level: int, place: np.ndarray, read: np.ndarray) -> np.ndarray:
        """(n,) uint8 DECISIONS for squares at these places; read: else the square is read as it is, not split."""
        decided = np.full(len(place), UNDECIDED, np.uint8)
        if self.max_cloud is not None:
            cloudy = self.cloud[level][place] > self.max_cloud * self.cloud_known[level][place]
            decided[(self.least_cloud[level][place] > self.max_cloud) | (read & cloudy)] = STATUS_CODES["cloud"]
        decided[self.valid[level][place] == 0] = STATUS_CODES["nodata"]
        return decided


def _pyramid(cells: np.ndarray, fold: np.ufunc) -> list[np.ndarray]:
    """Of values of the cells in super-tiles along the curve, those of the squares of every level, the super-tiles first."""
    levels = [cells]
    for _ in TILE_SIZES[1:]:
        levels.append(fold.reduce(levels[-1].reshape(-1, 4), axis=1))
    return levels[::-1]
