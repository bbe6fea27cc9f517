"""The output folder: what an audit wrote is replaced, what it did not write is never touched."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audit.errors import ConfigError
from audit.storage import output as output_module
from audit.storage.output import (
    MANIFEST,
    deferred_signals,
    open_output,
    read_manifest,
    record,
)


def _tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(out: Path, files: dict[str, str], **inputs: Path) -> None:
    with open_output(out, inputs) as output:
        output.keep(files["results.json"])
        for name, text in files.items():
            (output.staged / name).parent.mkdir(parents=True, exist_ok=True)
            (output.staged / name).write_text(text)
        output.publish()


FIRST = {"results.json": "{1}", "report.html": "one", "images/a/x.png": "x", "images/b/y.png": "y"}
SECOND = {"results.json": "{2}", "report.html": "two", "images/a/x.png": "x2"}


def test_an_output_is_replaced_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    write(out, FIRST)
    tree = _tree(out)
    assert {name: text for name, text in tree.items() if name != MANIFEST} == FIRST
    assert set(json.loads(tree[MANIFEST])["files"]) == set(FIRST)
    (out / "notes.txt").write_text("mine")
    (out / "images/b/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"images/b/mine.txt' stands where an audit writes"):
        write(out, SECOND)
    assert (out / "report.html").read_text() == "one"
    (out / "images/b/mine.txt").unlink()
    write(out, SECOND)
    assert {name: text for name, text in _tree(out).items() if name != MANIFEST} == {**SECOND, "notes.txt": "mine"}
    assert not (out / "images/b").exists()


@pytest.mark.parametrize("name", FIRST)
def test_a_file_changed_since_is_never_overwritten(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out", FIRST)
    (tmp_path / "out" / name).write_text("edited")
    before = _tree(tmp_path)
    with pytest.raises(ConfigError, match="was changed after an audit had written it"):
        write(tmp_path / "out", SECOND)
    assert _tree(tmp_path) == before


def _foreign(out: Path) -> None:
    (out / "thesis.txt").write_text("years of work")


def _foreign_results(out: Path) -> None:
    (out / "results.json").write_text("{}")


def _broken_list(out: Path) -> None:
    (out / MANIFEST).write_text("{")
    (out / "results.json").write_text("{}")


def _escaping_list(out: Path) -> None:
    (out.parent / "victim.txt").write_text("v")
    hashes = ["4c94485e0c21ae6c41ce1dfe7b6bfaceea5ab68e40a2476f50208e526f506080"]
    (out / MANIFEST).write_text(json.dumps({"files": {"../victim.txt": hashes}}))
    (out / "results.json").write_text("{}")


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (_foreign, "is not empty and holds no earlier audit"),
        (_foreign_results, "was not left by this version of spruce-audit"),
        (_broken_list, "was not left by this version"),
        (_escaping_list, "was not left by this version"),
    ],
)
def test_any_other_folder_is_refused_and_untouched(tmp_path: Path, fill: Callable[[Path], None], said: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out)
    before = _tree(tmp_path)
    with pytest.raises(ConfigError, match=said):
        write(out, FIRST)
    assert _tree(tmp_path) == before


def test_files_and_folders_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        write(tmp_path / "file", FIRST)
    with pytest.raises(ConfigError, match="cannot be"):
        write(tmp_path / "file" / "out", FIRST)
    assert _tree(tmp_path) == {"file": "x"}


def test_no_input_and_no_place_of_the_user_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "project" / "images"
    data.mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for out, said in (
        (data, "is the data"),
        (tmp_path / "link", "is the data"),
        (data / "out", "lies inside the data"),
        (tmp_path / "link" / "out", "lies inside the data"),
        (Path(), "holds the data|is the current folder"),
        (Path("images/.."), "holds the data|is the current folder"),
        (Path(".."), "holds"),
        (Path("~"), "is your home folder"),
        (Path("/"), "holds"),
    ):
        with pytest.raises(ConfigError, match=said):
            write(out, FIRST, **{"the data": data})
    with pytest.raises(ConfigError, match="is the current folder"):
        write(Path(), FIRST)
    assert _tree(tmp_path) == {}
    write(Path("out"), FIRST, **{"the data": data})
    (tmp_path / "project/out/checkpoint.pt").write_text("weights")
    with pytest.raises(ConfigError, match="holds the checkpoint"):
        write(Path("out"), FIRST, **{"the checkpoint": tmp_path / "project/out/checkpoint.pt"})


def test_links_inside_an_output_are_not_followed(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write(out, FIRST)
    (out / "images").rename(elsewhere)
    (out / "images").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="stands where an audit writes"):
        write(out, SECOND)
    assert _tree(elsewhere) == {"a/x.png": "x", "b/y.png": "y"}


def test_an_empty_folder_and_a_link_may_be_the_output(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(tmp_path / "link", FIRST)
    assert (tmp_path / "empty" / "results.json").read_text() == "{1}"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_half_written_remains(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail_half_way(out: Path) -> None:
        with open_output(out, {}) as output:
            (output.staged / "results.json").write_text("half")
            raise failure

    with pytest.raises(failure):
        fail_half_way(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "out", FIRST)
    before = _tree(tmp_path)
    with pytest.raises(failure):
        fail_half_way(tmp_path / "out")
    assert _tree(tmp_path) == before


def test_results_outlive_what_comes_after_them(tmp_path: Path) -> None:
    def fail_after_results() -> None:
        with open_output(tmp_path / "out", {}) as output:
            output.keep("{hours of work}")
            (output.staged / "images").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_after_results()
    assert set(_tree(tmp_path / "out")) == {"results.json", MANIFEST}
    assert (tmp_path / "out" / "results.json").read_text() == "{hours of work}"
    write(tmp_path / "out", FIRST)


def test_results_go_elsewhere_if_their_place_was_taken(tmp_path: Path) -> None:
    def collide() -> None:
        with open_output(tmp_path / "out", {}) as output:
            (tmp_path / "out" / "results.json").write_text("by somebody else")
            output.keep("{hours of work}")

    with pytest.raises(ConfigError, match=r"out-1/results.json'.*spruce-audit report"):
        collide()
    assert _tree(tmp_path) == {"out/results.json": "by somebody else", "out-1/results.json": "{hours of work}"}


def test_results_go_elsewhere_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = output_module.atomic_write_text

    def full(path: Path, text: str) -> None:
        if path.is_relative_to(tmp_path / "disk"):
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(output_module, "atomic_write_text", full)
    monkeypatch.setattr(output_module.tempfile, "tempdir", str(tmp_path))

    def fill() -> None:
        with open_output(tmp_path / "disk" / "out", {}) as output:
            output.keep("{hours of work}")

    with pytest.raises(ConfigError, match="No space left on device"):
        fill()
    (kept,) = tmp_path.glob("spruce-audit-*/results.json")
    assert kept.read_text() == "{hours of work}"


HOLD = """
import sys, time
from pathlib import Path
from audit.storage.output import open_output
with open_output(Path(sys.argv[1]), {}) as output:
    print("open", flush=True)
    time.sleep(60)
"""


def test_two_audits_do_not_share_a_folder_and_a_killed_one_leaves_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match="Another audit is writing"):
            write(out, FIRST)
        other.kill()
    assert len(list(out.iterdir())) == 1
    write(out, FIRST)
    assert set(_tree(out)) == {*FIRST, MANIFEST}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt, whatever the tests were started by: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_waits_for_the_end_of_the_block() -> None:
    seen: list[str] = []

    def interrupted() -> None:
        with deferred_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            seen.append("done")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == ["done"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_report_that_is_rendered_again_is_still_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, FIRST)
    for name in ("report.html", "report-2.html", "report-3.html"):
        (out / name).write_text("rendered again")
    record(out / "report.html", out / "report-2.html", out / "report-3.html")
    (out / "report-3.html").write_text("changed by hand")
    record(out / "report.html")
    assert sorted(path.name for path in out.glob("report*")) == ["report-3.html", "report.html"]
    assert not {"report-2.html", "report-3.html"} & set(read_manifest(out))
    write(out, SECOND)
    assert (out / "report.html").read_text() == "two"
    (tmp_path / "report.html").write_text("elsewhere")
    record(tmp_path / "report.html")
    assert read_manifest(tmp_path) is None
