"""Amounts that are written as text: radii of attacks, exactly (`8/255`), and memory (`2GB`)."""

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator


def _exact(text: str) -> Fraction:
    """Read `8/255`, `0.5/255`, `4 / 255` or `0.03` exactly; raises ValueError or ZeroDivisionError."""
    written = [part.strip() for part in text.split("/")]
    # Exact numbers of a thousand digits, or of `1e999999999`, are no float and take for ever.
    if len(written) > 2 or not all(re.fullmatch(r"[+-]?[\d.]{1,40}([eE][+-]?\d{1,2})?", part) for part in written):
        raise ValueError(text)
    parts = [Fraction(part) for part in written]
    return parts[0] / parts[1] if len(parts) == 2 else parts[0]


def _radius(value: Any, example: str) -> tuple[str, Fraction]:
    """The text of a radius without its spaces, and its value; raises ValueError showing an `example`."""
    text = re.sub(r"\s*/\s*", "/", str(value).strip())
    try:
        return text, _exact(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"'{text}' is not a number such as {example}") from None


def _check_eps(value: Any) -> str:
    text, number = _radius(value, '"8/255" or 0.03')
    if not 0 < number <= 1:
        raise ValueError(f"'{text}' is not in (0, 1]; eps is in pixel units, for instance \"8/255\"")
    return text


Eps = Annotated[str, BeforeValidator(_check_eps)]
"""Radius in pixel units, kept as written (`8/255`) because the text is the key under `robust.pgd` in the results."""


def _check_eps_l2(value: Any) -> str:
    text, number = _radius(value, '0.5 or "128/255"')
    if not number > 0:
        raise ValueError(f"'{text}' is not above 0; an L2 radius is the Euclidean length over all pixels in [0, 1]")
    return text


EpsL2 = Annotated[str, BeforeValidator(_check_eps_l2)]
"""L2 radius, kept as written."""


def eps_value(eps: str) -> float:
    """Return the number that an eps text such as `8/255` stands for."""
    return float(_exact(eps))


MEMORY_ON_CPU = "2GB"
"""What `max_memory = "auto"` allows where there is no GPU."""


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _check_memory(value: Any) -> str:
    text = str(value).strip()
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f'\'{text}\' is not an amount of memory such as "2GB", "512MB" or 512 (MB)')
    return text if found[2] else f"{text}MB"


Memory = Annotated[str, BeforeValidator(_check_memory)]
"""An amount of memory, `2GB`, `512MB` (powers of ten), `2GiB` or a number of MB."""


AutoMemory = Annotated[str, BeforeValidator(lambda value: value if value == "auto" else _check_memory(value))]
"""An amount of memory, or 'auto'."""


def memory_bytes(memory: str) -> int:
    """Return the number of bytes that a memory text such as `2GB` stands for."""
    number = memory.rstrip("KMGIBkmgib ")
    return int(float(number) * _UNITS[memory[len(number) :].strip().upper()])
