"""Pixels of the phantom: parameters of anatomy, finding and acquisition in, 64x64 grey radiographs and masks out.

A radiograph is drawn as one would build a toy thorax: soft tissue of the body, darkened where air fills the lungs,
brightened by heart, spine, ribs, clavicles and abdomen, then seen through an imperfect detector (blur, bias field,
gamma, contrast, exposure, noise). Every structure is a smooth function of body coordinates (u to the image's right, v
downwards, both about [-1, 1]), so that a batch is a few dozen element-wise operations. Nothing here is random: all
randomness arrives in `parameters` (see `audit.data.phantom`, which owns the causal model).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 64
MAX_LESIONS = 3
LESION_THRESHOLD = 0.02
"""A pixel belongs to the lesion mask when the lesion adds more than this to it (before exposure)."""

HEART_BELOW = 0.15
"""The heart mask ends this far below the diaphragm, where heart and abdomen have become one silhouette."""

EDGE = 0.085
"""Width of a soft anatomical edge in body units (about 2.7 pixels)."""
THORAX_REACH = 0.62
"""Height over which the thoracic cage widens from the apex to its full width, in body units."""
ARM_LEVEL = 0.55
"""Distance from the midline beyond which the shoulder drops."""


@dataclass(frozen=True)
class Rendered:
    """One rendered chunk: images [N, H, W] in [0, 1], bool masks [N, H, W], and measured areas and lesion centres."""

    images: Tensor
    masks: dict[str, Tensor]
    measures: dict[str, Tensor]


def smooth_step(x: Tensor) -> Tensor:
    """Hermite step: 0 below 0, 1 above 1, smooth between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def bump(squared_radius: Tensor) -> Tensor:
    """A soft hill of compact support: 1 at squared radius 0, 0 from squared radius 1 on."""
    return (1 - squared_radius).clamp_(min=0).square_()


def image_grid(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Pixel centres (x to the right, y downwards) in [-1, 1], each `[1, size, size]`."""
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]


def dome(level: Tensor, height: Tensor, distance: Tensor, thorax: Tensor) -> Tensor:
    """Height of the diaphragm over the distance from the midline: a parabola, highest a little medial of its middle."""
    across = (distance - 0.46 * thorax) / (0.62 * thorax)
    return level + height * (across * across - 0.5)


def heart_axes(width: Tensor, tilt: Tensor, aspect: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Long and short half axis and the vertical half extent of a tilted ellipse of horizontal half extent `width`."""
    cos2, sin2 = torch.cos(tilt).square(), torch.sin(tilt).square()
    long = width / (cos2 + aspect.square() * sin2).sqrt()
    return long, long * aspect, long * (sin2 + aspect.square() * cos2).sqrt()


def heart_centre(half_width: Tensor, half_height: Tensor, lean: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of the heart: it grows around the point (0, base) inside it, so a larger heart covers a smaller one."""
    return (2 * lean - 1) * half_width, base - 0.55 * half_height


def render(parameters: Mapping[str, Tensor], noise: Tensor) -> Rendered:
    """Draw one chunk of radiographs.

    Args:
        parameters: name -> `[N]`, lesion parameters `[N, MAX_LESIONS]`; the names are those of `phantom.mechanisms`.
        noise: standard normal detector noise `[N, H, W]`.

    Returns:
        images `[N, H, W]` in [0, 1] rounded to multiples of 1/255, the masks "lesion", "heart", "marker", "lungs" and
        "body", and measures "lung_area" (anatomical, before the heart covers it), "lesion_area", "lesion_x",
        "lesion_y" (share of the image; image coordinates in [-1, 1], 0 where there is no lesion).
    """
    p = {name: value[:, None, None] for name, value in parameters.items() if value.ndim == 1}
    x, y = image_grid(noise.shape[-1])
    u, v = _body_coordinates(p, x, y)
    a = u.abs()

    body, body_edge = _body(p, a, v)
    lungs, diaphragm, lateral = _lungs(p, u, a, v)
    heart = _heart(p, u, v)

    visible = lungs * (1 - 0.94 * heart)
    tissue = 0.36 + 0.20 * smooth_step(body_edge / 0.30) + p["tissue"]
    abdomen = smooth_step((v - diaphragm) / 0.25 + 0.2) * smooth_step(lateral / 0.2 + 0.6)
    absorbed = tissue * (1 - p["aeration"] * visible)
    absorbed += 0.13 * torch.maximum(heart, abdomen)  # heart and liver merge into one silhouette
    absorbed += _centre(p, u, a, v, heart)
    absorbed += _bones(p, a, v, lateral, diaphragm, heart)
    absorbed += visible * _soft_shadows(p, a, v)
    absorbed *= body

    lesion = torch.zeros_like(absorbed)
    rows = parameters["opacity"].nonzero()[:, 0]
    if len(rows):
        lesion[rows] = _lesions({k: w[rows] for k, w in parameters.items()}, u[rows], v[rows]) * visible[rows]
        absorbed += lesion

    image = _detector(p, absorbed, x, y)
    marker = _marker(p, x, y)
    image = torch.lerp(image, p["marker_brightness"].expand_as(image), marker)
    image = _blur(image, p["blur"])
    image += p["noise"] * noise
    image = (image.clamp_(0, 1) * 255).round_() / 255

    masks = {
        "lesion": (lesion > LESION_THRESHOLD) & (visible > 0.25),
        "heart": (heart > 0.5) & (v < diaphragm + HEART_BELOW),
        "marker": marker > 0.5,
        "lungs": visible > 0.25,
        "body": body > 0.25,
    }
    weight = lesion.sum((1, 2))
    measures = {
        "lung_area": lungs.mean((1, 2)),
        "lesion_area": masks["lesion"].float().mean((1, 2)),
        "lesion_x": (lesion * x).sum((1, 2)) / weight.clamp(min=1e-6),
        "lesion_y": (lesion * y).sum((1, 2)) / weight.clamp(min=1e-6),
    }
    return Rendered(image, masks, measures)


def _body_coordinates(p: Mapping[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Undo the pose: image coordinates to body coordinates."""
    cos, sin = torch.cos(p["rotation"]) / p["scale"], torch.sin(p["rotation"]) / p["scale"]
    x, y = x - p["shift_x"], y - p["shift_y"]
    return cos * x + sin * y, cos * y - sin * x


def _body(p: Mapping[str, Tensor], a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Soft mask of the body (neck, sloping shoulders, flanks) and the distance from its edge."""
    neck = p["neck_rise"] / (1 + (a / p["neck_width"]).square().square())
    top = p["shoulder_level"] - neck + 1.1 * (a - ARM_LEVEL).clamp(min=0).square()
    flank = p["body_width"] - 0.10 * smooth_step((v + 0.35) / 0.9) - a
    edge = torch.minimum(v - top, flank)
    return smooth_step(edge / EDGE + 0.5), edge


def _lungs(p: Mapping[str, Tensor], u: Tensor, a: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft mask of both lungs, the level of the diaphragm `[N, H, W]`, and the distance inside the thoracic cage."""
    image_right = u > 0
    thorax = torch.where(image_right, p["thorax_left"], p["thorax_right"])
    level = torch.where(image_right, p["diaphragm_left"], p["diaphragm_right"])
    diaphragm = dome(level, p["dome_height"], a, thorax)
    above = ((p["apex"] + THORAX_REACH - v) / THORAX_REACH).clamp(min=0)
    cage = 1 - (a / thorax).square() - above * above * above
    lateral = cage * (0.42 * thorax)
    medial = a - p["mediastinum"] * (1 + 0.35 * v.clamp(min=-0.4))
    lower = 0.8 * (diaphragm - v)
    inside = torch.minimum(torch.minimum(lateral, medial), lower)
    return smooth_step(inside / EDGE + 0.5), diaphragm, lateral


def _heart(p: Mapping[str, Tensor], u: Tensor, v: Tensor) -> Tensor:
    """Soft mask of the heart: an ellipse leaning towards the image's right (the patient's left)."""
    half = p["heart_half_width"]
    long, short, height = heart_axes(half, p["heart_tilt"], p["heart_aspect"])
    centre_x, centre_y = heart_centre(half, height, p["heart_lean"], p["heart_base"])
    du, dv = u - centre_x, v - centre_y
    cos, sin = torch.cos(p["heart_tilt"]), torch.sin(p["heart_tilt"])
    radius = (((cos * du + sin * dv) / long).square() + ((cos * dv - sin * du) / short).square()).sqrt()
    return smooth_step((1 - radius) * (long / EDGE) + 0.5)


def _centre(p: Mapping[str, Tensor], u: Tensor, a: Tensor, v: Tensor, heart: Tensor) -> Tensor:
    """Spine with vertebrae, windpipe, and the aortic knob, added to the mediastinum."""
    spine = smooth_step((0.115 - a) / 0.06 + 0.5)
    vertebrae = torch.cos(v * p["vertebra_frequency"] + p["vertebra_phase"])
    column = spine * (p["spine_contrast"] * (1 - 0.55 * heart)) * (1 + 0.3 * vertebrae)
    windpipe = smooth_step((0.055 - a) / 0.05 + 0.5) * smooth_step((-0.24 - v) / 0.2)
    knob = bump(((u - 0.9 * p["mediastinum"]) / 0.13).square() + ((v + 0.24) / 0.15).square())
    return column - 0.13 * windpipe + p["knob"] * knob


def _bones(p: Mapping[str, Tensor], a: Tensor, v: Tensor, lateral: Tensor, diaphragm: Tensor, heart: Tensor) -> Tensor:
    """Ribs (arched bands that fade towards the midline and below the diaphragm) and clavicles."""
    arch = v - p["rib_slope"] * (a - 0.12) + p["rib_bend"] * (a - 0.30).square()
    wave = torch.cos((2 * math.pi) * arch / p["rib_spacing"] + p["rib_phase"])
    band = smooth_step(0.85 * wave + 0.35)
    fade = smooth_step((a - 0.10) / 0.28) * smooth_step(lateral / 0.10 + 0.9)
    fade = fade * (1 - 0.85 * smooth_step((v - diaphragm) / 0.22 + 0.3)) * (1 - 0.7 * heart)
    ribs = p["rib_contrast"] * band * fade
    line = p["clavicle_level"] - p["clavicle_slope"] * (a - 0.10) + 0.35 * (a - 0.38).square()
    clavicle = bump(((v - line) / 0.062).square())
    clavicle = clavicle * smooth_step((a - 0.06) / 0.08) * smooth_step((0.80 - a) / 0.14)
    return ribs + p["clavicle_contrast"] * clavicle


def _soft_shadows(p: Mapping[str, Tensor], a: Tensor, v: Tensor) -> Tensor:
    """Natural shadows over the lungs that are no finding: vessels at the hilum, breast tissue in the lower field."""
    across, down = (a - p["mediastinum"] - 0.06) / 0.16, (v - p["hilum_level"]) / 0.24
    hilum = 1 / (1 + across.square() + down.square()).square()
    breast = bump(((a - 0.42) / 0.36).square() + ((v - 0.36) / 0.34).square())
    return p["hilum_contrast"] * hilum + p["breast_contrast"] * breast


def _lesions(p: Mapping[str, Tensor], u: Tensor, v: Tensor) -> Tensor:
    """Sum of soft lesions; a three-lobed deformation of an ellipse (cos 3t, a polynomial) makes outlines irregular."""
    total = torch.zeros_like(u)
    for index in range(MAX_LESIONS):
        q = {k: w[:, index, None, None] for k, w in p.items() if w.ndim == 2}
        du, dv = u - q["lesion_u"], v - q["lesion_v"]
        cos, sin = torch.cos(q["lesion_turn"]), torch.sin(q["lesion_turn"])
        s = (cos * du + sin * dv) / (q["lesion_radius"] * q["lesion_aspect"])
        t = (cos * dv - sin * du) * q["lesion_aspect"] / q["lesion_radius"]
        squared = s * s + t * t
        lobes = s * (s * s - 3 * t * t) / (squared + 1e-6).sqrt()
        total += q["lesion_contrast"] * smooth_step(1.05 * (1 - squared - q["lesion_lobes"] * lobes))
    return total


def _marker(p: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Soft mask of the technician's marker, an L fixed to the detector (so it does not move with the body's pose)."""
    size = x.shape[-1]
    corner = (slice(None), slice(0, size // 4), slice(5 * size // 8, size))  # the only place where a marker can be
    dx, dy = x[corner] - p["marker_x"], y[corner] - p["marker_y"]
    stem = torch.minimum(0.035 - (dx + 0.055).abs(), 0.10 - dy.abs())
    foot = torch.minimum(0.09 - dx.abs(), 0.035 - (dy - 0.065).abs())
    mask = x.new_zeros(len(p["marker"]), size, size)
    mask[corner] = (torch.maximum(stem, foot) * (size / 2) + 0.5).clamp_(0, 1) * p["marker"]
    return mask


def _detector(p: Mapping[str, Tensor], absorbed: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bias field, gamma, contrast and exposure; the air around the body stays near black."""
    field = absorbed.clamp_(min=1e-4) * (1 + p["bias_x"] * x + p["bias_y"] * y)
    toned = field.pow(p["gamma"])
    return 0.025 + p["exposure"] * toned * (1 + p["contrast"] * (toned - 0.42))


def _blur(image: Tensor, amount: Tensor) -> Tensor:
    """Mix each image with its 3x3 binomial blur, `amount` in [0, 1]."""
    padded = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
    return torch.lerp(image, blurred, amount)
