"""The settings of a map, and of a country's: classes that are the flags of jobs/map_region.py and jobs/map_country.py, the keys of their TOML files and
the validation of both. Knows the form of every value; whether an area can be read, a catalog answers or a model exists is found out later."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import date
from datetime import datetime as Instant
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator
from pyproj import CRS
from pyproj.exceptions import CRSError

from geopixel.config.commandline import Settings, flag, load, suggestion
from geopixel.events import SUBMITTED

__all__ = ["DEMO", "NO_CATALOG", "PLANETARY_COMPUTER", "SUBMITTED", "CountrySettings", "MapSettings", "load"]

PLANETARY_COMPUTER = "https://planetarycomputer.microsoft.com/api/stac/v1"
DEMO, NO_CATALOG = "demo", "none"
OUT_SCHEMES = ("s3", "gs", "az")
"""Object stores that can hold a run folder."""


def _listed(value: Any) -> Any:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _split(value: Any) -> Any:
    """Lists may be written shorter: "1,2,3", or ["a,b", "c"]."""
    value = _listed(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [word for item in value for word in re.split(r"[,\s]+", item) if word]
    return value


def _dated(value: Any) -> Any:
    """TOML has dates and times of its own."""
    return value.isoformat() if isinstance(value, date) else value


def _pair(value: Any) -> Any:
    value = _split(value)
    if value is not None and (not isinstance(value, Sequence) or len(value) != 2):
        raise ValueError(f"takes two numbers LOW HIGH, got {value}")
    return value


def _by_prompt(value: Any, info: ValidationInfo) -> dict[str, float]:
    """A number of every prompt: one number is that of all, "building=20" that of one; a list has several, a TOML table one for each of its keys."""
    prompts = info.data.get("prompt", ())
    words = [f"{name}={number}" for name, number in value.items()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
    named: dict[str, float] = {}
    for word in words:
        name, _, number = str(word).rpartition("=")
        name = " ".join(name.split())
        try:
            amount = float(number)
        except ValueError:
            raise ValueError(f"takes a number, or one of a prompt such as {(prompts or ('building',))[0]}=20, got {word!r}") from None
        if not 0 <= amount < float("inf"):
            raise ValueError(f"must not be negative, got {word}")
        if name and prompts and name not in prompts:
            raise ValueError(f"{name!r} is none of the prompts: {', '.join(prompts)}{suggestion(name, list(prompts))}")
        if name in named:
            raise ValueError(f"is given twice for {name or 'all prompts'}")
        named[name] = amount
    return {prompt: named.get(prompt, named.get("", 0.0)) for prompt in prompts}


NumberByPrompt = Annotated[dict[str, float], BeforeValidator(_by_prompt)]


class MapSettings(Settings):
    """Map what the prompts name in an area: imagery from a STAC catalog in, polygons (GeoParquet) and masks (Zarr) out."""

    program = "map_region"
    usage = "map_region.py --aoi FILE|WKT|BBOX --prompt TEXT [--prompt TEXT ...] [options]"
    examples = """examples:
  map_region.py --catalog demo --prompt building --prompt water
  map_region.py --aoi aoi.geojson --prompt building --prompt "swimming pool" --datetime 2020/2022 --dry-run
  map_region.py --aoi aoi.geojson --prompt building --prompt road --min-area 5 --min-area building=20 --orthogonalize building
  map_region.py --aoi -96.80,46.85,-96.75,46.90 --prompt road --out s3://bucket/fargo
  ray job submit --working-dir . -- python jobs/map_region.py --config region.toml --out s3://bucket/region
"""

    aoi: str | None = flag(
        "what to map",
        "FILE|WKT|BBOX",
        "area of interest: a GeoJSON, GeoPackage or GeoParquet file, WKT, or west,south,east,north in degrees; --catalog demo brings its own",
        min_length=1,
    )
    prompt: Annotated[tuple[str, ...], BeforeValidator(_listed)] = flag(
        "what to map", "TEXT", "what to look for, in a word or a few; repeat it for each further thing, all are found in one pass", ()
    )
    catalog: str = flag(
        "imagery",
        "URL|FILE|demo",
        "STAC API, static STAC catalog, STAC GeoParquet file (such as a run's scenes.parquet), or demo: rendered scenes with known truth "
        "(default: Planetary Computer)",
        PLANETARY_COMPUTER,
    )
    collection: str | None = flag("imagery", "NAME", "collection in the catalog (default: naip in the default catalog, else all)", min_length=1)
    datetime: Annotated[str | None, BeforeValidator(_dated)] = flag(
        "imagery", "WHEN", "when it was taken: 2020, 2020-06, 2020-06-30, an RFC 3339 time, or START/END of these, .. for an open end (default: any time)"
    )
    max_cloud: float | None = flag("imagery", "PERCENT", "leave out scenes that the catalog calls cloudier than this (default: keep all)", ge=0, le=100)
    filter: str | None = flag(
        "imagery", "CQL2", "leave out items that do not fulfil this, JSON or text, such as 'view:off_nadir < 20' (default: keep all)", min_length=1
    )
    choose: Literal["newest", "least-cloud", "best"] = flag(
        "imagery",
        "RULE",
        "which scene is read first where several lie: newest, least-cloud, or best (cloud, age, pixel size and coverage weighed) (default: newest)",
        "newest",
    )
    per_cell: int | None = flag("imagery", "N", "leave out scenes that no ground needs to be in N of them (default: keep all)", ge=1)
    access: Literal["plain", "planetary-computer", "anonymous", "requester-pays", "bearer"] | None = flag(
        "imagery",
        "HOW",
        "what opens files: plain, planetary-computer (its signatures), anonymous or requester-pays (object stores), bearer (token in "
        "GEOPIXEL_BEARER_TOKEN, for the catalog too) (default: planetary-computer for its items, else plain)",
    )
    assets: Annotated[tuple[str, ...], BeforeValidator(_split)] = flag(
        "imagery", "NAME[,NAME,NAME]", "the asset with the colours, or three: red, green, blue (default: found from the catalog)", ()
    )
    bands: Annotated[tuple[int, ...], BeforeValidator(_split)] = flag(
        "imagery", "N[,N,N]", "1-based bands of the asset that are red, green and blue, or a single grey one (default: found from the catalog)", ()
    )
    stretch: Annotated[tuple[float, float] | None, BeforeValidator(_pair)] = flag(
        "imagery", "LOW HIGH", "raw values shown as black and white where pixels are not 8-bit (default: known for the collection)"
    )
    profile: str | None = flag(
        "imagery", "FILE", "TOML file that says how a collection is shown: assets, bands, scale, nodata, clouds; it goes before geopixel/profiles/*.toml"
    )
    resolution: float | None = flag("pixels of the map", "SIZE", "pixel edge in units of the CRS (default: the imagery's own)", ge=1e-9, le=1e6)
    crs: str | None = flag("pixels of the map", "CRS", "coordinate reference system, such as EPSG:32645 (default: the imagery's own)")
    model: str | None = flag(
        "finding",
        "nano|PATH|HUB_ID",
        "bundled small model, checkpoint folder or hub id (default: MBZUAI/GeoPixel-7B where CUDA is there, else nano)",
        min_length=1,
    )
    threshold: float = flag("finding", "P", "probability above which a pixel belongs to an object, between 0 and 1 (default: 0.5)", 0.5, gt=0, lt=1)
    min_area: NumberByPrompt = flag("outlines", "[PROMPT=]M2", "leave out features smaller than this, in square metres (default: 0)", 0.0)
    fill_holes: NumberByPrompt = flag("outlines", "[PROMPT=]M2", "fill holes smaller than this, in square metres, with what lies in them (default: 0)", 0.0)
    simplify: NumberByPrompt = flag(
        "outlines",
        "[PROMPT=]M",
        "leave out corners whose triangle is smaller than the square of this many metres; neighbours go on sharing their edges (default: 0)",
        0.0,
    )
    orthogonalize: Annotated[tuple[str, ...], BeforeValidator(_listed)] = flag(
        "outlines", "PROMPT", "give the outlines of this prompt right angles, as buildings have; repeat it for further prompts (default: none)", ()
    )
    describe: bool = flag("what comes out", "", "also say what every tile shows, in words tied to the polygons: captions.parquet", False)
    allow_holes: bool = flag(
        "what comes out", "", "publish although tiles failed: the holes are marked, the exit code stays 1 (default: publish nothing then)", False
    )
    shards: bool = flag("what comes out", "", "masks.zarr in chunks of 512 pixels alone, for readers of Zarr that know no shards", True)
    cog: bool = flag("what comes out", "", "write the mask of every prompt as a Cloud-Optimised GeoTIFF too", False)
    allow_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = flag(
        "limits",
        "HOST[,HOST]",
        "ask these hosts only, private ones too: names, host:port or patterns such as *.example.org, * for any public one, file for files of this "
        "machine (default: a catalog read over HTTP leads to its own host and to public ones)",
        (),
    )
    max_items: int = flag("limits", "N", "refuse a search that gives more items (default: 50000)", 50_000, ge=1)
    max_vertices: int = flag("limits", "N", "refuse an area of more vertices (default: 1000000)", 1_000_000, ge=1)
    max_tiles: int = flag("limits", "N", "refuse an area of more tiles of 512 pixels (default: 10000000)", 10_000_000, ge=1)
    config: str | None = flag("running", "FILE", "TOML file with these settings under the same names; a flag wins over the file")
    gpus_per_actor: float | None = flag(
        "running", "N", "GPUs, or a share of one, for each copy of the model (default: 1 where the cluster has GPUs, else none)", gt=0
    )
    min_actors: int | None = flag("running", "N", "copies of the model to keep (default: as many as fit into the cluster)", ge=1)
    max_actors: int | None = flag("running", "N", "copies of the model to grow to, where the cluster grows (default: as many as fit into it now)", ge=1)
    max_attempts: int = flag("running", "N", "a tile that ends its worker so often is set aside as failed (default: 3)", 3, ge=1)
    retry_failed: bool = flag("running", "", "look again at tiles that failed before", False)
    dry_run: bool = flag("running", "", "print the plan and what it will cost, write plan.parquet to --out, then stop", False)
    gpu_price: float | None = flag("running", "PRICE", "of an hour of a GPU, in any currency: the plan and the end of the run say what the model costs", ge=0)
    out: str = flag("running", "PATH|URL", "run folder, local or s3://, gs://, az://; an unfinished run there is resumed (default: runs/AREA-PROMPT)", "")

    @field_validator("prompt")
    @classmethod
    def _prompts_are_distinct(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        prompts = tuple(" ".join(prompt.split()) for prompt in prompts)
        if not prompts:
            raise ValueError("is missing: name at least one thing to look for, such as --prompt building")
        folded = [prompt.casefold() for prompt in prompts]
        for prompt in prompts:
            if not prompt:
                raise ValueError("'' is blank")
            if folded.count(prompt.casefold()) > 1:
                raise ValueError(f"{prompt!r} is given twice")
        return prompts

    @field_validator("catalog")
    @classmethod
    def _catalog_is_a_place(cls, catalog: str) -> str:
        url = urlsplit(catalog)
        if catalog == DEMO or (url.scheme in ("http", "https") and url.netloc):
            return catalog
        if url.scheme in OUT_SCHEMES and url.netloc and url.path.endswith(".parquet"):
            return catalog
        path = Path(catalog).expanduser()
        if not path.is_file():
            raise ValueError(f"{catalog!r} is neither an http(s) URL, nor a file, nor the word {DEMO}")
        return str(path)

    @field_validator("collection")
    @classmethod
    def _default_collection(cls, collection: str | None, info: ValidationInfo) -> str | None:
        return "naip" if collection is None and info.data.get("catalog") == PLANETARY_COMPUTER else collection

    @field_validator("datetime")
    @classmethod
    def _datetime_is_an_instant_or_interval(cls, when: str | None) -> str | None:
        ends = [] if when is None else when.split("/")
        if len(ends) > 2 or ends == ["..", ".."] or not all(_is_instant(end) or (end == ".." and len(ends) == 2) for end in ends):
            raise ValueError(f"{when!r} is neither a date or time such as 2020-06-30 nor an interval START/END of these")
        return when

    @field_validator("assets")
    @classmethod
    def _assets_make_colours(cls, assets: tuple[str, ...]) -> tuple[str, ...]:
        if len(assets) not in (0, 1, 3) or len(set(assets)) != len(assets):
            raise ValueError(f"takes one name or three different ones, got {','.join(assets)}")
        return assets

    @field_validator("bands")
    @classmethod
    def _bands_make_colours(cls, bands: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if bands and (len(bands) not in (1, 3) or min(bands) < 1 or len(info.data.get("assets", ())) == 3):
            raise ValueError(f"takes one or three numbers from 1 up, of a single asset, got {','.join(map(str, bands))}")
        return bands

    @field_validator("stretch")
    @classmethod
    def _stretch_rises(cls, stretch: tuple[float, float] | None) -> tuple[float, float] | None:
        if stretch is not None and not stretch[0] < stretch[1]:
            raise ValueError(f"takes LOW below HIGH, got {stretch[0]:g} {stretch[1]:g}")
        return stretch

    @field_validator("profile")
    @classmethod
    def _profile_is_a_file(cls, profile: str | None) -> str | None:
        if profile is not None and not Path(profile).expanduser().is_file():
            raise ValueError(f"{profile!r} is not a file")
        return profile

    @field_validator("orthogonalize")
    @classmethod
    def _right_angles_are_of_prompts(cls, named: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        named, prompts = tuple(" ".join(name.split()) for name in named), info.data.get("prompt", ())
        for name in named:
            if prompts and name not in prompts:
                raise ValueError(f"{name!r} is none of the prompts: {', '.join(prompts)}{suggestion(name, list(prompts))}")
        return tuple(prompt for prompt in prompts if prompt in named)

    @field_validator("crs")
    @classmethod
    def _crs_is_known(cls, crs: str | None) -> str | None:
        try:
            return None if crs is None else CRS.from_user_input(crs).to_string()
        except CRSError:
            raise ValueError(f"{crs!r} is not a coordinate reference system such as EPSG:32645") from None

    @field_validator("out")
    @classmethod
    def _out_is_a_folder_that_stays(cls, out: str, info: ValidationInfo) -> str:
        if "://" in out:
            url = urlsplit(out)
            if url.scheme not in OUT_SCHEMES or not url.netloc:
                raise ValueError(f"{out} is not a folder in an object store: {', '.join(f'{scheme}://' for scheme in OUT_SCHEMES)}")
            return out.rstrip("/")
        path = Path(out or _default_out(info.data)).expanduser()
        if SUBMITTED in os.environ and not path.is_absolute():
            raise ValueError(f"{path} is relative: a submitted job runs in a temporary copy; give an absolute path or a URL")
        if path.is_file():
            raise ValueError(f"{path} is a file, not a folder")
        return str(path.absolute())

    @field_validator("max_actors")
    @classmethod
    def _actors_are_a_range(cls, most: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min_actors")
        if most is not None and least is not None and most < least:
            raise ValueError(f"must not be below --min-actors {least}, got {most}")
        return most

    @model_validator(mode="after")
    def _area_is_known(self) -> MapSettings:
        if self.aoi is None and self.catalog != DEMO:
            raise ValueError(f"--aoi is missing: say where to map (only --catalog {DEMO} brings its own area)")
        return self


class CountrySettings(MapSettings):
    """Map what the prompts name in a whole country: cells of a world-anchored grid, each a run of its own, and one map of them all."""

    program = "map_country"
    usage = "map_country.py --aoi FILE|WKT|BBOX --prompt TEXT [--prompt TEXT ...] --out PATH|URL [options]"
    examples = """examples:
  map_country.py --aoi france.geojson --prompt building --resolution 0.6 --catalog none --dry-run
  map_country.py --aoi moldova.geojson --prompt building --collection naip --out s3://bucket/moldova
  map_country.py --config moldova.toml --since last
  ray job submit --working-dir . -- python jobs/map_country.py --config moldova.toml --out s3://bucket/moldova
"""

    since: Literal["last"] | None = flag(
        "what to map",
        "last",
        "search every cell again, map those where the catalog has items that it did not have, and write what changed to changes/",
    )
    cell_blocks: int = flag("pixels of the map", "N", "edge of a cell in blocks of 4096 pixels: 4, 8, 16, 32 or 64 (default: 8)", 8)

    @field_validator("catalog")
    @classmethod
    def _catalog_is_a_place(cls, catalog: str) -> str:
        return catalog if catalog == NO_CATALOG else MapSettings._catalog_is_a_place(catalog)

    @field_validator("cell_blocks")
    @classmethod
    def _cells_are_squares_of_a_quadtree(cls, blocks: int) -> int:
        if blocks not in (4, 8, 16, 32, 64):
            raise ValueError(f"must be 4, 8, 16, 32 or 64, got {blocks}")
        return blocks

    @model_validator(mode="after")
    def _no_catalog_is_for_plans(self) -> CountrySettings:
        if self.catalog == NO_CATALOG and not self.dry_run:
            raise ValueError(f"--catalog {NO_CATALOG} plans from the outline alone: add --dry-run, or name a catalog")
        return self


def _is_instant(text: str) -> bool:
    """A year, a month, a day or an RFC 3339 time."""
    if not re.fullmatch(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?)?)?)?", text):
        return False
    try:
        Instant.fromisoformat(text + "-01-01"[len(text) - 4 :] if len(text) < 10 else text)
    except ValueError:
        return False
    return True


def _default_out(data: dict[str, Any]) -> str:
    """runs/AREA-PROMPT, or runs/demo where the demo brings its own area."""
    aoi, prompts = data.get("aoi"), data.get("prompt") or ("",)
    if aoi is None:
        return f"runs/{DEMO}"
    # WKT and boxes have no short name: a few digits of their digest tell them apart.
    area = Path(aoi).stem if re.search(r"\.[A-Za-z]+$", aoi) else "area-" + hashlib.sha256(aoi.encode()).hexdigest()[:8]
    return f"runs/{area}-" + re.sub(r"\W+", "-", prompts[0].casefold()).strip("-")[:40]
