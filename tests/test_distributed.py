"""The same steps on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from geopixel.distributed import RayRunner, start
from geopixel.distributed.runner import _buffers
from geopixel.pipeline import map_area
from geopixel.storage import Folder
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet
from tests.country.conftest import country, country_request, map_it

__all__ = ["country"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, which ends with these tests: else it would hold the ports and the cores of those that come after."""
    start()
    yield
    ray.shutdown()


def test_pictures_travel_as_they_are() -> None:
    """Also where a batch is cut out of a block, and where it comes in pieces."""
    random = np.random.default_rng(0)
    values = [random.integers(0, 256, count, np.uint8).tobytes() for count in (5, 0, 12, 3)]
    column = pa.chunked_array([pa.array([value]) for value in values])
    whole = pa.chunked_array([column.combine_chunks()])
    for each in (column, whole):
        assert [bytes(buffer) for buffer in _buffers(each)] == values
        assert [bytes(buffer) for buffer in _buffers(each.slice(1, 2))] == values[1:3]
    assert next(_buffers(column.slice(2))).address == column.chunk(2).buffers()[2].address, "no copy"


@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_map_of_the_serial_run(catalog: Path, serial: Path, tmp_path: Path) -> None:
    map_area(demo_request(catalog), Folder(str(tmp_path / "ray")), NANO, RayRunner(), quiet)
    assert_equal_maps(serial, tmp_path / "ray")


@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_country_of_the_serial_run(catalog: Path, country: Path, tmp_path: Path) -> None:
    """Its cells go through the cluster together."""
    summary = map_it(country_request(catalog), tmp_path, RayRunner())
    assert summary.cells == {"mapped": 2}
    assert summary.looked == sum(summary.tiles[state] for state in ("ok", "empty"))
    for path in country.glob("features/*.parquet"):
        assert (tmp_path / "features" / path.name).read_bytes() == path.read_bytes()
    for run in country.glob("cells/*/*/run.json"):
        assert_equal_maps(run.parent, tmp_path / run.parent.relative_to(country))
    assert map_it(country_request(catalog), tmp_path, RayRunner()).worked == 0
