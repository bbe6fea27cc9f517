"""Does a model's edit lie in a region that was named as a confounder, and not in the one that carries the class?

Only what can be seen of an edit counts (above 4/255), of images that flip and that show the confounder; each region's
share is taken as its excess over what its area would give by chance, (mass - area) / (1 - area). A model is vetoed if
the confounder's mean excess is above that of the class's region in 97.5 % of the bootstrap draws (a region that holds
less than chance counts as 0), and is at least a tenth. So noise, whose excess is 0 everywhere, does not veto, and
neither does an edit that touches the confounder on its way to the right region.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audit.metrics.edit import visible
from audit.metrics.localisation import localise
from audit.results import MAIN_REGION, ConfounderShare, Interval

LEAST = 0.1
"""Excess of the visible edit in the confounder below which nothing is said to lie there."""


def _excess(edit: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the edit in the mask and its excess over the area `[N]`; both 0 where the mask is empty."""
    found = localise(edit, mask)
    excess = ((found["mass"] - found["area"]) / (1 - found["area"])).masked_fill(~(found["area"] < 1), 0.0)
    return found["mass"].nan_to_num(0.0), excess.nan_to_num(0.0)


def confounder_share(
    edit: Tensor, flipped: Tensor, regions: Mapping[str, Tensor], confounders: Sequence[str], weights: Tensor
) -> ConfounderShare | str:
    """How much of the visible `edit` `[N, H, W]` lies in the regions called `confounders`, all together.

    `regions` are masks `[N, H, W]`, `weights` `[B, N]` how often an image is in each bootstrap draw. Returns why it
    cannot be told where fewer than two images can tell.
    """
    seen = visible(edit)
    where = torch.stack([regions[name] for name in confounders]).any(0)
    usable = flipped & where.flatten(1).any(1) & (seen.flatten(1).sum(1) > 0)
    if int(usable.sum()) < 2:
        return f"{int(usable.sum())} of the edited images show the confounder and a visible edit, 2 are needed"
    mass, excess = _excess(seen[usable], where[usable])
    main = regions.get(MAIN_REGION, torch.zeros_like(where))
    main_mass, main_excess = _excess(seen[usable], main[usable])
    drawn = weights[:, usable]
    drawn = drawn[drawn.sum(1) > 0]

    def ahead(w: Tensor) -> Tensor:
        return (w @ excess - (w @ main_excess).clamp_min(0)) / w.sum(1)

    value = float(ahead(torch.ones_like(drawn[:1])))
    low, high = ahead(drawn).quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return ConfounderShare(
        regions=list(confounders),
        n=int(usable.sum()),
        mass=float(mass.mean()),
        main_mass=float(main_mass.mean()) if MAIN_REGION in regions else None,
        excess=float(excess.mean()),
        ahead=Interval(value=value, low=low, high=high, n=int(usable.sum())),
        vetoes=low > 0 and float(excess.mean()) >= LEAST,
    )


def veto(share: ConfounderShare) -> str | None:
    """Return the reason why a model is not meaningful; None where the confounder says nothing against it."""
    if not share.vetoes:
        return None
    called = " and ".join(f"'{name}'" for name in share.regions)
    against = "" if share.main_mass is None else f", {100 * share.main_mass:.0f} % in the region that carries the class"
    return (
        f"{100 * share.mass:.0f} % of what is seen of its edits lies in {called}, named as a confounder{against} "
        f"(n = {share.n})"
    )
