"""Fixtures shared by the tests."""

import importlib.util
import random
import signal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from audit.runtime import progress


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run ask that all of its tests are made."""
    parser.addoption("--no-skips", action="store_true", help="fail where any test, or file of tests, was skipped")


@pytest.hookimpl(trylast=True)  # after the reporter has counted
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run with `--no-skips` that skipped anything, a whole file (status 5, nothing collected) among it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("no_skips") and reporter.stats.get("skipped") and session.exitstatus in (0, 5):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)  # before the fixtures of modules, too
def pytest_runtest_setup() -> None:
    """Draw the same in a test whatever ran before it: a network made without a seed is then the same in every run."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what has to be set
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_as_before():
    """Undo what a command called within the tests makes of signals: a worker that ignores SIGTERM cannot end others."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _progress_as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the command line chooses how progress is shown; the next test starts without that."""
    monkeypatch.setattr(progress, "_shown", progress._Shown())


@pytest.fixture(scope="session")
def support_results() -> ModuleType:
    """The module that makes up a complete audit: `example_audit(root, ...)` and `write_audit(root, results)`."""
    spec = importlib.util.spec_from_file_location("support_results", Path(__file__).parent / "support_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
