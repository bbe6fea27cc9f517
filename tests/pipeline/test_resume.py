"""What is killed, and the same command again: what a run that nobody disturbed leaves."""

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.mark.slow
def test_an_audit_and_a_training_survive_kills_at_random_moments(tmp_path: Path) -> None:
    command = [sys.executable, str(HARNESS), "kills", "--n", "1", "--only", "audit", "encoder", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audit: survived" in done.stdout
    assert "encoder: survived" in done.stdout
