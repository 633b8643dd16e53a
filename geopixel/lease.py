"""One driver at a time for a run folder. A lease is a numbered file that its holder writes anew every few seconds; who finds one that no longer
changes takes the next number, which the store gives to one taker only (a conditional create). No clock is compared with another's: a lease is
alive while it is seen to change. Knows nothing of what the driver does meanwhile."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from geopixel.errors import RunConflictError, StorageError
from geopixel.storage import Folder

LEASES = "lease"
RENEW_SECONDS = 3.0
STALE_SECONDS = 45.0
"""A lease that did not change for so long is a dead driver's; many renewals fit in: neither a slow store nor a busy machine costs a live one its run."""
POLL_SECONDS = 0.5


@dataclass
class Lease:
    """A held lease."""

    folder: Folder
    number: int
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lost: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises RunConflictError once another driver has taken over: this one stood still for longer than STALE_SECONDS."""
        if self._lost.is_set():
            raise RunConflictError(f"another driver took over {self.folder.url}, for this one had stood still; the run goes on there")

    def _note(self, beat: int, *, released: bool = False) -> dict[str, Any]:
        return {"holder": self.holder, "host": socket.gethostname(), "pid": os.getpid(), "beat": beat, "released": released}

    def _renew(self) -> None:
        beat = 0
        while not self._ended.wait(RENEW_SECONDS):
            beat += 1
            with suppress(StorageError):  # a store that does not answer is asked again at the next renewal
                if _newest(self.folder) > self.number:
                    self._lost.set()
                    return
                self.folder.put_json(_path(self.number), self._note(beat))


@contextmanager
def hold(folder: Folder) -> Iterator[Lease]:
    """Holds the folder's lease inside the block. Raises RunConflictError at once, or within STALE_SECONDS, where a live driver has it; that of a
    driver that ended, on this machine or any other, blocks for no longer than that."""
    lease = _take(folder)
    renewal = threading.Thread(target=lease._renew, name="lease", daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        lease._ended.set()
        renewal.join()
        if not lease._lost.is_set():
            with suppress(StorageError):  # then it goes stale
                folder.put_json(_path(lease.number), lease._note(0, released=True))


def _take(folder: Folder) -> Lease:
    while True:
        newest = _newest(folder)
        if newest and not _is_free(folder, newest):
            continue  # it was taken over meanwhile: look at that one
        lease = Lease(folder, newest + 1)
        if folder.create_json(_path(lease.number), lease._note(0)):
            for older in range(max(1, newest - 1), newest + 1):
                folder.delete(_path(older))
            return lease


def _is_free(folder: Folder, number: int) -> bool:
    """Whether the newest lease is released or dead; False where it is gone. Raises RunConflictError where it is seen to change."""
    try:
        first = folder.get_json(_path(number))
        if first["released"] or _ended_here(first):
            return True
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            now = folder.get_json(_path(number))
            if now["released"]:
                return True
            if now["beat"] != first["beat"]:
                raise RunConflictError(f"another driver works in {folder.url}: process {now['pid']} on {now['host']}; wait for it, or end it")
    except FileNotFoundError:
        return False
    except ValueError:  # no JSON: the machine of its holder ended while it wrote; a live one's is always whole
        return True
    return True


def _ended_here(note: dict[str, Any]) -> bool:
    """The holder was a process of this machine and is no more."""
    if note["host"] != socket.gethostname():
        return False
    try:
        os.kill(note["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _newest(folder: Folder) -> int:
    return max((int(path.removeprefix(f"{LEASES}/").removesuffix(".json")) for path in folder.list(LEASES)), default=0)


def _path(number: int) -> str:
    return f"{LEASES}/{number:06}.json"
