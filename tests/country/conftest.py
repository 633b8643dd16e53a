"""A small country: the two rendered scenes, with the edge of a cell through their middle, mapped by the serial run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from geopixel.aoi import read_area
from geopixel.country import CountrySummary, map_country
from geopixel.pipeline import MapRequest, Runner, SerialRunner
from geopixel.polygonize import SQUARE
from geopixel.storage import Folder
from tests.conftest import NANO, quiet

CRS = "EPSG:32633"
EDGE = 500_560.0
"""Metres east: the cell edge. Trees and water lie across it."""
RESOLUTION = EDGE / (SQUARE * round(EDGE / (SQUARE * 0.5)))
"""About that of the scenes, and such that the edge is one of cells."""
BLOCKS = 4


def country_request(catalog: Path, **settings: object) -> MapRequest:
    area = read_area(str(catalog.with_name("aoi.geojson")), warn=pytest.fail)
    asked = {"area": area, "prompts": ("tree", "water"), "catalog": str(catalog), "model": "nano", "crs": CRS, "resolution": RESOLUTION}
    return MapRequest(**(asked | settings))  # type: ignore[arg-type]


def map_it(request: MapRequest, folder: Path, runner: Runner | None = None, **options: object) -> CountrySummary:
    return map_country(request, Folder(str(folder)), NANO, runner or SerialRunner(), quiet, blocks=BLOCKS, **options)  # type: ignore[arg-type]


def catalog_of(catalog: Path, folder: Path, items: int) -> Path:
    """A copy of the catalog that knows its first items only."""
    if not folder.exists():
        shutil.copytree(catalog.parent, folder)
    collection = json.loads((catalog.parent / "demo" / "collection.json").read_text())
    known = [link for link in collection["links"] if link["rel"] == "item"][:items]
    links = [link for link in collection["links"] if link["rel"] != "item"] + known
    (folder / "demo" / "collection.json").write_text(json.dumps(collection | {"links": links}))
    return folder / catalog.name


@pytest.fixture(scope="session")
def country(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the country. Do not change it."""
    folder = tmp_path_factory.mktemp("countries") / "small"
    summary = map_it(country_request(catalog), folder)
    assert summary.cells == {"mapped": 2}, summary
    return folder
