"""Inversion of the query images, once for all audited models: start, optimisation of the pivot, pivotal tuning.

Source: Litsos 2025 section 5.5; stages and their order as in Roich et al. (2021).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from audit.embeddings.embedding import check_images
from audit.errors import DataError, GeneratorError
from audit.generator.protocol import Generator, check_fits
from audit.inversion.codes import candidate_codes, nearest_codes, spread
from audit.inversion.deltas import NOTHING, Deltas, joined
from audit.inversion.encoder import Encoder
from audit.inversion.inverter import Inverter
from audit.inversion.loss import squared_error, targets_of
from audit.inversion.pivot import optimise_pivots
from audit.inversion.pivotal import tune
from audit.metrics.perceptual import perceptual_distance
from audit.runtime.memory import allowed, fitting, in_slices, peak_bytes, stated
from audit.runtime.progress import Advance


@dataclass(frozen=True)
class Inversion:
    """Codes and tuned weights that draw given images, with the error after every stage.

    `pivots` `[N, L, w]`; `deltas` additions to the generator's weights, read by name and image, empty where nothing was
    tuned; `images` `[N, C, R, R]` in [0, 1]; mean squared errors `[N]` of images in [0, 1]. `invert` leaves all on
    the CPU: tuned weights of many images are larger than an accelerator's memory.
    """

    pivots: Tensor
    deltas: Deltas
    images: Tensor
    mse: Tensor
    perceptual: Tensor | None
    encoder_mse: Tensor | None
    pivot_mse: Tensor
    method: str

    def select(self, indices: Sequence[int] | Tensor) -> "Inversion":
        """Return the inversions at `indices`."""
        rows = torch.as_tensor(indices, device=self.pivots.device)
        return Inversion(
            pivots=self.pivots[rows],
            deltas=self.deltas.select(rows) if self.deltas else NOTHING,
            images=self.images[rows],
            mse=self.mse[rows],
            perceptual=None if self.perceptual is None else self.perceptual[rows],
            encoder_mse=None if self.encoder_mse is None else self.encoder_mse[rows],
            pivot_mse=self.pivot_mse[rows],
            method=self.method,
        )


def to_cpu(part: Inversion) -> Inversion:
    """Copy everything to the CPU."""

    def optional(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.cpu()

    return Inversion(
        pivots=part.pivots.cpu(),
        deltas=part.deltas.cpu(),
        images=part.images.cpu(),
        mse=part.mse.cpu(),
        perceptual=optional(part.perceptual),
        encoder_mse=optional(part.encoder_mse),
        pivot_mse=part.pivot_mse.cpu(),
        method=part.method,
    )


def join(parts: Sequence[Inversion]) -> Inversion:
    """Put inversions of one method behind one another."""

    def optional(values: Sequence[Tensor | None]) -> Tensor | None:
        given = [v for v in values if v is not None]
        return torch.cat(given) if given else None

    return Inversion(
        pivots=torch.cat([p.pivots for p in parts]),
        deltas=joined([p.deltas for p in parts]),
        images=torch.cat([p.images for p in parts]),
        mse=torch.cat([p.mse for p in parts]),
        perceptual=optional([p.perceptual for p in parts]),
        encoder_mse=optional([p.encoder_mse for p in parts]),
        pivot_mse=torch.cat([p.pivot_mse for p in parts]),
        method=parts[0].method,
    )


Keep = Callable[[Tensor, Callable[[], Inversion]], Inversion]
"""Takes the images of a chunk and what inverts them; returns their inversion, perhaps out of a store."""


class _Units:
    """Spread the steps of a chunk over its images, so that a bar of images moves evenly."""

    def __init__(self, advance: Advance | None, images: int):
        self._advance, self._left, self._images = advance, float(images), images
        self._share = 0.0

    def expect(self, steps: int) -> None:
        self._share = self._images / max(steps, 1)

    def step(self) -> None:
        amount = min(self._share, self._left)
        self._left -= amount
        if self._advance is not None:
            self._advance(amount)

    def finish(self) -> None:
        if self._advance is not None:
            self._advance(self._left)
        self._left = 0.0


def invert(
    inverter: Inverter, images: Tensor, advance: Advance | None = None, keep: Keep = lambda _, compute: compute()
) -> Inversion:
    """Invert `images` `[N, C, R, R]` in [0, 1] on the generator's device, in chunks of at most `batch_size` that keep
    to `max_memory`, by what inverting the first image was measured to take.

    Start: the encoder's code, else the best of a seeded set of random codes. Then, by the method: nothing more
    (`encoder`), optimisation of the pivot (`optimise`), or that and pivotal tuning (`pti`). An image's inversion does
    not depend on the others. `advance` is told images done, in fractions; `keep` may put a chunk away as soon as it is
    done. Raises GeneratorError if the sizes differ, the encoder is missing or belongs to another generator, not one
    image fits the memory that was set, or an image diverges; DataError without images.
    """
    check_images(images, "images to invert")
    if len(images) == 0:
        raise DataError("There are no images to invert: check the query selection.")
    check_fits(inverter.generator, (images.shape[1], images.shape[2], images.shape[3]))
    check_method(inverter.config.method, inverter.generator, inverter.encoder)
    starts = _Starts(inverter, images)
    at_once = _images_at_once(inverter, images, starts)
    parts = []
    for rows in torch.arange(len(images)).split(at_once):
        units = _Units(advance, len(rows))

        def compute(rows: Tensor = rows, units: _Units = units) -> Inversion:
            def invert_slice(part: slice) -> Inversion:
                here = rows[part]
                chunk = images[here].to(starts.codes.device)
                return to_cpu(_invert_chunk(inverter, chunk, starts.of(here, chunk), starts.unit, units))

            return join(in_slices(len(rows), len(rows), invert_slice))

        parts.append(keep(images[rows], compute))
        units.finish()
    return join(parts)


def check_method(method: str, generator: Generator, encoder: Encoder | None) -> None:
    """Raise GeneratorError if `generator` cannot be inverted by `method`, or if the encoder belongs to another one."""
    if encoder is not None:
        encoder.check_generator(generator)
    elif method == "encoder":
        raise GeneratorError(
            'inversion.method = "encoder" needs an encoder: set inversion.encoder, or choose "pti" or "optimise".'
        )
    if method == "pti" and not generator.tunable:
        raise GeneratorError(
            'inversion.method = "pti" changes the generator for every image, and this generator has nothing that can '
            'be changed: set inversion.method = "optimise".'
        )


def images_at_once(inverter: Inverter, images: Tensor) -> int:
    """How many of `images` `invert` works on together, measured on the first one."""
    return _images_at_once(inverter, images, _Starts(inverter, images))


def _images_at_once(inverter: Inverter, images: Tensor, starts: "_Starts") -> int:
    """How many images are inverted together: one step of each kind is made on the first image, and measured."""
    config, device = inverter.config, starts.codes.device
    step = {"pivot_steps": min(config.pivot_steps, 1), "tuning_steps": min(config.tuning_steps, 1), "stop_mse": 0.0}
    once = replace(inverter, config=config.model_copy(update=step))

    def one() -> None:
        chunk = images[:1].to(device)
        start = starts.repeated(starts.codes[:1]) if inverter.encoder is None else starts.encoded(chunk)
        _invert_chunk(once, chunk, start, starts.unit, _Units(None, 1))

    budget, each = allowed(device, config.max_memory), peak_bytes(one, device)
    if each > budget and stated(config.max_memory):
        raise GeneratorError(
            f"Inverting one image takes {each / 1e6:.0f} MB, measured, but inversion.max_memory (or max_memory) allows "
            f'{budget / 1e6:.0f} MB: raise it, or set inversion.deltas = "low-rank" with a low inversion.rank.'
        )
    return fitting(config.batch_size, each, budget)


class _Starts:
    """Where inversions of `images` start: the encoder's code, else the nearest of a seeded set of random ones."""

    def __init__(self, inverter: Inverter, images: Tensor):
        self._encoder, self._generator, self._images = inverter.encoder, inverter.generator, images
        self.codes = candidate_codes(inverter.generator, inverter.seed)
        self._budget = allowed(self.codes.device, inverter.config.max_memory)
        self.unit = spread(self.codes)

    @cached_property
    def _nearest(self) -> Tensor:
        """For each of the images the nearest of the codes, `[N, w]`: all at once, as every code is drawn for it."""
        return nearest_codes(self._generator, self._images, self.codes, self._budget)

    @torch.no_grad()
    def encoded(self, images: Tensor) -> Tensor:
        """Codes `[n, L, w]` that the encoder gives."""
        assert self._encoder is not None
        codes: Tensor = self._encoder(images)
        return codes

    def repeated(self, codes: Tensor) -> Tensor:
        """Codes of W `[n, w]` as codes of W+ `[n, L, w]`."""
        return codes[:, None].expand(-1, self._generator.num_ws, -1)

    def of(self, rows: Tensor, images: Tensor) -> Tensor:
        """Codes `[n, L, w]` for the images at `rows`, which are `images`, to start from."""
        if self._encoder is not None:
            return self.encoded(images)
        return self.repeated(self._nearest[rows.to(self.codes.device)])


def _invert_chunk(inverter: Inverter, images: Tensor, start: Tensor, unit: float, units: _Units) -> Inversion:
    generator, config, perceptual = inverter.generator, inverter.config, inverter.perceptual
    optimised, tuned = config.method != "encoder", config.method == "pti"
    steps = (config.pivot_steps if optimised else 0) + (config.tuning_steps if tuned else 0)
    units.expect(steps)
    targets = targets_of(images, perceptual if config.perceptual_weight > 0 else None)
    start_mse = _errors(generator, start, NOTHING, images)[1]
    pivots, deltas = start.contiguous(), NOTHING
    if optimised:
        pivots = optimise_pivots(inverter, pivots, targets, unit, units.step)
    drawn, pivot_mse = _errors(generator, pivots, NOTHING, images)
    mse = pivot_mse
    if tuned:
        deltas = tune(inverter, pivots, targets, units.step)
        drawn, mse = _errors(generator, pivots, deltas, images)
    if not torch.isfinite(mse).all():
        raise GeneratorError(
            f"Inversion of {int((~torch.isfinite(mse)).sum())} image(s) diverged: "
            "lower inversion.pivot_lr or inversion.tuning_lr."
        )
    with torch.no_grad():
        seen = None if perceptual is None else perceptual_distance(perceptual, drawn, images)
    encoder_mse = None if inverter.encoder is None else start_mse
    return Inversion(pivots, deltas, drawn, mse, seen, encoder_mse, pivot_mse, config.method)


@torch.no_grad()
def _errors(generator: Generator, ws: Tensor, deltas: Deltas, images: Tensor) -> tuple[Tensor, Tensor]:
    drawn = generator.images(ws, deltas=deltas.read() if deltas else None)
    return drawn, squared_error(drawn, images)
