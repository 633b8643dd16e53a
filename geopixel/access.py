"""How catalogs and files are reached: which hosts may be asked, how often and for how long they are asked again, and what opens the door of a
file at the moment it is read. A leaf: knows addresses, answers and GDAL's settings, nothing of STAC or pixels."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import requests
from rasterio._path import _parse_path  # how rasterio.open turns an address into GDAL's own form; it has no public name
from rasterio.io import DatasetReader
from requests.adapters import HTTPAdapter
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, wait_exponential_jitter

from geopixel.errors import CatalogError, ReadError, root_cause
from geopixel.types import Asset

BEARER_VARIABLE = "GEOPIXEL_BEARER_TOKEN"
"""The environment variable with the token of catalogs and files that want one."""
FILES = "file"
"""The word in a list of hosts that stands for files of this machine."""
REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az")

DRIVERS = ("GTiff", "JP2OpenJPEG", "JPEG", "PNG")
"""GDAL's drivers that may open an asset. Others read what a stranger's file tells them to: a VRT or a STAC item names any other file or host."""

READ_TRIES = 6
REMOTE_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not list the bucket in search of sidecar files
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": str(READ_TRIES - 1),
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}
"""GDAL settings for COGs behind HTTP; the meanings stand in https://gdal.org/en/stable/user/configoptions.html. Its retries (429, 500, 502-504 and
lost connections) back off by a random factor above 2; it does not hear Retry-After."""

P = ParamSpec("P")
T = TypeVar("T")


# --- which hosts may be asked


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where a catalog may lead.

    A catalog on disk may name anything. One that came over the network may name its own host and public hosts, but neither files of this machine
    nor private addresses (RFC 1918, loopback, link-local: where clouds keep credentials). A list of hosts, where one is given, holds for both: nothing
    else is asked, and what it names is allowed even where it is private. Names are resolved when they are checked; whoever connects
    resolves them again.
    """

    catalog: str
    """Path or URL of the catalog: its own host, with its port, is always allowed."""
    allowed: tuple[str, ...] = ()
    """Host names, host:port, buckets, or patterns of these as in a shell (*.example.org); * for any public host, FILES for files. (): the rule above."""

    def check(self, href: str) -> None:
        """Raises CatalogError where the address may not be asked."""
        scheme, host, port = _place(href)
        own = _place(self.catalog)
        remote = own[0] in REMOTE_SCHEMES
        if scheme not in REMOTE_SCHEMES:
            if remote and FILES not in self.allowed:
                raise CatalogError(f"catalog {self.catalog} leads to a file of this machine, {_brief(href)}: --allow-hosts {FILES} permits it")
            return
        place = f"{host}:{port}" if port else host
        if (remote and (host, port) == own[1:]) or any(fnmatch(name, pattern) for pattern in self.allowed if pattern != "*" for name in (place, host)):
            return
        if self.allowed and "*" not in self.allowed:
            raise CatalogError(f"catalog {self.catalog} leads to {host}, which is not among the allowed hosts: --allow-hosts {','.join((*self.allowed, host))}")
        if remote and scheme in ("http", "https") and _is_private(host):
            raise CatalogError(f"catalog {self.catalog} leads to the private address {place} ({_brief(href)}): --allow-hosts '*,{place}' permits it")


def _place(href: str) -> tuple[str, str, int | None]:
    """Scheme, host or bucket, and port; empty for a path."""
    try:
        url = urlsplit(href)
        port = url.port
    except ValueError as error:
        raise CatalogError(f"not an address: {_brief(href)} ({error})") from error
    scheme = url.scheme.lower()
    return (scheme, (url.hostname or "").lower(), port) if scheme in REMOTE_SCHEMES else ("", "", None)


@lru_cache(maxsize=4096)
def _is_private(host: str) -> bool:
    """Whether a name, or an address in any spelling that a resolver takes (0x7f.1), leads to a machine that the internet cannot reach."""
    try:
        found = {str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(host.strip("[]"), None)}
    except (OSError, UnicodeError):
        return False  # nobody will reach it either
    return not all(ipaddress.ip_address(address).is_global for address in found)


# --- asking catalogs


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and for how long one request is tried."""

    tries: int = 6
    unreachable: int = 3
    """Tries of a host that takes no connection."""
    first: float = 0.5
    longest: float = 30.0
    """Seconds of the first wait and of any; waits double, plus up to a second at random, so that many workers do not come back together."""
    connect: float = 10.0
    each: float = 60.0
    """Seconds to connect and for a whole try: a server that drips one byte at a time ends here."""
    deadline: float = 180.0
    """Seconds for all tries and waits together."""


PATIENCE = Patience()
ASK_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be better a moment later."""
NO_CONNECTION = "no connection"


class _Failed(Exception):
    """One try that may go better; what it got, and how many seconds the server asked to wait."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class _Door(HTTPAdapter):
    """Checks every address before it is asked, those of redirects too, and shows the token to the catalog's own host only."""

    def __init__(self, hosts: Hosts, token: str | None) -> None:
        super().__init__()
        self.hosts, self.token = hosts, token

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        url = request.url or ""
        self.hosts.check(url)
        if self.token and _place(url) == _place(self.hosts.catalog):
            request.headers["Authorization"] = f"Bearer {self.token}"
        return super().send(request, *arguments, **options)


class Web:
    """Asks servers, patiently; one for a search."""

    def __init__(self, hosts: Hosts, *, token: str | None = None, patience: Patience | None = None) -> None:
        self.hosts, self.patience = hosts, patience or PATIENCE
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Door(hosts, token))

    def ask(self, method: str, url: str, **request: Any) -> bytes:
        """The body of a 2xx answer; request: params, json and headers as in requests.

        Tries again on lost connections, time-outs, cut or malformed bodies and on ASK_AGAIN, not before a Retry-After has passed. Raises CatalogError
        that says how often it tried and what it got, and for an address that may not be asked.
        """
        began, got = time.monotonic(), Counter[str]()
        patience = self.patience

        def one_try() -> bytes:
            try:
                return self._once(method, url, began + patience.deadline, **request)
            except _Failed as failure:
                got[str(failure)] += 1
                raise

        def wait(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            return max(backoff(state), failure.wait if isinstance(failure, _Failed) else 0.0)

        def stop(state: RetryCallState) -> bool:
            lost = sum(count for what, count in got.items() if what.startswith(NO_CONNECTION))
            late = time.monotonic() + state.upcoming_sleep >= began + patience.deadline
            return late or state.attempt_number >= patience.tries or lost >= patience.unreachable

        backoff = wait_exponential_jitter(multiplier=patience.first, max=patience.longest, jitter=min(1.0, patience.first))
        try:
            return Retrying(retry=retry_if_exception_type(_Failed), wait=wait, stop=stop)(one_try)
        except RetryError as error:
            tries, failure = sum(got.values()), error.last_attempt.exception()
            times = "once" if tries == 1 else f"{tries} times"
            asked = f", which asks to wait {failure.wait:.0f} s" if isinstance(failure, _Failed) and failure.wait else ""
            what = ", ".join(f"{name} ({count} times)" if count > 1 and len(got) > 1 else name for name, count in got.items())
            raise CatalogError(f"{method} {_brief(url)}: tried {times} in {time.monotonic() - began:.0f} s, got {what}{asked}") from failure

    def _once(self, method: str, url: str, deadline: float, **request: Any) -> bytes:
        end = min(deadline, time.monotonic() + self.patience.each)
        timeout = (min(self.patience.connect, self.patience.each), self.patience.each)
        try:
            with self.session.request(method, url, timeout=timeout, stream=True, **request) as answer:
                name = f"{answer.status_code} {answer.reason}"
                if answer.status_code in ASK_AGAIN:
                    raise _Failed(name, _retry_after(answer))
                if not answer.ok:
                    raise CatalogError(f"{method} {_brief(url)}: tried once, got {name}: {_brief(_body(answer, end).decode(errors='replace'))}")
                body = _body(answer, end)
                if "Content-Length" not in answer.headers and "json" in answer.headers.get("Content-Type", ""):
                    json.loads(body)  # nothing else says that it is whole
                return body
        except (requests.RequestException, OSError, ValueError) as error:
            if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema | requests.exceptions.MissingSchema | UnicodeError):
                raise CatalogError(f"not an address: {_brief(url)} ({error})") from error
            raise _Failed(_kind(error)) from error


def _body(answer: requests.Response, end: float) -> bytes:
    """The decoded body, read as it comes, so that the clock is looked at between any two bytes."""
    from urllib3.exceptions import HTTPError

    parts = []
    try:
        while part := answer.raw.read1(1 << 16, decode_content=True):
            parts.append(part)
            if time.monotonic() > end:
                raise _Failed("a time-out, with part of the body")
    except HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    return b"".join(parts)


def _retry_after(answer: requests.Response) -> float:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: seconds or a date); 0 where it does not."""
    said = answer.headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(said) if said.isdigit() else parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _kind(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "a time-out"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "a time-out, with part of the body" if "timed out" in str(error) else "a body that ends too early"
    if isinstance(error, json.JSONDecodeError):
        return "a body that is no JSON"
    return f"{NO_CONNECTION} ({_brief(str(root_cause(error)))})"


def _brief(text: str) -> str:
    """On one line, without the query: it may hold a signature."""
    text = " ".join(text.split())
    text = text.partition("?")[0] if "://" in text.partition("?")[0] else text
    return text if len(text) <= 200 else f"{text[:197]}..."


# --- opening files


def bearer_token() -> str:
    """Raises ValueError where the environment has none."""
    token = os.environ.get(BEARER_VARIABLE, "").strip()
    if not token:
        raise ValueError(f"access by bearer token needs one in the environment: set {BEARER_VARIABLE}")
    return token


def signed(asset: Asset) -> str:
    """The address to open now. It is a secret that lives for minutes: open it, never store or print it."""
    if asset.access != "planetary-computer" or not _is_blob(asset.href):
        return asset.href
    import planetary_computer  # loads pydantic and more: only where it is needed

    return planetary_computer.sign_url(asset.href)


def open_raster(address: str, **options: Any) -> DatasetReader:
    """The file, opened by one of DRIVERS or by none; VRT too where this process itself made the file, in memory. Not shared with other threads.

    address: as signed() gave it. options: as of rasterio.open, which takes a single driver where the reader that it makes takes several.
    """
    drivers = [*DRIVERS, "VRT"] if address.startswith("/vsimem/") else list(DRIVERS)
    return DatasetReader(_parse_path(address), driver=drivers, sharing=False, **options)


def read_options(asset: Asset) -> dict[str, str]:
    """GDAL settings under which the asset is opened and read. Raises ReadError where it needs a token and the environment has none."""
    if urlsplit(asset.href).scheme.lower() not in REMOTE_SCHEMES:
        return {}
    if asset.access == "bearer":
        try:
            return {**REMOTE_OPTIONS, "GDAL_HTTP_AUTH": "BEARER", "GDAL_HTTP_BEARER": bearer_token()}
        except ValueError as error:
            raise ReadError(f"cannot read {asset.href}: {error}") from error
    if asset.access == "requester-pays":
        return {**REMOTE_OPTIONS, "AWS_REQUEST_PAYER": "requester"}
    if asset.access == "anonymous":
        return {**REMOTE_OPTIONS, "AWS_NO_SIGN_REQUEST": "YES", "GS_NO_SIGN_REQUEST": "YES", "AZURE_NO_SIGN_REQUEST": "YES"}
    return REMOTE_OPTIONS


def signs_again(read: Callable[Concatenate[Asset, P], T]) -> Callable[Concatenate[Asset, P], T]:
    """A function that reads an asset, made to try once more with a new signature where it fails with the one it has: signatures end while a queue
    waits, and a server that refuses one (403) once a file is open is to GDAL a broken file. What it gives up on says how often GDAL tried."""

    @wraps(read)
    def patient(asset: Asset, *arguments: P.args, **options: P.kwargs) -> T:
        with _counted() as tries:
            try:
                return read(asset, *arguments, **options)
            except ReadError as error:
                if error.__cause__ is None or not _forget(asset):
                    raise _with_tries(error, tries) from error.__cause__
        with _counted() as tries:
            try:
                return read(asset, *arguments, **options)
            except ReadError as error:
                raise _with_tries(ReadError(f"{error} (also with a new signature)"), tries) from error.__cause__

    return patient


def _is_blob(href: str) -> bool:
    return (urlsplit(href).hostname or "").endswith(".blob.core.windows.net")


def _forget(asset: Asset) -> bool:
    """Drops the signature that was refused; False where the asset has none."""
    if asset.access != "planetary-computer" or not _is_blob(asset.href):
        return False
    from planetary_computer import sas

    url = urlsplit(asset.href)
    place = f"/{(url.hostname or '').partition('.')[0]}/{url.path.strip('/').partition('/')[0]}"
    for key in [key for key in sas.TOKEN_CACHE if key.endswith(place)]:
        sas.TOKEN_CACHE.pop(key, None)
    return True


class _TriesOfThread(logging.Handler):
    """GDAL tells of its retries in its log only. Counts them, each thread its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.mine = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        counts = getattr(self.mine, "counts", None)
        if counts is not None and "Retrying again" in (message := record.getMessage()):
            counts[message.partition("HTTP error code")[2].strip(" :").partition(" ")[0] or "no connection"] += 1


_TRIES = _TriesOfThread()
logging.getLogger("rasterio._env").addHandler(_TRIES)


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Retries of this thread from here on, by what GDAL got."""
    _TRIES.mine.counts = counts = Counter[str]()
    try:
        yield counts
    finally:
        _TRIES.mine.counts = None


def _with_tries(error: ReadError, tries: Counter[str]) -> ReadError:
    if not tries:
        return error
    got = ", ".join(f"{what} ({count} times)" if count > 1 else what for what, count in tries.items())
    return ReadError(f"{error}; tried {sum(tries.values()) + 1} times, got {got} before")
