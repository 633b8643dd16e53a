"""A lease is judged by what its holder's end leaves: of many takers one gets it, a live holder is never passed over, a dead one not for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from geopixel import lease
from geopixel.errors import RunConflictError
from geopixel.lease import hold
from geopixel.storage import Folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


def test_one_after_the_other(folder: Folder) -> None:
    for _ in range(3):
        began = time.monotonic()
        with hold(folder) as held:
            held.check()
        assert time.monotonic() - began < lease.STALE_SECONDS  # a released lease blocks nobody
    assert len(folder.list(lease.LEASES)) == 1


def test_a_second_driver_is_refused_and_told_who_has_it(folder: Folder) -> None:
    with hold(folder) as held:
        time.sleep(2 * lease.RENEW_SECONDS)
        with pytest.raises(RunConflictError, match=rf"process {os.getpid()} on .*"), hold(folder):
            pass
        held.check()


HOLD_FOR_EVER = """
import sys, time
from geopixel import lease
from geopixel.storage import Folder
lease.RENEW_SECONDS = float(sys.argv[2])
with lease.hold(Folder(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    words = [sys.executable, "-c", HOLD_FOR_EVER, folder.url, str(lease.RENEW_SECONDS)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_a_killed_driver_of_this_machine_blocks_nobody(folder: Folder, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(RunConflictError, match=f"process {holder.pid}"), hold(folder):
        pass
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with hold(folder):
        assert time.monotonic() - began < lease.STALE_SECONDS / 2


def test_a_killed_driver_of_another_machine_blocks_until_it_is_stale(
    folder: Folder, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.kill()
    holder.wait()
    monkeypatch.setattr(lease.socket, "gethostname", lambda: "elsewhere")
    began = time.monotonic()
    with hold(folder):
        assert lease.STALE_SECONDS <= time.monotonic() - began < 3 * lease.STALE_SECONDS


def test_a_driver_that_stood_still_is_passed_over_and_leaves_the_folder_alone(folder: Folder, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGSTOP)  # as on a machine that sleeps
    with hold(folder) as taken:
        os.kill(holder.pid, signal.SIGCONT)
        time.sleep(5 * lease.RENEW_SECONDS)
        taken.check()
        assert lease._newest(folder) == taken.number


def test_a_driver_that_stood_still_is_told(folder: Folder) -> None:
    with hold(folder) as lost:
        folder.put_json(lease._path(lost.number + 1), lost._note(0))
        time.sleep(5 * lease.RENEW_SECONDS)
        with pytest.raises(RunConflictError, match="took over"):
            lost.check()


def test_of_many_who_take_a_dead_lease_one_gets_it(folder: Folder) -> None:
    folder.put_json(lease._path(7), {"holder": "x", "host": "elsewhere", "pid": 1, "beat": 4, "released": False})
    together, refused, held = threading.Barrier(8), [], []
    everybody_tried = threading.Event()

    def take() -> None:
        together.wait()
        try:
            with hold(folder) as mine:
                held.append(mine.number)
                everybody_tried.wait(30)
        except RunConflictError:
            refused.append(1)
            if len(refused) == 7:
                everybody_tried.set()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == [8]
    assert len(refused) == 7
