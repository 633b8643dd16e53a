"""What is asked for and what was found for it: the values that the steps of a run share, and their JSON. Knows nothing of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import shapely
from shapely import Geometry

from geopixel.cost import PlanCost, Spent
from geopixel.features import Outline
from geopixel.search import MAX_ITEMS, Findings
from geopixel.search.choice import Rule
from geopixel.tiling import Window, ground_sample_distance, project_area
from geopixel.types import Access, Asset, Grid, Quality, Scene, Source, State, Tiles

BESIDES = ("allow_holes", "shards", "cog", "describe")
"""Fields of a request that shape no feature."""


Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its units are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """What is asked for: everything that shapes the result, and nothing else."""

    area: Geometry
    """EPSG:4326, longitude first."""
    prompts: tuple[str, ...]
    catalog: str
    model: str
    collection: str | None = None
    datetime: str | None = None
    max_cloud: float | None = None
    """Percent."""
    filter: str | None = None
    """CQL2, JSON or text."""
    choose: Rule = "newest"
    per_cell: int | None = None
    """Scenes deep, by the rule choose; None: all."""
    access: Access | None = None
    assets: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    stretch: tuple[float, float] | None = None
    profile: str | None = None
    """TOML, see profiles.py."""
    resolution: float | None = None
    crs: str | None = None
    threshold: float = 0.5
    min_area: Mapping[str, float] = field(default_factory=dict)
    """By prompt, those that are not named 0; as are the next two. Square metres."""
    fill_holes: Mapping[str, float] = field(default_factory=dict)
    """Square metres."""
    simplify: Mapping[str, float] = field(default_factory=dict)
    """Metres."""
    orthogonalize: tuple[str, ...] = ()
    """The prompts whose outlines get right angles."""
    describe: bool = False
    """Also say what every tile shows."""
    allow_holes: bool = False
    """Publish although some tiles failed."""
    shards: bool = True
    """Masks in Zarr shards, not in chunks alone."""
    cog: bool = False
    """Masks as COGs too."""
    window: Window | None = None
    """Only the tiles in these pixels of the grid, which crs and resolution name then: a cell of a country; None: all that the area touches."""

    def __post_init__(self) -> None:
        if self.window is not None and None in (self.crs, self.resolution):
            raise ValueError(f"a window counts pixels of a grid: name its crs and resolution, got {self.crs} and {self.resolution}")
        for name in ("min_area", "fill_holes", "simplify"):
            values = getattr(self, name)
            if strange := values.keys() - set(self.prompts):
                raise ValueError(f"{name} is of the prompts {self.prompts}, got {sorted(strange)}")
            object.__setattr__(self, name, {prompt: float(values.get(prompt, 0)) for prompt in self.prompts})  # one way to say the same

    @property
    def outlines(self) -> dict[str, Outline]:
        """By prompt, in order."""
        return {
            prompt: Outline(self.min_area[prompt], self.fill_holes[prompt], self.simplify[prompt], prompt in self.orthogonalize)
            for prompt in self.prompts
        }

    def to_json(self) -> dict[str, Any]:
        """JSON values; equal requests give equal ones."""
        return json.loads(json.dumps(asdict(replace(self, area=None)) | {"area": self.area.wkt}))  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MapRequest:
        """Inverse of to_json."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "area": shapely.from_wkt(values["area"])})


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a plan may reach. They shape no result: a run may be resumed with others."""

    allow_hosts: tuple[str, ...] = ()
    """Where a catalog may lead: see access.Hosts."""
    max_items: int = MAX_ITEMS
    max_vertices: int = 1_000_000
    """Of the area."""
    max_tiles: int = 10_000_000


USUAL = Limits()


@dataclass(frozen=True, slots=True)
class Run:
    """A request and what was found for it: all that any worker needs, besides the tiles."""

    request: MapRequest
    scenes: tuple[Scene, ...]
    grid: Grid
    weights_sha256: str = ""
    """Of the model; empty while the run is only planned."""

    @property
    def id(self) -> str:
        """Of the request and the scenes: equal for two runs that ask for the same features and find the same scenes."""
        request = {name: value for name, value in self.request.to_json().items() if name not in BESIDES}
        told = {"request": request, "scenes": [scene_to_json(scene) for scene in self.scenes]}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def guesses(self) -> list[str]:
        """What nobody says of the scenes' colours, and what was taken instead: one line a collection."""
        return list(dict.fromkeys(f"{scene.collection}: {scene.guess}" for scene in self.scenes if scene.guess))

    @property
    def area(self) -> Geometry:
        """In the CRS of the grid."""
        return project_area(self.request.area, self.grid.crs)

    @property
    def items(self) -> list[str]:
        """Collection and id of every item, in the order in which planes of scenes count them."""
        return [f"{scene.collection}/{source.item}" for scene in self.scenes for source in scene.sources]


@dataclass(frozen=True, slots=True)
class Plan:
    run: Run
    tiles: Tiles
    cost: PlanCost
    findings: Findings | None = None
    """What was searched for it; None for a plan that was stored before."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to."""

    tiles: dict[State, int]
    features: dict[str, int]
    """By prompt."""
    km2: dict[str, float]
    """Ground in the features of a prompt."""
    seconds: dict[str, float]
    """By stage, of this submission."""
    worked: int
    """Tiles that this submission looked at; the others were there already."""
    plan: Plan
    """What was meant, and ..."""
    spent: Spent
    """... what it took."""
    busy: float | None = None
    """Share 0..1 of their time that the workers with the model spent in it; None where it was not measured."""
    published: bool = True
    """False: tiles failed and holes are not allowed, so coverage.parquet is all there is."""


def metres_per_pixel(run: Run) -> float:
    """Metres a pixel at the scenes, not at the area: areas that overlap and have the same scenes get the same tiles."""
    footprints = [source.footprint for scene in run.scenes for source in scene.sources]
    return ground_sample_distance(run.grid, shapely.GeometryCollection(footprints))


def scene_to_json(scene: Scene) -> dict[str, Any]:
    sources = [asdict(replace(source, footprint=None)) | {"footprint": source.footprint.wkt} for source in scene.sources]  # type: ignore[arg-type]
    return {"collection": scene.collection, "day": scene.day, "stretch": scene.stretch, "guess": scene.guess, "sources": sources}


def scene_from_json(values: Mapping[str, Any]) -> Scene:
    """Inverse of scene_to_json."""
    sources = []
    for source in values["sources"]:
        assets, quality = tuple(map(_asset_from_json, source["assets"])), source["quality"]
        if quality is not None:
            quality = Quality(_asset_from_json(quality["asset"]), tuple(quality["values"]), tuple(quality["bits"]))
        sources.append(Source(**source | {"assets": assets, "quality": quality, "footprint": shapely.from_wkt(source["footprint"])}))
    stretch = values["stretch"]
    return Scene(values["collection"], values["day"], tuple(sources), None if stretch is None else (stretch[0], stretch[1]), values["guess"])


def _asset_from_json(values: Mapping[str, Any]) -> Asset:
    return Asset(**{**values, "bands": tuple(values["bands"])})
