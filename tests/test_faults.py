"""What a cluster does to a run: workers and machines die and come, a driver is killed again and again, a tile kills whoever touches it, a disk is full.
Each run ends complete and equals the undisturbed serial run, and what was finished is not computed again."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import geopandas as gpd
import pytest
import ray
from ray.cluster_utils import Cluster

from geopixel import lease
from geopixel.distributed import RayRunner, runner
from geopixel.errors import RunConflictError, StorageError
from geopixel.pipeline import MAX_ATTEMPTS, SerialRunner, map_area
from geopixel.storage import Folder
from geopixel.verification import verify
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet
from tests.misfortune import JOURNAL, KILLER, PATIENCE, befall, half_done, read_journal, stored, tiles_of, wait_for
from tests.test_jobs import command, map_region

pytestmark = pytest.mark.slow

T = TypeVar("T")

TOGETHER = 3
"""Tiles of a batch, so that there are several."""
WORKER = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}
"""A machine with one GPU, which torch does not find: the model runs on the CPU there."""


def patiently(start: Callable[[], T]) -> T:
    """Ray gives a machine 30 seconds to start, which is too little where others work as well."""
    for _ in range(3):
        with suppress(Exception):
            return start()
    return start()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that reads and writes, and a machine that looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        made = patiently(lambda: Cluster(initialize_head=True, head_node_args={**WORKER, "num_gpus": 0, "include_dashboard": False}))
        patiently(lambda: made.add_node(**WORKER))
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of TOGETHER tiles, also where a run has few left."""
    monkeypatch.setattr(runner, "TILES_PER_TASK", TOGETHER)
    monkeypatch.setattr(runner, "TASKS_PER_ACTOR", 1)


@pytest.fixture
def journal(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """This process drives, and what its workers store is noted; the parameter, if any, is the index of a tile that kills them."""
    path = tmp_path / "journal"
    killer = tiles_of(request.getfixturevalue("serial"))[request.param] if hasattr(request, "param") else ""
    variables = {"PYTHONPATH": str(Path(__file__).parents[1]), JOURNAL: str(path), KILLER: killer, "OMP_NUM_THREADS": "1"}
    environment = {"worker_process_setup_hook": befall, "env_vars": variables}
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
    yield path
    ray.shutdown()


def test_workers_and_machines_that_die_and_come_cost_no_tile(cluster: Cluster, journal: Path, catalog: Path, serial: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    folder = half_done(serial, out)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(map_area, demo_request(catalog), folder, NANO, RayRunner(), quiet)
        wait_for(lambda: len(read_journal(journal)) >= 1, lambda: not run.done())
        (first, _) = read_journal(journal)[-1]
        os.kill(first, signal.SIGKILL)
        dying = cluster.list_all_nodes()[-1]
        patiently(lambda: cluster.add_node(**WORKER))
        wait_for(lambda: read_journal(journal)[-1][0] != first, lambda: not run.done())
        second = read_journal(journal)[-1][0]
        cluster.remove_node(dying, allow_graceful=False)
        summary = run.result(PATIENCE)
    assert summary.tiles["failed"] == 0
    assert_equal_maps(serial, out)
    assert {pid for pid, _ in read_journal(journal)} > {first, second}, "a third worker finished it"
    times = Counter(tile for _, tile in read_journal(journal))
    assert sorted(times) == tiles_of(serial)
    assert times.total() - len(times) <= 2 * TOGETHER, "of each death one batch was redone, at most"


@pytest.mark.parametrize("journal", [4], indirect=True)
@pytest.mark.usefixtures("cluster")
def test_a_tile_that_always_kills_its_worker_is_set_aside(
    journal: Path, catalog: Path, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tiles = tmp_path / "map", tiles_of(serial)
    half_done(serial, out, tiles[3:8])
    assert map_region(monkeypatch, *command(catalog, out)[2:]) == 1
    assert "1 tiles failed" in capsys.readouterr().err
    coverage = gpd.read_parquet(out / "coverage.parquet").set_index("tile_id")
    assert coverage.loc[coverage["state"] == "failed", "reason"].to_dict() == {tiles[4]: f"its worker ended {MAX_ATTEMPTS} times"}
    assert {tile for _, tile in read_journal(journal)} == set(tiles[3:8])
    healed = map_area(demo_request(catalog), Folder(str(out)), NANO, SerialRunner(), quiet, retry_failed=True)
    assert healed.worked == 1
    assert_equal_maps(serial, out)


@pytest.mark.usefixtures("journal")
def test_a_full_disk_ends_the_run_in_one_line_and_the_next_goes_on(cluster: Cluster, small_disk: Path, catalog: Path, serial: Path) -> None:
    """Said by a worker, while it stores a tile."""
    out = small_disk / "map"
    folder = half_done(serial, out, tiles_of(serial)[3:7])
    before = stored(out)
    filler = small_disk / "filler"
    space = os.statvfs(small_disk)
    filler.write_bytes(bytes((space.f_bavail - 3) * space.f_frsize))  # what is left is for the lease
    with pytest.raises(StorageError, match=rf"^cannot reach or write {out}: [^\n]*No space left[^\n]*$"):
        map_area(demo_request(catalog), folder, NANO, RayRunner(), quiet)
    assert folder.list("attempts") == [], "no tile is to blame"
    ray.shutdown()  # the next submission is another driver's
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    filler.unlink()
    map_area(demo_request(catalog), folder, NANO, RayRunner(), quiet)
    assert_equal_maps(serial, out)
    assert {name: written for name, written in stored(out).items() if name in before} == before


def drive(catalog: Path, out: Path, address: str, stages: Path) -> None:
    """A driver: a process of its own."""
    os.environ["RAY_ADDRESS"] = address

    def note(*stage: object) -> None:
        with stages.open("a") as file:
            file.write(" ".join(map(str, stage[:2])) + "\n")

    map_area(demo_request(catalog), Folder(str(out)), NANO, RayRunner(), note)


@contextmanager
def driving(*arguments: object) -> Iterator[BaseProcess]:
    """Forked from a process that has everything imported, so that it is soon at work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_faults"])
    driver = context.Process(target=drive, args=arguments)
    driver.start()
    yield driver
    driver.kill()
    driver.join()


@pytest.mark.skipif("GEOPIXEL_LONG_TESTS" not in os.environ, reason="six drivers, one after the other, take minutes: set GEOPIXEL_LONG_TESTS")
def test_a_driver_that_is_killed_again_and_again_is_finished_by_the_next(
    cluster: Cluster, catalog: Path, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random moments of planning, looking, writing and publishing; a second driver meanwhile is refused."""
    monkeypatch.setattr(lease, "STALE_SECONDS", PATIENCE)  # where many others work a driver may be slow to say that it lives
    out, chance = tmp_path / "map", random.Random(20)
    moments = ["survey 0", f"tiles {chance.randint(1, 3)}", f"tiles {chance.randint(1, 3)}", "blocks 0", "publish 0"]
    done: dict[str, int] = {}
    for index, moment in enumerate(moments):
        stages = tmp_path / f"stages {index}"
        stages.touch()
        with driving(catalog, out, cluster.address, stages) as driver:
            if index == 1:
                wait_for(lambda path=stages: "tiles 0" in path.read_text(), driver.is_alive)  # type: ignore[misc]
                with pytest.raises(RunConflictError, match=f"process {driver.pid}"):
                    map_area(demo_request(catalog), Folder(str(out)), NANO, SerialRunner(), quiet)
            # All tiles may be stored by then: what came first is waited for.
            wait_for(lambda path=stages, end={moment, "publish 0" if index > 2 else "blocks 0"}: end & {*path.read_text().splitlines()}, driver.is_alive)  # type: ignore[misc]
            driver.join(chance.uniform(0, 0.2))
        assert driver.exitcode == -signal.SIGKILL, moment
        assert not (out / "item.json").exists()
        done |= stored(out)
    with driving(catalog, out, cluster.address, tmp_path / "stages") as driver:
        driver.join(PATIENCE)
        assert driver.exitcode == 0
    assert {name: written for name, written in stored(out).items() if name in done} == done, "nothing was written twice"
    assert_equal_maps(serial, out)
    assert verify(Folder(str(out))).holes == []
