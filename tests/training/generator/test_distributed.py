"""Two processes (gloo) train one generator: equal weights in both, written once, resumed to the same result."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import torch

from audit.data.audit_set import AuditSet
from audit.runtime.distributed import workers
from audit.training.generator import train
from audit.training.generator.config import GeneratorTrainConfig
from audit.training.generator.train import train_generator


class Means:
    """An embedding small enough to follow by hand."""

    name, weights_sha256 = "means", "0" * 64

    def embed(self, batch):
        return torch.nn.functional.adaptive_avg_pool2d(batch, 2).flatten(1)


def config(**changes):
    base = {
        "data": {"path": "phantom"}, "kimg": 0.064, "batch_size": 8, "z_dim": 8, "w_dim": 8, "channel_base": 64,
        "channel_max": 8, "snapshot_kimg": 0.032, "r1_interval": 2, "path_length_interval": 2, "ada_kimg": 0.05,
        "ada_target": 0.01, "fid_images": 50,
    }  # fmt: skip
    return GeneratorTrainConfig(**(base | changes))


def images(n=40):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    labels, splits = np.zeros(n, dtype=np.int64), np.full(n, "train")
    return AuditSet(pixels.__getitem__, labels, ("a",), tuple(map(str, range(n))), splits, (1, 16, 16))


def _process(rank, port, kimg, out, results):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    states, draws = [], []
    build, step = train.State, train.train_step

    def kept(*args):
        states.append(build(*args))
        return states[0]

    def noted(state, settings, real, labels, means):
        step(state, settings, real, labels, means)
        draws.append(state.rng.get_state().float().sum().item())

    train.State, train.train_step = kept, noted
    with workers("cpu") as (group, device):
        train_generator(config(kimg=kimg), images(), out, Means() if group.first else None, device, group)
    state = states[0]
    networks = {
        k: v.flatten()[:50].tolist() for n in ("g", "d", "ema") for k, v in getattr(state, n).state_dict().items()
    }
    results.put((rank, {"networks": networks, "p": state.p, "path": float(state.path_mean), "draws": draws}))


def both(kimg, out):
    context = multiprocessing.get_context("fork")
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    results = context.Queue()
    started = [context.Process(target=_process, args=(rank, port, kimg, out, results)) for rank in (0, 1)]
    for process in started:
        process.start()
    try:
        found = dict(results.get(timeout=120) for _ in started)
    finally:
        for process in started:
            process.join(timeout=10)
            process.kill()
    return found[0], found[1]


def test_two_processes_train_one_generator_and_resume_it(tmp_path: Path):
    first, second = both(0.064, tmp_path / "whole")
    assert first["networks"] == second["networks"]
    assert (first["p"], first["path"]) == (second["p"], second["path"])
    assert first["p"] > 0
    assert not set(first["draws"]) & set(second["draws"]), "each process draws its own images"
    rows = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    assert [row["kimg"] for row in rows] == [0.032, 0.064]
    assert all("fid" in row for row in rows)
    assert json.loads((tmp_path / "whole" / "generator.json").read_text())["world_size"] == 2
    both(0.032, tmp_path / "parts")
    again = both(0.064, tmp_path / "parts")
    assert again[0]["networks"] == again[1]["networks"] == first["networks"]
