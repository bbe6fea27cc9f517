"""Two processes (gloo) train what one does: the batch is shared out, gradients are averaged, the first one writes."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from audit.errors import ConfigError
from audit.runtime import distributed
from audit.runtime.distributed import Workers, workers
from audit.training.classifier.config import OptimiserConfig, load_classifier_train_config
from audit.training.classifier.train import train_classifier
from audit.training.shared import loop
from audit.training.shared.loop import Task, train

ROOT = Path(__file__).parents[3]
STEPS = 6


def port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _enter(rank: int, free: int, work: Callable[[Workers], Any], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free)}
    try:
        with workers("cpu") as (group, _):
            results.put((rank, work(group)))
    except ConfigError as error:
        results.put((rank, str(error)))


def both(work: Callable[[Workers], Any]) -> list[Any]:
    """Run `work` in two processes, forked because they start at once, and return what each gives."""
    context = multiprocessing.get_context("fork")
    results, free = context.Queue(), port()
    started = [context.Process(target=_enter, args=(rank, free, work, results)) for rank in (0, 1)]
    for process in started:
        process.start()
    try:
        found = dict(results.get(timeout=60) for _ in started)
    finally:
        for process in started:
            process.join(timeout=10)
            process.kill()
    return [found[0], found[1]]


def model(norm: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        between = nn.BatchNorm1d(16) if norm else nn.LayerNorm(16)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 16), between, nn.GELU(), nn.Linear(16, 2))


def trained(group: Workers, folder: Path, norm: bool = False, last: int | None = None, **optimiser: Any) -> list[Any]:
    """Train in this process's part; the state, the history and how often this process was asked for a score."""
    asked = []

    def batch(step: int) -> tuple[Tensor, Tensor]:
        if step == last:
            raise ConfigError("killed")
        images = torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(step))
        part = group.part(16)
        return images[part], (images.mean(dim=(1, 2, 3)) > 0.5).long()[part]

    def loss(network: nn.Module, images: Tensor, labels: Tensor, noise: torch.Generator, progress: float) -> Tensor:
        return nn.functional.cross_entropy(network(images), labels)

    def score(network: nn.Module) -> float:
        asked.append(1)
        return float(sum(p.detach().sum() for p in network.parameters()))

    network = model(norm)
    outcome = train(
        network,
        Task("test", batch, loss, score),
        OptimiserConfig(**({"lr": 0.01, "steps": STEPS} | optimiser)),
        steps=STEPS,
        select_every=2,
        seed=0,
        checkpoint=folder / "run.pt",
        key="a",
        workers=group,
    )
    return [{k: v.tolist() for k, v in network.state_dict().items()}, outcome.history, len(asked)]


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(float((torch.tensor(a[key]) - torch.tensor(b[key])).abs().max()) for key in a)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}], ids=str)
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "one").mkdir()
    alone, history, _ = trained(Workers(), tmp_path / "one", **settings)
    first, second = both(lambda group: trained(group, tmp_path, **settings))
    assert largest_difference(first[0], alone) < 1e-5
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert [value for _, value in first[1]] == pytest.approx([value for _, value in history], abs=1e-4)
    assert (first[2], second[2]) == (3, 0), "the first alone validates"


def test_batch_norm_ends_equal_in_all_processes(tmp_path: Path) -> None:
    first, second = both(lambda group: trained(group, tmp_path, norm=True))
    assert first[0] == second[0]
    assert first[0]["2.num_batches_tracked"] == max(first[1], key=lambda entry: entry[1])[0]


def test_two_processes_resume_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole").mkdir()
    whole = both(lambda group: trained(group, tmp_path / "whole", norm=True, precision="bfloat16"))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    killed = both(lambda group: trained(group, tmp_path, norm=True, precision="bfloat16", last=3))
    assert killed == ["killed", "killed"]
    again = both(lambda group: trained(group, tmp_path, norm=True, precision="bfloat16"))
    assert again[0][:2] == whole[0][:2]
    assert again[1][0] == whole[0][0]


def test_a_checkpoint_that_one_process_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    trained(Workers(), tmp_path / "0")
    said = both(lambda group: trained(group, tmp_path / str(group.rank)))
    assert all("same --out folder" in sentence for sentence in said)


def test_gradients_are_averaged_where_some_process_has_none() -> None:
    def work(group: Workers) -> list[Any]:
        network = nn.ParameterList([torch.zeros(2), torch.zeros(3), torch.zeros(1)])
        network[0].grad = torch.full((2,), float(group.rank))
        if group.first:
            network[1].grad = torch.ones(3)
        group.average_gradients(network)
        return [None if p.grad is None else p.grad.tolist() for p in network]

    assert both(work) == [[[0.5, 0.5], [0.5] * 3, None]] * 2


def test_large_and_mixed_tensors_go_in_several_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET", 5)

    def work(group: Workers) -> list[Any]:
        tensors = [torch.full((n,), float(group.rank), dtype=t) for n, t in ((3, torch.float32), (9, torch.float32))]
        tensors += [torch.full((2, 2), float(group.rank), dtype=torch.float64), torch.full((), 2.0 * group.rank)]
        group.average(tensors)
        return [t.tolist() for t in tensors] + [dist.get_world_size()]

    assert both(work) == [[[0.5] * 3, [0.5] * 9, [[0.5] * 2] * 2, 1.0, 2]] * 2


def test_parts_are_disjoint_and_uneven_batches_refused() -> None:
    rows = list(range(12))
    assert [rows[Workers(rank, 3).part(12)] for rank in range(3)] == [rows[:4], rows[4:8], rows[8:]]
    with pytest.raises(ConfigError, match=r"10 images .* 3 processes: set optimiser\.batch_size to a multiple of 3"):
        Workers(0, 3).part(10)


@pytest.mark.parametrize("device", ["meta", "cuda:1"])
def test_a_device_that_processes_cannot_share_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match="cannot be shared"), workers(device):
        pass


def test_torchrun_trains_by_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        'name = "tiny"\ndevice = "cpu"\narchitecture = "test_convnext"\n[data]\npath = "phantom"\n'
        "[optimiser]\nsteps = 3\nbatch_size = 4\nlr = 1e-4\n[augmentation]\nflip = 0.3\nrotation = 5\n"
        "[selection]\nevery = 2\nn = 4\n[evaluation]\nn = 4\nattacked = 2\nsteps = 1\n"
    )
    command = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port())]
    command += ["-m", "audit.cli", "train", "classifier", str(config), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tiny.safetensors") == 1, "the first alone says where the weights are"
    alone = train_classifier(load_classifier_train_config(config), tmp_path / "one")
    one, two = load_file(alone), load_file(tmp_path / "two" / "tiny.safetensors")
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    card = json.loads((tmp_path / "two" / "tiny.json").read_text())
    assert card["world_size"] == 2
    assert card["images_seen"] == 12
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        ".spruce-training.json", "tiny.json", "tiny.safetensors",
    ]  # fmt: skip
