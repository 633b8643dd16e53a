"""Where to look, and how closely: scenes, an area and a coarse survey in, a grid and its tiles out. Tiles come from a quadtree
that hangs on the CRS origin; what splits it is the ground (survey) and the question (prompts), never the area, so two areas
that overlap get equal tiles on their common ground. Pure geometry: knows nothing of files, pixels, models or Ray."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
import xarray as xr
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError
from shapely import Geometry

from geopixel.types import HALO, TILE_SIZES, Grid, Scene, Source, State, Tile

CELL_SIZE = TILE_SIZES[0]
"""Pixels along an edge of a survey cell: the smallest tile."""
SUPER_SIZE = TILE_SIZES[-1]
"""Pixels along an edge of a super-tile: the root of each quadtree."""
MASK_CELLS = 3
"""Cells of the low-resolution mask that the smallest object must span: below this its outline is a guess."""
DETAIL_SPLIT = 0.06
"""Mean gradient magnitude of luminance (0..1, per pixel of the 1/16 look) above which a super-tile is split once more.
Measured on 0.07-0.15 m drone imagery: open land and scattered houses 0.02-0.06, a dense town 0.06-0.10."""
MAX_EDGE_DEGREES = 0.01
"""Longest edge of an area when it is reprojected, about 1 km: a straight edge then bends less than 0.1 m up to latitude 60."""

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


def survey_cells(area: Geometry, grid: Grid) -> tuple[int, int, int, int]:
    """Half-open range (column0, row0, column1, row1) of cells of CELL_SIZE pixels, counted from the CRS origin, that holds every
    super-tile whose core and halo the area (EPSG:4326) touches. Aligned to super-tiles. Errors as plan_tiles."""
    supers = _touched_supers(_to_pixels(area, grid))
    ratio = SUPER_SIZE // CELL_SIZE
    (column0, row0), (column1, row1) = (supers.min(axis=0) * ratio).tolist(), ((supers.max(axis=0) + 1) * ratio).tolist()
    return column0, row0, column1, row1


def plan_tiles(
    area: Geometry,
    grid: Grid,
    survey: xr.Dataset,
    *,
    smallest_object: float,
    ground_sample_distance: float,
    mask_size: int = 256,
    max_cloud: float | None = None,
) -> list[Tile]:
    """Tiles whose cores cover, once, every super-tile whose core and halo the area touches, along a Morton curve.

    area: polygon(s) in EPSG:4326. survey: float32 variables valid, cloud and detail with dims (y, x) and consecutive int
    coordinates, the row and column of a cell of CELL_SIZE pixels; valid is the observed share of the cell (0..1), cloud the
    cloudy share of what was observed, detail the mean gradient (see DETAIL_SPLIT); the last two count by valid, and not where they are NaN.
    smallest_object: metres. ground_sample_distance: metres per pixel. mask_size: cells along an edge of the model's
    low-resolution mask. max_cloud: largest share (0..1) of cloud still looked at; None: any.

    A tile is `outside` if the area does not touch its core and halo; these are left as large as possible. All others are as
    large as the smallest object allows, a level smaller where the super-tile is rich in detail. Of those, one without any
    observed pixel in its core is `nodata` (it would answer for nothing; the cells around say little of a 64-pixel halo, and
    neighbours that look into this core read their own halo), one with too much cloud there is `cloud`.
    Raises ValueError for an empty area, one that the CRS cannot hold, a share out of 0..1, or a survey that misses cells.
    """
    if max_cloud is not None and not 0 <= max_cloud <= 1:
        raise ValueError(f"max_cloud is a share from 0 to 1, got {max_cloud}")
    shape = _to_pixels(area, grid)
    cells = _Cells(survey)
    nodes = _touched_supers(shape)
    base = _base_size(smallest_object, ground_sample_distance, mask_size)
    target = np.where(cells.mean("detail", nodes, SUPER_SIZE) > DETAIL_SPLIT, max(base // 2, CELL_SIZE), base)
    leaves: list[tuple[int, np.ndarray, np.ndarray]] = []
    for size in reversed(TILE_SIZES):
        touching = _touching(shape, nodes, size)
        whole = touching & (target == size)
        leaves.append((size, nodes[~touching], np.full((~touching).sum(), "outside", object)))
        leaves.append((size, nodes[whole], _decide(cells, nodes[whole], size, max_cloud)))
        parted = touching & (target < size)
        nodes, target = _children(nodes[parted]), np.repeat(target[parted], 4)
    return _tiles(grid, leaves)


def _base_size(smallest_object: float, ground_sample_distance: float, mask_size: int) -> int:
    """The largest tile in whose mask the smallest object spans MASK_CELLS cells; the smallest tile where none does."""
    if not (smallest_object > 0 and ground_sample_distance > 0 and mask_size > 0):
        raise ValueError(f"object size, pixel size and mask size must be positive, got {smallest_object}, {ground_sample_distance}, {mask_size}")
    fitting = [size for size in TILE_SIZES if smallest_object >= MASK_CELLS * (size + 2 * HALO) * ground_sample_distance / mask_size]
    return max(fitting, default=CELL_SIZE)


def project_area(area: Geometry, crs: str) -> Geometry:
    """The area (EPSG:4326) in another CRS, its edges where they are on the ground. ValueError where it is empty or the CRS cannot hold it."""
    if not area.area > 0:
        raise ValueError(f"an area must be a polygon that is not empty, got {area.geom_type} of area {area.area}")
    transformer = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    shape = shapely.transform(shapely.segmentize(area, MAX_EDGE_DEGREES), transformer.transform, interleaved=False)
    if not np.isfinite(shapely.get_coordinates(shape)).all():
        raise ValueError(f"the area with bounds {area.bounds} does not fit into {crs}: choose another --crs")
    return shape if shape.is_valid else shapely.make_valid(shape)


def _to_pixels(area: Geometry, grid: Grid) -> Geometry:
    """The area in pixels of the grid (x: columns, y: rows, downwards), prepared."""
    shape = shapely.transform(project_area(area, grid.crs), lambda xy: xy / (grid.resolution, -grid.resolution))
    shapely.prepare(shape)
    return shape


def _touching(shape: Geometry, nodes: np.ndarray, size: int) -> np.ndarray:
    """(n,) bool: the shape touches core and halo of the squares of this size, (n, 2) column and row."""
    low, high = nodes * size - HALO, (nodes + 1) * size + HALO
    return np.asarray(shapely.intersects(shape, shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])), dtype=np.bool_)


def _children(nodes: np.ndarray) -> np.ndarray:
    return (nodes[:, None] * 2 + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])).reshape(-1, 2)


def _touched_supers(shape: Geometry) -> np.ndarray:
    """(n, 2) int64 column and row of all super-tiles whose core and halo the shape touches, found by descent from squares as large as it."""
    low, high = np.reshape(shape.bounds, (2, 2))
    size = SUPER_SIZE
    while (high - low).max() > size:
        size *= 2
    first, last = np.ceil((low - HALO) / size).astype(np.int64) - 1, np.floor((high + HALO) / size).astype(np.int64)
    nodes = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last, strict=True))), axis=-1).reshape(-1, 2)
    nodes = nodes[_touching(shape, nodes, size)]
    while size > SUPER_SIZE:
        size //= 2
        nodes = _children(nodes)
        nodes = nodes[_touching(shape, nodes, size)]
    return nodes


class _Cells:
    """The survey, asked for squares of tiles."""

    def __init__(self, survey: xr.Dataset) -> None:
        self.survey = survey.transpose("y", "x").compute()
        for name in ("x", "y"):
            if (np.diff(self.survey[name]) != 1).any():
                raise ValueError(f"the survey's cells must be consecutive along {name}, got {self.survey[name].values}")
        self.origin = np.array([self.survey.x[0], self.survey.y[0]], np.int64)
        self.valid = self.survey["valid"].to_numpy()
        if not ((self.valid >= 0) & (self.valid <= 1)).all():
            raise ValueError(f"the survey's valid share must be 0 to 1, got {self.valid.min()} to {self.valid.max()}")

    def mean(self, name: str, nodes: np.ndarray, size: int) -> np.ndarray:
        """(n,) float64 mean of a variable over the observed ground of the squares; 0 where it is not known."""
        values = self._of(self.survey[name].to_numpy(), nodes, size)
        weight = np.where(np.isnan(values), 0, self._of(self.valid, nodes, size))
        return (np.nan_to_num(values) * weight).sum(axis=(1, 2)) / np.maximum(weight.sum(axis=(1, 2)), np.finfo(np.float32).tiny)

    def observed(self, nodes: np.ndarray, size: int) -> np.ndarray:
        """(n,) bool: any pixel of the square was observed."""
        return self._of(self.valid, nodes, size).max(axis=(1, 2), initial=0) > 0

    def _of(self, values: np.ndarray, nodes: np.ndarray, size: int) -> np.ndarray:
        """(n, k, k) float64 values of the cells in squares of this size."""
        steps = np.arange(size // CELL_SIZE)
        columns, rows = (nodes[:, axis, None] * len(steps) - self.origin[axis] + steps for axis in (0, 1))
        if min(columns.min(initial=0), rows.min(initial=0)) < 0 or columns.max(initial=0) >= values.shape[1] or rows.max(initial=0) >= values.shape[0]:
            raise ValueError(f"the survey must hold all of survey_cells(area, grid), got {values.shape} cells from {self.origin.tolist()}")
        return values[rows[:, :, None], columns[:, None, :]].astype(np.float64)


def _decide(cells: _Cells, nodes: np.ndarray, size: int, max_cloud: float | None) -> np.ndarray:
    """(n,) object: the state that the survey decides, or None."""
    decided = np.full(len(nodes), None, object)
    if max_cloud is not None:
        decided[cells.mean("cloud", nodes, size) > max_cloud] = "cloud"
    decided[~cells.observed(nodes, size)] = "nodata"
    return decided


def _tiles(grid: Grid, leaves: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> list[Tile]:
    """Tiles in the order of a Morton curve that hangs on the CRS origin, so that neighbours are near and the order is the ground's own."""
    sized = [(np.full(len(nodes), size), nodes, decided) for size, nodes, decided in leaves]
    sizes, nodes, decided = (np.concatenate(parts) for parts in zip(*sized, strict=True))
    order = np.argsort(_morton(nodes * (sizes // CELL_SIZE)[:, None]))
    columns, rows = nodes[order].T.tolist()
    return [Tile(grid, *row) for row in zip(sizes[order].tolist(), columns, rows, decided[order].tolist(), strict=True)]


def _morton(cells: np.ndarray) -> np.ndarray:
    """(n,) uint64: the bits of column and row of (n, 2) cells, interleaved."""
    bits = (cells + 2**31).astype(np.uint64)
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333), (1, 0x5555555555555555)):
        bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
    return bits[:, 0] | bits[:, 1] << np.uint64(1)


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan will cost, known before it runs."""

    decided: dict[State, int]
    """Tiles that are never read, by the state that the plan gave them."""
    sizes: dict[int, int]
    """Tiles to read, by size."""
    megapixels: float
    """To read, cores and halos."""
    model_seconds: float
    """On one device."""
    stored_bytes: int
    """Of mask logits, before compression and if every tile holds something."""
    km2: float
    """Ground in the cores of the tiles to read."""

    @property
    def to_read(self) -> int:
        return sum(self.sizes.values())


def estimate_cost(tiles: Sequence[Tile], prompts: int, *, seconds_per_tile: float, ground_sample_distance: float, mask_size: int = 256) -> PlanCost:
    """What reading and predicting the tiles costs; seconds_per_tile: of the model, for all prompts; ground_sample_distance: metres per pixel."""
    decided = Counter(tile.decided for tile in tiles if tile.decided is not None)
    sizes = Counter(tile.size for tile in tiles if tile.decided is None)
    return PlanCost(
        decided=dict(sorted(decided.items())),
        sizes=dict(sorted(sizes.items())),
        megapixels=sum(count * (size + 2 * HALO) ** 2 for size, count in sizes.items()) / 1e6,
        model_seconds=sizes.total() * seconds_per_tile,
        stored_bytes=sizes.total() * prompts * mask_size**2,
        km2=sum(count * size**2 for size, count in sizes.items()) * ground_sample_distance**2 / 1e6,
    )


def image_bytes(size: int) -> int:
    """Bytes of a tile image of this size: red, green, blue and valid, a byte each, over core and halo."""
    return (size + 2 * HALO) ** 2 * 4
