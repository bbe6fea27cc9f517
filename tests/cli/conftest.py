"""A command called as its words, in one process."""

import pytest
from typer.testing import CliRunner

from audit.cli import app


@pytest.fixture
def run(tmp_path):
    def call(*arguments: str, config: str = "", out: str = "out") -> tuple[int, str]:
        if config:
            (tmp_path / "c.toml").write_text(config)
            arguments = (*arguments, str(tmp_path / "c.toml"), "--out", str(tmp_path / out))
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    return call
