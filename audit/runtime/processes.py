"""Processes of this machine that compute parts of an audit: how they are started. Loads fast, for it imports no torch.

They are copies of one process that has loaded what they need and has done nothing yet: no thread, no GPU, no image. To
import torch and all that computes takes seconds of a core, which are spent once, and beside the audit's own imports
where a program says early enough that processes will be wanted.
"""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from threading import Thread

LOADED = ("audit.pipeline.node",)
"""What computes parts; by name, since this room imports nothing of it."""


def start_ahead() -> BaseContext:
    """Begin to load what processes need, and return what starts them.

    Where the system has no such copies, or no place for the socket by which they are asked for, every process is begun
    anew.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        copying = multiprocessing.get_context("forkserver")
        copying.set_forkserver_preload(list(LOADED))
        resource_tracker.ensure_running()  # which would let Ctrl-C through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # Ctrl-C is for this process, which then ends the others; while it loads, the new one would print an error.
            forkserver.ensure_running()
            return copying
        except OSError:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("spawn")


def begun(environment: Mapping[str, str]) -> None:
    """Set up this process as one that the process with this `environment` started itself, and which ends with that."""
    os.environ.update(environment)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if (parent := multiprocessing.parent_process()) is not None:
        # One that was killed has told nobody; the others would wait for work for ever.
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
