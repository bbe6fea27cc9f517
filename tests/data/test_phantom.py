"""The phantom keeps what it promises: masks where they belong, true twins, causal independence, determinism."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, f_oneway
from torch import Tensor

from audit.data import phantom
from audit.data.phantom import CARDIOMEGALY, CLASS_NAMES, HEALTHY, OPACITY, PhantomBatch, phantom_set, sample, twins
from audit.data.phantom_render import render
from audit.errors import DataError

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module")
def batch() -> PhantomBatch:
    return sample(900, seed=7)


@pytest.fixture(scope="module")
def pair() -> tuple[PhantomBatch, PhantomBatch]:
    return twins(300, seed=11)


def parameters_only(n: int, seed: int, marker_correlation: float = 0.0) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters and labels of `sample` without drawing a pixel, for statistics over many images."""
    labels = phantom._labels(n, seed, None, (HEALTHY, OPACITY, CARDIOMEGALY))
    exogenous, marker = phantom._draw(n, seed, marker_correlation, labels)
    return phantom.mechanisms(exogenous, labels, marker), labels


def dilate(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), 2 * pixels + 1, 1, pixels)[:, 0] > 0


# --- images ---------------------------------------------------------------------------------------------------------


def test_images_are_bytes_in_the_unit_interval(batch: PhantomBatch) -> None:
    assert batch.images.shape == (900, 1, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert float(batch.images.min()) >= 0
    assert float(batch.images.max()) <= 1
    levels = batch.images * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert float((batch.images >= 1).float().mean()) < 0.01, "exposure saturates"


def test_default_labels_are_balanced_and_shuffled(batch: PhantomBatch) -> None:
    assert torch.bincount(batch.labels, minlength=3).tolist() == [300, 300, 300]
    assert len(set(batch.labels[:30].tolist())) == 3


def test_pixels_are_frozen() -> None:
    """Shipped weights were trained on these pixels: block means of three images, whatever the platform."""
    expected = torch.tensor(
        [
            [0.0261, 0.3030, 0.3475, 0.0341, 0.2653, 0.3610, 0.4341, 0.3349],
            [0.2814, 0.5086, 0.6673, 0.3648, 0.3303, 0.7604, 0.8010, 0.5161],
            [0.0259, 0.3142, 0.3291, 0.1041, 0.2290, 0.4640, 0.4515, 0.2342],
            [0.1979, 0.5392, 0.5697, 0.2069, 0.2234, 0.7950, 0.8100, 0.3247],
            [0.0531, 0.3640, 0.3534, 0.0643, 0.3133, 0.3991, 0.4183, 0.3053],
            [0.2616, 0.5592, 0.6933, 0.2669, 0.3894, 0.9158, 0.9183, 0.4499],
        ]
    ).view(3, 16)
    images = sample(3, 2024, 0.5, torch.tensor([0, 1, 2])).images
    assert torch.allclose(F.avg_pool2d(images, 16).flatten(1), expected, atol=1e-3)


def test_noise_leaves_room_for_an_inversion() -> None:
    parameters, _ = parameters_only(64, 0)
    zero = render(parameters, torch.zeros(64, 64, 64)).images
    noisy = render(parameters, torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))).images
    assert float((zero - noisy).square().mean((1, 2)).max()) < 1.1e-4


# --- masks ----------------------------------------------------------------------------------------------------------


def test_lesion_is_present_for_opacity_only_and_lies_in_the_lungs(batch: PhantomBatch) -> None:
    lesion = batch.regions["lesion"]
    has_lesion = lesion.any(2).any(1)
    assert torch.equal(has_lesion, batch.labels == OPACITY)
    assert not (lesion & ~batch.regions["lungs"]).any()
    assert int(lesion[has_lesion].sum((1, 2)).min()) >= 8


def test_heart_and_lungs_are_present_and_apart(batch: PhantomBatch) -> None:
    heart, lungs = batch.regions["heart"], batch.regions["lungs"]
    assert int(heart.sum((1, 2)).min()) > 80
    assert int(lungs.sum((1, 2)).min()) > 300
    inner = ~dilate(~heart, 1)
    assert not (inner & lungs).any(), "the lungs end at the heart's soft edge"


def test_marker_mask_matches_its_presence_and_is_bright(batch: PhantomBatch) -> None:
    marker = batch.regions["marker"]
    present = batch.factor("marker_presence") > 0
    assert torch.equal(marker.any(2).any(1), present)
    area = marker[present].sum((1, 2))
    assert int(area.min()) >= 15
    assert int(area.max()) <= 36
    mean = (batch.images[:, 0] * marker).sum((1, 2))[present] / area
    assert float(mean.min()) > 0.5


@few
@given(seeds)
@example(335)  # one pixel of one marker
def test_marker_is_outside_the_body_in_an_upper_corner(seed: int) -> None:
    parameters, _ = parameters_only(128, seed, marker_correlation=0.9)
    masks = render(parameters, torch.zeros(128, 64, 64)).masks
    assert not (masks["marker"] & masks["lungs"]).any()
    # Places are normally distributed: one image in some thousands has a pixel of the marker on the body's edge.
    shared = (masks["marker"] & masks["body"]).sum((1, 2))
    assert int(shared.max()) <= 2
    assert int((shared > 0).sum()) <= 2
    rows, columns = masks["marker"].nonzero()[:, 1], masks["marker"].nonzero()[:, 2]
    assert int(rows.max()) < 16
    assert int(columns.min()) >= 40


def test_lesion_centre_and_area_agree_with_the_mask(batch: PhantomBatch) -> None:
    rows = batch.labels == OPACITY
    lesion = batch.regions["lesion"][rows].float()
    axis = (torch.arange(64) + 0.5) / 32 - 1
    centre = (lesion * axis).sum((1, 2)) / lesion.sum((1, 2))
    assert torch.allclose(centre, batch.factor("lesion_x")[rows], atol=0.12)
    assert torch.allclose(lesion.mean((1, 2)), batch.factor("lesion_area")[rows])


# --- factors --------------------------------------------------------------------------------------------------------


def test_factors_are_finite_named_and_vary(batch: PhantomBatch) -> None:
    assert batch.factors.shape == (900, len(batch.factor_names))
    assert len(set(batch.factor_names)) == len(batch.factor_names)
    assert torch.isfinite(batch.factors).all()
    assert float(batch.factors.std(0).min()) > 1e-4


def test_absent_lesion_and_marker_have_zero_factors(batch: PhantomBatch) -> None:
    clean = batch.labels != OPACITY
    unmarked = batch.factor("marker_presence") == 0
    for name in phantom.LESION_FACTORS:
        assert float(batch.factor(name)[clean].abs().max()) == 0, name
    for name in phantom.MARKER_FACTORS:
        assert float(batch.factor(name)[unmarked].abs().max()) == 0, name


def test_cardiothoracic_ratio_separates_but_overlaps() -> None:
    parameters, labels = parameters_only(20_000, 3)
    large, normal = parameters["ratio"][labels == CARDIOMEGALY], parameters["ratio"][labels != CARDIOMEGALY]
    assert float(large.mean() - normal.mean()) > 3 * float(normal.std())
    threshold = torch.linspace(0.44, 0.60, 161)[:, None]
    error = ((large < threshold).float().mean(1) + (normal >= threshold).float().mean(1)) / 2
    assert 0.005 < float(error.min()) < 0.05, "borderline hearts must exist, and be few"
    measured = sample(60, 3, labels=torch.full((60,), CARDIOMEGALY))
    width = measured.regions["heart"].any(1).sum(1) * 2 / 64 / measured.factor("scale")
    assert torch.allclose(width, measured.factor("heart_width"), atol=0.12)


# --- twins ----------------------------------------------------------------------------------------------------------


def test_twin_is_healthy_and_shares_every_other_factor(pair: tuple[PhantomBatch, PhantomBatch]) -> None:
    factual, twin = pair
    assert set(factual.labels.tolist()) == {OPACITY, CARDIOMEGALY}
    assert (twin.labels == HEALTHY).all()
    assert not twin.regions["lesion"].any()
    for name in factual.factor_names:
        if name not in phantom.FINDING_FACTORS:
            assert torch.equal(factual.factor(name), twin.factor(name)), name
    assert torch.equal(factual.regions["marker"], twin.regions["marker"])
    cardiomegaly = factual.labels == CARDIOMEGALY
    grown = factual.factor("cardiothoracic_ratio") - twin.factor("cardiothoracic_ratio")
    assert float(grown[cardiomegaly].min()) > 0.06
    assert float(grown[~cardiomegaly].abs().max()) == 0


def test_twins_differ_in_the_finding_alone(pair: tuple[PhantomBatch, PhantomBatch]) -> None:
    factual, twin = pair
    edit = (factual.images - twin.images)[:, 0].abs()
    by_class = torch.where(
        (factual.labels == OPACITY)[:, None, None], factual.regions["lesion"], factual.regions["heart"]
    )
    assert float(edit.amax((1, 2)).min()) > 10 / 255, "every finding is visible"
    share_inside = (edit * dilate(by_class, 1)).sum((1, 2)) / edit.sum((1, 2))
    assert float(share_inside.min()) > 0.9
    assert float((edit * ~dilate(by_class, 3)).max()) < 8 / 255
    assert float((edit * ~dilate(by_class, 8)).max()) <= 1.01 / 255


def test_enlarged_heart_covers_the_normal_one(pair: tuple[PhantomBatch, PhantomBatch]) -> None:
    factual, twin = pair
    assert not (twin.regions["heart"] & ~factual.regions["heart"]).any()


def test_twin_of_twin_is_the_image_sampled_with_that_label() -> None:
    """Composition: the twin is exactly what `sample` draws for the healthy label, given an independent marker."""
    factual, twin = twins(40, 5)
    healthy = sample(40, 5, labels=torch.zeros(40, dtype=torch.int64))
    again = sample(40, 5, labels=factual.labels)
    assert torch.equal(twin.images, healthy.images)
    assert torch.equal(factual.images, again.images)


def test_twins_keep_a_correlated_marker() -> None:
    factual, twin = twins(60, 2, marker_correlation=1.0)
    assert (factual.factor("marker_presence") == 1).all()
    assert (twin.factor("marker_presence") == 1).all()


# --- causal independence --------------------------------------------------------------------------------------------


def test_marker_is_independent_of_the_label_at_zero_correlation() -> None:
    parameters, labels = parameters_only(12_000, 17)
    table = [[int(((labels == c) & (parameters["marker"] == m)).sum()) for m in (0, 1)] for c in range(3)]
    assert chi2_contingency(table).pvalue > 0.01
    assert float(parameters["marker"].mean()) == pytest.approx(0.5, abs=0.02)


@few
@given(st.floats(-1, 1), seeds)
def test_marker_follows_the_requested_correlation(rho: float, seed: int) -> None:
    parameters, labels = parameters_only(6000, seed, rho)
    marker = parameters["marker"]
    risk = [float(marker[labels == c].mean()) for c in range(3)]
    assert risk[0] == pytest.approx((1 - rho) / 2, abs=0.06)
    assert risk[1] == pytest.approx((1 + rho) / 2, abs=0.06)
    assert risk[2] == pytest.approx((1 + rho) / 2, abs=0.06)


def test_marker_gives_the_class_away_at_correlation_one() -> None:
    batch = sample(90, 1, marker_correlation=1.0)
    assert torch.equal(batch.factor("marker_presence") > 0, batch.labels != HEALTHY)


def test_nothing_but_the_finding_depends_on_the_label() -> None:
    parameters, labels = parameters_only(6000, 23)
    names = [*phantom.NORMAL, *phantom.UNIFORM, *phantom.LESION, "lesion_u", "lesion_v", "lesion_contrast"]
    p_values = []
    for name in names:
        value = parameters[name].reshape(6000, -1)[:, 0].numpy()
        p_values.append(f_oneway(*(value[labels.numpy() == c] for c in range(3))).pvalue)
    assert min(p_values) > 0.01 / len(names), names[int(np.argmin(p_values))]


def test_exogenous_variables_are_mutually_uncorrelated_and_within_their_cut() -> None:
    drawn = phantom.draw_exogenous(8000, torch.Generator().manual_seed(0))
    table = torch.stack([drawn[name] for name in (*phantom.NORMAL, *phantom.UNIFORM)])
    correlation = torch.corrcoef(table) - torch.eye(len(table))
    assert float(correlation.abs().max()) < 0.06
    for name, (mean, sd) in phantom.NORMAL.items():
        assert float((drawn[name] - mean).abs().max()) <= 2.5 * sd + 1e-3, name


# --- determinism and errors -----------------------------------------------------------------------------------------


@few
@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_chunk_size_changes_no_pixel(seed: int, n: int, chunk: int) -> None:
    whole, cut = sample(n, seed, chunk=n), sample(n, seed, chunk=chunk)
    assert torch.equal(whole.images, cut.images)
    assert torch.allclose(whole.factors, cut.factors, atol=1e-5)
    assert all(torch.equal(whole.regions[name], cut.regions[name]) for name in whole.regions)


def test_seed_decides_and_the_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    first, again, other = sample(12, 1), sample(12, 1), sample(12, 2)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before, torch.get_rng_state())


def test_longer_draw_begins_with_the_shorter() -> None:
    labels = torch.arange(20) % 3
    assert torch.equal(sample(20, 4, labels=labels).images[:8], sample(8, 4, labels=labels[:8]).images)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.tensor([0, 1, 3]), torch.tensor([[0], [1], [2]])])
def test_wrong_labels_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match="labels must be 3 integers"):
        sample(3, 0, labels=labels)


def test_a_healthy_image_has_no_finding_to_remove() -> None:
    with pytest.raises(DataError, match=r"\(1, 2\)"):
        twins(2, 0, labels=torch.tensor([0, 1]))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(DataError, match="from -1 to 1"):
        sample(3, 0, marker_correlation=1.5)
    with pytest.raises(DataError, match="at least 1"):
        sample(0, 0)


# --- the audit's set ------------------------------------------------------------------------------------------------


def test_phantom_set_has_disjoint_splits_in_bytes() -> None:
    data = phantom_set(calibration=60, audit=30, seed=9)
    calibration, test = data.split("calibration"), data.split("test")
    assert (len(calibration), len(test)) == (60, 30)
    assert data.class_names == CLASS_NAMES
    assert data.image_shape == (1, 64, 64)
    assert data.read_image(0).dtype == np.uint8
    assert not set(calibration.row_ids) & set(test.row_ids)
    a, b = calibration.images().flatten(1), test.images().flatten(1)
    assert float(torch.cdist(a, b).min()) > 0.5, "an audited image is no calibration image"
    assert torch.bincount(test.row_labels).tolist() == [10, 10, 10]


def test_phantom_set_reads_what_sample_drew() -> None:
    data = phantom_set(calibration=30, audit=12, seed=9, marker_correlation=0.5).split("test")
    drawn = sample(12, phantom.stage_seed(9, "phantom/test"), 0.5)
    assert torch.allclose(data.images(), drawn.images, atol=1e-6)
    assert torch.equal(data.row_labels, drawn.labels)
    for name in ("lesion", "marker"):
        assert torch.equal(data.region(name), drawn.regions[name])


def test_region_carries_the_class_meaning() -> None:
    data = phantom_set(calibration=30, audit=30, seed=1)
    region, labels = data.region(), data.row_labels
    assert not region[labels == HEALTHY].any()
    assert torch.equal(region[labels == OPACITY], data.region("lesion")[labels == OPACITY])
    heart = sample(30, phantom.stage_seed(1, "phantom/test")).regions["heart"]
    assert torch.equal(region[-30:][labels[-30:] == CARDIOMEGALY], heart[labels[-30:] == CARDIOMEGALY])
    healthy_row = int(torch.nonzero(labels == HEALTHY)[0])
    assert data.regions["region"](healthy_row) is None
