"""Files from the network, whole or not at all: resumed by HTTP Range, bounded, and placed only under their SHA-256.

A file of known size and hash grows under `.NAME.HASH.part` beside its place; a broken connection or a killed process
goes on from there. Only when the hash of the whole agrees is it renamed into place. Archives of a package index are
found by the index's own page (PEP 503 and 691) and members are *read* out of them: nothing is unpacked by a name that
the archive chooses, and no set-up code runs.
"""

import base64
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from audit.storage.cache import hash_file

CHUNK = 1 << 20
TIMEOUT = 60.0
ATTEMPTS = 6
"""How often one file is asked for; each attempt goes on where the last one broke."""
WAIT = 0.5
"""Seconds before the second attempt; doubled each time."""
PUBLIC_INDEX = "https://pypi.org/simple"
_BROKEN = (ConnectionError, TimeoutError, http.client.HTTPException, ssl.SSLError)


class Unobtainable(Exception):
    """A source does not give the file; `str(error)` is the clause that says why."""


class _TooLarge(Unobtainable):
    """The source gives more bytes than the registered file has."""


class _Advance(Protocol):
    def __call__(self, size: int) -> None: ...


@contextmanager
def _bytes_progress(label: str, total: int, done: int) -> Iterator[_Advance]:
    """Bar in bytes on standard error, from `done` of `total`; silent when that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<34}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda size: progress.advance(task, size)


def shown(url: str) -> str:
    """`url` as it may be printed: without user, password or query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _request(url: str, **headers: str) -> urllib.request.Request:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise Unobtainable(f"{shown(url)} is no http(s) address")
    user, at, host = parts.netloc.rpartition("@")
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    plain = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(plain, headers={"User-Agent": "spruce-audit"})
    for name, value in headers.items():
        # Unredirected, so that a password meant for the index does not follow a redirection to another host.
        request.add_unredirected_header(name, value) if name == "Authorization" else request.add_header(name, value)
    return request


def _open(url: str, **headers: str) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(_request(url, **headers), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (urllib.error.URLError, ValueError, *_BROKEN) as error:
        reason = getattr(error, "reason", None) or error
        raise Unobtainable(f"{shown(url)} cannot be reached ({reason})") from None


def _append(url: str, part: Path, size: int, label: str) -> None:
    """Ask for what is missing of `part` and append it; more than `size` bytes are refused."""
    have = part.stat().st_size if part.is_file() else 0
    with _open(url, **({"Range": f"bytes={have}-"} if have else {})) as response:
        if have and not (response.status == 206 and _starts_at(response, have)):
            part.unlink()  # the server gave the whole file, or another piece of it
            if response.status != 200:
                raise ConnectionError("the server gave a piece that was not asked for")
            have = 0
        with part.open("ab") as file, _bytes_progress(label, size, have) as advance:
            while block := response.read(CHUNK):
                have += len(block)
                if have > size:
                    raise _TooLarge(f"{shown(url)} is larger than the {size} bytes of the registered file")
                file.write(block)
                advance(len(block))


def _starts_at(response: http.client.HTTPResponse, offset: int) -> bool:
    return (response.headers.get("Content-Range") or "").replace("=", " ").split("-")[0].strip() == f"bytes {offset}"


def _attempt(url: str, part: Path, size: int, label: str) -> str | None:
    """One attempt; None if it may have given everything, else why it broke off. Raises Unobtainable if it is final."""
    try:
        _append(url, part, size, label)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there already reaches beyond the server's file
            part.unlink(missing_ok=True)
        elif error.code < 500 and error.code != 429:
            raise Unobtainable(f"{shown(url)} answers {error.code} {error.reason}") from None
        return f"{shown(url)} answers {error.code} {error.reason}"
    except _BROKEN as error:
        return f"{shown(url)} broke off ({error or type(error).__name__})"
    return None


def download(url: str, target: Path, sha256: str, size: int) -> None:
    """Place the file at `url` as `target` if it is `size` bytes of hash `sha256`; raises Unobtainable, placing nothing.

    What an earlier attempt left is gone on with, and if that turns out to be of another file, started anew once.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{sha256[:8]}.part")
    fresh = not part.exists()
    broken: str | None = None
    for attempt in range(ATTEMPTS):
        time.sleep(WAIT * 2 ** (attempt - 1) if attempt else 0)
        if not part.is_file() or part.stat().st_size < size:
            try:
                broken = _attempt(url, part, size, target.name)
            except _TooLarge:
                part.unlink()
                raise
        if not part.is_file() or part.stat().st_size < size:
            continue
        if part.stat().st_size == size and hash_file(part) == sha256:
            os.replace(part, target)
            return
        part.unlink()
        if fresh:
            raise Unobtainable(f"{shown(url)} gives another file than the registered one (SHA-256 {sha256[:12]}...)")
        fresh = True
    have = part.stat().st_size if part.is_file() else 0
    raise Unobtainable(broken or f"{shown(url)} stopped at {have} of {size} bytes, of which the next attempt goes on")


class _Links(HTMLParser):
    """Addresses of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.addresses += [value for name, value in attrs if name == "href" and value]


def package_index() -> str:
    """The package index: `PIP_INDEX_URL`, else what pip is configured with, else the public one."""
    given = os.environ.get("PIP_INDEX_URL")
    if not given:
        command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        given = asked.stdout.strip() if asked.returncode == 0 else ""
    return given or PUBLIC_INDEX


def archive_url(index: str, project: str, file: str) -> str:
    """Address of the archive `file` of `project` in a package `index`; raises Unobtainable."""
    page = f"{index.rstrip('/')}/{project}/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        with _open(page, Accept=accept) as response:
            body, kind = response.read(1 << 24), response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise Unobtainable(f"the package index answers {error.code} for {project}") from None
    except _BROKEN as error:
        raise Unobtainable(f"the package index broke off for {project} ({error or type(error).__name__})") from None
    if kind.endswith("json"):
        addresses = [str(entry.get("url")) for entry in json.loads(body).get("files", [])]
    else:
        links = _Links()
        links.feed(body.decode("utf-8", "replace"))
        addresses = links.addresses
    for address in addresses:
        if urlsplit(address).path.rpartition("/")[2] == file:
            found, base = urlsplit(urljoin(page, address)), urlsplit(page)
            # A link on the index's own host needs the password that its page needed.
            netloc = base.netloc if found.netloc == base.netloc.rpartition("@")[2] else found.netloc
            return urlunsplit((found.scheme, netloc, found.path, found.query, ""))
    raise Unobtainable(f"the package index has no {file}")


@contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """The bytes of the regular file `member` of a zip or tar archive, streamed; raises Unobtainable."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed, packed.open(member) as stream:
                yield stream
            return
        with tarfile.open(archive) as tar:
            for entry in tar:
                # Links and devices of that name are passed over: only bytes in the archive itself are of use.
                if entry.name == member and entry.isreg() and (file := tar.extractfile(entry)) is not None:
                    with file:
                        yield file
                    return
        raise KeyError(member)
    except KeyError:
        raise Unobtainable(f"{archive.name} has no member {member}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise Unobtainable(f"{archive.name} cannot be read ({error})") from None


def place_member(archive: Path, member: str, target: Path, sha256: str, size: int) -> None:
    """Place `member` of `archive` as `target` if it is `size` bytes of hash `sha256`; raises Unobtainable."""
    with _member(archive, member) as stream:
        _place(stream, target, sha256, size, f"{member} of {archive.name}")


def place_copy(source: Path, target: Path, sha256: str, size: int) -> None:
    """Place a copy of the file `source` as `target` if it is `size` bytes of hash `sha256`; raises Unobtainable."""
    with source.open("rb") as stream:
        _place(stream, target, sha256, size, source.name)


def _place(stream: IO[bytes], target: Path, sha256: str, size: int, what: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    digest, done = hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            while done <= size and (block := stream.read(CHUNK)):
                digest.update(block)
                done += len(block)
                file.write(block)
        if done != size or digest.hexdigest() != sha256:
            raise Unobtainable(f"{what} is another file than the registered one (SHA-256 {sha256[:12]}...)")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
