"""What stands in for the defaults of many keys at once: presets, and how much an audit measures."""

from collections.abc import Mapping
from typing import Any, Literal

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "spruce-thesis": {
        "counterfactual": {
            "features": "mixture",
            "mixture_components": 5,
            "sign_filter": "target",
            "loss": "raw",
            "balance": "fixed",
            "operating_point_cap": 1.0,
            "shrink": False,
            "choose": "last",
            "perceptual_weight": 0.1,
            "latent_weight": 1e-4,
            "image_weight": 1e-6,
        },
        "inversion": {"method": "pti", "l2_weight": 1.0, "perceptual_weight": 1.0},
        "metrics": {"perceptual": "lpips-vgg"},
    }
}
"""Settings by preset and table. "spruce-thesis": Litsos 2025, equations 5.5.8 and 5.6.1 to 5.6.6, to the letter."""

Effort = Literal["quick", "standard", "thorough"]


EFFORTS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "queries": {"n": 24},
        "robustness": {
            "n": 100,
            "steps": 10,
            "ensemble": {"apgd_steps": 50, "fab_steps": 50, "square_queries": 1000},
            "trust": {"n": 32, "square_queries": 200},
        },
        "reliance": {"n": 64},
        "metrics": {"axioms": 0},
    },
    "thorough": {
        "queries": {"n": 128},
        "robustness": {
            "n": 1000,
            "steps": 100,
            "restarts": 5,
            "trust": {"n": 128, "square_queries": 2000},
        },
        "reliance": {"n": 500},
        "metrics": {"axioms": 16},
        "ranking": {"bootstrap": 5000},
    },
}
"""How many images and steps an audit takes where the configuration does not say; "standard" are the defaults.

Inversion and search are the same at every effort: a counterfactual of a quick audit is as good as any, there are fewer.
"""


def _beneath(given: Any, defaults: Mapping[str, Any]) -> Any:
    """Fill what is not `given` of a table, and of the tables within it, with `defaults`."""
    if not isinstance(given, dict):
        return given
    filled = {k: _beneath(given.get(k, {}), v) if isinstance(v, dict) else given.get(k, v) for k, v in defaults.items()}
    return given | filled


def filled(values: Any) -> Any:
    """Fill what an audit's `values` do not give with what their preset says, and then with what their effort says."""
    if not isinstance(values, dict):
        return values
    preset, effort = PRESETS.get(str(values.get("preset")), {}), EFFORTS.get(str(values.get("effort")), {})
    return _beneath(_beneath(values, preset), effort)
