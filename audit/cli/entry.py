"""The command line as a whole: the commands put together, and how a command ends."""

import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer
from typer import rich_utils

from audit.cli import generator, store, train, weights
from audit.cli.export import export
from audit.cli.gate import gate
from audit.cli.prepare import doctor, estimate, init
from audit.cli.report import report
from audit.cli.run import demo, run
from audit.cli.schema import schema
from audit.cli.sites import merge, share
from audit.errors import AuditError, Terminated
from audit.runtime.allocator import keep_freed_memory
from audit.runtime.progress import choose_style
from audit.runtime.terminal import finish, forgive, say

if TYPE_CHECKING:
    from types import FrameType

DEFECT = 70
"""Exit status of a defect of this program (EX_SOFTWARE of sysexits.h)."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for _command in (init, doctor, estimate, run, demo, report, merge, share, gate, export, schema):
    app.command()(_command)
for _name, _group in {
    "train": train.app,
    "generator": generator.app,
    "weights": weights.app,
    "store": store.app,
}.items():
    app.add_typer(_group, name=_name)


def _print_version(asked: bool) -> None:
    if asked:
        from audit.storage.version import package_version

        say(f"spruce-audit {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Audit image classifiers: do they decide for the right reason?"""
    forgive()
    choose_style(None)


def _end(number: int, _: "FrameType | None") -> None:
    """Unwind like an interrupted run, so that what is half-written vanishes; a second signal does not cut that off."""
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(128 + number)


def main() -> None:
    """Run the command line; an error that the user can mend is one sentence and exit status 2."""
    forgive()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` asks for that
            signal.signal(number, _end)
    keep_freed_memory()
    status = _status()
    finish()
    sys.exit(status)


def _status() -> int:
    """Run the command; only a gate's own verdict ends with 1."""
    try:
        status = app(prog_name="spruce-audit", standalone_mode=False)
    except AuditError as error:
        return _mend(str(error))
    except OSError as error:
        return _mend(f"'{error.filename or 'a file'}' cannot be used: {error.strerror or error}.")
    except KeyboardInterrupt:
        status = 130
    except Terminated as stop:
        return int(str(stop.code))
    except SystemExit as stop:
        return 0 if _of_completion(stop) else _unexpected(stop)
    except Exception as error:  # noqa: BLE001 - a defect is told from a failed gate by its exit status
        return _unexpected(error)
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is undone: a second Ctrl-C shall not change how it ends
        say("spruce-audit: interrupted; nothing half-written was left.", err=True)
    return status if isinstance(status, int) else 0


def _of_completion(stop: SystemExit) -> bool:
    """Whether the shell's completion is done; a model's own code that exits is no success, whatever its status."""
    *_, (frame, _) = traceback.walk_tb(stop.__traceback__)
    return not stop.code and str(frame.f_globals["__name__"]).startswith("typer.")


def _unexpected(error: BaseException) -> int:
    if isinstance(error.__context__, BrokenPipeError):  # the reader of a help page went away
        return 0
    if hasattr(error, "format_message") and isinstance(error, Exception):  # wrong usage of the command line
        rich_utils.rich_format_error(error)  # type: ignore[arg-type]
        return 2
    if not isinstance(error, ImportError):  # torch itself may be what cannot be imported
        from audit.runtime.memory import out_of_memory

        if out_of_memory(error):
            return _mend("There is not enough memory: lower the batch size, or max_memory.")
    say("".join(traceback.format_exception(error)).rstrip(), err=True)
    say("spruce-audit: this is a defect of the program; please report the lines above.", err=True)
    return DEFECT


def _mend(sentence: str) -> int:
    say(f"spruce-audit: {sentence}", err=True)
    return 2
