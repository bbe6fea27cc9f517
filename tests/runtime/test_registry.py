from pathlib import Path

import pytest
from support_outside import install

from audit.errors import ConfigError
from audit.runtime.registry import Registry


def registry() -> Registry[int]:
    return Registry("numbers", "number", {"one": 1})


def test_builtin_parts_are_found_and_have_no_origin():
    assert registry().get("one", "key") == 1
    assert registry().origin("one") is None


def test_a_name_that_nobody_gives_is_told_with_those_that_are_there():
    with pytest.raises(ConfigError, match=r"Key 'some\.key' names 'two', which is none of: one"):
        registry().get("two", "some.key")


def test_another_package_adds_a_part_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, "spruce_audit.numbers: two = TWO", "TWO = 2")
    assert registry().names() == ["one", "two"]
    assert registry().get("two", "key") == 2
    assert registry().origin("two") == "outside-part 1.0"


def test_another_package_cannot_replace_a_builtin_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, "spruce_audit.numbers: one = TWO", "TWO = 2")
    assert registry().get("one", "key") == 1
    assert registry().names() == ["one"]


def test_a_package_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, "spruce_audit.numbers: two = TWO", "raise OSError('no library')")
    with pytest.raises(ConfigError, match=r"outside-part 1\.0, which cannot be imported \(OSError: no library\)"):
        registry().get("two", "key")


def test_a_part_is_added_in_the_process_once():
    numbers = registry()
    numbers.add("two", 2)
    assert numbers.get("two", "key") == 2
    assert numbers.origin("two") == "added in this process"
    with pytest.raises(ConfigError, match="taken"):
        numbers.add("two", 3)
