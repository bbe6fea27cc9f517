"""Trainings that end right behind each of the files that they write, and are begun again."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


class Killed(BaseException):
    """Ends a run where SIGKILL would."""


def survives_every_kill(run: Callable[[Path], Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that `run(folder)`, killed when its first, second … file is in place and begun again, ends as if not.

    It returns its weights; beside them lies history.jsonl.
    """
    weights, steps = _left(run(root / "whole"))
    replace = os.replace
    for files in itertools.count(1):
        left = files

        def replaced(source: Path, target: Path) -> None:
            nonlocal left
            replace(source, target)
            left -= 1
            if left == 0:
                raise Killed

        folder = root / str(files)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replaced)
            try:
                run(folder)
            except Killed:
                pass
            else:
                assert files > 4
                return
        again, then = _left(run(folder))
        assert then == steps, files
        assert again.keys() == weights.keys(), files
        assert all(torch.equal(again[name], value) for name, value in weights.items()), files


def _left(path: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    rows = [json.loads(line) for line in path.with_name("history.jsonl").read_text().splitlines()]
    return load_file(path), [{key: row[key] for key in row if key != "kimg_per_second"} for row in rows]
