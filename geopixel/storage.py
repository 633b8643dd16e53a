"""A run folder on a disk or in an object store, behind the same few verbs. A put is atomic (obstore writes aside, then
renames; object stores do so by nature), so what is listed is whole. Knows nothing of what the files mean."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import zarr.storage
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from geopixel.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

PAGE = 10_000
_BEING_WRITTEN = re.compile(r"#\d+$")
"""Of the file that obstore renames when all of it is there: its own listings leave it out too."""
PATIENCE: RetryConfig = {
    "max_retries": 100,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 4},
}
"""How long a request is tried again that a store does not answer, or answers with 429 or 5xx. Of obstore's own: a wait is drawn between init_backoff and
base times the one before, so with its base of 2 waits hardly grow, and its 10 tries are over within seconds."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder by its address: an absolute local path or a URL (s3://, gs://, az://). Cheap to send to a worker.

    Credentials and endpoints of object stores come from the environment, as obstore documents (AWS_ENDPOINT_URL, ...).
    """

    url: str

    def __post_init__(self) -> None:
        if "://" not in self.url and not Path(self.url).is_absolute():
            raise ValueError(f"a folder is an absolute path or a URL, got {self.url!r}")

    @classmethod
    def at(cls, place: str) -> Folder:
        """The folder that a user names: a URL, or a path relative to where the command runs."""
        return cls(place if "://" in place else str(Path(place).expanduser().resolve()))

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    @contextmanager
    def reached(self, *, unless: type[OSError] | tuple[()] = ()) -> Iterator[None]:
        """What the system or the store has against this folder becomes a StorageError that names it. unless: errors that mean something else. All
        verbs do so by themselves; it is for who goes through zarr()."""
        try:
            yield
        except unless:
            raise
        except (OSError, BaseError) as error:
            raise StorageError(f"cannot reach or write {self.url}: {str(error).splitlines()[0]}") from error

    def open(self, path: str = "") -> ObjectStore:
        """The store rooted at path below this folder; a local folder is made where it is missing."""
        if self.is_local:
            return LocalStore(Path(self.url, path), mkdir=True)
        return from_url("/".join(part for part in (self.url.rstrip("/"), path) if part), retry_config=PATIENCE)

    def put(self, path: str, data: bytes | Path) -> None:
        """data: what to store, or a local file to store, which may be larger than memory."""
        with self.reached():
            obstore.put(self.open(), path, data)

    def create_json(self, path: str, value: Any) -> bool:
        """Puts value unless something is there: of several who try, one gets True."""
        with self.reached():
            try:
                obstore.put(self.open(), path, _json(value), mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, path: str) -> bytes:
        """Raises FileNotFoundError where there is none."""
        with self.reached(unless=FileNotFoundError):
            return bytes(obstore.get(self.open(), path).bytes())

    def parts(self, path: str) -> Iterator[bytes]:
        """The bytes of a file in order, some megabytes at a time. Raises FileNotFoundError where there is none."""
        with self.reached(unless=FileNotFoundError):
            for part in obstore.get(self.open(), path):
                yield bytes(part)

    def exists(self, path: str) -> bool:
        if self.is_local:
            return Path(self.url, path).is_file()
        with self.reached():
            try:
                obstore.head(self.open(), path)
            except FileNotFoundError:
                return False
        return True

    def delete(self, path: str) -> None:
        """Removes a file; one that is not there is fine."""
        with suppress(FileNotFoundError), self.reached(unless=FileNotFoundError):
            obstore.delete(self.open(), path)

    def list(self, prefix: str = "") -> list[str]:
        """Paths of all files whose path starts with the folder prefix, sorted; none where the folder is missing."""
        return sorted(path for page in self.pages(prefix) for path in page)

    def pages(self, prefix: str = "") -> Iterator[Sequence[str]]:
        """What list gives, in any order, some thousand at a time: for millions."""
        if self.is_local:
            above = len(str(Path(self.url))) + 1
            for entries in self._scan(prefix):
                yield [entry.path[above:] for entry in entries]
            return
        with self.reached():
            for page in obstore.list(self.open(), prefix=prefix or None, chunk_size=PAGE):
                yield [entry["path"] for entry in page]

    def _scan(self, prefix: str) -> Iterator[Sequence[os.DirEntry[str]]]:
        """The files of a local folder. A tenth of the time of obstore, which asks for the size and the age of every file."""
        waiting = [Path(self.url, prefix)] if Path(self.url, prefix).is_dir() else []
        with self.reached():
            while waiting:
                with os.scandir(waiting.pop()) as entries:
                    while page := list(islice(entries, PAGE)):
                        waiting += [Path(entry.path) for entry in page if entry.is_dir()]
                        yield [entry for entry in page if not entry.is_dir() and not _BEING_WRITTEN.search(entry.name)]

    def size(self, prefix: str = "") -> int:
        """Bytes of all files whose path starts with the folder prefix."""
        if self.is_local:
            return sum(entry.stat().st_size for entries in self._scan(prefix) for entry in entries)
        with self.reached():
            return sum(entry["size"] for page in obstore.list(self.open(), prefix=prefix or None) for entry in page)

    def put_json(self, path: str, value: Any) -> None:
        self.put(path, _json(value))

    def get_json(self, path: str) -> Any:
        """Raises ValueError, beside what get raises, where it is not JSON."""
        try:
            return json.loads(self.get(path))
        except ValueError as error:
            raise ValueError(f"{path} in {self.url} is not JSON: {error}") from error

    def zarr(self, path: str) -> zarr.storage.ObjectStore:
        """The Zarr store at path below this folder."""
        return zarr.storage.ObjectStore(self.open(path))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
