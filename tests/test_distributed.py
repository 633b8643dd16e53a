"""The same steps on Ray."""

from __future__ import annotations

from pathlib import Path

from geopixel.distributed import RayRunner, start
from geopixel.pipeline import map_area
from geopixel.storage import Folder
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet


def test_ray_gives_the_map_of_the_serial_run(catalog: Path, serial: Path, tmp_path: Path) -> None:
    start()
    map_area(demo_request(catalog), Folder(str(tmp_path / "ray")), NANO, RayRunner(), quiet)
    assert_equal_maps(serial, tmp_path / "ray")
