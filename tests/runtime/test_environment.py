"""Provenance: device choice, versions, stage times."""

import pytest
import torch

from audit.errors import ConfigError
from audit.runtime.environment import Stopwatch, choose_device, peak_memory_mb


def test_device_names():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="'abacus'"):
        choose_device("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_named():
    with pytest.raises(ConfigError, match="'cuda'"):
        choose_device("cuda")


def test_stage_times_add_up_and_survive_errors():
    watch = Stopwatch()
    with watch.stage("a"):
        pass
    with pytest.raises(ZeroDivisionError), watch.stage("a"):
        _ = 1 / 0
    found = watch.environment(torch.device("cpu"))
    assert set(found.seconds) == {"a"}
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"] == torch.__version__
    assert 10 < peak_memory_mb() < 1e6
