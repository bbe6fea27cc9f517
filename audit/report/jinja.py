"""The templates of all pages: how they are read, and the filters that print numbers."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from audit.errors import readable
from audit.report import figures, text

MARK = '<meta name="generator" content="spruce-audit">'
"""By which a report is known to be ours."""
TEMPLATES = Path(__file__).parent / "templates"


def source(name: str) -> str:
    """Return a file of the templates' folder as it is."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Return what is printed, text without characters that would turn the direction of reading; line breaks stay."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return type(value)("\n".join(map(readable, value.split("\n"))))


def environment() -> Environment:
    """Return the templates; an undefined name is an error, and whatever is printed is escaped."""
    found = Environment(
        loader=PackageLoader("audit.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["css"] = Markup(source("report.css"))  # noqa: S704 - a file and a constant of the package
    found.globals["gradient"] = Markup(figures.gradient_css())  # noqa: S704
    found.globals["mark"] = Markup(MARK)  # noqa: S704
    found.filters |= {
        "number": text.number,
        "percent": text.percent,
        "percent_bounds": text.percent_bounds,
        "p_value": text.p_value,
        "probability": text.probability,
    }
    return found
