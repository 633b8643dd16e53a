"""What of an item shows the ground in colours, and what tells its clouds: by a profile of its collection (TOML files in profiles/, or the
user's own), else by what the catalog says of the bands, else by a guess that is named. Pure: knows items, opens nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pystac

from geopixel.types import Asset, Quality

Made = TypeVar("Made")

COLOURS = ("red", "green", "blue")
VISUAL_NAMES = ("visual", "image", "rgb")
"""Assets of these names are pictures by custom."""
RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2")
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
OTHER_ROLES = {"thumbnail", "overview", "metadata", "data-mask", "cloud", "saturation"}
"""Roles of rasters that are no imagery (STAC best practices; Landsat's quality bands)."""


@dataclass(frozen=True, slots=True)
class Colours:
    """One way in which the items of a collection hold their colours."""

    assets: tuple[str, ...]
    """One with all colours, or three: red, green, blue."""
    bands: tuple[int, ...] = ()
    """1-based, of a single asset: red, green, blue, or grey; (): as the catalog says."""
    stretch: tuple[float, float] | None = None
    """Raw values shown as 0 and 255; None: the pixels are 8-bit."""
    nodata: float | None = None
    """Raw value of missing pixels; a mask or an alpha band in the file goes before it."""
    since: Mapping[str, str | float] | None = None
    """Holds only for items whose properties are at least this."""

    def __post_init__(self) -> None:
        if len(self.assets) not in (1, 3) or (len(self.assets) == 3 and self.bands):
            raise ValueError(f"colours are one asset, or three without bands, got assets {list(self.assets)}, bands {list(self.bands)}")
        if self.bands and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise ValueError(f"bands of colours are one or three 1-based indexes, got {list(self.bands)}")
        if self.stretch is not None and (len(self.stretch) != 2 or not self.stretch[0] < self.stretch[1]):
            raise ValueError(f"a stretch is a lower and a higher value, got {list(self.stretch)}")

    def fit(self, assets: Collection[str], properties: Mapping[str, Any]) -> bool:
        """Whether an item with these assets and properties holds its colours in this way."""
        since = (self.since or {}).items()
        return set(self.assets) <= set(assets) and all(key in properties and properties[key] >= value for key, value in since)


@dataclass(frozen=True, slots=True)
class Clouds:
    """An asset that tells clouds and their shadows, as types.Quality does."""

    asset: str
    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    band: int = 1

    def __post_init__(self) -> None:
        Quality(Asset(self.asset, (self.band,)), self.values, self.bits)  # its rules are ours


@dataclass(frozen=True, slots=True)
class Profile:
    """How the items of some collections are shown."""

    name: str
    collections: tuple[str, ...]
    """Ids, or patterns of them with * and ?."""
    colours: tuple[Colours, ...]
    """The first that fits an item counts."""
    quality: tuple[Clouds, ...] = ()
    """The first whose asset the item has counts."""
    properties: tuple[str, ...] = ()
    """Items of any other collection belong too, if they have all of these."""

    def __post_init__(self) -> None:
        if not (self.collections or self.properties) or not self.colours:
            raise ValueError("it needs collections (or properties) and colours")

    def describes(self, collection: str, properties: Mapping[str, Any]) -> bool:
        named = any(fnmatchcase(collection, pattern) for pattern in self.collections)
        return named or (bool(self.properties) and set(self.properties) <= properties.keys())


@dataclass(frozen=True, slots=True)
class Shown:
    """What is to be read of an item."""

    names: tuple[str, ...]
    """Of the assets with its colours."""
    assets: tuple[Asset, ...]
    """The same; their bands, concatenated, are red, green, blue, or a single grey."""
    quality: Quality | None
    stretch: tuple[float, float] | None
    guess: str
    """As types.Scene has it."""


def load_profiles(own: str | None = None) -> tuple[Profile, ...]:
    """The shipped profiles, and before them the user's own, the text of a TOML file. Raises ValueError where that is not a profile."""
    return _shipped() if own is None else (parse_profile(own, "of --profile"), *_shipped())


@cache
def _shipped() -> tuple[Profile, ...]:
    folder = files("geopixel") / "profiles"
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name)
    return tuple(parse_profile(path.read_text(encoding="utf-8"), path.name.removesuffix(".toml")) for path in paths)


def parse_profile(text: str, name: str) -> Profile:
    """A profile from TOML, whose keys are the fields of Profile, Colours and Clouds. Raises ValueError that names the profile and what is wrong."""
    try:
        table = tomllib.loads(text)
        table["colours"] = tuple(_made(Colours, part) for part in table.get("colours", ()))
        table["quality"] = tuple(_made(Clouds, part) for part in table.get("quality", ()))
        return _made(Profile, {"collections": ()} | table | {"name": name})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"profile {name} is not one: {error}") from error


def _made(kind: type[Made], table: Mapping[str, Any]) -> Made:
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {key!r}, known are {', '.join(known)}")
    for key, field in known.items():
        if field.default is MISSING and key not in table:
            raise ValueError(f"{key} is missing")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


def show(
    item: pystac.Item,
    collection: str,
    defaults: Mapping[str, Mapping[str, Any]],
    profiles: Sequence[Profile],
    *,
    assets: Sequence[str] = (),
    bands: tuple[int, ...] = (),
    stretch: tuple[float, float] | None = None,
) -> Shown:
    """What to read of an item so that it is seen in colours.

    The caller's word counts first, then the first profile that describes the item, then eo:bands, raster:bands and bands of the item and its
    collection. defaults: what the collection says of assets by name (item_assets). assets, bands, stretch: as find_scenes takes them.
    Raises ValueError where the caller asks for what the item does not have, or nobody says which of several files show the colours.
    """
    profile = next((profile for profile in profiles if profile.describes(collection, item.properties)), None)
    ways = [way for way in profile.colours if way.fit(item.assets, item.properties)] if profile else []
    way = next((way for way in ways if not assets or way.assets == tuple(assets)), None)
    guesses: list[str] = []
    names = way.assets if way else _colour_assets(item, collection, defaults, assets, guesses)
    if bands and len(names) == 3:
        raise ValueError(f"bands choose within a single asset, item {item.id} of {collection} has its colours in {', '.join(names)}: name one")
    wanted = (1,) if len(names) == 3 else bands or (way.bands if way else ())
    read = tuple(_asset(item, defaults, name, wanted, guesses) for name in names)
    # Other files of the same kind than the profile names have its scale and nodata too.
    way = way or next((way for way in ways if len(way.assets) == len(names)), None)
    if way is not None and way.nodata is not None:
        read = tuple(Asset(asset.href, asset.bands, way.nodata if asset.nodata is None else asset.nodata) for asset in read)
    clouds = next((rule for rule in profile.quality if rule.asset in item.assets), None) if profile else None
    quality = Quality(Asset(_href(item, clouds.asset), (clouds.band,)), clouds.values, clouds.bits) if clouds else None
    return Shown(tuple(names), read, quality, _stretch(item, defaults, names, way, stretch, guesses), "; ".join(guesses))


def said_of_bands(item: pystac.Item, defaults: Mapping[str, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """What is said of the asset's bands, in stored order: by the collection, then by the item; STAC 1.1 bands and the older extensions alike."""
    bands: list[dict[str, Any]] = []
    for said in (defaults.get(name, {}), item.assets[name].extra_fields):
        for key in ("bands", "eo:bands", "raster:bands"):
            for index, band in enumerate(said.get(key) or []):
                if index == len(bands):
                    bands.append({})
                bands[index].update(band if isinstance(band, dict) else {})
    return bands


def _colour_assets(
    item: pystac.Item, collection: str, defaults: Mapping[str, Mapping[str, Any]], wanted: Sequence[str], guesses: list[str]
) -> Sequence[str]:
    """The names of the one or three assets that show the item in colours."""
    offered = item.assets
    for name in wanted:
        if name not in offered:
            raise ValueError(f"no asset {name!r} in item {item.id} of {collection}: it has {', '.join(sorted(offered))}")
    if wanted:
        return wanted
    rasters = sorted((name for name, asset in offered.items() if _is_raster(asset)), key=lambda name: (offered[name].media_type == "image/jp2", name))
    colours = {name: [_common_name(band) for band in said_of_bands(item, defaults, name)] for name in rasters}
    pictures = [name for name in VISUAL_NAMES if name in rasters]
    pictures += [name for name in rasters if "visual" in (offered[name].roles or ())]
    pictures += [name for name in rasters if set(COLOURS) <= set(colours[name])]
    if pictures:
        return pictures[:1]
    single = {colour: [name for name in rasters if ([name] if colours[name] in ([], [""]) else colours[name]) == [colour]] for colour in COLOURS}
    if all(single.values()):
        return [single[colour][0] for colour in COLOURS]
    if len(rasters) == 1:
        if len(offered) > 1:
            guesses.append(f"asset {rasters[0]} is taken, its only raster")
        return rasters
    raise ValueError(f"assets must be named: which of item {item.id} of {collection} hold the colours? It has {', '.join(sorted(offered))}")


def _is_raster(asset: pystac.Asset) -> bool:
    if OTHER_ROLES & set(asset.roles or ()):
        return False
    if asset.media_type:
        return asset.media_type.startswith(RASTER_TYPES)
    return PurePosixPath(urlsplit(asset.href).path).suffix.lower() in RASTER_SUFFIXES


def _common_name(band: Mapping[str, Any]) -> str:
    return str(band.get("eo:common_name") or band.get("common_name") or band.get("name") or "").lower()


def _href(item: pystac.Item, name: str) -> str:
    return item.assets[name].get_absolute_href() or item.assets[name].href


def _asset(item: pystac.Item, defaults: Mapping[str, Mapping[str, Any]], name: str, wanted: tuple[int, ...], guesses: list[str]) -> Asset:
    bands = said_of_bands(item, defaults, name)
    if bands and wanted and max(wanted) > len(bands):
        raise ValueError(f"bands must be from 1 to {len(bands)} in asset {name} of item {item.id}, got {list(wanted)}")
    indexes = wanted or _colour_bands([_common_name(band) for band in bands])
    if not indexes:
        indexes = (1, 2, 3) if len(bands) not in (1, 2) else (1,)
        guesses.append(f"the first {len(indexes)} bands of asset {name} are taken for {'red, green, blue' if len(indexes) == 3 else 'grey'}")
    nodata = bands[indexes[0] - 1].get("nodata") if bands else None
    nodata = item.assets[name].extra_fields.get("nodata") if nodata is None else nodata
    return Asset(_href(item, name), indexes, None if nodata is None else float(nodata))


def _colour_bands(names: Sequence[str]) -> tuple[int, ...]:
    """1-based bands to show: red, green, blue wherever they are stored; a single one; else nobody says: ()."""
    if set(COLOURS) <= set(names):
        return tuple(names.index(colour) + 1 for colour in COLOURS)
    return (1,) if len(names) == 1 else ()


def _stretch(
    item: pystac.Item,
    defaults: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    way: Colours | None,
    given: tuple[float, float] | None,
    guesses: list[str],
) -> tuple[float, float] | None:
    """By the pixel type, the caller, the profile, the collection's statistics, in this order; never by the item's own statistics."""
    types = {band.get("data_type", item.assets[name].extra_fields.get("data_type")) for name in names for band in said_of_bands(item, defaults, name)}
    if types == {"uint8"}:
        return None
    if given is not None:
        return given
    if way is not None:
        return None if way.stretch is None else (float(way.stretch[0]), float(way.stretch[1]))
    said = [defaults.get(name, {}) for name in names]
    bands = [band for asset in said for band in asset.get("raster:bands") or asset.get("bands") or []]
    statistics = [band["statistics"] for band in bands if "maximum" in band.get("statistics", {}) and "minimum" in band["statistics"]]
    if not statistics:
        return None
    low, high = min(float(band["minimum"]) for band in statistics), max(float(band["maximum"]) for band in statistics)
    if low < high:
        guesses.append(f"values from {low:g} to {high:g}, the collection's statistics, are shown")
    return (low, high) if low < high else None
