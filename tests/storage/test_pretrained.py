"""The registry, and pulling from hub, archive or folder: verified, in order, with a sentence when nothing works."""

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support_command import status_of
from support_site import Site, left, pack, site

from audit.errors import WeightsError
from audit.storage import pretrained as weights
from audit.storage import shipped
from audit.storage.pretrained import NETWORKS, Archive, File, Form, Member, Network

__all__ = ["site"]

ONE, TWO = b"one" * 1000, b"two" * 2000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of weights on this machine."""
    monkeypatch.setenv("SPRUCE_AUDIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return tmp_path / "weights"


@pytest.fixture
def net(site: Site, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A network of two files on a hub with two addresses, or of one file in an archive on an index."""
    archive = pack(tmp_path / "demo_pkg-1.0.tar.gz", {"demo_pkg-1.0/demo_pkg/w.ckpt": TWO, "../w.ckpt": b"!"}, {})
    data = archive.read_bytes()
    archive.unlink()
    site.files["/simple/demo-pkg/"] = ("text/html", b'<a href="/files/demo_pkg-1.0.tar.gz#sha256=x">x</a>')
    site.files["/files/demo_pkg-1.0.tar.gz"] = ("application/gzip", data)
    site.files["/second/one.pth"] = site.files["/second/heads.pth"] = ("application/octet-stream", ONE)
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    urls = (f"{site.url}/first/one.pth", f"{site.url}/second/one.pth")
    hub = Form(
        (
            File("one.pth", sha(ONE), len(ONE), urls),
            File("heads.pth", sha(ONE), len(ONE), (f"{site.url}/second/heads.pth",)),
        )
    )
    member = Member(Archive("demo-pkg", "demo_pkg-1.0.tar.gz", sha(data), len(data)), "demo_pkg-1.0/demo_pkg/w.ckpt")
    network = Network("net", "test", "MIT", (hub, Form((File("two.ckpt", sha(TWO), len(TWO), member=member),))))
    monkeypatch.setattr(weights, "NETWORKS", {"net": network})
    return network


def test_the_registry_is_whole_and_its_names_agree_with_its_hashes() -> None:
    files = [file for network in NETWORKS.values() for form in network.forms for file in form.files]
    assert len({file.name for file in files}) == len(files)
    for file in files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.urls or file.member
        assert all(url.startswith("https://") for url in file.urls)
        named = re.search(r"-([0-9a-f]{8})\.\w+$", file.name)
        assert named is None or file.sha256.startswith(named[1])
    for network in NETWORKS.values():
        assert network.licence
        assert any(form.needs is None for form in network.forms)


def test_a_second_address_is_tried_after_a_first_without_the_file(net: Network, site: Site, place: Path) -> None:
    assert weights.pull(["net"]) == {"net": (place / "one.pth", place / "heads.pth")}
    assert [path for path, _, _ in site.asked] == ["/first/one.pth", "/second/one.pth", "/second/heads.pth"]
    assert left(place) == ["heads.pth", "one.pth"]
    asked = len(site.asked)
    assert weights.pull(["net"])["net"][0] == place / "one.pth"
    assert len(site.asked) == asked


def test_an_archive_is_read_where_the_hub_is_of_no_use(net: Network, site: Site, place: Path) -> None:
    site.files["/second/one.pth"] = ("", b"ENO" * 1000)
    assert weights.pull(["net"]) == {"net": (place / "two.ckpt",)}
    assert left(place) == ["two.ckpt"]
    assert (place / "two.ckpt").read_bytes() == TWO


def test_nothing_is_placed_and_every_reason_is_said_when_nothing_works(net: Network, site: Site, place: Path) -> None:
    site.files = {"/second/one.pth": ("", b"ENO" * 1000)}
    with pytest.raises(WeightsError) as caught:
        weights.pull(["net"])
    sentence = str(caught.value)
    for part in (
        "net",
        str(place),
        "answers 404",
        "another file",
        "package index",
        "put one.pth with heads.pth or two.ckpt",
    ):
        assert part in sentence
    assert left(place) == []


def test_a_form_that_nothing_here_can_read_is_passed_over(
    net: Network, site: Site, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = (replace(net.forms[0], needs="no_such_package"), net.forms[1])
    monkeypatch.setattr(weights, "NETWORKS", {"net": replace(net, forms=forms)})
    place.mkdir()
    for file in net.forms[0].files:
        (place / file.name).write_bytes(ONE)
    assert weights.find("net") is None
    assert weights.pull(["net"])["net"] == (place / "two.ckpt",)


def test_a_folder_serves_instead_of_the_network(net: Network, site: Site, place: Path, tmp_path: Path) -> None:
    given = tmp_path / "stick"
    given.mkdir()
    with pytest.raises(WeightsError, match=f"'{given}' does not hold it"):
        weights.pull(["net"], given)
    (given / "demo_pkg-1.0.tar.gz").write_bytes(site.files["/files/demo_pkg-1.0.tar.gz"][1])
    assert weights.pull(["net"], given)["net"] == (place / "two.ckpt",)
    for file in net.forms[0].files:
        (given / file.name).write_bytes(b"damaged")
    (place / "two.ckpt").unlink()
    (given / "w.ckpt").write_bytes(TWO)
    assert weights.pull(["net"], given)["net"] == (place / "two.ckpt",)
    assert site.asked == []


def test_a_damaged_file_is_found_and_pulled_again(net: Network, site: Site, place: Path) -> None:
    weights.pull(["net"])
    (place / "one.pth").write_bytes(b"rot")
    with pytest.raises(WeightsError, match=r"one\.pth' have SHA-256 .* run `spruce-audit weights pull`"):
        weights.verify()
    weights.pull(["net"])
    assert weights.verify() == {"net": (place / "one.pth", place / "heads.pth")}


def test_an_installed_package_that_carries_the_file_serves(
    net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "demo_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package was imported')")
    (package / "w.ckpt").write_bytes(TWO)
    monkeypatch.syspath_prepend(str(package.parent))
    found = weights.find("net")
    assert found is not None
    assert found[1] == (package / "w.ckpt",)
    assert "demo_pkg" not in sys.modules


def test_another_hub_address_is_used(net: Network, site: Site, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = File("h.bin", sha(ONE), len(ONE), ("https://huggingface.co/second/one.pth",))
    monkeypatch.setattr(weights, "NETWORKS", {"net": replace(net, forms=(Form((file,)),))})
    monkeypatch.setenv("HF_ENDPOINT", f"{site.url}/")
    assert weights.pull(["net"])["net"] == (place / "h.bin",)


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = status_of("weights", *words)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_commands(net: Network, site: Site, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def do(*words: str) -> tuple[int, str, str]:
        return run(*words, capsys=capsys)

    status, said, _ = do("list")
    assert (status, "absent" in said, "MIT" in said) == (0, True, True)
    status, _, error = do("verify", "net")
    assert (status, "weights pull net" in error) == (2, True)
    assert do("pull")[0] == 2
    status, said, _ = do("pull", "--all")
    assert (status, said.strip()) == (0, f"net: {place / 'one.pth'}, {place / 'heads.pth'}")
    status, said, _ = do("list")
    assert (status, "present" in said, str(place / "one.pth") in said) == (0, True, True)
    assert do("verify")[:2] == (0, f"net: sound, {place / 'one.pth'}, {place / 'heads.pth'}\n")
    (place / "one.pth").write_bytes(b"rot")
    status, _, error = do("verify")
    assert (status, error.count("\n"), "one.pth" in error) == (2, 1, True)
    status, _, error = do("pull", "nothing")
    assert (status, error) == (2, "spruce-audit: No pretrained network is called 'nothing'; there are net.\n")


def test_the_module_and_the_folder_of_shipped_weights_live_side_by_side() -> None:
    assert Path(weights.__file__).name == "pretrained.py"
    assert shipped.path("generators", "phantom").parent.parent == Path(weights.__file__).parents[1] / "assets"
