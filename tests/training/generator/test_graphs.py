"""Recorded parts of a training step."""

import copy

import pytest
import torch
from torch.testing import assert_close

from audit.config import parse_config
from audit.training.generator.config import GeneratorTrainConfig
from audit.training.generator.graphs import WARM_UP, Direct, Graphs
from audit.training.generator.state import State
from audit.training.generator.step import Means, train_step

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: graphs are recorded there")


def state(device, **settings):
    small = {
        "data": {"path": "phantom"}, "batch_size": 8, "channel_base": 128, "channel_max": 8, "augmentation": "none",
        "r1_gamma": 0.1, "r1_interval": 2, "path_length_interval": 2, "second_discriminator": "scales-spread",
    }  # fmt: skip
    config = parse_config(GeneratorTrainConfig, small | settings, "a test")
    return State(config, (1, 16, 16), 0, torch.device(device)), config


def run(made, config, steps):
    means, device = Means(), made.device
    reals = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randint(256, (8, 1, 16, 16), dtype=torch.uint8, generator=reals).to(device)
        train_step(made, config, images, torch.zeros(8, dtype=torch.long, device=device), means)
    return means.values()


def test_a_processor_records_nothing():
    made, _ = state("cpu")
    assert type(made.parts) is Direct


@needs_cuda
@pytest.mark.parametrize("settings", [{"augmentation": "ada"}, {"conditional": True}])
def test_what_changes_or_waits_is_not_recorded(settings):
    config = state("cpu", **settings)[1]
    made = State(config, (1, 16, 16), 2 if config.conditional else 0, torch.device("cuda"))
    assert type(made.parts) is Direct


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_step_computes_what_the_step_itself_does(precision, monkeypatch):
    """After the warm-up every part is replayed twice, at rates that halve from step to step."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    falling = {"lr_decay_from": 2 * WARM_UP * 8 / 1000, "lr_half_life": 8 / 1000}
    graphed, config = state("cuda", precision=precision, **falling)
    direct, _ = state("cuda", precision=precision, **falling)
    direct.parts = Direct()
    assert type(graphed.parts) is Graphs
    steps = 2 * WARM_UP
    first = run(graphed, config, steps), run(direct, config, steps)
    assert_close(*first, rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(direct.g.state_dict())
    second = run(graphed, config, 4), run(direct, config, 4)
    assert {name[0] for name in graphed.parts._recorded} == {"D", "G"}
    assert len(graphed.parts._recorded) == 4
    rough = 0.05 if precision == "bfloat16" else 5e-3
    assert second[0].keys() == {"d_loss", "r1", "g_loss", "path", "r_t"}
    assert_close(*second, rtol=rough, atol=rough)
    after = dict(direct.g.state_dict())
    moved = sum(float((after[k] - before[k]).square().sum()) for k in after)
    apart = sum(float((after[k] - v).square().sum()) for k, v in graphed.g.state_dict().items())
    assert apart < 0.05 * moved


@needs_cuda
def test_rates_stay_on_the_gpu_after_a_kill(tmp_path):
    """On the CPU they would be numbers to a graph, which records them."""
    first, _ = state("cuda", lr_half_life=1.0)
    first.save(tmp_path / "checkpoint.pt", "key")
    second, _ = state("cuda", lr_half_life=1.0)
    second.resume(tmp_path / "checkpoint.pt", "key")
    groups = second.g_opt.param_groups + second.d_opt.param_groups
    assert len(groups) == 3
    assert all(group["lr"].device.type == "cuda" for group in groups)
