"""The possible range of every number that a rule can name, to refuse bounds outside of it as typing errors.

`max = 5` on a share would let everything pass; most of the time somebody wrote percent for a share.
"""

import math
import re

_ATTACK = r"robust\.(?:(?:pgd|ensemble)(?:_l2)?|attacks\.[^.]+)\."
_CORRUPTION = r"robust\.corruptions\."
_VULNERABILITY = r"robust\.vulnerability\."
_REACTION = r"reliance\.interventions\.[^.]+\.reactions\.[\d.e-]+\."
_REGION = r"(?:counterfactuals|robust\.vulnerability|attributions\.[^.]+)\.regions\..+\."
_CLASSES = r"macro_f1|(?:recall|precision|f1)\..+"
_CHANCES = "mass|area|p_value|rank_accuracy|pointing|iou|auc|alone|undone"
_OF_LABEL = r"(?:n|positives|threshold|auroc|average_precision|f1|ece|brier|index|rank|left_out_by_inversion)"
_PARTS = r"(?:clean|robust|components|counterfactuals|methods|reliance|attributions|left_out)\."
"""What follows the name of a label: its own numbers, and those that are the same as of a model."""
UNBOUNDED = (-math.inf, math.inf)
FROM_ZERO = (0.0, math.inf)
SHARE = (0.0, 1.0)

_RANGES: tuple[tuple[re.Pattern[str], tuple[float, float]], ...] = tuple(
    (re.compile(pattern), bounds)
    for pattern, bounds in (
        (r"index", (0.0, 100.0)),
        (r"rank", (1.0, math.inf)),
        (r"label_summary\.(?:auroc|average_precision|f1|accuracy|ece|brier|exact)", SHARE),
        (
            r"label_summary\.any_label\..+\.(?:right|falls)|label_summary\.joint\..+\.(?:kept|before|by_label\..+)",
            SHARE,
        ),
        (r"label_summary\.joint\..+\.(?:eps|weights\..+)|positives", FROM_ZERO),
        (r"threshold|auroc|average_precision|f1|ece|brier", SHARE),
        (r"components\.\w+", SHARE),
        (r"(?:.+\.)?(?:n|n_real|skipped|standing|attacked|steps|restarts|step|flip_step)", FROM_ZERO),
        (r"left_out(?:_by_inversion)?(?:\..+)?", FROM_ZERO),
        (rf"(?:clean|robust\.shift)\.(?:accuracy|ece|{_CLASSES})", SHARE),
        (rf"{_ATTACK}.+\.(?:eps|without_gradient)", FROM_ZERO),
        (rf"{_ATTACK}.+\.(?:{_CLASSES})", SHARE),
        (rf"{_ATTACK}(?!.+\.[a-z]).+|{_ATTACK}.+\.robust_accuracy", SHARE),
        (r"robust\.checks\..+", FROM_ZERO),
        (r"robust\.distances\..+", FROM_ZERO),
        (r"attributions\.[^.]+\.similarity", (-1.0, 1.0)),
        (r"robust\.transfers\..+\.(?:accuracy|fooled)", SHARE),
        (rf"{_CORRUPTION}(?:mean_accuracy|clean_accuracy|corruptions\..+\.(?:mean|accuracy\.\d))", SHARE),
        (r"reliance\.(?:worst(?:\.\w+)?|(?:necessity|sufficiency)\..+)", SHARE),
        (r"certificate\.failed", FROM_ZERO),
        (r"certificate\..+", SHARE),
        (rf"{_REACTION}(?:changed|shift|class_changed|variants\..*)", SHARE),
        (rf"{_REACTION}(?:rise|class_fall)", (-1.0, 1.0)),
        (rf"{_REACTION}strength", FROM_ZERO),
        (r"reliance\.regions\..+\.(?:accuracy|clean_accuracy|stay_right|follow)", SHARE),
        (r"reliance\.groups\..+\.(?:accuracy|p_value)", SHARE),
        (r"reliance\.(?:gap|regions\..+\.fall|groups\..+\.gap)", (-1.0, 1.0)),
        (rf"{_REGION}(?:{_CHANCES})", SHARE),
        (rf"{_REGION}lift", FROM_ZERO),
        (rf"{_VULNERABILITY}(?:eps|attack_accuracy|smallest_share)", SHARE),
        (rf"{_VULNERABILITY}shares\..+\.(?:share|accuracy|random_accuracy)", SHARE),
        (rf"{_VULNERABILITY}shares\..+\.l2", FROM_ZERO),
        # What is saved of a length can be less than nothing where the pixels that are kept weigh more.
        (rf"{_VULNERABILITY}l2_saved", (-math.inf, 1.0)),
        (
            r"counterfactuals\.(?:flip_ratio|corrected|reached|explained|converged|feature_target_flips|confidence|l1"
            r"|carried_target_flips|changed_share)",
            SHARE,
        ),
        (r"counterfactuals\.off_target(?:\.(?:valid|(?:labels\..+\.)?(?:change|flips)))?", SHARE),
        (r"counterfactuals\.reach", (1.0, math.inf)),
        (r"counterfactuals\.operating_point(?:_cap|\..+)", SHARE),
        (
            r"counterfactuals\.(?:judges|copies)\..+\.(?:accuracy|agreement|rejects_(?:inversion|adversarial)|power)",
            SHARE,
        ),
        (
            r"counterfactuals\.(?:nafr|axioms\.(?:effectiveness|returned)|answered\.(?:region|rest|acquisition))",
            SHARE,
        ),
        (r"counterfactuals\.axioms\.reversibility", FROM_ZERO),
        (r"counterfactuals\.confounder(?:\.(?:mass|main_mass))?", SHARE),
        # By chance a region holds less than its area, and then the excess is below zero.
        (r"counterfactuals\.confounder\.(?:excess|ahead)", UNBOUNDED),
        (r"counterfactuals\.(?:lpips|perceptual)(?:\.value)?", FROM_ZERO),
        # An unbiased estimate of a squared distance falls below zero where the distance is small.
        (r"counterfactuals\.(?:fid|cmmd|mmd)\..+", UNBOUNDED),
    )
)


def range_of(metric: str) -> tuple[float, float] | None:
    """Return the least and the greatest value that the number called `metric` can have; None if there is no such one.

    A value that has no bound is infinite.
    """
    metric = re.sub(rf"labels\..+?\.(?={_OF_LABEL}$|{_PARTS})", "", metric)
    metric = re.sub(r"methods\.[^.]+\.(?=components\.|counterfactuals\.)", "", metric)
    return next((bounds for pattern, bounds in _RANGES if pattern.fullmatch(metric)), None)


def _shown(bounds: tuple[float, float]) -> str:
    low, high = bounds
    if math.isinf(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def bound_error(metric: str, key: str, bound: float) -> str | None:
    """Return what is wrong with `bound`, given as `key` (min, max, max_drop or max_rise) of `metric`; None: nothing."""
    low, high = range_of(metric) or UNBOUNDED
    hint = "; shares are written from 0 to 1, 95 % as 0.95" if (low, high) == SHARE else ""
    if key in ("min", "max"):
        if low <= bound <= high:
            return None
        return f"{key} = {bound:g} on '{metric}' is outside of what it can be, {_shown((low, high))}{hint}"
    if bound <= high - low:
        return None
    return f"{key} = {bound:g} on '{metric}' is more than it can change, {high - low:g}{hint}"
