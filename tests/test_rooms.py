"""The package's plan: how many rooms there are, what imports what, and that docs/architecture.md shows it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("grimp", reason="grimp, which import-linter brings, is not installed")

ROOT = Path(__file__).parents[1]
MOST_ROOMS, MOST_IMPORTS = 22, 110


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "benchmarks" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rooms_and_the_imports_between_them_stay_few(rooms: ModuleType):
    found = rooms.room_imports()
    assert len(found) <= MOST_ROOMS
    assert sum(map(len, found.values())) <= MOST_IMPORTS


def test_every_room_has_its_place_among_the_layers(rooms: ModuleType):
    assert sorted(rooms.room_imports()) == sorted(room for layer in rooms.layers() for room in layer)


def test_an_import_that_is_left_out_of_the_picture_is_implied_by_a_longer_way(rooms: ModuleType):
    found = rooms.room_imports()
    drawn = rooms.without_shortcuts(found)

    def reached(of: dict[str, set[str]], room: str) -> set[str]:
        return of[room].union(*(reached(of, other) for other in of[room]))

    assert all(reached(drawn, room) == reached(found, room) for room in found)


def test_the_picture_in_the_documentation_is_the_one_the_source_gives(rooms: ModuleType):
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"```mermaid\n{rooms.mermaid(rooms.room_imports())}\n```" in text
