"""The phantom: synthetic 64x64 radiographs from a small structural causal model, so that the truth is known.

As in medical imaging a phantom is an object whose truth is known, used to check the instrument. The model is a
structural causal model in Pearl's sense: all exogenous variables are drawn first, for every image and whatever its
label; then `mechanisms` turns (exogenous variables, label, marker) into the parameters of one drawing:

    label   -> heart width (cardiomegaly adds to it), lesions (drawn only for opacity; their place, size, contrast and
               outline are exogenous and exist for every image)
    label   -> marker, by selection: P(marker | finding) = (1 + rho) / 2, P(marker | healthy) = (1 - rho) / 2
    nothing -> anatomy, exposure, pose, noise: independent of the label

The *true counterfactual twin* keeps every exogenous variable and sets the label: abduction, action, prediction
(Pearl 2009, section 7.1). The marker is put on the film before anybody reads it and is held at its factual value: it is
no effect of the finding, merely correlated with it. So twins differ in the finding alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audit.data.audit_set import AuditSet, MaskReader
from audit.data.phantom_render import (
    MAX_LESIONS,
    SIZE,
    THORAX_REACH,
    Rendered,
    dome,
    heart_axes,
    heart_centre,
    render,
)
from audit.errors import DataError
from audit.results import MAIN_REGION
from audit.runtime.seeds import stage_generator, stage_seed

CLASS_NAMES = ("healthy", "opacity", "cardiomegaly")
HEALTHY, OPACITY, CARDIOMEGALY = 0, 1, 2
REGION_NAMES = ("lesion", "heart", "marker", "lungs")

NORMAL = {
    # anatomy, in body units (the image spans 2)
    "body_width": (0.90, 0.055),
    "shoulder_level": (-0.50, 0.030),
    "neck_rise": (0.62, 0.05),
    "neck_width": (0.30, 0.025),
    "thorax": (0.68, 0.028),
    "thorax_asymmetry": (0.0, 0.012),
    "apex": (-0.70, 0.035),
    "mediastinum": (0.165, 0.016),
    "diaphragm_right": (0.46, 0.055),
    "diaphragm_offset": (0.045, 0.022),
    "dome_height": (0.19, 0.03),
    "aeration": (0.70, 0.030),
    "tissue": (0.0, 0.020),
    "heart_ratio": (0.445, 0.026),
    "heart_lean": (0.685, 0.022),
    "heart_tilt": (0.62, 0.07),
    "heart_aspect": (0.74, 0.035),
    "rib_contrast": (0.085, 0.020),
    "rib_spacing": (0.205, 0.012),
    "rib_slope": (0.10, 0.05),
    "rib_bend": (0.75, 0.15),
    "clavicle_contrast": (0.115, 0.022),
    "clavicle_level": (-0.50, 0.03),
    "clavicle_slope": (0.20, 0.06),
    "spine_contrast": (0.115, 0.022),
    "hilum_level": (-0.02, 0.03),
    # acquisition
    "rotation": (0.0, 0.035),
    "shift_x": (0.0, 0.028),
    "shift_y": (0.0, 0.028),
    "scale": (1.0, 0.030),
    "exposure": (1.0, 0.055),
    "contrast": (0.12, 0.10),
    "gamma": (1.0, 0.07),
    "bias_x": (0.0, 0.035),
    "bias_y": (0.0, 0.035),
    "marker_x": (0.80, 0.022),
    "marker_y": (-0.81, 0.022),
}
"""Truncated normal exogenous variables: name -> (mean, standard deviation), cut at 2.5 standard deviations."""

UNIFORM = {
    "enlargement": (0.07, 0.19),
    "hilum_contrast": (0.08, 0.24),
    "breast_contrast": (0.0, 0.09),
    "knob": (0.03, 0.10),
    "rib_phase": (0.0, 6.2832),
    "vertebra_phase": (0.0, 6.2832),
    "vertebra_frequency": (36.0, 42.0),
    "blur": (0.3, 0.8),
    "noise": (0.004, 0.009),
    "marker_brightness": (0.75, 0.95),
    "marker_chance": (0.0, 1.0),
    "lesion_count": (0.0, 1.0),
    "lesion_severity": (0.06, 0.32),
}
"""Uniform exogenous variables: name -> (low, high)."""

LESION = {
    "lesion_side": (0.0, 1.0),
    "lesion_down": (0.0, 1.0),
    "lesion_across": (0.0, 1.0),
    "lesion_radius": (0.11, 0.22),
    "lesion_aspect": (0.82, 1.22),
    "lesion_turn": (0.0, 6.2832),
    "lesion_lobes": (0.04, 0.26),
    "lesion_strength": (0.85, 1.15),
}
"""Uniform exogenous variables drawn for each of the `MAX_LESIONS` possible lesions."""

LESION_FACTORS = ("lesion_presence", "lesion_area", "lesion_contrast", "lesion_x", "lesion_y")
MARKER_FACTORS = ("marker_presence", "marker_x", "marker_y", "marker_brightness")
FINDING_FACTORS = ("cardiothoracic_ratio", "heart_width", *LESION_FACTORS)
"""The factors that descend from the finding; every other factor is equal in an image and its twin."""
PLAIN_FACTORS = (
    "body_width", "shoulder_level", "thorax", "apex", "mediastinum", "diaphragm_right", "diaphragm_left",
    "dome_height", "aeration", "tissue", "heart_lean", "heart_tilt", "heart_aspect", "rib_contrast", "rib_spacing",
    "clavicle_contrast", "clavicle_level", "spine_contrast", "hilum_contrast", "breast_contrast", "knob",
    "rotation", "shift_x", "shift_y", "scale", "exposure", "contrast", "gamma", "bias_x", "bias_y", "blur", "noise",
)  # fmt: skip
FACTOR_NAMES = (*FINDING_FACTORS, *MARKER_FACTORS, "lung_area", *PLAIN_FACTORS)


@dataclass(frozen=True)
class PhantomBatch:
    """Phantom images with their truth.

    images float32 `[N, 1, 64, 64]` in [0, 1], already rounded to multiples of 1/255; labels int64 `[N]` (rows of
    `CLASS_NAMES`); regions name -> bool `[N, 64, 64]` in image coordinates ("lesion" empty without opacity, "marker"
    empty without marker, "lungs" the visible lung fields without the heart); factors float32 `[N, F]`, unstandardised,
    in the order of `factor_names` (positions and angles of an absent lesion or marker are 0).
    """

    images: Tensor
    labels: Tensor
    regions: dict[str, Tensor]
    factors: Tensor
    factor_names: tuple[str, ...] = FACTOR_NAMES

    def factor(self, name: str) -> Tensor:
        """Return one causal factor, `[N]`."""
        return self.factors[:, self.factor_names.index(name)]


def draw_exogenous(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw every exogenous variable of `n` images: name -> `[n]`, lesion variables `[n, MAX_LESIONS]`.

    Row i depends on the generator's seed and i only, so a longer draw begins with the shorter one.
    """
    columns = len(NORMAL) + len(UNIFORM) + MAX_LESIONS * len(LESION)
    chance = torch.rand(n, columns, generator=generator, dtype=torch.float64)
    cut = 0.00621  # the normal distribution's tail beyond 2.5 standard deviations
    standard = torch.special.ndtri(cut + (1 - 2 * cut) * chance[:, : len(NORMAL)])
    drawn = {name: mean + sd * standard[:, i] for i, (name, (mean, sd)) in enumerate(NORMAL.items())}
    flat = chance[:, len(NORMAL) : len(NORMAL) + len(UNIFORM)]
    drawn |= {name: low + (high - low) * flat[:, i] for i, (name, (low, high)) in enumerate(UNIFORM.items())}
    each = chance[:, len(NORMAL) + len(UNIFORM) :].view(n, len(LESION), MAX_LESIONS)
    drawn |= {name: low + (high - low) * each[:, i] for i, (name, (low, high)) in enumerate(LESION.items())}
    return {name: value.float() for name, value in drawn.items()}


def marker_presence(exogenous: Mapping[str, Tensor], labels: Tensor, marker_correlation: float) -> Tensor:
    """Whether the film carries the marker, bool `[N]`: chance (1 + rho) / 2 with a finding, (1 - rho) / 2 without."""
    sign = torch.where(labels == HEALTHY, -1.0, 1.0)
    return exogenous["marker_chance"] < (1 + marker_correlation * sign) / 2


def mechanisms(exogenous: Mapping[str, Tensor], labels: Tensor, marker: Tensor) -> dict[str, Tensor]:
    """The structural equations: exogenous variables, labels `[N]`, marker (bool `[N]`) -> parameters of a drawing."""
    e = dict(exogenous)
    thorax = e["thorax"] + 0.35 * (e["body_width"] - NORMAL["body_width"][0])
    e |= {"thorax": thorax, "thorax_right": thorax * (1 + e["thorax_asymmetry"])}
    e |= {"thorax_left": thorax * (1 - e["thorax_asymmetry"])}
    e["diaphragm_left"] = e["diaphragm_right"] + e["diaphragm_offset"]
    e["heart_base"] = e["diaphragm_right"] + 0.06
    e["ratio"] = e["heart_ratio"] + e["enlargement"] * (labels == CARDIOMEGALY)
    e["heart_half_width"] = e["ratio"] * thorax
    e["opacity"] = (labels == OPACITY).float()
    e["marker"] = marker.float()
    e |= _lesion_places(e)
    return e


def _lesion_places(e: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Centres, sizes and contrasts of the possible lesions, `[N, MAX_LESIONS]`; inside a lung with a normal heart.

    The healthy heart is used for every label, so that a lesion's place does not depend on the finding.
    """
    c = {name: value[:, None] for name, value in e.items() if value.ndim == 1}
    left = e["lesion_side"] < 0.5
    thorax = torch.where(left, c["thorax_left"], c["thorax_right"])
    level = torch.where(left, c["diaphragm_left"], c["diaphragm_right"])
    radius = e["lesion_radius"]
    highest = c["apex"] + 0.17 + 0.4 * radius
    lowest = level - 0.5 * c["dome_height"] - 0.45 * radius
    v = highest + (lowest - highest) * e["lesion_down"]
    above = ((c["apex"] + THORAX_REACH - v) / THORAX_REACH).clamp(min=0)
    lateral = thorax * (1 - above**3).clamp(min=0).sqrt()
    half = c["heart_ratio"] * c["thorax"]
    long, short, height = heart_axes(half, c["heart_tilt"], c["heart_aspect"])
    centre_x, centre_y = heart_centre(half, height, c["heart_lean"], c["heart_base"])
    medial = torch.maximum(c["mediastinum"], _heart_border(left, v - centre_y, centre_x, long, short, c["heart_tilt"]))
    inner, outer = medial + 0.5 * radius, lateral - 0.5 * radius
    a = inner + (outer - inner).clamp(min=0) * e["lesion_across"]
    v = torch.minimum(v, dome(level, c["dome_height"], a, thorax) - 0.4 * radius)
    extra = torch.arange(MAX_LESIONS) * 0.33  # the second lesion appears above a chance of 0.33, the third above 0.66
    present = (c["lesion_count"] >= extra).float()
    return {
        "lesion_u": torch.where(left, a, -a),
        "lesion_v": v,
        "lesion_contrast": c["lesion_severity"] * e["lesion_strength"] * present,
    }


def _heart_border(left: Tensor, dv: Tensor, centre_x: Tensor, long: Tensor, short: Tensor, tilt: Tensor) -> Tensor:
    """Distance from the midline to the tilted ellipse's border on one side at height `dv` from its centre (0: none)."""
    cos, sin = torch.cos(tilt), torch.sin(tilt)
    quadratic = (cos / long).square() + (sin / short).square()
    linear = dv * cos * sin * (long.square().reciprocal() - short.square().reciprocal())
    constant = dv.square() * ((sin / long).square() + (cos / short).square()) - 1
    discriminant = linear.square() - quadratic * constant
    root = discriminant.clamp(min=0).sqrt()
    border = torch.where(left, centre_x + (root - linear) / quadratic, -(centre_x - (root + linear) / quadratic))
    return torch.where(discriminant > 0, border, torch.zeros_like(border))


def sample(
    n: int, seed: int, marker_correlation: float = 0.0, labels: Tensor | None = None, *, chunk: int = 32
) -> PhantomBatch:
    """Draw `n` phantom images, deterministic by `seed`.

    Args:
        n: number of images.
        seed: seed of the exogenous variables, the noise and (where `labels` is None) the labels.
        marker_correlation: rho in [-1, 1]; the risk difference P(marker | finding) - P(marker | healthy).
        labels: int64 `[n]` in 0..2, or None for classes balanced to within one image in random order.
        chunk: images rendered at once; bounds memory and changes no pixel.

    Raises:
        DataError: a marker correlation outside [-1, 1], or labels of the wrong shape or range.
    """
    labels = _labels(n, seed, labels, (HEALTHY, OPACITY, CARDIOMEGALY))
    exogenous, marker = _draw(n, seed, marker_correlation, labels)
    return _predict(exogenous, labels, marker, seed, chunk)


def twins(
    n: int, seed: int, marker_correlation: float = 0.0, labels: Tensor | None = None, *, chunk: int = 32
) -> tuple[PhantomBatch, PhantomBatch]:
    """Draw `n` images with a finding and their healthy twins: same exogenous variables and noise, finding removed.

    Arguments and errors as for `sample`, but labels are 1 or 2 (None: balanced findings). The marker stays as it is in
    the factual image. For the same seed and labels the factual images are those of `sample`.
    """
    labels = _labels(n, seed, labels, (OPACITY, CARDIOMEGALY))
    exogenous, marker = _draw(n, seed, marker_correlation, labels)
    factual = _predict(exogenous, labels, marker, seed, chunk)
    return factual, _predict(exogenous, torch.zeros_like(labels), marker, seed, chunk)


def _labels(n: int, seed: int, labels: Tensor | None, allowed: tuple[int, ...]) -> Tensor:
    """Check the given labels, or deal out `allowed` evenly in random order."""
    if n < 1:
        raise DataError(f"The phantom was asked for {n} images; ask for at least 1.")
    if labels is None:
        order = torch.randperm(n, generator=stage_generator(seed, "phantom/labels"))
        return torch.tensor(allowed)[order % len(allowed)]
    labels = torch.as_tensor(labels, dtype=torch.int64).cpu()
    if labels.shape != (n,) or not bool(torch.isin(labels, torch.tensor(allowed)).all()):
        raise DataError(f"The phantom's labels must be {n} integers out of {allowed}; got shape {tuple(labels.shape)}.")
    return labels


def _draw(n: int, seed: int, marker_correlation: float, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Draw the exogenous variables and the factual marker."""
    if not -1 <= marker_correlation <= 1:
        raise DataError(f"The phantom's marker correlation is {marker_correlation}; give a value from -1 to 1.")
    exogenous = draw_exogenous(n, stage_generator(seed, "phantom/exogenous"))
    return exogenous, marker_presence(exogenous, labels, marker_correlation)


def _predict(exogenous: dict[str, Tensor], labels: Tensor, marker: Tensor, seed: int, chunk: int) -> PhantomBatch:
    """Render all images of the given exogenous variables, labels and marker, `chunk` at a time."""
    n = len(labels)
    parameters = mechanisms(exogenous, labels, marker)
    noise = stage_generator(seed, "phantom/noise")
    images = torch.empty(n, 1, SIZE, SIZE)
    regions = {name: torch.empty(n, SIZE, SIZE, dtype=torch.bool) for name in REGION_NAMES}
    measures: list[dict[str, Tensor]] = []
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        # sizes are multiples of 16, for which torch's stream of normals does not depend on how it is cut
        drawn: Rendered = render(
            {name: value[rows] for name, value in parameters.items()},
            torch.randn(rows.stop - start, SIZE, SIZE, generator=noise),
        )
        images[rows, 0] = drawn.images
        for name in REGION_NAMES:
            regions[name][rows] = drawn.masks[name]
        measures.append(drawn.measures)
    measured = {name: torch.cat([m[name] for m in measures]) for name in measures[0]}
    return PhantomBatch(images, labels, regions, _factors(parameters, measured))


def _factors(p: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> Tensor:
    """Collect the causal factors `[N, F]` in the order of `FACTOR_NAMES`."""
    present = (p["lesion_contrast"] > 0).float()
    contrast = p["lesion_contrast"].sum(1) / present.sum(1)
    values: dict[str, Tensor] = {name: p[name] for name in PLAIN_FACTORS} | {
        "cardiothoracic_ratio": p["ratio"],
        "heart_width": 2 * p["heart_half_width"],
        "lesion_presence": p["opacity"],
        "lesion_contrast": contrast * p["opacity"],
        "lesion_area": measured["lesion_area"],
        "lesion_x": measured["lesion_x"],
        "lesion_y": measured["lesion_y"],
        "marker_presence": p["marker"],
        "marker_x": p["marker"] * p["marker_x"],
        "marker_y": p["marker"] * p["marker_y"],
        "marker_brightness": p["marker"] * p["marker_brightness"],
        "lung_area": measured["lung_area"],
    }
    return torch.stack([values[name] for name in FACTOR_NAMES], dim=1)


def _reader(masks: np.ndarray) -> MaskReader:
    """A reader of the rows of `masks` `[N, H, W]`; a row without a pixel has no mask."""

    def read(row: int) -> np.ndarray | None:
        return masks[row] if masks[row].any() else None

    return read


def phantom_set(calibration: int, audit: int, seed: int, marker_correlation: float = 0.0) -> AuditSet:
    """Return the phantom as an audit's data: disjointly seeded splits "calibration" and "test", bytes in memory.

    Regions: "region" carries the class's meaning (lesion mask of an opacity, heart mask of a cardiomegaly, none when
    healthy); "lesion" and "marker" are the masks themselves.
    """
    sizes = {"calibration": calibration, "test": audit}
    parts = {name: sample(n, stage_seed(seed, f"phantom/{name}"), marker_correlation) for name, n in sizes.items()}
    batches = list(parts.values())
    images = torch.cat([(b.images[:, 0] * 255).round().to(torch.uint8) for b in batches]).numpy()
    labels = torch.cat([b.labels for b in batches]).numpy()
    masks = {name: torch.cat([b.regions[name] for b in batches]).numpy() for name in ("lesion", "marker", "heart")}
    by_class = masks["lesion"] | (masks.pop("heart") & (labels == CARDIOMEGALY)[:, None, None])
    return AuditSet(
        read_image=lambda row: images[row],
        labels=labels,
        class_names=CLASS_NAMES,
        ids=tuple(f"{name}-{i:05d}" for name, n in sizes.items() for i in range(n)),
        splits=np.repeat(list(sizes), list(sizes.values())),
        image_shape=(1, SIZE, SIZE),
        regions={name: _reader(mask) for name, mask in (masks | {MAIN_REGION: by_class}).items()},
        source=f"phantom (seed {seed}, marker correlation {marker_correlation:g})",
    )
