"""Work for engines, in a module that other processes can import."""

import os

import torch

from audit.errors import ConfigError


def squared(number: int) -> tuple[int, int, int]:
    return number**2, os.getpid(), torch.get_num_threads()


def failing(number: int) -> int:
    raise ConfigError(f"{number} is wrong.")


def dying(number: int) -> int:
    os._exit(1)
