"""What the pages say exists: links, anchors, commands with their options, keys of configuration files."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support_configuration import FILES
from support_pages import PAGES, ROOT, blocks

from audit.cli import app
from audit.config import parse_config

MOST_WORDS = 700
_CODE = re.compile(r"```[\s\S]*?^```$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
REQUIRED = {
    "data": {"path": "images"},
    "classifiers": [{"name": "net", "file": "net.pt"}],
    "optimiser": {"steps": 1},
    "generator": "generator.safetensors",
}
"""What an example of a part of a file leaves out."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_what_a_package_index_shows_has_no_relative_link():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    links = _LINK.findall((ROOT / project["readme"]).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link] == []


def test_the_site_has_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.relative_to(ROOT).as_posix() not in navigation] == []


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_relative_link_leads_somewhere(page: Path):
    for link in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        assert not anchor or anchor in _anchors(target), link


def test_every_page_is_reached_from_the_readme():
    links = _LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= {Path(link.split("#")[0]).name for link in links}


def _commands(text: str) -> list[list[str]]:
    """The words of every `spruce-audit …` in blocks of commands and in running text."""
    lines = [line for info, content in blocks(text) if not info for line in content.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(spruce-audit [^`]+)`", _CODE.sub("", text).replace("\n", " "))
    parts = [part for line in [*lines, *inline] for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts if part.strip().startswith("spruce-audit")]
    return [one[1:] for one in words]


@pages
def test_every_command_has_the_options_that_the_page_gives_it(page: Path):
    for words in _commands(page.read_text(encoding="utf-8")):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands") and rest and not rest[0].startswith(("-", "…")):
            name = rest.pop(0)
            assert name in command.commands, words
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words


def _examples(page: Path) -> list[tuple[str, str]]:
    return [
        (words[1], content)
        for info, content in blocks(page.read_text(encoding="utf-8"))
        if len(words := info.split()) == 2 and words[0] == "toml" and words[1] != "pyproject.toml"
    ]


@pages
def test_every_example_of_a_configuration_is_valid(page: Path):
    for name, content in _examples(page):
        (schema,) = [schema for file, _, schema in FILES if file == name]
        values: dict[str, Any] = tomllib.loads(content)
        needed = {key for key, field in schema.model_fields.items() if field.is_required()}
        parse_config(schema, {key: REQUIRED[key] for key in needed & REQUIRED.keys()} | values, f"{page.name}, {name}")
