"""Readers of other people's files on files with edits: the documented error or none (longer: benchmarks/fuzz.py)."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


fuzz = _fuzz()
SLOW = {"report": 4, "image": 40, "dicom": 40, "archive": 40, "config": 40, "results": 40}
"""Inputs of readers that take many milliseconds each."""


@pytest.mark.filterwarnings("ignore")  # of doubled names in archives, and of what damaged files are like
@pytest.mark.parametrize("name", fuzz.READERS)
def test_an_edited_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    for reader, package in (("dicom", "pydicom"), ("onnx", "onnx")):
        if name == reader:
            pytest.importorskip(package, reason=f"extra {reader}")
    reader = fuzz.READERS[name]
    seeds, path = reader.seeds(), tmp_path / f"input{reader.suffix}"

    @settings(
        max_examples=SLOW.get(name, 100), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def edit_and_read(draw: Random) -> None:
        path.write_bytes(fuzz.edited(reader, seeds, draw))
        assert fuzz.defect_of(reader, path) is None

    edit_and_read()
    for seed in seeds:
        path.write_bytes(seed)
        assert fuzz.defect_of(reader, path) is None


def test_what_a_reader_must_not_do_is_a_defect(tmp_path: Path) -> None:
    def fails(_: Path) -> None:
        raise ValueError("of no documented kind")

    found = fuzz.defect_of(fuzz.Reader(list, fails, ""), tmp_path)
    assert "of no documented kind" in found


@pytest.mark.slow
def test_an_input_that_hangs_and_one_that_takes_memory_are_defects(tmp_path: Path) -> None:
    script = tmp_path / "it.py"
    script.write_text(
        "import sys, time; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(fuzz.__file__).parent)!r}); import fuzz\n"
        "def spin(path):\n"
        "    while True: pass\n"
        "fuzz.HANG = 0.2\n"
        "taken = lambda path: bytearray(2 * fuzz.HEADROOM)\n"
        "for read in (spin, taken):\n"
        "    fuzz.READERS['it'] = fuzz.Reader(lambda: [b'x'], read, '')\n"
        "    fuzz._warm = lambda *given: None\n"
        "    assert fuzz.run('it', 0.1, 0, Path(sys.argv[1])) == 1\n"
    )
    ended = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "hangs for more than 0.2 s" in ended.stdout
    assert "MemoryError" in ended.stdout
