"""The rooms of the package and the imports between them, counted and drawn from the source.

A room is a folder or a file directly below `audit/`; an import counts once for each pair of rooms. `python
benchmarks/rooms.py` prints them, `--mermaid` the picture of docs/architecture.md.
"""

import argparse
import configparser
from collections import defaultdict
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = "audit"


def room_imports() -> dict[str, set[str]]:
    """Return, for every room by name, the other rooms that it imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms: dict[str, set[str]] = {child.split(".")[1]: set() for child in graph.find_children(PACKAGE)}
    for module in graph.modules - {PACKAGE}:
        room = module.split(".")[1]
        for imported in graph.find_modules_directly_imported_by(module) - {PACKAGE}:
            if imported.split(".")[1] != room:
                rooms[room].add(imported.split(".")[1])
    return rooms


def layers() -> list[list[str]]:
    """Return the rooms of each layer of `.importlinter`, the highest first."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    lines = rules["importlinter:contract:rooms"]["layers"].strip().splitlines()
    return [[room.strip().removeprefix(f"{PACKAGE}.") for room in line.split(":")] for line in lines]


def without_shortcuts(rooms: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out an import where the room is also reached by way of another import; what can be reached stays."""
    reached: dict[str, set[str]] = defaultdict(set)
    for layer in reversed(layers()):
        for room in layer:
            reached[room] = rooms[room].union(*(reached[other] for other in rooms[room]))
    return {room: {a for a in to if not any(a in reached[b] for b in to - {a})} for room, to in rooms.items()}


def mermaid(rooms: dict[str, set[str]]) -> str:
    """Return the picture: an arrow for every import that no longer way implies, the layers from top to bottom."""
    lines = ["flowchart TD"]
    for room, to in sorted(without_shortcuts(rooms).items()):
        lines += [f"  {room} --> {other}" for other in sorted(to)]
    return "\n".join(lines)


def main() -> None:
    """Print the rooms with what they import, and the two counts; or the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mermaid", action="store_true", help="print the picture of docs/architecture.md")
    rooms = room_imports()
    if parser.parse_args().mermaid:
        print(mermaid(rooms))
        return
    for room in sorted(rooms):
        print(f"{room:15} {', '.join(sorted(rooms[room])) or '-'}")
    print(f"{len(rooms)} rooms, {sum(map(len, rooms.values()))} imports between them")


if __name__ == "__main__":
    main()
