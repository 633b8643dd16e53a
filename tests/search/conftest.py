"""A real STAC API for the tests: stac-fastapi-pgstac on a PostgreSQL of the test's own, from Debian's packages. Where a part is missing, what asks
for it skips and says what."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

PARTS = {"stac_fastapi": "stac-fastapi-pgstac", "pypgstac": "pypgstac", "uvicorn": "uvicorn", "psycopg": "psycopg"}


@dataclass(frozen=True)
class StacApi:
    url: str
    database: str

    def load(self, collections: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
        from pypgstac.db import PgstacDB
        from pypgstac.load import Loader, Methods

        with PgstacDB(dsn=self.database) as database:
            loader = Loader(database)
            loader.load_collections(iter(collections), insert_mode=Methods.upsert)  # type: ignore[arg-type]
            loader.load_items(iter(items), insert_mode=Methods.upsert)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def stac_api() -> Iterator[StacApi]:
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    missing = [package for module, package in PARTS.items() if find_spec(module) is None]
    if binaries is None or not (binaries / "initdb").is_file():
        missing.append("postgresql (apt)")
    elif not list(Path("/usr/share/postgresql").glob(f"{binaries.parent.name}/extension/postgis.control")):
        missing.append(f"postgresql-{binaries.parent.name}-postgis-3 (apt)")
    if missing:
        pytest.skip(f"no real STAC API here: {', '.join(missing)} missing")
    assert binaries is not None
    with TemporaryDirectory(prefix="pg") as folder, _postgres(binaries, Path(folder)) as database, _served(database) as url:
        yield StacApi(url, database)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _postgres:
    """A cluster in folder, on a free port; PostgreSQL refuses to run as root, so then as the user that Debian's package makes."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder, self.port = binaries, folder, _free_port()
        self.demoted: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self.demoted = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            shutil.chown(folder, user.pw_uid, user.pw_gid)

    def run(self, name: str, *arguments: str) -> None:
        # Files, not pipes: the server that pg_ctl leaves behind would keep a pipe open.
        log = self.folder.parent / f"{self.folder.name}.log"
        with log.open("w+") as said:
            done = subprocess.run([self.binaries / name, *arguments], cwd="/", stdout=said, stderr=said, timeout=60, **self.demoted)
        text = log.read_text()
        log.unlink()
        assert done.returncode == 0, text

    def __enter__(self) -> str:
        from pypgstac.db import PgstacDB
        from pypgstac.migrate import Migrate

        data = str(self.folder / "data")
        self.run("initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "-D", data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")
        try:
            admin = f"postgresql://test@127.0.0.1:{self.port}/postgres"
            import psycopg

            with psycopg.connect(admin, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION postgis")
                connection.execute("CREATE EXTENSION btree_gist")
            with PgstacDB(dsn=admin) as database:
                Migrate(database).run_migration()
        except BaseException:
            self.__exit__()
            raise
        return admin

    def __exit__(self, *_: object) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")


class _served:
    """The API over HTTP in a process of its own."""

    def __init__(self, database: str) -> None:
        self.database, self.port = database, _free_port()

    def __enter__(self) -> str:
        place = self.database.rpartition("@")[2]
        host, _, rest = place.partition(":")
        port, _, name = rest.partition("/")
        settings = {"PGUSER": "test", "PGPASSWORD": "-", "PGHOST": host, "PGPORT": port, "PGDATABASE": name, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "uvicorn", "stac_fastapi.pgstac.app:create_app", "--factory", "--port", str(self.port), "--log-level", "warning"]
        self.process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        url = f"http://127.0.0.1:{self.port}"
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                return url
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.process.kill()
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read().decode()[-2000:])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
