"""What every table of a configuration is made of."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    replaced: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, and what says the same now."""


def switched(value: Any) -> Any:
    """Read `true` as the table with its defaults and `false` as none."""
    return {} if value is True else None if value is False else value
