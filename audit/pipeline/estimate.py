"""How long an audit takes and how much memory it needs, from steps that are measured: one batch through every network.

Times are bounds from above: an attack leaves an image that is fooled, a search one whose edit no longer shrinks, and
what the cache holds takes no time. They are those of a machine that does nothing else. What a step takes is kept for
the machine that it was measured on, so that an audit is not held up by it again.
"""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.config import EnsembleConfig, RobustnessConfig
from audit.embeddings.embedding import named
from audit.errors import Terminated
from audit.generator.protocol import Generator
from audit.inversion.invert import invert
from audit.inversion.inverter import Inverter
from audit.pipeline.context import Context
from audit.pipeline.images import Images
from audit.pipeline.networks import Networks
from audit.reliance.interventions import choose_interventions
from audit.results import TRANSFER
from audit.runtime.environment import peak_memory_mb
from audit.runtime.memory import allowed, peak_bytes
from audit.runtime.progress import duration
from audit.runtime.seeds import lent_randomness, stage_generator

FEW, SOME = 2, 16
"""Images of the first pass, which warms up, and of the one that is measured, unless the first was slow enough."""
INVERTED, STEPS = 8, 4
"""Images that are inverted to measure a step, and by how many steps two inversions differ."""
SLOW_SECONDS = 0.5
"""Seconds of a pass of FEW images that need no second one to be measured."""
LOOKS, LOOKED = 20, 200
"""Readings of the images that the first look tries, and images that it tries them on."""
CORRUPTIONS = 15
"""Corruptions of the benchmark, where none is named."""
CODE = (__name__,)


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes that one image takes in a kind of step."""

    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: answers to images, answers with the gradient to the image, and steps of the search."""

    answer: Cost
    gradient: Cost = Cost()
    search: Cost = Cost()


@dataclass(frozen=True)
class Estimate:
    """At most so many seconds by stage, and about so many bytes; models that could not be measured are left out."""

    seconds: Mapping[str, float]
    memory: int
    left_out: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The whole time, the stages that take most of it, and the memory."""
        largest = sorted(self.seconds.items(), key=lambda one: -one[1])[:3]
        parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in largest)
        without = f", without {', '.join(self.left_out)}, which could not be measured" if self.left_out else ""
        total = duration(sum(self.seconds.values()))
        return f"At most {total} ({parts}) and about {self.memory / 1e9:.1f} GB of memory, by measured steps{without}."


def estimate(
    context: Context, images: Images, classifiers: tuple[Classifier, ...], networks: Networks | None
) -> Estimate:
    """Measure a few steps with every network, and count how many of them the configuration asks for."""
    config, device = context.config, context.device
    some = images.audited.images(range(min(SOME, len(images.audited)))).to(device)
    where = {"machine": platform.node(), "threads": torch.get_num_threads(), "images": list(some.shape)}
    generator = None if networks is None else networks.loaded.sha256

    def of_model(classifier: Classifier) -> ModelCost:
        measure = partial(_of_model, classifier, some, networks)
        return context.of(classifier).kept("cost of a model", measure, CODE, generator=generator, **where)

    with lent_randomness(device):
        inverting = 0.0
        if networks is not None:
            inverting = context.stages.kept(
                "cost of an inversion", partial(_inversion_step, context, networks, some[:INVERTED]), CODE,
                generator=generator, embedding=named(networks.perceptual), settings=config.inversion, **where,
            )  # fmt: skip
        costs = {one.name: _tried(partial(of_model, one)) for one in classifiers}
    known = [cost for cost in costs.values() if cost is not None]
    seconds: dict[str, float] = {}
    for stage, one in (part for cost in known for part in _stages(context, images, cost, networks is not None)):
        seconds[stage] = seconds.get(stage, 0.0) + one
    if networks is not None:
        method, again = config.inversion.method, config.metrics.axioms * (config.metrics.null_edits - 1)
        steps = 0 if method == "encoder" else config.inversion.pivot_steps
        steps += config.inversion.tuning_steps if method == "pti" else 0
        seconds["inversion"] = (min(config.queries.n, len(images.audited)) + again) * steps * inverting
    held = [cost.gradient.bytes * config.robustness.batch_size for cost in known]
    held += [cost.search.bytes * config.counterfactual.batch_size for cost in known]
    base = int(peak_memory_mb() * 2**20) if device.type == "cpu" else torch.cuda.memory_allocated(device)
    return Estimate(
        {stage: value for stage, value in seconds.items() if value > 0},
        base + min(allowed(device), max(held, default=0)),
        tuple(f"'{name}'" for name, cost in costs.items() if cost is None),
    )


def _tried(measure: Callable[[], ModelCost]) -> ModelCost | None:
    """What was measured; None where a network fails, which the audit itself will tell."""
    try:
        return measure()
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException:  # noqa: BLE001 - foreign code may raise anything, SystemExit included
        return None


def _of_model(classifier: Classifier, images: Tensor, networks: Networks | None) -> ModelCost:
    def answer(some: Tensor) -> None:
        with torch.no_grad():
            classifier(some)

    def gradient(some: Tensor) -> None:
        leaf = some.clone().requires_grad_()
        with torch.enable_grad():
            logits = classifier(leaf)
        torch.autograd.grad(logits.sum(), leaf)

    measured = _measured(answer, images)
    if not classifier.differentiable:
        return ModelCost(measured, measured, measured)
    search = Cost() if networks is None else _measured(partial(_search, classifier, networks.loaded.generator), images)
    return ModelCost(measured, _measured(gradient, images), search)


def _search(classifier: Classifier, generator: Generator, images: Tensor) -> None:
    """Do what a step of the search costs most of: draw, classify, and find the way back to the codes."""
    codes = generator.random_codes(len(images), stage_generator(0, "estimate"))
    leaf = codes[:, None].repeat(1, generator.num_ws, 1).to(images.device).requires_grad_()
    with torch.enable_grad():
        logits = classifier(generator.images(leaf))
    torch.autograd.grad(logits.sum(), leaf)


def _measured(step: Callable[[Tensor], object], images: Tensor) -> Cost:
    """Seconds and bytes for one of the `images`, from a step with a few of them."""
    few = images[:FEW]
    held = peak_bytes(partial(step, few), images.device) // len(few)
    seconds = _seconds(step, few)
    if seconds * len(few) < SLOW_SECONDS:
        seconds = min(_seconds(step, images), _seconds(step, images))
    return Cost(seconds, held)


def _seconds(step: Callable[[Tensor], object], images: Tensor) -> float:
    """Seconds for one of the images, without those for which other programs had the processors."""
    began, used = time.perf_counter(), time.process_time()
    step(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    wall, own = time.perf_counter() - began, time.process_time() - used
    return (min(wall, own) if images.device.type == "cpu" else wall) / len(images)


def _inversion_step(context: Context, networks: Networks, images: Tensor) -> float:
    """Seconds that a step of tuning takes for one image: the difference between two short inversions."""
    config = context.config.inversion

    def taking(steps: int, some: Tensor) -> float:
        few = {"pivot_steps": min(1, config.pivot_steps), "tuning_steps": steps, "stop_mse": 0.0}
        if config.method != "pti":
            few["pivot_steps"] = steps
        brief, generator = config.model_copy(update=few), networks.loaded.generator
        inverter = Inverter(generator, brief, context.config.seed, networks.perceptual, networks.encoder)
        return _seconds(lambda one: invert(inverter, one.cpu()), some)

    taking(1, images[:FEW])  # warms up
    return max(0.0, taking(1 + STEPS, images) - taking(1, images)) / STEPS


def _stages(context: Context, images: Images, cost: ModelCost, explained: bool) -> list[tuple[str, float]]:
    """At most so many seconds of one model by stage."""
    config, n = context.config, len(images.audited)
    robust, answer = config.robustness, cost.answer.seconds
    attacked = _attacks(robust, len(images.all.class_names), cost, min(robust.n, n))
    found = [
        ("clean accuracy", n * answer),
        ("first look", LOOKS * min(LOOKED, n) * answer),
        ("robust accuracy", attacked + _trust(robust, cost, n)),
    ]
    if robust.corruptions is not None:
        kinds = CORRUPTIONS if robust.corruptions.names is None else len(robust.corruptions.names)
        found.append(
            ("corruptions", kinds * len(robust.corruptions.severities) * min(robust.corruptions.n, n) * answer)
        )
    if config.reliance is not None:
        changes = choose_interventions(config.reliance).values()
        count = sum(len(one.variants) * len(one.strengths) for one in changes)
        found.append(("reliance", count * min(config.reliance.n, n) * answer))
    if explained and images.calibration is not None:
        search = config.counterfactual
        steps = search.steps + 1 + (search.shrink_steps + 1 if search.shrink else 0)
        each = len(search.methods) * steps * cost.search.seconds
        found += [
            ("calibration", len(images.calibration) * answer),
            ("counterfactuals", min(config.queries.n, n) * each),
            ("ways back", config.metrics.axioms * steps * cost.search.seconds),
        ]
    return found


def _attacks(config: RobustnessConfig, classes: int, cost: ModelCost, n: int) -> float:
    """Seconds of all attacks on `n` images at all radii, if no image is ever fooled."""
    radii, gradient, answer = len(config.eps) + len(config.l2_eps), cost.gradient.seconds, cost.answer.seconds
    pgd = config.restarts * (config.steps + 1) * gradient
    cascade, targets = config.ensemble, min(config.ensemble.target_classes, classes - 1)
    each = {name: _attack(name, cascade, targets, cost) for name in ("apgd-ce", "apgd-t", "fab-t", "square")}
    each |= {"ensemble": sum(each.get(stage, pgd) for stage in cascade.stages), TRANSFER: answer}
    total = radii * sum(each.get(name, pgd) for name in config.attacks)
    if config.distance is not None:
        share = min(1.0, config.distance.n / max(n, 1))
        total += share * len(config.distance.norms) * (config.distance.bisections + 1) * pgd
    return n * total


def _attack(name: str, config: EnsembleConfig, targets: int, cost: ModelCost) -> float:
    if name == "square":
        return config.square_queries * cost.answer.seconds
    if name == "fab-t":
        return targets * config.fab_steps * 2 * cost.gradient.seconds
    return config.apgd_restarts * config.apgd_steps * (targets if name == "apgd-t" else 1) * cost.gradient.seconds


def _trust(config: RobustnessConfig, cost: ModelCost, n: int) -> float:
    """Seconds of the trust checks at every radius: PGD again, with a large radius and with more steps, and Square."""
    if config.trust is None:
        return 0.0
    passes = (2 + config.trust.more_steps) * (config.steps + 1) * cost.gradient.seconds
    queries = config.trust.square_queries * cost.answer.seconds
    return (len(config.eps) + len(config.l2_eps)) * min(config.trust.n, n) * (passes + queries)
