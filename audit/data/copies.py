"""Duplicate images, found by content: in the audited split and in another one, or twice within it.

Equal means equal pixels as the models see them where all images can be decoded within a bound, and equal bytes of the
files otherwise. Bytes are read only of files whose length and middle agree with those of another one.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain, islice

import numpy as np

from audit.data.reading import EXAMPLES, Reading
from audit.results import Copies


def keys_by_bytes(rows: Sequence[int], reading: Reading) -> dict[int, Hashable]:
    """Return a key of the content of every row in `rows`, equal only for files of equal bytes. Raises DataError."""
    assert reading.bytes_key is not None
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        groups[reading.bytes_key(row, False)].append(row)
    alone = {members[0]: ("alone", members[0]) for members in groups.values() if len(members) == 1}
    alike = (row for members in groups.values() if len(members) > 1 for row in members)
    return alone | {row: reading.bytes_key(row, True) for row in alike}


def find_copies(
    keys: Mapping[int, Hashable], splits: np.ndarray, labels: np.ndarray, ids: Sequence[str], audited: str
) -> list[Copies]:
    """Count the images of split `audited` whose key stands a second time, by the split that holds the copy.

    `keys` maps rows to keys of their content; `splits`, `labels` and `ids` are of all rows.
    """
    holders: dict[Hashable, list[int]] = defaultdict(list)
    for row in sorted(keys):
        holders[keys[row]].append(row)
    copies: dict[str, dict[int, int]] = defaultdict(dict)
    conflicts: dict[str, dict[int, int]] = defaultdict(dict)
    for members in holders.values():
        by_split: dict[str, list[int]] = defaultdict(list)
        for row in members:
            by_split[str(splits[row])].append(row)
        own = by_split.get(audited, [])
        for split, rows in by_split.items():
            of_label = {int(labels[row]): row for row in reversed(rows)}
            for row in own:
                if split != audited or row != own[0]:
                    copies[split][row] = rows[0]
                other = next((first for label, first in of_label.items() if label != labels[row]), None)
                if other is not None:
                    conflicts[split][row] = other
    return [
        Copies(
            split=split,
            n=len(copies[split]),
            other_label=len(conflicts[split]),
            examples=[(ids[row], ids[copy]) for row, copy in _first(conflicts[split], copies[split])],
        )
        for split in sorted(copies, key=lambda split: (split == audited, split))
        if copies[split]
    ]


def _first(conflicts: Mapping[int, int], copies: Mapping[int, int]) -> list[tuple[int, int]]:
    """The first few pairs, those of different labels before the others."""
    others = ((row, copy) for row, copy in copies.items() if row not in conflicts)
    return list(islice(chain(conflicts.items(), others), EXAMPLES))
