"""What a disk or an object store does to a run: files torn or lost, a store that answers 503, and everything that a recount must find. What was hit is
named, and the same command goes on from there to the map of the undisturbed run."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from geopixel import storage
from geopixel.errors import StorageError
from geopixel.pipeline import MAX_ATTEMPTS, MapRequest, SerialRunner, map_area
from geopixel.prediction import Predictor
from geopixel.storage import Folder
from geopixel.verification import mend, verify
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet
from tests.misfortune import half_done, tiles_of


def submit(catalog: Path, folder: Folder) -> int:
    """Tiles that were looked at."""
    return map_area(demo_request(catalog), folder, NANO, SerialRunner(), quiet).worked


# --- torn and lost files


def test_a_torn_prediction_is_named_and_made_anew(catalog: Path, serial: Path, tmp_path: Path) -> None:
    """As after a power cut: the file has its name, and not its content."""
    tiles = tiles_of(serial)
    folder = half_done(serial, tmp_path / "map", tiles[-1:])
    torn = next(path for path in (tmp_path / "map").glob("predictions/ok/*.arrow"))
    torn.write_bytes(torn.read_bytes()[:1000])
    (tmp_path / "map" / "predictions" / "ok" / f"{tiles[-1]}.arrow#1").write_bytes(b"begun by somebody who was killed")
    (tmp_path / "map" / "lease").mkdir()
    (tmp_path / "map" / "lease" / "000001.json").touch()
    with pytest.raises(StorageError, match=f"{torn.name} in .* is damaged: .*; it is removed: run the same command again"):
        submit(catalog, folder)
    assert submit(catalog, folder) == 1
    assert_equal_maps(serial, tmp_path / "map")


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x10
    path.write_bytes(data)


def shards(folder: Path, array: str) -> list[Path]:
    return [path for path in (folder / "masks.zarr" / array / "c").rglob("*") if path.is_file()]


def lose_the_parts(folder: Path) -> None:
    next((folder / "parts").iterdir()).unlink()


def tear_the_parts(folder: Path) -> None:
    path = next((folder / "parts").iterdir())
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_prediction(folder: Path) -> None:
    flip(next((folder / "predictions" / "ok").iterdir()), 0.5)


def lose_a_shard(folder: Path) -> None:
    shards(folder, "overview/4/confidence")[0].unlink()


def lose_the_masks(folder: Path) -> None:
    shutil.rmtree(folder / "masks.zarr")


def tear_the_masks(folder: Path) -> None:
    (folder / "masks.zarr" / "zarr.json").write_bytes(b"{")


def tear_the_features(folder: Path) -> None:
    path = folder / "features.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def tear_the_coverage(folder: Path) -> None:
    (folder / "coverage.parquet").write_bytes(b"")


DAMAGES = [
    (lose_the_parts, "parts are missing"),
    (tear_the_parts, "parts are missing or cannot be read"),
    (flip_a_prediction, "cannot be read"),
    (lose_a_shard, "overview/4/confidence is wrong"),
    (tear_the_masks, "masks.zarr is missing or cannot be opened"),
    (tear_the_features, "features.parquet cannot be read"),
    (tear_the_coverage, "coverage.parquet cannot be read"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_recount_finds_what_is_damaged(serial: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    shutil.copytree(serial, tmp_path / "map")
    damage(tmp_path / "map")
    holes = verify(Folder(str(tmp_path / "map"))).holes
    assert any(re.search(said, hole) for hole in holes), holes


def test_a_recount_finds_an_empty_tile_that_has_lost_its_state(catalog: Path, tmp_path: Path) -> None:
    """No scene holds an airplane, and what is empty is on the map nowhere else."""
    request = MapRequest(demo_request(catalog).area, ("airplane",), str(catalog), "nano")
    map_area(request, Folder(str(tmp_path / "map")), NANO, SerialRunner(), quiet)
    next((tmp_path / "map" / "predictions" / "empty").iterdir()).unlink()
    holes = verify(Folder(str(tmp_path / "map"))).holes
    assert any(re.search(r"(\d+) tiles planned, (?!\1)\d+ have a state", hole) for hole in holes), holes


@pytest.mark.parametrize("array", ["mask", "confidence", "status", "scene", "overview/2/confidence", "overview/16/mask"])
def test_a_recount_finds_a_flipped_byte_in_any_shard(serial: Path, tmp_path: Path, array: str) -> None:
    """At its beginning, in its middle and in its index; also where the shard decodes to what it was."""
    shutil.copytree(serial, tmp_path / "map")
    shard = shards(tmp_path / "map", array)[0]
    whole = shard.read_bytes()
    for share in (0.02, 0.4, 0.8, 0.999):
        flip(shard, share)
        holes = verify(Folder(str(tmp_path / "map"))).holes
        assert any(array in hole or "are not those that were written" in hole for hole in holes), (share, holes)
        shard.write_bytes(whole)
    assert verify(Folder(str(tmp_path / "map"))).holes == []


@pytest.mark.parametrize("damages", [[lambda out: flip(shards(out, "confidence")[0], 0.5), lose_the_parts], [lose_the_masks]], ids=["a shard", "all"])
def test_what_a_recount_finds_is_mended_by_the_same_command(catalog: Path, serial: Path, tmp_path: Path, damages: list[Callable[[Path], None]]) -> None:
    shutil.copytree(serial, tmp_path / "map")
    folder = Folder(str(tmp_path / "map"))
    for damage in damages:
        damage(tmp_path / "map")
    mend(folder, verify(folder))
    assert submit(catalog, folder) == 0
    assert_equal_maps(serial, tmp_path / "map")
    assert verify(folder).holes == []


def test_masks_that_are_lost_are_written_again_without_being_asked_for(catalog: Path, serial: Path, tmp_path: Path) -> None:
    shutil.copytree(serial, tmp_path / "map")
    lose_the_masks(tmp_path / "map")
    assert submit(catalog, Folder(str(tmp_path / "map"))) == 0
    assert_equal_maps(serial, tmp_path / "map")


def test_a_full_disk_ends_the_run_in_one_line_and_is_nobodys_attempt(small_disk: Path, catalog: Path, serial: Path) -> None:
    """Full while a tile is stored, again and again; then while a block is, and while the map is published."""
    out, filler = small_disk / "map", small_disk / "filler"
    folder = half_done(serial, out, tiles_of(serial)[3:5])
    for moment in [*["tiles"] * (MAX_ATTEMPTS + 1), "blocks", "publish"]:

        def fill(stage: str, done: int, total: int, moment: str = moment) -> None:
            if (stage, done) == (moment, 0):
                space = os.statvfs(small_disk)
                filler.write_bytes(bytes((space.f_bavail - 3) * space.f_frsize))  # what is left is for the lease

        with pytest.raises(StorageError, match=rf"^cannot reach or write {out}: [^\n]*No space left[^\n]*$"):
            map_area(demo_request(catalog), folder, NANO, SerialRunner(), fill)
        assert folder.list("attempts") == []
        filler.unlink()
    assert submit(catalog, folder) == 0
    assert_equal_maps(serial, out)


# --- an object store that does not answer


class Store:
    """An object store that speaks S3 and, while it is down, answers 503 to everything."""

    def __init__(self) -> None:
        self.application = DomainDispatcherApplication(create_backend_app)
        self.down_until, self.refused, self.seen = 0.0, 0, list[str]()
        self.outages: list[tuple[str, float]] = []
        """What a PUT's address has in it before which the store goes down, and for how many seconds; each once."""

    def __call__(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        for outage in self.outages:
            if environment["REQUEST_METHOD"] == "PUT" and outage[0] in environment["PATH_INFO"]:
                self.outages.remove(outage)
                self.seen.append(outage[0])
                self.down_until = time.monotonic() + outage[1]
                break
        if time.monotonic() < self.down_until:
            self.refused += 1
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "text/plain")])
            return [b"SlowDown"]
        return self.application(environment, start)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = Store()
    server = make_server("127.0.0.1", 0, made, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", **keys}.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/maps", method="PUT")).close()
    yield made
    server.shutdown()
    thread.join()


HASTE = 30
"""How much faster time passes here than for a user: a minute is two seconds."""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = storage.PATIENCE
    backoff: Any = {name: value / HASTE if isinstance(value, timedelta) else value for name, value in usual["backoff"].items()}
    monkeypatch.setattr(storage, "PATIENCE", {**usual, "retry_timeout": usual["retry_timeout"] / HASTE, "backoff": backoff})


def fetched(folder: Folder, into: Path) -> Path:
    for path in folder.list():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).write_bytes(folder.get(path))
    return into


@pytest.mark.usefixtures("hasty")
def test_a_store_that_answers_503_for_a_minute_costs_nothing(store: Store, catalog: Path, serial: Path, tmp_path: Path) -> None:
    """While a tile is stored, while a shard is, and while the features are."""
    folder = Folder("s3://maps/run")
    here = half_done(serial, tmp_path / "map", tiles_of(serial)[4:7])
    for path in here.list():
        folder.put(path, here.get(path))
    hit = ["predictions/", "masks.zarr/confidence/c/", "features.parquet"]
    store.outages = [(where, 60 / HASTE) for where in hit]
    assert submit(catalog, folder) == 3
    assert (store.seen, store.refused > len(hit)) == (hit, True)
    assert_equal_maps(serial, fetched(folder, tmp_path / "fetched"))


@pytest.mark.usefixtures("hasty")
def test_a_store_that_stays_away_ends_the_run_in_one_line_and_the_next_goes_on(store: Store, catalog: Path, serial: Path, tmp_path: Path) -> None:
    folder = Folder("s3://maps/run")
    here = half_done(serial, tmp_path / "map", tiles_of(serial)[4:6])
    for path in here.list():
        folder.put(path, here.get(path))
    store.outages = [("features.parquet", 3600.0)]
    began = time.monotonic()
    with pytest.raises(StorageError, match="^cannot reach or write s3://maps/run: .*503.*") as caught:
        submit(catalog, folder)
    assert time.monotonic() - began > 120 / HASTE, "not before two minutes"
    assert "\n" not in str(caught.value)
    store.down_until = 0.0
    assert submit(catalog, folder) == 0
    assert_equal_maps(serial, fetched(folder, tmp_path / "fetched"))


# --- too little memory


def test_a_batch_that_memory_does_not_hold_is_halved_and_nothing_is_lost(
    catalog: Path, serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU does, of which the model takes as many tiles as it thinks fit."""
    tried: list[int] = []
    predictors: list[Predictor] = []
    load = Predictor.load

    def greedy(*arguments: Any) -> Predictor:
        predictors.append(load(*arguments))
        model = predictors[0].model
        model.batch_size, look = 4, model.network.vision.forward

        def narrow(crops: torch.Tensor, grids: list[tuple[int, int]]) -> list[torch.Tensor]:
            tried.append(len(grids))
            if len(grids) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return look(crops, grids)

        monkeypatch.setattr(model.network.vision, "forward", narrow)
        return predictors[0]

    monkeypatch.setattr(Predictor, "load", greedy)
    folder = half_done(serial, tmp_path / "map", tiles_of(serial)[2:8])
    assert submit(catalog, folder) == 6
    assert tried == [4, 2, 1, 1, 1, 1, 1, 1]
    assert predictors[0].batch_size == 1
    assert_equal_maps(serial, tmp_path / "map")
