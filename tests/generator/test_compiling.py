"""Compiled networks draw the same, and a machine that cannot compile says so and goes on."""

import warnings

import pytest
import torch
import torch._inductor.config
from torch.testing import assert_close

from audit.generator.compiling import compiled
from audit.generator.stylegan2.discriminator import Discriminator


def judge():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Discriminator(16, 1, 64, 4), torch.randn(2, 1, 16, 16)


@pytest.mark.slow
def test_without_a_compiler_it_warns_once_and_runs():
    network, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    torch.compiler.reset()
    run = compiled(network)
    nowhere = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(nowhere),
        pytest.warns(RuntimeWarning, match=r"Linear runs uncompiled.*install a C\+\+ compiler"),
    ):
        assert_close(run(x), network(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(run(x), network(x))
    torch.compiler.reset()


def test_defects_of_a_call_are_raised_without_a_warning_about_the_machine():
    run = compiled(torch.nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeError, match="shape"):
            run(torch.ones(1, 3))


@pytest.mark.slow
def test_compiled_networks_agree():
    network, images = judge()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_close(compiled(network)(images), network(images), atol=1e-5, rtol=1e-5)
