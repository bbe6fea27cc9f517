"""Says where one query image alone decides what models are said to answer to: then look at it and at its mask.

Response is a share of sums over images. A film whose finding lies outside its mask, or is not seen, turns what every
model answers to there into an answer to something else. On the phantom one of 48 made up nine tenths of what a sound
model answered outside the region (benchmarks/README.md).
"""

from collections.abc import Mapping, Sequence

from audit.metrics.response import Answers
from audit.results import Notice

MOST = 0.5
"""Share of what a model answers outside the region above which one image decides it."""
LEAST = 0.03
"""By how much its response has to rise without that image: the index rises by two points or so then."""


def influence_notices(responses: Mapping[str, Answers], queries: Mapping[str, Sequence[str]]) -> list[Notice]:
    """Return a notice for every query image that alone lowers the response of models; `queries` are the ids of each.

    The answers of a model are in the order of its ids.
    """
    told: dict[str, list[str]] = {}
    for name, answers in responses.items():
        outside = answers.outside.nan_to_num(0.0)
        place = int(outside.argmax())
        if outside[place] <= MOST * outside.sum():
            continue
        everywhere = answers.outside.new_ones(2, len(outside))
        everywhere[1, place] = 0
        response, without = answers.share(everywhere).tolist()
        if without - response >= LEAST:
            told.setdefault(queries[name][place], []).append(
                f"{name} (response {response:.2f}, without it {without:.2f})"
            )
    return [
        Notice(
            subject="audit",
            kind="one-query-decides",
            text=f"query image {query} alone makes up more than half of what is answered to outside the region by "
            f"{', '.join(models)}: look at it, and whether its mask holds what is to be found there.",
        )
        for query, models in told.items()
    ]
