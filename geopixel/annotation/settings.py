"""The settings of annotation: the flags of jobs/annotate.py, the keys of its TOML file and the validation of both, in the way of config.py. What
finds and reads imagery is called and checked as for a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator, model_validator

from geopixel.config import DEMO, MapSettings
from geopixel.config.commandline import Settings, flag, load

IMAGERY = ("collection", "datetime", "max_cloud", "access", "assets", "bands", "stretch", "profile", "resolution", "crs")


def _listed(value: Any) -> Any:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _as_for_a_map(name: str) -> Any:
    return MapSettings.model_fields[name]


def _checks(name: str, check: str) -> Any:
    return field_validator(name)(getattr(MapSettings, check).__func__)


class AnnotateSettings(Settings):
    """Imagery and labelled polygons in, training samples out: descriptions of scenes, single objects and groups, every phrase tied to a mask."""

    program = "annotate"
    usage = "annotate.py --labels [CLASS=]FILE (--images FOLDER | --catalog URL|FILE|demo) [options] --out FOLDER"
    examples = """examples:
  annotate.py --catalog demo --out runs/samples
  annotate.py --images scenes/ --labels building=buildings.geojson --labels road=roads.parquet --out runs/samples
  annotate.py --catalog catalog.json --labels labels.gpkg --class-column landuse --window labelled.geojson --out runs/samples
  annotate.py --review runs/samples --out runs/reviewed      # after its review.jsonl was edited
"""

    labels: Annotated[tuple[str, ...], BeforeValidator(_listed)] = flag(
        "what is there",
        "[CLASS=]FILE",
        "polygons: GeoParquet, GeoJSON, GeoPackage ...; CLASS= says what all of them are, else a column does; repeat it for further files; "
        "--catalog demo brings its own",
        (),
    )
    class_column: str = flag("what is there", "NAME", "column with the class of each polygon (default: class)", "class", min_length=1)
    window: str | None = flag(
        "what is there",
        "FILE|WKT|BBOX",
        "ground on which the labels are complete: chips lie wholly in it, for what is not labelled would be said not to be there "
        "(default: the box around the labels)",
        min_length=1,
    )
    images: str | None = flag("imagery", "FOLDER", "GeoTIFFs; where they overlap, the first by name is seen (default: what --catalog has)")
    catalog: str | None = flag("imagery", "URL|FILE|demo", "STAC API, static STAC catalog, STAC GeoParquet file, or demo: rendered scenes with known truth")
    collection: str | None = _as_for_a_map("collection")
    datetime: str | None = _as_for_a_map("datetime")
    max_cloud: float | None = _as_for_a_map("max_cloud")
    access: Literal["plain", "planetary-computer", "anonymous", "requester-pays", "bearer"] | None = _as_for_a_map("access")
    assets: tuple[str, ...] = _as_for_a_map("assets")
    bands: tuple[int, ...] = _as_for_a_map("bands")
    stretch: tuple[float, float] | None = _as_for_a_map("stretch")
    profile: str | None = _as_for_a_map("profile")
    resolution: float | None = _as_for_a_map("resolution")
    crs: str | None = _as_for_a_map("crs")
    chip_size: int = flag("samples", "PIXELS", "edge of a chip (default: 512)", 512, ge=64, le=4096)
    objects: int = flag("samples", "N", "single objects of a chip that are spoken of, at most (default: 4)", 4, ge=0, le=50)
    groups: int = flag("samples", "N", "groups of objects of a chip that are spoken of, at most (default: 3)", 3, ge=0, le=50)
    validation: float = flag("samples", "SHARE", "of the chips, kept for validation in whole blocks of ground (default: 0.2)", 0.2, ge=0, lt=1)
    limit: int | None = flag("samples", "N", "chips, drawn by the seed (default: all)", ge=1)
    seed: int = flag("samples", "N", "of everything that is drawn: equal seeds give equal bytes (default: 0)", 0, ge=0)
    review: str | None = flag("running", "FOLDER", "samples that were written before: write them anew with the texts of their review.jsonl, checked")
    config: str | None = flag("running", "FILE", "TOML file with these settings under the same names; a flag wins over the file")
    out: str = flag("running", "FOLDER", "new folder (default: runs/samples)", "runs/samples", min_length=1)

    _collection = _checks("collection", "_default_collection")
    _datetime = _checks("datetime", "_datetime_is_an_instant_or_interval")
    _assets = _checks("assets", "_assets_make_colours")
    _bands = _checks("bands", "_bands_make_colours")
    _stretch = _checks("stretch", "_stretch_rises")
    _profile = _checks("profile", "_profile_is_a_file")
    _crs = _checks("crs", "_crs_is_known")

    @field_validator("catalog")
    @classmethod
    def _catalog_is_a_place(cls, catalog: str | None) -> str | None:
        return None if catalog is None else MapSettings._catalog_is_a_place(catalog)

    @field_validator("out")
    @classmethod
    def _out_is_local(cls, out: str) -> str:
        if "://" in out:
            raise ValueError(f"samples are written into a folder of this machine, got {out!r}")
        return out

    @field_validator("labels")
    @classmethod
    def _labels_are_files(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for name, path in map(split_label, labels):
            if name == "" or not path.is_file():
                raise ValueError(f"{str(path)!r} is not a file" if name != "" else f"'={path}' names no class before the sign")
        return labels

    @model_validator(mode="after")
    def _imagery_and_labels_are_known(self) -> AnnotateSettings:
        if self.review is not None:
            if others := sorted(self.model_fields_set - {"review", "out", "config"}):
                raise ValueError(f"--review takes samples as they are: leave out {', '.join('--' + name.replace('_', '-') for name in others)}")
        elif (self.images is None) == (self.catalog is None):
            raise ValueError(f"say where the imagery is with --images FOLDER or --catalog (not both), such as --catalog {DEMO}")
        elif not self.labels and self.catalog != DEMO:
            raise ValueError(f"--labels is missing: say what is there (only --catalog {DEMO} brings its own)")
        elif self.images is not None:
            for name in ("collection", "datetime", "max_cloud", "access", "assets", "profile"):
                if getattr(self, name):
                    raise ValueError(f"--{name.replace('_', '-')} is of a catalog, and --images is a folder")
        return self


def split_label(text: str) -> tuple[str | None, Path]:
    """Class and file of "building=roofs.geojson"; without a class, None."""
    name, sign, path = text.partition("=")
    if sign and not Path(text).expanduser().is_file():
        return name.strip(), Path(path).expanduser()
    return None, Path(text).expanduser()


def load_settings(argv: Sequence[str] | None = None) -> AnnotateSettings:
    """The settings of the command line and the TOML file that it names. Exits as commandline.load does."""
    return load(AnnotateSettings, argv)
