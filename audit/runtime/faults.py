"""Contain failures: if one model or one stage fails, the reason is recorded and the audit goes on with the rest.

A network under audit is foreign code, which may raise anything or call `sys.exit`. Whatever it does ends the audit of
that model only; what was measured of it before stays.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from audit.errors import AuditError, ConfigError, DataError, GeneratorError, Terminated
from audit.results import Failure, NotComputed
from audit.runtime.memory import out_of_memory

T = TypeVar("T")


def reason(error: BaseException) -> str:
    """Return why `error` came about, without a traceback: our own sentence, else its type and first line."""
    if isinstance(error, AuditError):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if out_of_memory(error):
        return f"There was not enough memory ({first or type(error).__name__}): lower robustness.batch_size."
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or first or type(error).__name__}{where}."
    return f"{type(error).__name__}: {first.rstrip('.')}." if first else f"{type(error).__name__}."


def tried(stage: str, compute: Callable[[], T]) -> T | Failure:
    """Return what `compute` returns or, where the model it works on fails, the failure in `stage`.

    What is not the model's own - images, generator, files - is raised, as an interruption is.
    """
    try:
        return compute()
    except (KeyboardInterrupt, Terminated, GeneratorExit, ConfigError, DataError, GeneratorError, OSError):
        raise
    except BaseException as error:  # noqa: BLE001 - foreign code may raise anything, SystemExit included
        return Failure(stage=stage, why=reason(error))


@contextmanager
def stage_kept(stage: str, lost: list[NotComputed], paths: Sequence[str]) -> Iterator[None]:
    """Let the block fail as a whole: note in `lost` that `stage`, with the numbers at `paths`, was not computed."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what the stages before have measured is worth more than a traceback
        lost.append(NotComputed(what=stage, why=reason(error), paths=list(paths)))
