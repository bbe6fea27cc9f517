"""The training loop: a pure function of (seed, step), so that a run killed at any step resumes to the same weights.

Batch, noise and dropout of step s depend on the seed and s alone; what has to be saved is therefore only the model,
the optimiser, the moving average, the gradient's scale, the scores and best weights so far, and s. Whether to stop
early follows from the scores. Optimiser: AdamW (Loshchilov & Hutter 2019).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from audit.errors import ConfigError
from audit.runtime.distributed import ALONE, Workers
from audit.runtime.seeds import stage_generator, stage_seed
from audit.storage.checkpoint import Resumable, fingerprint
from audit.training.classifier.config import OptimiserConfig
from audit.training.shared.precision import check_precision, in_precision

CHECKPOINT_SECONDS = 30.0
"""Seconds between two saved checkpoints: what a kill can cost at most."""


@dataclass(frozen=True)
class Task:
    """What is trained and how it is validated.

    `batch(step)` gives images and targets; `loss(model, images, targets, generator, progress)` a scalar, where
    `progress` is the share of the steps done; `score(model)` the validation score, of which the highest is kept.
    """

    name: str
    batch: Callable[[int], tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], Tensor]
    score: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Outcome:
    """The run's record: best score and its step, scores by step, where and why it ended, last loss, and seconds.

    The seconds are those of all resumed parts.
    """

    best_score: float
    best_step: int
    history: list[tuple[int, float]]
    stopped_at: int
    reason: str
    loss: float
    seconds: float


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate at `step` as a share of its peak: linear warm-up, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def without_gain(scores: Sequence[float]) -> int:
    """Return how many validations ago the score last rose above all before it; 0 if it did at the last."""
    best, since = -math.inf, 0
    for score in scores:
        since = 0 if score > best else since + 1
        best = max(best, score)
    return since


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters so that biases, norms and scales (fewer than two dimensions) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass
class _State(Resumable):
    """Everything that a resumed run needs; `seconds` and `history` are those of all parts of the run."""

    _modules = ("model", "optimiser", "scaler", "average")
    _plain = ("step", "seconds", "loss", "best", "best_score", "best_step", "history")
    _generators = ()

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    best: dict[str, Tensor]
    best_score: float = -math.inf
    best_step: int = 0
    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    history: list[tuple[int, float]] = field(default_factory=list)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def checkpoint_key(config: BaseModel, workers: Workers, *, without: set[str]) -> str:
    """Return the `key` of a training by `config`; its parts `without` change nothing of what is learnt.

    Noise, batch norm and contrasts differ with the number of processes: what began with two goes on with two.
    """
    alone = config.model_dump_json(exclude=without)
    return fingerprint(alone if workers.size == 1 else f"{alone}/{workers.size}")


def train(
    model: nn.Module,
    task: Task,
    optimiser: OptimiserConfig,
    *,
    steps: int,
    select_every: int,
    seed: int,
    checkpoint: Path,
    key: str,
    patience: int | None = None,
    device: torch.device | str = "cpu",
    workers: Workers = ALONE,
) -> Outcome:
    """Train `model` in place for `steps` steps and leave it with the weights of the best validation score.

    It ends earlier after `patience` validations without a gain. `checkpoint` is the file to resume from and to write
    to; `key` identifies the configuration it must have been written with, else ConfigError. The file stays until the
    caller has stored the result. With several `workers`, `task.batch` gives this process's part of the batch, and the
    first process alone validates and writes.
    """
    start = time.monotonic()
    device = torch.device(device)
    check_precision(optimiser.precision, device)
    model.to(device)
    learner = in_precision(model, optimiser.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=optimiser.precision == "float16")
    adamw = torch.optim.AdamW(parameter_groups(model, optimiser.weight_decay), lr=optimiser.lr)
    average = None
    if optimiser.ema is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optimiser.ema), use_buffers=True)
    state = _State(model, adamw, scaler, average, best=_snapshot(model))
    state.resume(checkpoint, key)
    workers.check_equal(state.step, "the step to resume from", device)
    earlier, saved = state.seconds, time.monotonic()

    def stopping() -> bool:
        scores = [score for _, score in state.history]
        return state.step >= steps or (patience is not None and without_gain(scores) >= patience)

    with workers.progress(task.name, steps) as advance:
        advance(state.step)
        while not stopping():
            step = state.step
            images, targets = (part.to(device) for part in task.batch(step))
            for group in adamw.param_groups:
                group["lr"] = optimiser.lr * learning_rate_share(step, steps, optimiser.warmup)
            learner.train()
            # Dropout and stochastic depth of foreign architectures draw from the global RNG: lend them a copy.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(stage_seed(seed, workers.stage(f"train/step/{step}")))
                generator = stage_generator(seed, workers.stage(f"train/noise/{step}"), device)
                loss = task.loss(learner, images, targets, generator, step / steps)
            state.loss = workers.mean(loss)
            if not math.isfinite(state.loss):
                raise ConfigError(f"The loss of '{task.name}' is {state.loss} at step {step}: lower optimiser.lr.")
            adamw.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            workers.average_gradients(model)
            if optimiser.gradient_clip is not None:
                scaler.unscale_(adamw)
                nn.utils.clip_grad_norm_(model.parameters(), optimiser.gradient_clip)
            scaler.step(adamw)
            scaler.update()
            workers.average_buffers(model)
            if average is not None:
                average.update_parameters(model)
            state.step += 1
            advance()
            if state.step % select_every == 0 or state.step == steps:
                validated = model if average is None else average.module
                score = workers.of_first(partial(task.score, validated), device)
                state.history.append((state.step, score))
                if score >= state.best_score:
                    state.best, state.best_score, state.best_step = _snapshot(validated), score, state.step
            if time.monotonic() - saved > CHECKPOINT_SECONDS or stopping():
                saved = time.monotonic()
                state.seconds = earlier + saved - start
                if workers.first:
                    state.save(checkpoint, key)
    model.load_state_dict(state.best)
    reason = "all steps done" if state.step >= steps else f"no gain in {patience} validations"
    seconds = earlier + time.monotonic() - start
    return Outcome(state.best_score, state.best_step, state.history, state.step, reason, state.loss, seconds)
