"""Asking a server that behaves badly, over real HTTP: refusals with Retry-After, bad gateways, bodies that end too early or drip, redirects to where
nothing should go. Files behind the Planetary Computer's signatures are read by GDAL through a server that stands in for both, as a proxy."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from geopixel import access
from geopixel.access import Hosts, Patience, Web
from geopixel.errors import CatalogError, ReadError
from geopixel.raster import read_scenes
from geopixel.types import Access, Asset, Scene, Source

QUICK = Patience(tries=4, unreachable=2, first=0.01, longest=0.05, connect=0.5, each=0.6, deadline=4.0)
GOOD = json.dumps({"type": "Catalog", "text": "x" * 5000}).encode()


class Server(ThreadingHTTPServer):
    """Answers by script: the first request gets the first step, the last step answers all that follow."""

    def __init__(self, script: list[Callable[[BaseHTTPRequestHandler], None]]) -> None:
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((time.monotonic(), self.path, dict(self.headers)))
                script[min(len(server.requests), len(script)) - 1](self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def scripted(*script: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Server]:
    with Server(list(script)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def says(status: int, body: bytes = GOOD, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"Content_Length": str(len(body)), "Content_Type": "application/json", **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(body)

    return answer


def cut(to: BaseHTTPRequestHandler) -> None:
    """Less than was promised."""
    says(200, GOOD[:1000], Content_Length=str(len(GOOD)))(to)


def cut_silently(to: BaseHTTPRequestHandler) -> None:
    """Nothing was promised, the connection just ends."""
    to.send_response(200)
    to.send_header("Content-Type", "application/json")
    to.end_headers()
    to.wfile.write(GOOD[:1000])


def drips(to: BaseHTTPRequestHandler) -> None:
    """A byte now and then: no single wait is long."""
    to.send_response(200)
    to.send_header("Content-Length", str(len(GOOD)))
    to.end_headers()
    try:
        for byte in GOOD[:100]:
            to.wfile.write(bytes([byte]))
            time.sleep(0.05)
    except OSError:
        pass


def hangs_up(to: BaseHTTPRequestHandler) -> None:
    to.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("bad", [says(502), says(503), says(429), says(500), says(408), cut, cut_silently, drips, hangs_up])
def test_what_may_get_better_is_asked_for_again(bad: Callable[[BaseHTTPRequestHandler], None]) -> None:
    with scripted(bad, says(200)) as server:
        assert Web(Hosts(server.url), patience=QUICK).ask("GET", f"{server.url}/a") == GOOD
        assert len(server.requests) == 2


@pytest.mark.parametrize("when", ["1", lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)])
def test_nobody_comes_back_before_retry_after(when: str | Callable[[], str]) -> None:
    with scripted(says(429, Retry_After=when if isinstance(when, str) else when()), says(200)) as server:
        Web(Hosts(server.url), patience=QUICK).ask("GET", server.url)
        first, second = (moment for moment, _, _ in server.requests)
        assert second - first >= 0.9


def test_giving_up_says_how_often_and_what_it_got() -> None:
    calm = Patience(tries=4, unreachable=2, first=0.01, longest=0.05, each=10.0, deadline=60.0)  # a busy machine is no answer
    with scripted(says(502), says(429), cut, says(503)) as server, pytest.raises(CatalogError) as caught:
        Web(Hosts(server.url), patience=calm).ask("GET", f"{server.url}/search?token=secret")
    message = str(caught.value)
    got = "502 Bad Gateway, 429 Too Many Requests, a body that ends too early, 503 Service Unavailable"
    assert re.search(rf"tried 4 times in \d+ s, got {got}$", message)
    assert "secret" not in message
    with scripted(says(404, b"no such thing")) as server, pytest.raises(CatalogError, match="tried once, got 404 Not Found: no such thing"):
        Web(Hosts(server.url), patience=calm).ask("GET", server.url)
    with pytest.raises(CatalogError, match=r"tried 2 times in \d+ s, got no connection \(.*refused"):
        Web(Hosts(server.url), patience=calm).ask("GET", server.url)


def test_there_is_an_end_to_waiting() -> None:
    began = time.monotonic()
    with scripted(says(429, Retry_After="3600")) as server, pytest.raises(CatalogError, match="tried once .*429 Too Many Requests, which asks to wait 3600 s"):
        Web(Hosts(server.url), patience=QUICK).ask("GET", server.url)
    assert time.monotonic() - began < 2
    patience = Patience(tries=100, first=0.01, longest=0.05, each=0.4, deadline=1.0)
    with scripted(drips) as server, pytest.raises(CatalogError, match=r"tried [23] times in 1 s, got a time-out, with part of the body"):
        Web(Hosts(server.url), patience=patience).ask("GET", server.url)
    assert time.monotonic() - began < 5


# --- where a catalog may lead


REMOTE = "https://stac.example.org/v1"


@pytest.mark.parametrize(
    ("catalog", "allowed", "href", "reason"),
    [
        (REMOTE, (), "https://elsewhere.example.com/a.tif", None),
        (REMOTE, (), "https://8.8.8.8/a.tif", None),
        (REMOTE, (), "s3://bucket/a.tif", None),
        (REMOTE, (), "/etc/passwd", "file of this machine"),
        (REMOTE, (), "file:///etc/passwd", "file of this machine"),
        (REMOTE, (), "../a.tif", "file of this machine"),
        (REMOTE, (), "/vsicurl/http://127.0.0.1/a.tif", "file of this machine"),
        (REMOTE, (), "vrt:///etc/passwd", "file of this machine"),
        (REMOTE, (), "<VRTDataset></VRTDataset>", "file of this machine"),
        (REMOTE, ("file",), "/data/a.tif", None),
        (REMOTE, (), "http://127.0.0.1/a.tif", "private address 127.0.0.1"),
        (REMOTE, (), "http://localhost:8080/a.tif", "private address localhost:8080"),
        (REMOTE, (), "http://169.254.169.254/latest/meta-data", "private address 169.254.169.254"),
        (REMOTE, (), "http://10.1.2.3/a.tif", "private address"),
        (REMOTE, (), "http://[::1]/a.tif", "private address"),
        (REMOTE, (), "http://[::ffff:127.0.0.1]/a.tif", "private address"),
        (REMOTE, (), "http://0x7f.1/a.tif", "private address"),
        (REMOTE, (), "http://2130706433/a.tif", "private address"),
        (REMOTE, (), "http://user@127.0.0.1/a.tif", "private address"),
        (REMOTE, ("*", "10.1.2.3"), "http://10.1.2.3/a.tif", None),
        (REMOTE, ("*", "10.*"), "http://10.1.2.3:9000/a.tif", None),
        (REMOTE, ("*",), "http://10.1.2.3/a.tif", "private address"),
        (REMOTE, ("*",), "https://elsewhere.example.com/a.tif", None),
        (REMOTE, ("*.example.com",), "https://data.example.com/a.tif", None),
        (REMOTE, ("*.example.com",), "https://example.com.evil.net/a.tif", "not among the allowed"),
        (REMOTE, ("*.example.com",), f"{REMOTE}/search", None),
        (REMOTE, ("bucket",), "s3://other/a.tif", "not among the allowed"),
        ("http://127.0.0.1:8081/", (), "http://127.0.0.1:8081/a.tif", None),
        ("http://127.0.0.1:8081/", (), "http://127.0.0.1:5432/", "private address"),
        ("/data/catalog.json", (), "http://127.0.0.1/a.tif", None),
        ("/data/catalog.json", (), "/data/a.tif", None),
        ("/data/catalog.json", ("a.example.org",), "https://b.example.org/a.tif", "not among the allowed"),
    ],
)
def test_where_a_catalog_may_lead(catalog: str, allowed: tuple[str, ...], href: str, reason: str | None) -> None:
    if reason is None:
        Hosts(catalog, allowed).check(href)
    else:
        with pytest.raises(CatalogError, match=reason) as caught:
            Hosts(catalog, allowed).check(href)
        assert "--allow-hosts" in str(caught.value)


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "s3://", "file://"]))
def test_no_address_breaks_the_door(text: str, scheme: str) -> None:
    with suppress(CatalogError):
        Hosts("http://127.0.0.1:1/").check(scheme + text)


def test_a_redirect_is_checked_like_any_address_and_the_token_stays_at_home() -> None:
    with scripted(says(200)) as other, scripted(says(302, b"", Location=f"{other.url}/latest/meta-data")) as server:
        with pytest.raises(CatalogError, match="leads to the private address"):
            Web(Hosts(server.url), patience=QUICK).ask("GET", server.url)
        assert not other.requests
        allowed = Hosts(server.url, (urlsplit(other.url).netloc,))
        assert Web(allowed, token="abc", patience=QUICK).ask("GET", server.url) == GOOD
        assert server.requests[-1][2]["Authorization"] == "Bearer abc"
        assert "Authorization" not in other.requests[-1][2]


# --- opening files


GEOBOX = GeoBox((64, 64), from_origin(10.0, 50.0, 0.001, 0.001), "EPSG:4326")
BLOB = "http://naip.blob.core.windows.net/naip/a.tif"


def scene(href: str, how: Access) -> list[Scene]:
    return [Scene("c", "2020-01-01", (Source("i", shapely.box(9, 49, 11, 51), (Asset(href, (1, 2, 3), access=how),)),))]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.tif"
    pixels = np.random.default_rng(0).integers(1, 250, (3, 512, 512)).astype(np.uint8)
    profile = {"driver": "GTiff", "width": 512, "height": 512, "count": 3, "dtype": "uint8", "crs": "EPSG:4326", "transform": from_origin(10, 50, 0.001, 0.001)}
    with rasterio.open(path, "w", tiled=True, blockxsize=128, blockysize=128, **profile) as file:
        file.write(pixels)
    return path


class Store:
    """A blob store and the service that signs for it; each signature is good for so many requests."""

    def __init__(self, picture: Path, good_for: int = 1000) -> None:
        self.data, self.good_for = picture.read_bytes(), good_for
        self.signatures, self.used, self.refused, self.headers = 0, 0, 0, list[dict[str, str]]()

    def __call__(self, to: BaseHTTPRequestHandler) -> None:
        url = urlsplit(to.path)
        if "/token/" in url.path:
            self.signatures, self.used = self.signatures + 1, 0
            expiry = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            return says(200, json.dumps({"msft:expiry": expiry, "token": f"sig={self.signatures}"}).encode())(to)
        self.headers.append(dict(to.headers))
        self.used += 1
        if self.used > self.good_for or parse_qs(url.query).get("sig") != [str(self.signatures)]:
            self.refused += 1
            return says(403, b"AuthenticationFailed")(to)
        return serve(to, self.data)


def serve(to: BaseHTTPRequestHandler, data: bytes) -> None:
    """Whole, or the range that is asked for."""
    first, last = 0, len(data) - 1
    if wanted := to.headers.get("Range"):
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end or last), last)
    to.send_response(206 if wanted else 200)
    to.send_header("Content-Length", str(last - first + 1))
    to.send_header("Accept-Ranges", "bytes")
    if wanted:
        to.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
    to.end_headers()
    if to.command == "GET":
        to.wfile.write(data[first : last + 1])


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets a server stand in for the blob store and the signing service."""
    from planetary_computer.sas import TOKEN_CACHE
    from planetary_computer.settings import Settings

    def stand_in(url: str) -> None:
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{url}/token")
        monkeypatch.setattr(access, "REMOTE_OPTIONS", {**access.REMOTE_OPTIONS, "GDAL_HTTP_PROXY": url.removeprefix("http://")})
        Settings.get.cache_clear()
        TOKEN_CACHE.clear()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield stand_in
    Settings.get.cache_clear()
    TOKEN_CACHE.clear()


@pytest.mark.parametrize("good_for", [1000, 0, 1])
def test_a_signature_that_has_ended_is_renewed_once(picture: Path, through: Callable[[str], None], good_for: int) -> None:
    """Good for ever; never good for the first; good for the header only."""
    expected, _ = read_scenes(scene(str(picture), "plain"), GEOBOX)
    store = Store(picture, good_for)
    with scripted(store) as server:
        through(server.url)
        asset = Asset(f"http://naip{good_for}.blob.core.windows.net/naip/a.tif", (1, 2, 3), access="planetary-computer")
        if good_for == 1000:
            rgb, valid = read_scenes(scene(asset.href, asset.access), GEOBOX)
            np.testing.assert_array_equal(rgb, expected)
            assert valid.all()
            assert (store.signatures, store.refused) == (1, 0)
            access.signed(asset)
            assert store.signatures == 1, "a token serves until it ends"
            store.signatures, store.used = 7, 0  # the store does not know the token that is at hand any more
            other = asset.href.replace("a.tif", "b.tif")
            rgb, _ = read_scenes(scene(other, asset.access), GEOBOX)
            np.testing.assert_array_equal(rgb, expected)
            assert store.signatures == 8
        else:
            with pytest.raises(ReadError, match="also with a new signature") as caught:
                read_scenes(scene(asset.href, asset.access), GEOBOX)
            assert store.signatures == 2
            assert "sig=" not in str(caught.value)


def test_only_who_wants_signatures_gets_them(picture: Path, through: Callable[[str], None]) -> None:
    with scripted(Store(picture)) as server:
        through(server.url)
        assert access.signed(Asset(BLOB, (1,), access="planetary-computer")) == f"{BLOB}?sig=1"
        assert access.signed(Asset(BLOB, (1,))) == BLOB
        for href in ("/data/a.tif", f"{server.url}/a.tif", "https://blob.core.windows.net.example.org/a.tif", "s3://bucket/a.tif"):
            assert access.signed(Asset(href, (1,), access="planetary-computer")) == href


def test_what_opens_a_file_is_what_its_asset_says(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.BEARER_VARIABLE, "t0ken")
    seen: list[dict[str, str]] = []

    def store(to: BaseHTTPRequestHandler) -> None:
        seen.append(dict(to.headers))
        serve(to, picture.read_bytes())

    with scripted(store) as server:
        read_scenes(scene(f"{server.url}/a.tif", "bearer"), GEOBOX)
        assert {each.get("Authorization") for each in seen} == {"Bearer t0ken"}
        seen.clear()
        read_scenes(scene(f"{server.url}/b.tif", "plain"), GEOBOX)
        assert {each.get("Authorization") for each in seen} == {None}
        host = server.url.removeprefix("http://")
        monkeypatch.setenv("AWS_S3_ENDPOINT", host)
        for name, value in {"AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}.items():
            monkeypatch.setenv(name, value)
        seen.clear()
        read_scenes(scene("s3://bucket/c.tif", "requester-pays"), GEOBOX)
        assert {each.get("x-amz-request-payer") for each in seen} == {"requester"}
        assert all("Authorization" in each for each in seen)
        seen.clear()
        read_scenes(scene("s3://bucket/d.tif", "anonymous"), GEOBOX)
        assert not any("Authorization" in each for each in seen)
    monkeypatch.delenv(access.BEARER_VARIABLE)
    with pytest.raises(ReadError, match=f"set {access.BEARER_VARIABLE}"):
        read_scenes(scene(f"{server.url}/a.tif", "bearer"), GEOBOX)


def test_a_file_that_stays_away_says_how_often_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "REMOTE_OPTIONS", {**access.REMOTE_OPTIONS, "GDAL_HTTP_MAX_RETRY": "2", "GDAL_HTTP_RETRY_DELAY": "0.05"})
    with scripted(says(503)) as server, pytest.raises(ReadError, match=r"a.tif: .*503.*; tried 3 times, got 503 \(2 times\) before"):
        read_scenes(scene(f"{server.url}/a.tif", "plain"), GEOBOX)


@pytest.mark.parametrize("name", ["a.vrt", "a.tif"])
def test_a_file_that_names_other_files_is_not_read(tmp_path: Path, picture: Path, name: str) -> None:
    import rasterio.shutil

    rasterio.shutil.copy(str(picture), str(tmp_path / "a.vrt"), driver="VRT")
    (tmp_path / "a.vrt").rename(tmp_path / name)
    with pytest.raises(ReadError, match="not recognized"):
        read_scenes(scene(str(tmp_path / name), "plain"), GEOBOX)
