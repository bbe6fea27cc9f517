"""The state of a generator's training from step to step, from which an interrupted training resumes.

Two networks, the averaged generator, two optimisers and a few numbers. Random draws are not among them: those of a step
depend on the seed, the step and the process's number alone.
"""

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from audit.errors import GeneratorError
from audit.generator.files.load import LoadedStyleGAN2, load_generator, why_no_discriminator
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.runtime.distributed import ALONE, Workers
from audit.runtime.seeds import stage_generator, stage_seed
from audit.storage.checkpoint import Resumable
from audit.training.generator.config import GeneratorTrainConfig
from audit.training.generator.frozen import FeatureDiscriminator
from audit.training.generator.graphs import Direct, Graphs
from audit.training.generator.second import Discriminators, second_discriminator
from audit.training.generator.widen import widened


class State(Resumable):
    """Everything that a resumed run needs. `classes` is the number of classes of a conditional training, else 0."""

    _modules: ClassVar[tuple[str, ...]] = ("g", "discriminators", "ema", "g_opt", "d_opt")
    _plain: ClassVar[tuple[str, ...]] = (
        "p", "path_mean", "signs", "images", "step", "best_fid", "seconds", "history",
    )  # fmt: skip

    def __init__(
        self,
        config: GeneratorTrainConfig,
        image_shape: tuple[int, int, int],
        classes: int,
        device: torch.device,
        workers: Workers = ALONE,
    ) -> None:
        channels, size, width = image_shape
        if size != width or size & (size - 1) or not 16 <= size <= 1024:
            raise GeneratorError(
                f"A generator needs square images whose side is a power of two from 16 to 1024, not {size}x{width}: "
                "set data.image_size."
            )
        loaded = None if config.start_from is None else load_generator(config.start_from)
        self.start_sha256 = None if loaded is None else loaded.sha256
        # Initial weights come from a forked global stream: torch's initialisers take no generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if loaded is None:
                self.g, self.d = _fresh(config, channels, size, classes)
            else:
                self.g, self.d = _taken_over(config, loaded, channels, size, classes)
            # The discriminator that is kept, and perhaps a second one that is not.
            second = second_discriminator(config.second_discriminator, size, channels, config.spread_group, device)
            self.discriminators: Discriminator | Discriminators = self.d
            if second is not None:
                self.discriminators = Discriminators(self.d, second)
        # Which second one it is, and the logits whose gradient R1 keeps small: all but those of heads on frozen maps.
        self.second_name, self.r1_logits = config.second_discriminator, slice(None)
        if isinstance(second, FeatureDiscriminator):
            self.second_name, self.r1_logits = f"{second.name} {second.weights_sha256}", slice(1)
        # Convolutions of few channels run faster on CPUs where a pixel's channels lie together; CUDA loses a fifth.
        self.layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        for network in (self.g, self.discriminators):
            network.to(device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.g).eval().requires_grad_(False)
        self.d_trained = [p for p in self.discriminators.parameters() if p.requires_grad]
        assert config.r1_gamma is not None, "resolved before a training starts"
        d_lr = config.discriminator_lr or config.lr
        self.g_opt = _adam(self.g, config.lr, config.path_length_interval if config.path_length_weight else None)
        self.d_opt = _adam(self.d, d_lr, config.r1_interval if config.r1_gamma else None)
        if isinstance(self.discriminators, Discriminators):
            self.d_opt.add_param_group(
                {"params": list(self.discriminators.second.parameters()), "lr": config.second_lr}
            )
        for group in self._groups():
            group["first_lr"] = group["lr"]
            if device.type == "cuda":  # a number would be part of what a graph records
                group["lr"] = torch.tensor(group["lr"], device=device)
        self.device, self.workers, self._seed = device, workers, config.seed
        self.rng = stage_generator(config.seed, "generator training", device)
        self.draws = stage_generator(config.seed, "augmentation")
        # A recorded part has no Python number that changes, as ADA's p is, and asks no other process; a permutation of
        # classes is drawn by a call that waits.
        fixed = config.augmentation == "none" and not classes and workers.size == 1
        self.parts = Graphs(device, self.rng) if fixed and device.type == "cuda" else Direct()
        self.p, self.images, self.step = 0.0, 0, 0
        self.path_mean = torch.zeros([], device=device)
        self.signs = torch.zeros([], device=device)
        self.best_fid = float("inf")
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    def seed_step(self) -> None:
        """Set both random streams, the device's and the augmentation's, to those of this step and process."""
        stage = self.workers.stage(f"generator step {self.step}")
        self.rng.manual_seed(stage_seed(self._seed, stage))
        self.draws.manual_seed(stage_seed(self._seed, f"{stage}/augmentation"))

    def _groups(self) -> list[dict[str, Any]]:
        return [*self.g_opt.param_groups, *self.d_opt.param_groups]

    def set_rates(self, factor: float) -> None:
        """Set every learning rate to `factor` times what it was at first."""
        for group in self._groups():
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["first_lr"] * factor)
            else:
                group["lr"] = group["first_lr"] * factor

    def resume(self, path: Path, key: str) -> None:
        """Take everything from the checkpoint `path` if it is there; raises ConfigError as `load_checkpoint` does."""
        super().resume(path, key)
        for group in self._groups():  # which an optimiser takes from a file as they are: on the CPU
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].to(self.device)
        self.path_mean, self.signs = self.path_mean.to(self.device), self.signs.to(self.device)
        self.workers.check_equal(self.step, "the step to resume from", self.device)


def _fresh(config: GeneratorTrainConfig, channels: int, size: int, classes: int) -> tuple[Generator, Discriminator]:
    base, top, layers = config.channel_base, config.channel_max, config.mapping_layers
    assert base is not None, "resolved before a training starts"
    assert top is not None, "resolved before a training starts"
    g = Generator(config.z_dim, config.w_dim, size, channels, base, top, mapping_layers=layers, c_dim=classes)
    d_base, d_top = config.discriminator_channel_base or base, config.discriminator_channel_max or top
    return g, Discriminator(size, channels, d_base, d_top, c_dim=classes, mapping_layers=layers)


def _taken_over(
    config: GeneratorTrainConfig, loaded: LoadedStyleGAN2, channels: int, size: int, classes: int
) -> tuple[Generator, Discriminator]:
    """Both networks of a file, the finest discriminator blocks frozen (Mo et al. 2020, Freeze-D)."""
    g, d = loaded.generator.requires_grad_(True), loaded.discriminator
    if d is None:
        raise GeneratorError(
            f"{why_no_discriminator(loaded)}, without which '{config.start_from}' cannot be fine-tuned: name a file "
            "with both networks in start_from."
        )
    if (g.channels, g.resolution) != (channels, size):
        raise GeneratorError(
            f"Generator '{config.start_from}' cannot be fine-tuned on {size}x{size} images with {channels} "
            "channel(s): it has another size."
        )
    if (g.c_dim, d.c_dim) != (classes, classes):
        raise GeneratorError(
            f"Generator '{config.start_from}' draws {g.c_dim or 'no'} classes where this training has "
            f"{classes or 'none'}: set conditional, or name another start_from."
        )
    if config.freeze_discriminator > len(d.resolutions):
        raise GeneratorError(
            f"Only {len(d.resolutions)} blocks of the discriminator of '{config.start_from}' can be frozen: lower "
            "freeze_discriminator."
        )
    # Where only the generator is to grow, a discriminator that is wider already stays.
    d_base, d_top = config.discriminator_channel_base, config.discriminator_channel_max
    if d_base is None and config.channel_base is not None:
        d_base = max(config.channel_base, d.settings.get("channel_base", 0))
    if d_top is None and config.channel_max is not None:
        d_top = max(config.channel_max, d.settings.get("channel_max", 0))
    g = widened(g, config.channel_base, config.channel_max)
    d = widened(d, d_base, d_top, "discriminator_")
    d.requires_grad_(True)
    for resolution in d.resolutions[: config.freeze_discriminator]:
        getattr(d, f"b{resolution}").requires_grad_(False)
    return g, d


def _adam(network: nn.Module, lr: float, lazy_interval: int | None) -> torch.optim.Adam:
    """Adam of the paper; a lazy regulariser's extra steps are compensated (StyleGAN2 appendix B)."""
    ratio = 1.0 if lazy_interval is None else lazy_interval / (lazy_interval + 1)
    trained = [p for p in network.parameters() if p.requires_grad]
    device = trained[0].device.type
    fused = device in ("cpu", "cuda")  # one kernel for all parameters instead of some for each
    capturable = device == "cuda"  # so that a step can be recorded as a CUDA graph
    betas = (0.0, 0.99**ratio)
    return torch.optim.Adam(trained, lr=lr * ratio, betas=betas, eps=1e-8, fused=fused, capturable=capturable)


def one_hot(labels: Tensor, classes: int) -> Tensor | None:
    """Labels `[N]` as vectors `[N, classes]`; None where there are no classes."""
    return nn.functional.one_hot(labels, classes).float() if classes else None
