"""Downloads against a local server: whole or not at all, resumed, bounded, and archives that are only read."""

import json
from pathlib import Path

import pytest
from support_site import DATA, HASH, Site, left, pack, site

from audit.storage import download as fetch
from audit.storage.download import Unobtainable, archive_url, download, package_index, place_copy, place_member, shown

__all__ = ["site"]


def test_a_file_is_placed_under_its_hash(site: Site, tmp_path: Path) -> None:
    download(f"{site.url}/file", tmp_path / "deep" / "x", HASH, len(DATA))
    assert (tmp_path / "deep" / "x").read_bytes() == DATA
    assert left(tmp_path / "deep") == ["x"]


def test_a_broken_connection_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.break_after, site.breaks = 100_000, 2
    download(f"{site.url}/file", tmp_path / "x", HASH, len(DATA))
    assert (tmp_path / "x").read_bytes() == DATA
    assert [r for _, r, _ in site.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_later_call_goes_on_too(site: Site, tmp_path: Path) -> None:
    site.break_after, site.breaks = 1000, fetch.ATTEMPTS
    with pytest.raises(Unobtainable, match=f"stopped at {1000 * fetch.ATTEMPTS} of {len(DATA)} bytes"):
        download(f"{site.url}/file", tmp_path / "x", HASH, len(DATA))
    assert not (tmp_path / "x").exists()
    download(f"{site.url}/file", tmp_path / "x", HASH, len(DATA))
    assert site.asked[-1][1] == f"bytes={1000 * fetch.ATTEMPTS}-"
    assert left(tmp_path) == ["x"]


def test_a_server_without_ranges_gives_the_whole_again(site: Site, tmp_path: Path) -> None:
    site.break_after, site.breaks, site.ranges = 100_000, 1, False
    download(f"{site.url}/file", tmp_path / "x", HASH, len(DATA))
    assert (tmp_path / "x").read_bytes() == DATA


def test_what_another_file_left_is_replaced(site: Site, tmp_path: Path) -> None:
    part = tmp_path / f".x.{HASH[:8]}.part"
    for old in (b"of another file", bytes(len(DATA)), bytes(2 * len(DATA))):
        part.write_bytes(old)
        download(f"{site.url}/file", tmp_path / "x", HASH, len(DATA))
        assert (tmp_path / "x").read_bytes() == DATA
        assert left(tmp_path) == ["x"]


def test_another_file_than_the_registered_one_is_not_placed(site: Site, tmp_path: Path) -> None:
    with pytest.raises(Unobtainable, match="another file than the registered one"):
        download(f"{site.url}/file", tmp_path / "x", "0" * 64, len(DATA))
    assert left(tmp_path) == []
    with pytest.raises(Unobtainable, match="larger than the 1000 bytes"):
        download(f"{site.url}/file", tmp_path / "x", HASH, 1000)
    assert left(tmp_path) == []


def test_absence_and_unreachable_hosts_are_said_at_once(site: Site, tmp_path: Path) -> None:
    with pytest.raises(Unobtainable, match="answers 404"):
        download(f"{site.url}/nothing", tmp_path / "x", HASH, len(DATA))
    assert len(site.asked) == 1
    site.server_close()
    with pytest.raises(Unobtainable, match="cannot be reached"):
        download("http://127.0.0.1:9/x", tmp_path / "x", HASH, len(DATA))
    for scheme in ("file:///etc/hostname", "ftp://127.0.0.1/x", "no address"):
        with pytest.raises(Unobtainable, match=r"no http\(s\) address"):
            download(scheme, tmp_path / "x", HASH, len(DATA))


@pytest.mark.parametrize("kind", ["html", "json"])
def test_an_index_page_is_read_and_its_password_stays_unsaid(site: Site, kind: str) -> None:
    link = "../../files/demo-1.0.tar.gz"
    html = f'<a href="/other/demo-0.9.tar.gz#sha256=0">x</a><a href="{link}#sha256=1" data-x="1">y</a>'.encode()
    page = json.dumps({"files": [{"url": "/other/demo-0.9.tar.gz"}, {"url": link}]}).encode()
    types = {"html": ("text/html; charset=utf-8", html), "json": ("application/vnd.pypi.simple.v1+json", page)}
    site.files["/simple/demo/"] = types[kind]
    address = archive_url(f"{site.url}/simple/", "demo", "demo-1.0.tar.gz")
    assert address == f"{site.url}/files/demo-1.0.tar.gz"
    index = site.url.replace("//", "//me:s%40cret@") + "/simple"
    assert "s%40cret" in archive_url(index, "demo", "demo-1.0.tar.gz")
    assert site.asked[-1][2] == "Basic bWU6c0BjcmV0"
    assert "cret" not in shown(index)
    with pytest.raises(Unobtainable, match=r"has no demo-2\.0") as caught:
        archive_url(index, "demo", "demo-2.0.tar.gz")
    assert "cret" not in str(caught.value)
    with pytest.raises(Unobtainable, match="answers 404"):
        archive_url(index, "nothing", "x")


def test_the_index_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/simple")
    assert package_index() == "https://packages.example/simple"
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setattr(fetch.sys, "executable", "/usr/bin/false")
    assert package_index() == fetch.PUBLIC_INDEX


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz"])
def test_only_the_member_is_read_out_of_an_archive(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    members = {
        "../escaped": b"!",
        f"{tmp_path}/absolute": b"!",
        "setup.py": b"raise SystemExit",
        "d/w": DATA,
        "e": b"x",
    }
    archive = pack(inside / name, members, {"d/w": "/etc/hostname", "only-a-link": "/etc/hostname"})
    place_member(archive, "d/w", inside / "out", HASH, len(DATA))
    assert (inside / "out").read_bytes() == DATA
    assert left(tmp_path) == ["inside"]
    assert left(inside) == sorted([name, "out"])
    for member, reason in (("missing", "has no member"), ("only-a-link", "has no member"), ("e", "is another file")):
        with pytest.raises(Unobtainable, match=reason):
            place_member(archive, member, inside / "other", HASH, len(DATA))
    with pytest.raises(Unobtainable, match="is another file"):
        place_member(archive, "d/w", inside / "other", HASH, 10)
    assert left(inside) == sorted([name, "out"])


def test_a_damaged_archive_is_said(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.tar.gz", {"w": DATA}, {}).read_bytes()
    for cut in (0, 10, len(whole) // 2):
        (tmp_path / "a.tar.gz").write_bytes(whole[:cut])
        with pytest.raises(Unobtainable):
            place_member(tmp_path / "a.tar.gz", "w", tmp_path / "out", HASH, len(DATA))
    assert left(tmp_path) == ["a.tar.gz"]


def test_a_copy_is_verified(tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(DATA)
    place_copy(tmp_path / "from", tmp_path / "to", HASH, len(DATA))
    assert (tmp_path / "to").read_bytes() == DATA
    with pytest.raises(Unobtainable, match="from is another file"):
        place_copy(tmp_path / "from", tmp_path / "bad", "0" * 64, len(DATA))
    assert left(tmp_path) == ["from", "to"]
