"""The examples of docs/extending.md, run as a reader would run them.

In a section, a block whose first line ends with a file name (```python outside_part.py) is that file:

- `outside_part.py` and `pyproject.toml` are installed as a package of somebody else (`support_outside.install`);
- any other file is written into the folder where the example runs;
- `try.py` is run there, after all others.
"""

import runpy
import tomllib
from pathlib import Path

import pytest
from support_outside import install
from support_pages import ROOT, blocks, sections

SECTIONS = sections((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))


def files_of(section: str) -> dict[str, str]:
    named = [(info.split(), content) for info, content in blocks(section)]
    return {words[1]: content for words, content in named if len(words) == 2}


def entry_point(pyproject: str) -> str:
    ((group, parts),) = tomllib.loads(pyproject)["project"]["entry-points"].items()
    ((name, value),) = parts.items()
    module, _, attribute = value.partition(":")
    assert module == "outside_part"
    return f"{group}: {name} = {attribute}"


DOORS = (
    "An attack",
    "An intervention",
    "A counterfactual method",
    "Regions",
    "A data set",
    "A generator",
    "An embedding",
    "A container",
)


def test_every_kind_of_part_has_an_example():
    assert [title for title in DOORS if "try.py" not in files_of(SECTIONS.get(title, ""))] == []


@pytest.mark.parametrize("title", [title for title, text in SECTIONS.items() if "try.py" in files_of(text)])
def test_the_example_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = files_of(SECTIONS[title])
    if "outside_part.py" in files:
        install(tmp_path, monkeypatch, entry_point(files.pop("pyproject.toml")), files.pop("outside_part.py"))
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    runpy.run_path("try.py", run_name="__main__")
