"""The same steps on Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from geopixel.distributed import RayRunner, backpressure, start
from geopixel.distributed.runner import READER_CPUS, _buffers, _Runs
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


@pytest.mark.usefixtures("cluster")
def test_runs_are_not_begun_long_before_their_tiles_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forty runs a few more than may wait; and none is forgotten."""
    monkeypatch.setattr(backpressure, "BLOCKS_AHEAD", 4)
    jobs, begun = list(range(40)), tmp_path / "begun"
    begun.mkdir()

    def begin(job: int) -> tuple[Folder, None]:
        (begun / str(job)).touch()
        return Folder(str(tmp_path)), None

    def look(rows: pa.Table) -> dict[str, list[int]]:
        time.sleep(0.2)
        return {"job": rows["job"].to_pylist(), "begun": [len(list(begun.iterdir()))]}

    source = ray.data.read_datasource(_Runs(jobs, begin), override_num_blocks=len(jobs), num_cpus=READER_CPUS)
    slow = source.map_batches(look, batch_size=None, batch_format="pyarrow", num_cpus=0.5, concurrency=1)
    seen = [row for block in slow.iter_batches(batch_size=1) for row in zip(block["job"].tolist(), block["begun"].tolist(), strict=True)]
    assert sorted(job for job, _ in seen) == jobs
    ahead = [count - place for place, (_, count) in enumerate(seen)]
    assert max(ahead) <= 12, ahead
