"""The same steps on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from geopixel.distributed import RayRunner, start
from geopixel.pipeline import map_area
from geopixel.storage import Folder
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray on this machine, which ends with the test: else it would hold the ports and the cores of those that come after."""
    start()
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_map_of_the_serial_run(catalog: Path, serial: Path, tmp_path: Path) -> None:
    map_area(demo_request(catalog), Folder(str(tmp_path / "ray")), NANO, RayRunner(), quiet)
    assert_equal_maps(serial, tmp_path / "ray")
