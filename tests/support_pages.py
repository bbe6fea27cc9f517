"""The pages of the documentation, and what their fenced blocks hold."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TOP = ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "PYPI")
PAGES = [*(ROOT / f"{name}.md" for name in _TOP), *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(.*)\n([\s\S]*?)^```$", re.MULTILINE)


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: what stands after the three back-ticks ("python try.py"), and the content."""
    return [(info.strip(), content) for info, content in _FENCE.findall(text)]


def sections(text: str) -> dict[str, str]:
    """The page's sections of the second level by their titles."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
