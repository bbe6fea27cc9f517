"""What every objective keeps (modes, batch statistics, global RNG, any K), and what a configuration gives."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from audit.config import parse_config
from audit.errors import ConfigError
from audit.robustness.attacks.pgd import pgd_attack
from audit.training.classifier.config import OWN_TABLES, ObjectiveConfig
from audit.training.classifier.objectives.adversarial import Mart, PgdTraining, Trades
from audit.training.classifier.objectives.ald import AdversarialLocalDistribution
from audit.training.classifier.objectives.awp import AwpTrades
from audit.training.classifier.objectives.cross_entropy import CrossEntropy
from audit.training.classifier.objectives.objectives import objective_of
from audit.training.classifier.objectives.vat import VirtualAdversarial

KINDS = ("plain", "pgd-at", "trades", "mart", "awp-trades", "vat", "ald")
ADVERSARIAL = KINDS[1:]


def network(num_classes: int = 3, dropout: float = 0.5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(216, num_classes),
        )


def batch(num_classes: int = 3, n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 6, generator=generator), torch.randint(num_classes, (n,), generator=generator)


def section(kind: str = "plain", **change: object) -> ObjectiveConfig:
    return parse_config(ObjectiveConfig, {"kind": kind, **change}, "test")


def loss(config: ObjectiveConfig, model: nn.Module, num_classes: int = 3, progress: float = 1.0) -> Tensor:
    images, labels = batch(num_classes)
    counts = torch.ones(num_classes, dtype=torch.long)
    generator = torch.Generator().manual_seed(2)
    return objective_of(config, counts)(model, images, labels, generator, progress)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_a_step_of_any_objective_lowers_it_for_any_number_of_classes(kind: str, num_classes: int) -> None:
    model = network(num_classes, dropout=0.0).eval()
    config = section(kind, eps="4/255", steps=3)
    before = loss(config, model, num_classes)
    before.backward()
    assert before.ndim == 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    assert loss(config, model, num_classes) < before


@pytest.mark.parametrize(("kind", "base"), [*((kind, None) for kind in KINDS), ("ald", "pgd")])
def test_batch_norm_sees_only_the_outer_passes_and_every_flag_stays(kind: str, base: str | None) -> None:
    model = network().train()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    loss(section(kind, steps=4, **({"ald": {"base": base}} if base else {})), model).backward()
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert int(model[1].num_batches_tracked) == (1 if kind in ("plain", "pgd-at") else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_alone_decides_and_the_global_state_is_untouched(kind: str) -> None:
    config = section(kind, steps=2)
    model = network(dropout=0.0).train()
    state = torch.get_rng_state()
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        values.append(loss(config, copy.deepcopy(model)).item())
    assert values[0] == values[1]
    torch.set_rng_state(state)
    loss(config, model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_never_written_to(kind: str) -> None:
    model = network()
    before = copy.deepcopy(dict(model.named_parameters()))
    loss(section(kind, steps=2), model).backward()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_radius_grows_over_the_ramp(kind: str, norm: str) -> None:
    model = network(dropout=0.0).eval()
    table = {"awp": {"warmup": 0.0, "gamma": 1e-9}} if kind == "awp-trades" else {}
    config = section(kind, eps="0.2", norm=norm, steps=3, ramp=0.5, **table)
    at_once = loss(config.model_copy(update={"ramp": 0.0}), model, progress=0.0).item()
    values = [loss(config, model, progress=progress).item() for progress in (0.0, 0.1, 0.5, 1.0)]
    assert values[0] < values[1] < values[2] == values[3] == at_once


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_and_class_weights_reach_the_loss(kind: str) -> None:
    model = network(dropout=0.0).eval()
    values = {
        loss(section(kind, steps=1), model).item(),
        loss(section(kind, steps=1, label_smoothing=0.2), model).item(),
        loss(section(kind, steps=1, class_weights=[1.0, 3.0, 0.2]), model).item(),
    }
    assert len(values) == 3


def digits_robust_accuracy(kind: str, **change: object) -> float:
    """Train a small network on 1000 of scikit-learn's digits for 50 steps; its accuracy under PGD on 200 others."""
    data = load_digits()
    images, labels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.GELU(), nn.Flatten(), nn.Linear(256, 10)
        )
    objective = objective_of(section(kind, eps="0.15", steps=3, **change), torch.bincount(labels[:1000]))
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(50):
        rows = torch.randint(1000, (64,), generator=generator)
        optimiser.zero_grad()
        objective(model, images[rows], labels[rows], generator, step / 50).backward()
        optimiser.step()
    model.eval()
    images, labels = images[1000:1200], labels[1000:1200]
    attacked = pgd_attack(model, images, labels, eps=0.15, steps=10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((model(attacked).argmax(dim=1) == labels).float().mean())


def test_every_adversarial_objective_trains_a_more_robust_network_than_plain_training() -> None:
    plain = digits_robust_accuracy("plain")
    for kind in ADVERSARIAL:
        table = {"vat": {"eps": 1.5}} if kind == "vat" else {"ald": {"particles": 2}} if kind == "ald" else {}
        assert digits_robust_accuracy(kind, **table) > plain + 0.1, kind


def test_cross_entropy_takes_weights_and_smoothing() -> None:
    model, (images, labels) = network().eval(), batch()
    weights = torch.tensor([1.0, 2.0, 0.5])
    value = CrossEntropy(0.1, weights)(model, images, labels, torch.Generator())
    expected = functional.cross_entropy(model(images), labels, weight=weights, label_smoothing=0.1)
    assert torch.equal(value, expected)


def test_weighted_average_is_that_of_the_cross_entropy() -> None:
    logits, labels = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), batch()[1]
    values = functional.cross_entropy(logits, labels, reduction="none")
    for clean_loss in (CrossEntropy(), CrossEntropy(0.0, torch.tensor([1.0, 2.0, 0.5]))):
        assert clean_loss.average(values, labels).item() == pytest.approx(clean_loss.of_logits(logits, labels).item())


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_a_forward_pass_in_bfloat16_gives_a_float32_loss_near_the_full_one(kind: str) -> None:
    model = network(dropout=0.0).eval()
    config = section(kind, eps="4/255", steps=3)
    full = loss(config, model).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(config, model)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(full, rel=0.05)


def test_a_configuration_gives_its_objective() -> None:
    counts = torch.tensor([10, 10, 20])
    plain = objective_of(section(class_weights="balanced", label_smoothing=0.05), counts)
    assert isinstance(plain, CrossEntropy)
    assert plain.class_weights.tolist() == pytest.approx([4 / 3, 4 / 3, 2 / 3])
    assert plain.label_smoothing == 0.05
    pgd = objective_of(section("pgd-at", eps="2/255", step_size=0.002), counts)
    assert isinstance(pgd, PgdTraining)
    assert pgd.reach(1.0) == (pytest.approx(2 / 255), 0.002)
    trades = objective_of(section("trades", eps="8/255", ramp=0.5), counts)
    assert type(trades) is Trades
    assert trades.beta == 6.0
    assert trades.reach(0.25) == (pytest.approx(4 / 255), pytest.approx(0.5 * 2 * 8 / 255 / 10))
    mart = objective_of(section("mart", mart={"weight": 4}), counts)
    assert isinstance(mart, Mart)
    assert mart.weight == 4.0
    awp = objective_of(section("awp-trades", beta=3, awp={"gamma": 0.01, "warmup": 0.2}), counts)
    assert isinstance(awp, AwpTrades)
    assert (awp.beta, awp.gamma, awp.warmup) == (3.0, 0.01, 0.2)
    vat = objective_of(section("vat", vat={"eps": 2.5, "iterations": 2}), counts)
    assert isinstance(vat, VirtualAdversarial)
    assert (vat.eps, vat.iterations, vat.weight) == (2.5, 2, 1.0)
    for base, weight in (("pgd", 1.0), ("trades", 6.0)):
        ald = objective_of(section("ald", norm="L2", eps=1.5, ald={"base": base, "bandwidth": 0.5}), counts)
        assert isinstance(ald, AdversarialLocalDistribution)
        assert (ald.base, ald.weight, ald.bandwidth, ald.norm, ald.eps) == (base, weight, 0.5, "L2", 1.5)


def test_a_kind_states_its_own_table_and_no_other() -> None:
    for kind in KINDS:
        given = section(kind).model_dump(include=set(OWN_TABLES.values()))
        assert {name for name, table in given.items() if table is not None} == {OWN_TABLES.get(kind)} - {None}
    assert section("ald") == section(**section("ald").model_dump(mode="json"))
    with pytest.raises(ConfigError, match="'vat' belongs to kind 'vat' but kind is 'trades'"):
        section("trades", vat={"eps": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 1.5}, "L-inf radius"),
        ({"ald": {"bandwidth": 0}}, "bandwidth"),
        ({"ald": {"bandwidth": "mean"}}, "bandwidth"),
        ({"ald": {"particles": 0}}, "particles"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section("ald", **change)


def test_class_weights_must_be_one_per_class() -> None:
    with pytest.raises(ConfigError, match="2 values for 3 classes"):
        objective_of(section(class_weights=[1, 2]), torch.tensor([1, 1, 1]))
