"""A hook of MkDocs: the site has the repository's layout, so that a link leads to the same place there and on GitHub.

The pages are README.md and whatever its relative links reach, from page to page; a linked file that is no page is
copied as it is. In a fenced block, the file name after the language becomes the block's title.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_CODE = re.compile(r"^```[\s\S]*?^```$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")
_NAMED_BLOCK = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)


def _linked(file: Path) -> list[Path]:
    links = _LINK.findall(_CODE.sub("", file.read_text(encoding="utf-8"))) if file.suffix == ".md" else []
    return [(file.parent / link).resolve() for link in links]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs_dir` by those that are reached from the README; those of the theme stay."""
    reached: dict[Path, None] = {}
    waiting = [ROOT / "README.md"]
    while waiting:
        file = waiting.pop()
        if file not in reached and file.is_file():
            reached[file] = None
            waiting += _linked(file)
    pages = [File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)) for file in reached]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *pages])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return _NAMED_BLOCK.sub(r'```\1 title="\2"', markdown)
