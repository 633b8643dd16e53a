"""The settings of jobs/finetune.py: its flags, the keys of its TOML file and the validation of both."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from geopixel.config import PLANETARY_COMPUTER, SUBMITTED, _dated, _pair, _split
from geopixel.config.commandline import Settings, flag


def _file(value: Any) -> Any:
    """A path as given, home folder and all."""
    return Path(value).expanduser() if isinstance(value, str) else value


Place = Annotated[Path, BeforeValidator(_file)]

HELD_OUT = ("validation", "hold_out")
USED = {
    "data": HELD_OUT,
    "images": ("masks", "prompt", *HELD_OUT),
    "labels": ("aoi", "window", "prompt", "catalog", "collection", "datetime", "max_cloud", "access", "assets", "bands", "stretch", "allow_hosts",
               "resolution", "crs", "chip_size", "validation_share"),
}  # fmt: skip
"""What is said of each kind of data."""


class FineTuneSettings(Settings):
    """Teach a GeoPixel your own things by the published recipe: labelled pictures, or imagery and labels of an area, in; a model out."""

    program = "finetune"
    usage = "finetune.py (--data FILE | --images DIR --masks DIR --prompt TEXT | --aoi AREA --labels FILE --prompt TEXT) --out PATH [options]"
    examples = """examples:
  finetune.py --data train.json --validation val.json --out models/mine
  finetune.py --images chips --masks masks --prompt building --hold-out "zanzibar_*" --model nano --batch 8 --epochs 4 --out models/buildings
  finetune.py --aoi town.geojson --labels buildings.parquet --prompt building --datetime 2022 --out models/town
  map_region.py --aoi aoi.geojson --prompt building --model models/town
"""

    data: Place | None = flag("what to learn", "FILE", "samples in the published format: a JSON list of conversations, images and polygons or segmentation")
    validation: Place | None = flag("what to learn", "FILE", "samples of the same format to validate with, and not to learn from (default: none)")
    images: Place | None = flag("what to learn", "DIR", "chips of one class: their pictures")
    masks: Place | None = flag("what to learn", "DIR", "and a mask for every picture, PNG or TIFF of the same name, not 0 where the class is")
    hold_out: str | None = flag("what to learn", "PATTERN", "validate with the pictures of these names, such as 'zanzibar_*' (default: none)", min_length=1)
    aoi: str | None = flag("what to learn", "FILE|WKT|BBOX", "an area, whose imagery is cut into chips", min_length=1)
    labels: Place | None = flag("what to learn", "FILE", "and polygons of one class there: GeoParquet, GeoJSON or another vector file")
    window: Place | None = flag("what to learn", "FILE", "polygons of the ground on which the labels are complete (default: the area)")
    prompt: str | None = flag("what to learn", "TEXT", "what the class is called", min_length=1)
    catalog: str = flag(
        "imagery of the area",
        "URL|FILE",
        "STAC API, static STAC catalog or STAC GeoParquet file (default: Planetary Computer)",
        PLANETARY_COMPUTER,
    )
    collection: str | None = flag("imagery of the area", "NAME", "collection in the catalog (default: naip in the default catalog, else all)", min_length=1)
    datetime: Annotated[str | None, BeforeValidator(_dated)] = flag("imagery of the area", "WHEN", "when it was taken, as in map_region (default: any time)")
    max_cloud: float | None = flag("imagery of the area", "PERCENT", "leave out cloudier scenes (default: keep all)", ge=0, le=100)
    access: Literal["plain", "planetary-computer", "anonymous", "requester-pays", "bearer"] | None = flag(
        "imagery of the area", "HOW", "what opens files, as map_region has it (default: planetary-computer for its items, else plain)"
    )
    assets: Annotated[tuple[str, ...], BeforeValidator(_split)] = flag("imagery of the area", "NAME[,NAME,NAME]", "the asset with the colours, or three", ())
    bands: Annotated[tuple[int, ...], BeforeValidator(_split)] = flag("imagery of the area", "N[,N,N]", "its bands that are red, green and blue", ())
    stretch: Annotated[tuple[float, float] | None, BeforeValidator(_pair)] = flag(
        "imagery of the area", "LOW HIGH", "raw values shown as black and white where pixels are not 8-bit (default: known for the collection)"
    )
    allow_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = flag("imagery of the area", "HOST[,HOST]", "ask these only, as map_region has it", ())
    resolution: float | None = flag("imagery of the area", "SIZE", "pixel edge in units of the CRS (default: the imagery's own)", gt=0)
    crs: str | None = flag("imagery of the area", "CRS", "coordinate reference system, such as EPSG:32645 (default: the imagery's own)")
    chip_size: int = flag("imagery of the area", "PIXELS", "edge of a chip (default: 512)", 512, ge=32, le=4096)
    validation_share: float = flag(
        "imagery of the area", "SHARE", "of the labelled chips, kept back in blocks of ground to validate with; 0: none (default: 0.2)", 0.2, ge=0, lt=1
    )
    model: str | None = flag("recipe", "nano|PATH|HUB_ID", "what to begin with (default: MBZUAI/GeoPixel-7B where CUDA is there, else nano)", min_length=1)
    epochs: int = flag("recipe", "N", "times that every sample is learnt from (default: 3, as published)", 3, ge=1)
    batch: int = flag("recipe", "N", "samples of a step, whatever the number of workers (default: 80, as published)", 80, ge=1)
    micro_batch: int = flag("recipe", "N", "samples that a worker computes at once: memory (default: 2, as published)", 2, ge=1)
    learning_rate: float = flag("recipe", "RATE", "highest learning rate (default: 3e-4, as published)", 3e-4, gt=0)
    seed: int = flag("recipe", "N", "of everything that is drawn by lot (default: 0)", 0, ge=0)
    config: str | None = flag("running", "FILE", "TOML file with these settings under the same names; a flag wins over the file")
    workers: int | None = flag("running", "N", "processes that share every step (default: one for each GPU of the cluster, or one without any)", ge=1)
    shard: bool = flag("running", "", "spread the network over the workers (FSDP) where it does not fit into one GPU", False)
    every: int = flag("running", "STEPS", "between checkpoints, each with a validation (default: 50)", 50, ge=1)
    out: str = flag("running", "PATH", "folder of the model, shared by all nodes of a cluster; an unfinished training there is gone on with", "")

    @field_validator("collection")
    @classmethod
    def _default_collection(cls, collection: str | None, info: ValidationInfo) -> str | None:
        return "naip" if collection is None and info.data.get("catalog") == PLANETARY_COMPUTER else collection

    @field_validator("out")
    @classmethod
    def _out_is_a_folder(cls, out: str) -> str:
        if not out or "://" in out:
            raise ValueError(f"must be a local folder, on a cluster one that all nodes share, got {out!r}")
        path = Path(out).expanduser()
        if SUBMITTED in os.environ and not path.is_absolute():
            raise ValueError(f"{path} is relative: a submitted job runs in a temporary copy; give an absolute path")
        if path.is_file():
            raise ValueError(f"{path} is a file, not a folder")
        return str(path.absolute())

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> FineTuneSettings:
        given = [name for name in ("data", "images", "labels") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"what to learn is one of --data, --images (with --masks) and --labels (with --aoi), got {' and '.join(given) or 'none'}")
        if foreign := sorted((self.model_fields_set & set(chain(*USED.values()))) - set(USED[given[0]])):
            raise ValueError(f"--{given[0]} has no use for --{foreign[0].replace('_', '-')}: leave it out")
        needed = {"data": (), "images": ("masks", "prompt"), "labels": ("aoi", "prompt")}[given[0]]
        if absent := [f"--{name}" for name in needed if getattr(self, name) is None]:
            raise ValueError(f"--{given[0]} needs {' and '.join(absent)}")
        if self.batch % self.micro_batch:
            raise ValueError(f"--batch is whole micro-batches of {self.micro_batch}, got {self.batch}")
        if self.workers and self.batch // self.micro_batch % self.workers:
            raise ValueError(f"--workers must share a batch of {self.batch // self.micro_batch} micro-batches evenly, got {self.workers}")
        return self
