"""The command line as a shell calls it, within this process."""

from pathlib import Path

import pytest

from audit.cli import main


def status_of(*arguments: str | Path) -> int:
    """Run `spruce-audit ARGUMENTS` to its end; return the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["spruce-audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)
