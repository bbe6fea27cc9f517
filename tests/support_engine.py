"""Work for engines, in a module that other processes can import."""

import os
import signal
import sys

import torch

from audit.errors import ConfigError


def squared(number: int) -> tuple[int, int, int]:
    return number**2, os.getpid(), torch.get_num_threads()


def failing(number: int) -> int:
    raise ConfigError(f"{number} is wrong.")


def dying(number: int) -> int:
    os._exit(1)


def seen_of_itself(modules: tuple[str, ...]) -> tuple[bool, str | None, bool]:
    """Whether `modules` are loaded, a variable of the environment, and whether Ctrl-C is kept out."""
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return all(name in sys.modules for name in modules), os.environ.get("SPRUCE_LATER"), blocked
