"""What several tests share: the folder of real data that lies beside a developer's checkout, two small rendered scenes, the serial run's map of
them, and how long a property may take."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr
from hypothesis import settings

from geopixel.aoi import read_area
from geopixel.demo import write_catalog
from geopixel.model.config import read_model_config
from geopixel.pipeline import MapRequest, SerialRunner, map_area
from geopixel.storage import Folder

PROMPTS = ("building", "water")
NANO = read_model_config("nano")

# Wall time on a shared machine is no property of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real imagery, outlines and goldens (GEOPIXEL_SHARED, or ../shared beside the repository); a test that asks for it skips without."""
    folder = Path(os.environ.get("GEOPIXEL_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set GEOPIXEL_SHARED")
    return folder


def quiet(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


def demo_request(catalog: Path, **settings: object) -> MapRequest:
    area = read_area(str(catalog.with_name("aoi.geojson")), warn=pytest.fail)
    return MapRequest(area, PROMPTS, str(catalog), "nano", **settings)  # type: ignore[arg-type]


def rasters(folder: Path) -> xr.Dataset:
    """masks.zarr of a run folder as it is stored."""
    return xr.open_dataset(folder / "masks.zarr", engine="zarr", mask_and_scale=False).load()


def assert_equal_maps(one: Path, other: Path) -> None:
    """Equal arrays, and tables equal to the byte."""
    xr.testing.assert_identical(rasters(one), rasters(other))
    for name in ("features.parquet", "coverage.parquet", "plan.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog.json of two rendered scenes, 1024 x 1024 pixels each."""
    return write_catalog(tmp_path_factory.mktemp("scenes") / "demo", seeds=(1_000_002, 1_000_008), size=1024)


@pytest.fixture(scope="session")
def serial(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the serial run over that catalog: the specification, which every other run must equal. Do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "serial"
    map_area(demo_request(catalog), Folder(str(folder)), NANO, SerialRunner(), quiet)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes, which a test may fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk without the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
