"""What is replaced, by what, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.config import CounterfactualConfig
from audit.counterfactual.exceptional import (
    FIT_IMAGES,
    SIGMA_FLOOR,
    Calibration,
    expected_features,
    feature_scale,
    fit_calibration,
)
from audit.errors import ClassifierError

NAMES = ("a", "b", "c")


def sample(seed: int, n: int = 240, d: int = 6, relu: bool = False) -> tuple[Tensor, Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.arange(n) % 3
    features = torch.randn(n, d, generator=generator) + predicted[:, None] * torch.randn(d, generator=generator)
    features = features.relu() if relu else features.exp() if seed % 2 else features
    head = nn.Linear(d, 3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, d, generator=generator))
    return features, predicted, head


def fit(x: Tensor, predicted: Tensor, **settings: object) -> Calibration:
    config = CounterfactualConfig.model_validate({"mixture_components": 3, **settings})
    return fit_calibration(x, predicted, config, NAMES, 0, "model")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), relu=st.booleans(), threshold=st.floats(0.01, 0.49))
def test_replacements_move_the_decision_towards_the_target(seed: int, relu: bool, threshold: float) -> None:
    features, predicted, head = sample(seed, n=120, relu=relu)
    calibration = fit(features, predicted, exceptional_threshold=threshold)
    x, source = features[:60], predicted[:60]
    target = (source + 1 + torch.arange(60) % 2) % 3
    result, replaced = expected_features(calibration, head, x, source, target)
    contrast = (head.weight[target] - head.weight[source]).detach()
    assert (contrast * (result - x) >= -1e-5).all()
    assert torch.equal(result[~replaced], x[~replaced])
    expected = torch.stack([d.expected for d in calibration.distributions.values()]).float()[target]
    torch.testing.assert_close(result[replaced], expected[replaced])
    for index, distribution in calibration.distributions.items():
        probability = distribution.probability(x)
        assert probability.ge(0).all()
        assert probability.le(0.5).all()
        assert (probability[target == index][replaced[target == index]] < threshold).all()


def test_high_against_and_low_against_are_replaced_and_no_others() -> None:
    features = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    calibration = fit(features, torch.arange(300) % 3, sign_filter="contrast")
    head = nn.Linear(4, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1] = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    x = torch.tensor([[9.0, -9.0, 9.0, 0.0]])
    result, replaced = expected_features(calibration, head, x, torch.tensor([0]), torch.tensor([1]))
    assert replaced.tolist() == [[True, True, False, False]]
    torch.testing.assert_close(result[0, :2].double(), calibration.distributions[1].expected[:2], atol=1e-6, rtol=0)


def test_the_target_filter_reads_the_targets_own_weights() -> None:
    features = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    head = nn.Linear(1, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0], [1.0], [0.0]]))
    x, source, target = torch.tensor([[-9.0]]), torch.tensor([0]), torch.tensor([1])
    replaced = {
        name: bool(
            expected_features(fit(features, torch.arange(300) % 3, sign_filter=name), head, x, source, target)[1]
        )
        for name in ("contrast", "target")
    }
    assert replaced == {"contrast": False, "target": True}


def test_auto_takes_the_hurdle_where_there_are_zeros() -> None:
    features, predicted, _ = sample(2)
    features[predicted == 1] = features[predicted == 1].relu()
    assert fit(features, predicted).kinds == {0: "mixture", 1: "hurdle", 2: "mixture"}
    assert fit(features, predicted, features="mixture").kinds == dict.fromkeys(range(3), "mixture")


def test_classes_are_those_the_model_assigns_and_too_few_are_refused() -> None:
    features, predicted, _ = sample(0)
    predicted[predicted == 2] = 0
    predicted[:3] = 2
    with pytest.raises(ClassifierError, match=r"'model' assigns 3 of 240 .* 'c' where 30 .*: give more"):
        fit(features, predicted)
    never = torch.where(predicted == 2, 0, predicted)
    with pytest.raises(ClassifierError, match=r"'model' assigns 0 of 240 .* 'c' where 30 .*: check the order"):
        fit(features, never)
    calibration = fit_calibration(features, predicted, CounterfactualConfig(), NAMES, 0, classes=(0, 1))
    assert list(calibration.distributions) == list(calibration.kinds) == [0, 1]  # edits from 0 to 1 do without 2
    assert calibration.counts == (158, 79, 3)
    features[0, 0] = torch.nan
    with pytest.raises(ClassifierError, match="not finite"):
        fit(features, predicted)


def test_many_images_are_fitted_on_a_seeded_subset() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * FIT_IMAGES + 100, 1, generator=generator)
    predicted = torch.zeros(len(features), dtype=torch.long)
    config = CounterfactualConfig(mixture_components=1)
    first, again = (fit_calibration(features, predicted, config, ("a",), 7) for _ in range(2))
    assert torch.equal(first.distributions[0].expected, again.distributions[0].expected)
    assert first.counts == (len(features),)
    assert abs(first.distributions[0].expected - features.mean()) < 0.05


def test_sigma_has_a_floor_and_follows_the_scale() -> None:
    features = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    features[:, 3] = 2.0
    sigma = feature_scale(features)
    torch.testing.assert_close(sigma[:3], features[:, :3].std(0, unbiased=False))
    assert sigma[3] == pytest.approx(SIGMA_FLOOR * features.var(0, unbiased=False).mean().sqrt().item())
    torch.testing.assert_close(feature_scale(features * 10), sigma * 10)
    assert feature_scale(torch.zeros(5, 2)).gt(0).all()


def test_a_rescaled_network_has_rescaled_expected_features() -> None:
    features, predicted, head = sample(1)
    source, target = predicted, (predicted + 1) % 3
    result, replaced = expected_features(fit(features, predicted), head, features, source, target)
    with torch.no_grad():
        head.weight /= 10
    scaled, replaced_again = expected_features(fit(features * 10, predicted), head, features * 10, source, target)
    assert torch.equal(replaced, replaced_again)
    torch.testing.assert_close(scaled, result * 10, rtol=1e-4, atol=1e-5)
