"""The same demands on a disk and on an object store that speaks S3, with the ledger on top."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from moto.server import ThreadedMotoServer

from geopixel import ledger, mosaic
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, Block, Grid, Tile, TilePrediction


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/maps", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        yield "s3://maps"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return Folder(str(tmp_path / "runs" / "one"))
    return Folder(f"{request.getfixturevalue('bucket')}/runs/{request.node.name}")


def test_what_is_put_is_got_and_listed(folder: Folder) -> None:
    assert folder.list() == []
    assert folder.list("a") == []
    assert folder.size("a") == 0
    assert not folder.exists("a/b")
    for path in ("a/b", "a/c/d", "ab", "empty"):
        folder.put(path, b"" if path == "empty" else path.encode())
    folder.put("ab", b"second")
    assert folder.list() == ["a/b", "a/c/d", "ab", "empty"]
    assert folder.list("a") == ["a/b", "a/c/d"]
    assert folder.size("a") == len("a/b") + len("a/c/d")
    assert folder.exists("a/b")
    assert not folder.exists("a")
    assert folder.get("a/c/d") == b"a/c/d"
    assert folder.get("ab") == b"second"
    assert folder.get("empty") == b""
    assert b"".join(folder.parts("ab")) == b"second"


def test_a_missing_file_is_named_and_deleting_it_is_fine(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        folder.get("nowhere.json")
    folder.delete("nowhere.json")
    folder.put("a/b", b"1")
    folder.put("a/bc", b"2")
    folder.delete("a/b")
    assert folder.list() == ["a/bc"]


def test_json_is_the_same_bytes_for_the_same_value(folder: Folder) -> None:
    folder.put_json("run.json", {"b": [1, 2.5, None], "a": "é"})
    assert folder.get_json("run.json") == {"a": "é", "b": [1, 2.5, None]}
    first = folder.get("run.json")
    folder.put_json("run.json", {"a": "é", "b": [1, 2.5, None]})
    assert folder.get("run.json") == first


def test_zarr_lives_below_the_folder(folder: Folder) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    array = zarr.create_array(folder.zarr("masks.zarr"), name="mask", shape=(8, 8), chunks=(4, 4), shards=(8, 8), dtype="uint8")
    array[:] = values
    assert (zarr.open_array(folder.zarr("masks.zarr"), path="mask", mode="r")[:] == values).all()
    assert all(path.startswith("masks.zarr/") for path in folder.list())


@pytest.mark.parametrize("url", ["runs/one", "./runs", ""])
def test_a_relative_path_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="absolute path or a URL"):
        Folder(url)


def test_the_ledger_works_on_it(folder: Folder) -> None:
    grid = Grid("EPSG:3857", 0.3)
    tiles = [Tile(grid, 512, column, -1, "outside" if column == 0 else None) for column in range(4)]
    ledger.store_plan(folder, tiles)
    assert list(ledger.load_plan(folder)) == tiles
    assert [ledger.begin_attempt(folder, tiles[1].id) for _ in range(2)] == [1, 2]
    scene = np.zeros((640, 640), np.uint16)
    logits = np.arange(2 * 16 * 16).astype(np.int8).reshape(2, 16, 16)
    ledger.store_prediction(folder, TilePrediction(tiles[1].id, "failed", reason="no such file"))
    ledger.store_prediction(folder, TilePrediction(tiles[1].id, "ok", logits, scene, np.ones(2, np.float32)))
    ledger.end_attempts(folder, tiles[1].id)
    ledger.store_prediction(folder, TilePrediction(tiles[2].id, "empty", scene=scene))
    ledger.store_prediction(folder, TilePrediction(tiles[3].id, "failed", reason="broken"))
    states = ledger.read_states(folder, tiles)
    assert [states[tile.id] for tile in tiles] == ["outside", "ok", "empty", "failed"]
    assert (ledger.load_prediction(folder, tiles[1].id, "ok").logits == logits).all()
    ledger.store_coverage(folder, ledger.read_states(folder, tiles))
    assert folder.list() == ["coverage.parquet", "plan.parquet", *(f"predictions/{states[t.id]}/{t.id}.arrow" for t in (tiles[2], tiles[3], tiles[1]))]


def test_of_two_who_create_a_file_one_does(folder: Folder) -> None:
    assert folder.create_json("a/lease.json", 1)
    assert not folder.create_json("a/lease.json", 2)
    assert folder.get_json("a/lease.json") == 1


def test_a_file_is_stored_and_a_block_is_written_and_read(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in a file")
    folder.put("cog/file", tmp_path / "file")
    assert folder.get("cog/file") == b"in a file"
    block, plane = Block(Grid("EPSG:32645", 0.5), 0, 0), np.arange(BLOCK_SIZE**2, dtype=np.uint32).reshape(BLOCK_SIZE, BLOCK_SIZE)
    said = mosaic.BlockMosaic(*((plane[None] // 7777 % 2).astype(np.uint8),) * 2, (plane % 5).astype(np.uint8), (plane // 333).astype(np.uint16))
    mosaic.create_mosaic(folder, [block], ["building"], ["item"])
    mosaic.write_block(folder, block, said)
    root = zarr.open_group(folder.zarr(mosaic.MASKS), mode="r")
    for name in ("mask", "confidence", "status", "scene"):
        np.testing.assert_array_equal(root[name][:], getattr(said, name))
