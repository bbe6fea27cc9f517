"""The door for counterfactual methods: a part from outside runs in the real stage, and whatever it does is guarded."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from support_explained import explained
from support_outside import install
from support_store import kept
from torch import Tensor

from audit.config import AuditConfig, CounterfactualConfig
from audit.counterfactual.answers import judged
from audit.counterfactual.methods import METHODS, ChosenMethod, choose_method, choose_methods
from audit.counterfactual.protocol import Counterfactuals, SearchNetworks
from audit.errors import ConfigError, MethodError
from audit.pipeline.explain import COUNTERFACTUALS
from audit.pipeline.runner import run_audit
from audit.storage.cache import Store

BLEND = '''
from dataclasses import dataclass

import torch

from audit.counterfactual.answers import judged
from audit.errors import ConfigError


@dataclass(frozen=True)
class Blend:
    """Mix every inversion with one of another class, drawn at random; no search at all."""

    share: float
    beyond: float

    def explain(self, subject, networks, queries, targets, advance):
        assert not subject.classifier.training and not networks.generator.training
        subject.classifier.train()
        for parameter in networks.generator.parameters():
            parameter.requires_grad_(True)
        images, labels = queries.inversion.images, queries.labels
        others = [int(torch.randperm(int((labels == t).sum()))[0]) for t in targets]
        partners = torch.stack([images[labels == t][i] for t, i in zip(targets, others)])
        advance(len(images))
        return judged(subject, queries, targets, (1 - self.share) * images + self.share * partners + self.beyond)


def make(settings, seed):
    if set(settings.options) - {"share", "beyond"}:
        raise ConfigError("Table 'counterfactual.options' of blend knows 'share' and 'beyond' only: remove the others.")
    return Blend(settings.options["share"], settings.options.get("beyond", 0.0))
'''


def silent(amount: float = 1) -> None:
    pass


@pytest.fixture
def blend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "spruce_audit.methods: blend = make", BLEND)


@pytest.fixture(scope="module")
def labels(world, images: Tensor) -> Tensor:
    with torch.no_grad():
        return world.classifier(images).argmax(1)


def modes_of(world) -> list[bool]:
    modules = [*world.classifier.modules(), *world.generator.modules()]
    return [m.training for m in modules] + [p.requires_grad for m in modules for p in m.parameters()]


def settings(**options: object) -> dict[str, object]:
    return {"method": "blend", "options": options}


@pytest.mark.usefixtures("blend")
def test_a_method_of_another_package_runs_in_the_stage(world, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    state, modes, store = torch.get_rng_state(), modes_of(world), Store(tmp_path / "cache")
    assert METHODS.names() == [*METHODS.builtin, "blend"]
    first = explained(world, images, labels, store, **settings(share=0.9))
    again = explained(world, images, labels, store, **settings(share=0.9))
    other = explained(world, images, labels, store, **settings(share=0.2))
    assert kept(tmp_path / "cache")[COUNTERFACTUALS] == 2
    assert torch.equal(first.counterfactuals.images, again.counterfactuals.images)
    assert torch.equal(first.targets, world.targets)
    assert first.counterfactuals.latents is None
    assert first.counterfactuals.feature_target_flips is None
    assert first.counterfactuals.flipped.all()
    assert (first.counterfactuals.confidence > other.counterfactuals.confidence).all()
    # Neither what it did to the networks nor its random numbers outlast it.
    assert modes_of(world) == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(
        explained(world, images, labels, None, **settings(share=0.9)).counterfactuals.images,
        first.counterfactuals.images,
    )


@pytest.mark.usefixtures("blend")
def test_what_is_recorded_names_the_package() -> None:
    chosen = choose_method(CounterfactualConfig.model_validate(settings(share=0.5)), 0)
    assert (chosen.name, chosen.package) == ("blend", "outside-part 1.0")
    assert (choose_method(CounterfactualConfig(), 0).name, choose_method(CounterfactualConfig(), 0).package) == (
        "spruce",
        None,
    )


@pytest.mark.usefixtures("blend")
def test_of_a_list_the_first_method_is_the_audited_one() -> None:
    given = CounterfactualConfig.model_validate({"method": ["pixel", "blend"], "options": {"share": 0.5}})
    assert [one.name for one in choose_methods(given, 0)] == ["pixel", "blend"]
    assert choose_method(given, 0).name == "pixel"
    for wrong, said in (
        ([], "names no method"),
        (["pixel", ""], "names no method"),
        (["pixel", "pixel"], "a method twice"),
    ):
        with pytest.raises(ValidationError, match=said):
            CounterfactualConfig.model_validate({"method": wrong})
    with pytest.raises(ConfigError, match="the methods are built-in ones"):
        choose_methods(CounterfactualConfig.model_validate({"method": ["pixel", "spruce"], "options": {"a": 1}}), 0)


@pytest.mark.usefixtures("blend")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "blendd"}, r"Key 'counterfactual.method' names 'blendd', which is none of: spruce, .*, blend\."),
        ({"options": {"share": 1}}, "'counterfactual.options' holds 'share'.*'spruce' is a built-in one"),
        (settings(shade=0.5), "'counterfactual.options' of blend knows 'share' and 'beyond' only"),
        (settings(), "'blend' .outside-part 1.0., which cannot be set up .KeyError: 'share'."),
    ],
)
def test_a_wrong_name_or_option_is_refused_before_data_are_read(given: dict[str, object], said: str) -> None:
    config = AuditConfig.model_validate(
        {"data": {"path": "not there"}, "classifiers": [{"name": "a", "file": "none"}], "counterfactual": given}
    )
    with pytest.raises(ConfigError, match=said):
        run_audit(config)


@pytest.mark.usefixtures("blend")
def test_pixels_beyond_white_are_refused_by_the_name_of_the_method(world, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(
        MethodError, match=r"'blend' \(outside-part 1\.0\).*'tiny', returned 'images' between .* where \[0, 1\]"
    ):
        explained(world, images, labels, None, **settings(share=0.5, beyond=0.9))
    with pytest.raises(MethodError, match=r"'blend' \(outside-part 1\.0\).* fails: TypeError: "):
        explained(world, images, labels, None, **settings(share="much"))


class Answer:
    """A method that returns what it was given beforehand."""

    def __init__(self, found: object) -> None:
        self.found = found

    def explain(self, *_: object) -> Counterfactuals:
        return self.found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def sound(world) -> Counterfactuals:
    return judged(world.subject, world.asked, world.targets, world.inversion.images)


def answer(world, found: object) -> Counterfactuals:
    networks = SearchNetworks(world.generator, None)
    method = ChosenMethod("answer", None, 0, Answer(found))
    return method.explain(world.subject, networks, world.asked, world.targets, silent)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": lambda x: x[:, :, :8]}, r"'images' as torch.float32 .* where floats \(6, 1, 16, 16\)"),
        ({"images": lambda x: x[:3]}, "a row for each of the 6 query images as 'images'"),
        ({"images": lambda x: x * torch.nan}, "'images' with numbers that are not finite"),
        ({"semifactuals": lambda x: x - 2}, r"'semifactuals' between"),
        ({"flipped": lambda x: x.float()}, r"'flipped' as torch.float32 \(6,\) where bool \(6,\)"),
        ({"confidence": lambda _: None}, "no tensor on the CPU .* as 'confidence'"),
        ({"latents": lambda _: torch.full((6, 2, 3), torch.inf)}, "'latents' with numbers that are not finite"),
    ],
)
def test_every_part_of_the_answer_is_checked(world, sound: Counterfactuals, changes: dict, said: str) -> None:
    assert answer(world, sound) is sound
    changed = {name: change(getattr(sound, name)) for name, change in changes.items()}
    with pytest.raises(MethodError, match=f"'answer', asked to explain classifier 'tiny', returned .*{said}"):
        answer(world, dataclasses.replace(sound, **changed))


def test_an_answer_of_another_kind_is_refused(world, sound: Counterfactuals) -> None:
    with pytest.raises(MethodError, match="a Tensor where Counterfactuals are expected"):
        answer(world, sound.images)


def test_finished_images_are_judged_by_the_classifier(world, images: Tensor) -> None:
    """The inversions themselves have not flipped; images of the target class have, at the first step."""
    with torch.no_grad():
        probabilities = world.classifier(images).softmax(1)
    best = torch.stack([images[probabilities[:, t].argmax()] for t in world.targets])
    flips = judged(world.subject, world.asked, world.targets, best)
    stays = judged(world.subject, world.asked, world.targets, world.inversion.images)
    assert flips.flipped.all()
    assert flips.reached.all()
    assert flips.flip_step.tolist() == [1] * 6
    torch.testing.assert_close(flips.trace[:, 1], probabilities.amax(0)[world.targets])
    assert torch.equal(flips.trace[:, 0], stays.trace[:, 1])
    assert not stays.flipped.any()
    assert stays.flip_step.tolist() == [-1] * 6
    already = judged(world.subject, world.asked, world.sources, world.inversion.images)
    assert already.flip_step.tolist() == [0] * 6


def test_a_method_added_in_this_process_is_not_cached(
    world, images: Tensor, labels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name says nothing of its code, which a notebook may change from one run to the next."""
    found = judged(world.subject, world.asked, world.targets, world.inversion.images)
    monkeypatch.setattr(METHODS, "added", {})
    METHODS.add("mine", lambda settings, seed: Answer(found))
    explained(world, images, labels, Store(tmp_path), method="mine")
    assert kept(tmp_path)[COUNTERFACTUALS] == 0
