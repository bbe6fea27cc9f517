"""The folder that an audit writes to: replaced file by file, and only files that an audit wrote.

A list of its own, `.spruce-audit.json`, holds the SHA-256 of every file that an audit wrote into the folder. A file
that is not in the list, or is no longer what was written, belongs to the user: it is never overwritten and never
removed. New files are made in a hidden folder inside the output and moved, one by one, when they are complete. The list
is written before the files are moved, so that even after a power cut every file of ours is known.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import FrameType

from audit.errors import ConfigError
from audit.storage.files import atomic_write_text, hash_file
from audit.storage.own_files import same_file

MANIFEST = ".spruce-audit.json"
RESULTS_FILE = "results.json"
MINIMAL_FILE = "results-minimal.json"
"""What of the results may leave a site."""
REPORT_FILE = "report.html"
PICTURES = "images"
_PARTIAL = re.compile(r"\.spruce-audit-[0-9a-f]{12}\.partial")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Hashes = dict[str, set[str]]
"""By the path of a file, relative to the output: the SHA-256 of everything that an audit wrote there."""


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let the block finish before an interruption takes effect; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        caught.append(number)

    before = {one: handler for one in _SIGNALS if (handler := signal.getsignal(one)) != signal.SIG_IGN}
    for one in before:
        signal.signal(one, remember)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        for number in caught:
            signal.raise_signal(number)


def _within(inner: Path, outer: Path) -> bool:
    """Whether `inner` is `outer` or lies inside it; also on file systems that take upper and lower case as one."""
    return any(same_file(place, outer) for place in (inner, *inner.parents))


def _check_place(out: Path, inputs: Mapping[str, Path]) -> None:
    places = {"the current folder": Path.cwd(), "your home folder": Path.home()}
    for what, place in (*inputs.items(), *places.items()):
        place = Path(place).expanduser().resolve()
        if same_file(out, place):
            raise ConfigError(f"Output folder '{out}' is {what}, which an audit must not write over: name another one.")
        if _within(place, out):
            raise ConfigError(f"Output folder '{out}' holds {what} ('{place}'): name a folder of its own.")
        if what not in places and _within(out, place):
            raise ConfigError(f"Output folder '{out}' lies inside {what} ('{place}'): name a folder outside it.")


def read_manifest(folder: Path) -> Hashes | None:
    """Return what an audit wrote into `folder`; None if there is no list, or it is not one of ours."""
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = {str(name): {str(value) for value in values} for name, values in stored["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    # A list that was edited must not lead out of the folder.
    plain = all(
        not PurePosixPath(name).is_absolute() and not {"..", "", "."} & set(name.split("/")) and "\0" not in name
        for name in known
    )
    return known if plain else None


def _write_manifest(folder: Path, known: Hashes) -> None:
    files = {name: sorted(known[name]) for name in sorted(known)}
    about = "files that spruce-audit wrote, with their SHA-256; the next audit replaces those that are unchanged"
    atomic_write_text(folder / MANIFEST, json.dumps({"about": about, "files": files}, indent=1) + "\n")


def _is_ours(folder: Path, name: str, known: Hashes) -> bool:
    """Whether the file `name` is as an audit wrote it, and really lies in `folder` (no link on the way)."""
    if name not in known or _behind_link(folder, name):
        return False
    path = folder / name
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode) and hash_file(path) in known[name]
    return False


def _behind_link(folder: Path, name: str) -> bool:
    return any((folder / parent).is_symlink() for parent in PurePosixPath(name).parents if parent.parts)


def _is_free(folder: Path, name: str, known: Hashes) -> bool:
    """Whether `name` may be written: nothing is there, or only what an audit wrote."""
    path = folder / name
    if any((folder / parent).exists() and not (folder / parent).is_dir() for parent in PurePosixPath(name).parents):
        return False
    if _behind_link(folder, name):
        return False
    return not os.path.lexists(path) or _is_ours(folder, name, known)


def _files(folder: Path) -> list[str]:
    """Every file and link below `folder`, relative to it; links to folders are not followed."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(Path(root) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _is_abandoned(partial: Path) -> bool:
    """Whether the run that made the hidden folder `partial` is no longer there: its lock is free."""
    try:
        descriptor = os.open(partial, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _check_contents(out: Path) -> Hashes:
    """Return what an audit wrote into `out`; raises ConfigError if anything else would have to give way."""
    if not os.path.lexists(out):
        return {}
    if not out.is_dir():
        raise ConfigError(f"Output '{out}' is a file: name a folder that is new, empty, or holds an earlier audit.")
    partial = [path for path in out.iterdir() if _PARTIAL.fullmatch(path.name) and path.is_dir()]
    if any(not _is_abandoned(path) for path in partial):
        raise ConfigError(f"Another audit is writing to the output folder '{out}' now: name another folder.")
    if set(out.iterdir()) <= set(partial):
        return {}
    known = read_manifest(out)
    if known is None and (out / RESULTS_FILE).is_file():
        raise ConfigError(
            f"Output folder '{out}' is not empty, and its {RESULTS_FILE} comes without {MANIFEST}, the list of what an "
            "audit wrote: it was not left by this version of spruce-audit, so nothing in it is replaced; move it away "
            "or name another folder."
        )
    if known is None:
        raise ConfigError(f"Output folder '{out}' is not empty and holds no earlier audit: name another folder.")
    present = [name for name in _files(out) if name.split("/")[0] not in {MANIFEST, *(p.name for p in partial)}]
    for name in present:
        listed = name in known
        if listed and not _is_ours(out, name, known):
            raise ConfigError(
                f"'{out / name}' was changed after an audit had written it: move it away or name another output folder."
            )
        if not listed and name.split("/")[0] in (RESULTS_FILE, MINIMAL_FILE, REPORT_FILE, PICTURES):
            raise ConfigError(
                f"'{out / name}' stands where an audit writes but was not written by one: move it away or name another "
                "output folder."
            )
    return known


def check_output(out: Path, inputs: Mapping[str, Path]) -> Hashes:
    """Raise ConfigError unless an audit that reads `inputs` may write into the resolved folder `out`.

    `inputs` names files and folders that are read ("the data", "the configuration"): `out` may neither be nor hold one,
    nor lie inside one. Otherwise it may be new, empty, or hold an earlier audit whose files are as they were written;
    further files that somebody put there stay. Returns what an audit wrote there.
    """
    _check_place(out, inputs)
    try:
        return _check_contents(out)
    except OSError as error:
        raise ConfigError(f"Output folder '{out}' cannot be used ({error.strerror}): name another one.") from None


def record(report: Path, *further: Path) -> None:
    """Note in the list of the report's folder, if it has one, that spruce-audit wrote these files anew.

    Further files of an earlier rendering (report-2.html and so on), to which nothing leads any more, are removed.
    """
    folder = report.parent
    former = re.compile(rf"{re.escape(report.stem)}-\d+{re.escape(report.suffix)}")
    known = read_manifest(folder)
    if known is None:
        return
    fresh = {path.name: {hash_file(path)} for path in (report, *further)}
    for name in [name for name in known if name not in fresh and former.fullmatch(name)]:
        if _is_ours(folder, name, known):
            (folder / name).unlink()
        del known[name]
    _write_manifest(folder, known | fresh)


def _beside(out: Path) -> Path:
    """Make a new folder beside `out`, or where temporary files go if that is not possible."""
    for number in range(1, 100):
        place = out.with_name(f"{out.name}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            continue
        except OSError:
            break
        return place
    return Path(tempfile.mkdtemp(prefix="spruce-audit-"))


@dataclass
class Output:
    """A folder that is being written: files made in `staged` take their place in `folder` by `publish`."""

    folder: Path
    staged: Path
    known: Hashes = field(default_factory=dict)

    def publish(self) -> None:
        """Move every file of `staged` to its place and remove what an earlier audit or `publish` left there.

        Raises ConfigError, before anything is moved, if one of the places was taken in the meantime; and OSError.
        """
        names = _files(self.staged)
        taken = [name for name in names if not _is_free(self.folder, name, self.known)]
        if taken:
            raise ConfigError(f"'{self.folder / taken[0]}' was put there or changed while the audit ran.")
        fresh = {name: {hash_file(self.staged / name)} for name in names}
        with deferred_signals():
            both = {n: self.known.get(n, set()) | fresh.get(n, set()) for n in (*self.known, *fresh)}
            _write_manifest(self.folder, both)
            for name in names:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.staged / name, self.folder / name)
            for name in set(self.known) - set(fresh):
                self._remove(name)
            _write_manifest(self.folder, fresh)
            self.known = fresh
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _remove(self, name: str) -> None:
        if not _is_ours(self.folder, name, self.known):
            return
        (self.folder / name).unlink()
        for parent in PurePosixPath(name).parents:
            if parent.parts:
                with suppress(OSError):  # not empty: somebody else's files are in it
                    (self.folder / parent).rmdir()

    def keep(self, text: str) -> None:
        """Put `text`, the results, into the folder so that they outlive whatever comes next.

        Raises ConfigError naming the place where they are if they cannot be written there.
        """
        try:
            atomic_write_text(self.staged / RESULTS_FILE, text)
            self.publish()
        except (ConfigError, OSError) as error:
            reason = f"{error.strerror or error}." if isinstance(error, OSError) else str(error)
            place = _beside(self.folder)
            try:
                atomic_write_text(place / RESULTS_FILE, text)
            except OSError:
                place = Path(tempfile.mkdtemp(prefix="spruce-audit-"))
                atomic_write_text(place / RESULTS_FILE, text)
            raise ConfigError(
                f"The results could not be written to '{self.folder}': {reason} They are in '{place / RESULTS_FILE}', "
                f"without pictures; `spruce-audit report {place / RESULTS_FILE}` renders their report."
            ) from None


def _make_folder(folder: Path) -> list[Path]:
    """Make `folder` with its parents; returns the new ones, the deepest first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
    return missing


@contextmanager
def open_output(out: Path, inputs: Mapping[str, Path]) -> Iterator[Output]:
    """Check `out` as `check_output` does, then yield it for writing; what was not published vanishes with the block.

    Raises ConfigError before the block runs if `out` may not or cannot be written.
    """
    folder = Path(out).expanduser().resolve()
    known = check_output(folder, inputs)
    staged = folder / f".spruce-audit-{uuid.uuid4().hex[:12]}.partial"
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    lock = -1
    try:
        try:
            _make_folder(folder)
            for abandoned in folder.glob(".spruce-audit-*.partial"):
                if _PARTIAL.fullmatch(abandoned.name) and _is_abandoned(abandoned):
                    shutil.rmtree(abandoned, ignore_errors=True)
            staged.mkdir()
            lock = os.open(staged, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks: then two audits are not kept apart
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Output folder '{folder}' cannot be written ({error.strerror}): name another one."
            ) from None
        yield Output(folder, staged, known)
    finally:
        with deferred_signals():
            if lock >= 0:
                os.close(lock)
            shutil.rmtree(staged, ignore_errors=True)
            for place in missing:
                with suppress(OSError):
                    place.rmdir()
