"""Says of which classes the query images are, where they are unequally divided: an index is that of its mixture."""

from collections.abc import Sequence

from audit.results import ModelResult, Notice, Query

UNEQUAL = 2.0
"""A mixture is told where one class has more than so many times the query images of another.

On the phantom an index of 20 and 80 images ordered models less as the truth does (Kendall's tau .56) than one of 20 and
28 of them (.70): benchmarks/README.md, "Two seeds of queries".
"""


def mixture_notices(models: Sequence[ModelResult], queries: Sequence[Query], sources: Sequence[str]) -> list[Notice]:
    """Return a notice for every unequal mixture of the classes `sources` that models are explained on.

    It concerns the audit, for most models share their images, or one model that has images of its own.
    """
    label_of = {query.id: query.label for query in queries}
    found: dict[str, str] = {}
    for model in models:
        labels = [label_of[row.query] for row in model.queries if row.query in label_of]
        counts = {name: labels.count(name) for name in sources}
        if labels and len(counts) > 1 and max(counts.values()) > UNEQUAL * min(counts.values()):
            found[model.name if model.unpaired else "audit"] = _told(counts)
    return [Notice(subject=subject, kind="unequal-queries", text=text) for subject, text in found.items()]


def _told(counts: dict[str, int]) -> str:
    shares = ", ".join(f"{n} of {name}" for name, n in sorted(counts.items(), key=lambda one: -one[1]))
    fewest = min(counts.values())
    remedy = (
        f"queries.n = {fewest * len(counts)} gives every class the same share"
        if fewest
        else "queries.classes names those that are meant"
    )
    return (
        f"the query images are unequally divided among the classes ({shares}), and the index is that of this mixture: "
        f"on another one models may stand in another order. Compare it with audits of the same mixture only; {remedy}."
    )
