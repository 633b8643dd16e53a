"""The values that flow between the rooms: where imagery is (Scene), where work is (Grid, Tile, Tiles, Block), what was seen
(TileImage), what was found (TilePrediction) and what became of it (TileReceipt). All are frozen, check themselves when
made and know nothing of files, models or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely import Geometry

State = Literal["ok", "empty", "nodata", "cloud", "outside", "failed"]
STATES: tuple[State, ...] = get_args(State)
"""ok: something was found; empty: looked, none of the prompts is there; nodata, cloud, outside: not worth looking; failed: a hole."""

STATUS_CODES: dict[State, int] = {"outside": 0, "ok": 1, "empty": 2, "nodata": 3, "cloud": 4, "failed": 5}
"""Values of the status band; 0 is its fill value, so ground that was never planned reads as outside."""
UNDECIDED = 255
"""In a column of decisions: the plan alone does not say, the tile is to be looked at."""
DECISIONS: dict[int, State | None] = {STATUS_CODES["outside"]: "outside", STATUS_CODES["nodata"]: "nodata", STATUS_CODES["cloud"]: "cloud", UNDECIDED: None}
"""What a plan can say of a tile, by the code that a column holds."""

TILE_SIZES = (512, 1024, 2048, 4096)
HALO = 64
"""Pixels a tile reads beyond each edge of its core. One value for all sizes: the blending weight of a tile is its core
convolved with a box of 2 * HALO, and the convolved cores of any tiling of the plane sum to one at every pixel."""
BLOCK_SIZE = 4096

NO_SCENE, CLOUDED = 65535, 65534
"""In a plane of scenes: no item has data here; the items that have some show only cloud or its shadow. Smaller values are indexes."""

Access = Literal["plain", "planetary-computer", "anonymous", "requester-pays", "bearer"]
"""What opens a file: nothing, a signature of the Planetary Computer, an object store asked without credentials or at the reader's
expense, a token from the environment."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One raster file of an item and the bands of it that are wanted."""

    href: str
    bands: tuple[int, ...]
    """1-based band indexes in the order wanted."""
    nodata: float | None = None
    """Value that the catalog says is missing data; None: whatever the file itself says."""
    access: Access = "plain"
    """How it is opened; href itself is never signed."""

    def __post_init__(self) -> None:
        if not self.bands or min(self.bands) < 1:
            raise ValueError(f"bands must be 1-based and at least one, got {self.bands} for {self.href}")


@dataclass(frozen=True, slots=True)
class Quality:
    """The band of an item that says where clouds or their shadows are, and how: by whole values (SCL) or by bits (QA_PIXEL)."""

    asset: Asset
    """One band of integers."""
    values: tuple[int, ...] = ()
    """Values that mean cloud or shadow."""
    bits: tuple[int, ...] = ()
    """Bits, 0 the lowest, each of which means cloud or shadow where it is set."""

    def __post_init__(self) -> None:
        if len(self.asset.bands) != 1:
            raise ValueError(f"a quality asset has one band, got {self.asset.bands} for {self.asset.href}")
        if not (self.values or self.bits) or not all(0 <= bit < 32 for bit in self.bits):
            raise ValueError(f"quality needs values, or bits from 0 to 31, that mean cloud, got values {self.values}, bits {self.bits} for {self.asset.href}")


@dataclass(frozen=True, slots=True)
class Source:
    """One STAC item, reduced to what reading its colours needs."""

    item: str
    footprint: Geometry
    """EPSG:4326, longitude first."""
    assets: tuple[Asset, ...]
    """Their bands, concatenated, are red, green, blue; or a single grey band."""
    crs: str | None = None
    resolution: float | None = None
    """Native pixel edge in units of crs; None where the item does not say."""
    gsd: float | None = None
    """Ground sample distance in metres; None where the item does not say."""
    href: str | None = None
    """Where the catalog has the item, None where it does not say."""
    cloud_cover: float | None = None
    """Percent; None where the item does not say."""
    quality: Quality | None = None
    """Where its clouds are; None: nobody says."""
    datetime: str | None = None
    """RFC 3339: when it was taken; None where the item does not say, or names an interval."""

    def __post_init__(self) -> None:
        count = sum(len(asset.bands) for asset in self.assets)
        if count not in (1, 3):
            raise ValueError(f"a source has 1 or 3 bands, got {count} for item {self.item}")


@dataclass(frozen=True, slots=True)
class Scene:
    """The items of one collection seen on one solar day, mosaicked in order: the first valid pixel wins."""

    collection: str
    day: str
    """ISO date."""
    sources: tuple[Source, ...]
    stretch: tuple[float, float] | None = None
    """Raw values shown as 0 and 255; None: the pixels are 8-bit already. One for a whole collection, never per tile."""
    guess: str = ""
    """What of its colours neither the caller, nor a profile, nor the catalog says, and what was taken instead; empty: nothing."""

    @property
    def id(self) -> str:
        return f"{self.collection}/{self.day}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Square pixels of a CRS, counted from its origin: column = floor(x / resolution), row = floor(-y / resolution)."""

    crs: str
    resolution: float

    def __post_init__(self) -> None:
        if not self.resolution > 0:
            raise ValueError(f"resolution must be positive, got {self.resolution}")

    def geobox(self, column: int, row: int, width: int, height: int) -> GeoBox:
        """Pixels [column, column + width) x [row, row + height) of this grid as a (height, width) GeoBox."""
        r = self.resolution
        return GeoBox((height, width), Affine(r, 0.0, column * r, 0.0, -r, -row * r), self.crs)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A square of the world-anchored grid that the model looks at once: a core, which it answers for, and a halo around it."""

    grid: Grid
    size: int
    """Pixels along an edge of the core, one of TILE_SIZES."""
    column: int
    row: int
    """Of the core, in tiles of this size from the CRS origin; rows grow southwards."""
    decided: State | None = None
    """State known from the plan alone (outside, nodata, cloud): such a tile is never read."""

    def __post_init__(self) -> None:
        if self.size not in TILE_SIZES:
            raise ValueError(f"tile size must be one of {TILE_SIZES}, got {self.size}")
        if self.decided not in DECISIONS.values():
            raise ValueError(f"a plan decides outside, nodata or cloud only, got {self.decided}")

    @property
    def id(self) -> str:
        return f"{self.size}_{self.column}_{self.row}"

    @property
    def left(self) -> int:
        """First pixel column of the core on the grid."""
        return self.column * self.size

    @property
    def top(self) -> int:
        """First pixel row of the core on the grid."""
        return self.row * self.size

    @property
    def core(self) -> GeoBox:
        """The (size, size) pixels that this tile answers for."""
        return self.grid.geobox(self.left, self.top, self.size, self.size)

    @property
    def geobox(self) -> GeoBox:
        """Core and halo: the (size + 2 HALO, size + 2 HALO) pixels that are read."""
        edge = self.size + 2 * HALO
        return self.grid.geobox(self.left - HALO, self.top - HALO, edge, edge)


@dataclass(frozen=True, slots=True, eq=False)
class Tiles(Sequence[Tile]):
    """Tiles of one grid as columns, 11 bytes each: a plan of a country. A Tile is made when one is asked for; to work on many, use the columns."""

    grid: Grid
    size: np.ndarray
    """(n,) int16."""
    column: np.ndarray
    """(n,) int32."""
    row: np.ndarray
    """(n,) int32."""
    decided: np.ndarray
    """(n,) uint8, a key of DECISIONS."""

    def __post_init__(self) -> None:
        dtypes = {"size": np.int16, "column": np.int32, "row": np.int32, "decided": np.uint8}
        for name, dtype in dtypes.items():
            values = getattr(self, name)
            if values.dtype != dtype or values.shape != (len(self),):
                raise ValueError(f"{name} must be {np.dtype(dtype)} ({len(self)},), got {values.dtype} {values.shape}")
        for name, known in (("size", TILE_SIZES), ("decided", tuple(DECISIONS))):
            strange = ~np.isin(getattr(self, name), known)
            if strange.any():
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)[strange][0]}")

    @classmethod
    def of(cls, tiles: Sequence[Tile]) -> Tiles:
        """The same tiles as columns, in their order. Raises ValueError unless they are of one grid."""
        if isinstance(tiles, Tiles):
            return tiles
        grids = {tile.grid for tile in tiles}
        if len(grids) != 1:
            raise ValueError(f"tiles must be of one grid, got {len(tiles)} tiles of {len(grids)} grids")
        codes = {decided: code for code, decided in DECISIONS.items()}
        size, column, row, decided = np.array([(tile.size, tile.column, tile.row, codes[tile.decided]) for tile in tiles]).T
        return cls(grids.pop(), size.astype(np.int16), column.astype(np.int32), row.astype(np.int32), decided.astype(np.uint8))

    @property
    def left(self) -> np.ndarray:
        """(n,) int64 first pixel column of the cores on the grid."""
        return self.column.astype(np.int64) * self.size

    @property
    def top(self) -> np.ndarray:
        """(n,) int64 first pixel row of the cores on the grid."""
        return self.row.astype(np.int64) * self.size

    @property
    def to_read(self) -> np.ndarray:
        """(n,) bool: the plan alone does not say what is there."""
        return self.decided == UNDECIDED

    def __len__(self) -> int:
        return len(self.size)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Tiles: ...
    def __getitem__(self, index: int | slice | np.ndarray) -> Tile | Tiles:
        """One tile, or those of a slice, a mask or indices."""
        if isinstance(index, slice | np.ndarray):
            return Tiles(self.grid, self.size[index], self.column[index], self.row[index], self.decided[index])
        return Tile(self.grid, int(self.size[index]), int(self.column[index]), int(self.row[index]), DECISIONS[int(self.decided[index])])

    def __iter__(self) -> Iterator[Tile]:
        for first in range(0, len(self), 4096):  # in parts: whole columns as lists are larger than the columns
            part = np.s_[first : first + 4096]
            columns = self.size[part].tolist(), self.column[part].tolist(), self.row[part].tolist(), self.decided[part].tolist()
            for size, column, row, decided in zip(*columns, strict=True):
                yield Tile(self.grid, size, column, row, DECISIONS[decided])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tiles):
            return NotImplemented
        return self.grid == other.grid and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("size", "column", "row", "decided"))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """BLOCK_SIZE x BLOCK_SIZE output pixels: one Zarr shard, written by one task."""

    grid: Grid
    column: int
    row: int
    """In blocks from the CRS origin; rows grow southwards."""

    @property
    def id(self) -> str:
        return f"{self.column}_{self.row}"

    @property
    def left(self) -> int:
        return self.column * BLOCK_SIZE

    @property
    def top(self) -> int:
        return self.row * BLOCK_SIZE

    @property
    def geobox(self) -> GeoBox:
        return self.grid.geobox(self.left, self.top, BLOCK_SIZE, BLOCK_SIZE)


@dataclass(frozen=True, slots=True)
class TileImage:
    """What a tile looks like on its own GeoBox (core and halo)."""

    tile: Tile
    rgb: np.ndarray
    """(height, width, 3) uint8; 0 where not valid."""
    scene: np.ndarray
    """(height, width) uint16: which item the pixel is from, counted through the sources of all scenes in order; CLOUDED or NO_SCENE where not valid."""

    def __post_init__(self) -> None:
        shape = self.tile.geobox.shape
        if self.rgb.dtype != np.uint8 or self.rgb.shape != (*shape, 3):
            raise ValueError(f"rgb must be uint8 {(*shape, 3)}, got {self.rgb.dtype} {self.rgb.shape}")
        if self.scene.dtype != np.uint16 or self.scene.shape != tuple(shape):
            raise ValueError(f"scene must be uint16 {tuple(shape)}, got {self.scene.dtype} {self.scene.shape}")

    @property
    def valid(self) -> np.ndarray:
        """(height, width) bool; True: the pixel was observed."""
        return self.scene < CLOUDED


LOGIT_SCALE = 8.0
"""Stored logit = round(LOGIT_SCALE * logit), clipped to -127..127: steps of 1/8 over +-15.9."""
CONFIDENCE_LEVELS = 32
"""Published confidence = round(32 * probability). Fewer levels compress better: 94 % of the bytes of a run are confidence."""
ABSENT = -128
"""Stored logit of a prompt that the model says is not in the tile: probability zero."""


@dataclass(frozen=True, slots=True)
class Description:
    """What the model says of a tile, phrases tied to masks."""

    text: str
    """As the model gave it: "<p> a phrase </p> [SEG]" marks a phrase and the mask that goes with it."""
    logits: np.ndarray
    """(n, h, w) int8, one for each [SEG] of the text, in order; as those of a TilePrediction, over core and halo."""

    def __post_init__(self) -> None:
        if self.logits.dtype != np.int8 or self.logits.ndim != 3 or len(self.logits) != self.text.count("[SEG]"):
            raise ValueError(f"logits must be int8, one mask for each of {self.text.count('[SEG]')} [SEG], got {self.logits.dtype} {self.logits.shape}")


@dataclass(frozen=True, slots=True)
class TilePrediction:
    """What the model found in a tile, at the mask decoder's own resolution, over core and halo."""

    tile_id: str
    state: State
    """ok, empty, nodata, cloud or failed."""
    logits: np.ndarray | None = None
    """(prompts, h, w) int8, LOGIT_SCALE per unit, positive inside the object, ABSENT where the prompt is not there; only with state ok."""
    scene: np.ndarray | None = None
    """(height, width) uint16 on the tile's GeoBox, as TileImage has it; with states ok and empty."""
    scores: np.ndarray | None = None
    """(prompts,) float32: the model's own estimate, 0..1, of how well its mask of the prompt fits, NaN where it has none; with logits."""
    reason: str = ""
    """Why, for nodata, cloud and failed."""
    description: Description | None = None
    """With states ok and empty, where one was asked for."""

    def __post_init__(self) -> None:
        if self.description is not None and self.state not in ("ok", "empty"):
            raise ValueError(f"a description goes with states ok and empty, got state {self.state} for tile {self.tile_id}")
        if self.state not in ("ok", "empty", "nodata", "cloud", "failed"):
            raise ValueError(f"a prediction is ok, empty, nodata, cloud or failed, got {self.state}")
        if (self.logits is not None) != (self.state == "ok"):
            raise ValueError(f"logits go with state ok and only with it, got state {self.state} for tile {self.tile_id}")
        if (self.scene is not None) != (self.state in ("ok", "empty")):
            raise ValueError(f"scene goes with states ok and empty and only with them, got state {self.state} for tile {self.tile_id}")
        if (self.scores is not None) != (self.logits is not None):
            raise ValueError(f"scores go with logits and only with them, got state {self.state} for tile {self.tile_id}")


@dataclass(frozen=True, slots=True)
class TileReceipt:
    """What became of a tile: all that the driver ever sees of it."""

    tile_id: str
    state: State
    reason: str = ""
    read_seconds: float = 0.0
    predict_seconds: float = 0.0
    read_bytes: int = 0
    """Of the files, as they are stored."""
    worker_seconds: float = 0.0
    """Of the worker that has the model, from its last tiles to these, waiting for pictures and storing included: predict_seconds is its busy part."""
    backend: str = ""
    """What computed it: device, dtype and attention kernel; empty where nothing was computed."""
