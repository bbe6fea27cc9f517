"""Notices on the data: what was seen, what it means, how to mend it (`audit.data.describe` measures the numbers)."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np

from audit.data.audit_set import AuditSet
from audit.data.dicom import NOT_APPLIED
from audit.data.reading import EXAMPLES, Look, Reading
from audit.results import MAIN_REGION, DataRead, Notice

DARK = 1 / 16 + 1e-3
"""No image of a set is brighter than this share of white: 12 bits in 16 reach 4095 / 65535."""
DARK_DEEP = 1 / 4
"""The same for numbers of more than 8 bits, of which 14 may be in use."""
USUAL_WHITES = (1, 15, 255, 1023, 4095, 16383, 65535)
MANY_SATURATED, MOST_SATURATED = 0.25, 0.75
"""Share of white pixels that is mentioned, and where white lies at the edges, as a white background does."""
BACKGROUND = 1.25
MANY_CONSTANT = 0.1
MANY_COPIES = 0.01
SQUEEZED = 1.05
"""Aspect ratio from which the change to a square is mentioned."""
NO_LABEL = frozenset({"nan", "none", "null", "na", "n/a", "<na>", "undefined"})
MASKS_LOOKED_AT = 256
GOLDEN = (5**0.5 - 1) / 2


def _notice(kind: str, text: str) -> Notice:
    return Notice(subject="data", kind=kind, text=text)


def _images(n: int, of: int | None = None) -> str:
    number = f"{n}" if of is None else f"{n} of {of}"
    return f"{number} image{'s' if (n if of is None else of) != 1 else ''}"


def of_left_out(read: DataRead) -> list[Notice]:
    """What lies at data.path and is not read."""
    if not read.left_out:
        return []
    parts = [f"{row.n} x {row.reason} ({_names(row.examples, row.n)})" for row in read.left_out]
    total = sum(row.n for row in read.left_out)
    what = "file" if total == 1 else "files"
    if all(row.reason.startswith("array") for row in read.left_out):
        return [_notice("left-out", f"Arrays that are not read: {'; '.join(parts)}.")]
    return [
        _notice(
            "left-out",
            f"{total} {what} at data.path {'is' if total == 1 else 'are'} not read: {'; '.join(parts)}. "
            "Convert what should be (to PNG, for instance) and move it into its class folder, or list it in a CSV "
            "manifest.",
        )
    ]


def _names(examples: Sequence[str], n: int) -> str:
    return ", ".join(examples) + (", ..." if n > len(examples) else "")


def of_copies(read: DataRead, audited: int) -> list[Notice]:
    """Of `audited` images those that stand in another split, twice, or under two labels."""
    notices = []
    for row in read.copies:
        pairs = _names([f"{a} = {b}" for a, b in row.examples], row.n)
        if row.split != read.audit_split:
            calibrates = row.split == read.calibration_split
            why = (
                "what is usual for a class is learnt there, and must be learnt on other images"
                if calibrates
                else "a model that was trained on them has seen them"
            )
            notices.append(
                _notice(
                    "split-overlap",
                    f"{row.n} of {audited} audited images stand in the split '{row.split}', too ({pairs}): {why}; "
                    "remove them from one of the two.",
                )
            )
        elif row.n >= max(1, MANY_COPIES * audited):
            notices.append(
                _notice(
                    "copies",
                    f"{row.n} of {audited} audited images repeat another one of that split ({pairs}): intervals are "
                    "too narrow, for they take all images for independent; remove the copies.",
                )
            )
        if row.other_label:
            notices.append(
                _notice(
                    "conflicting-labels",
                    f"{row.other_label} of {audited} audited images have an equal image of another label in the split "
                    f"'{row.split}' ({pairs}): one of the two labels is wrong.",
                )
            )
    return notices


def of_pixels(read: DataRead, looks: Sequence[Look]) -> list[Notice]:
    """Images that are nearly black, of one value, largely white, above white, or laid over black."""
    pixels = read.pixels
    assert pixels is not None
    notices = []
    all_constant = pixels.constant == pixels.n
    limit = DARK_DEEP if all(look.deep for look in looks) and read.white is None else DARK
    if pixels.brightest <= limit and not (all_constant and pixels.largest == 0):
        white, dark = looks[0].white, "white" if looks[0].inverted else "black"
        notices.append(
            _notice(
                "dark",
                f"No pixel of {_images(pixels.n)} looked at is brighter than {pixels.brightest:.1%} of white: the "
                f"largest number is {pixels.largest:g} where {white:g} means white, so that all images are nearly "
                f"{dark} to the models. If the numbers were meant to end earlier, set data.white, for instance "
                f"`white = {_usual_white(pixels.largest)}`.",
            )
        )
    if all_constant:
        text = f"Every one of {_images(pixels.n)} looked at has one value only: there is nothing to see in them."
        notices.append(_notice("constant", text))
    elif pixels.constant >= max(1, MANY_CONSTANT * pixels.n):
        text = f"{_images(pixels.constant, pixels.n)} looked at have one value only: remove empty images."
        notices.append(_notice("constant", text))
    if pixels.clipped > 0:
        share = sum(look.clipped > 0 for look in looks)
        notices.append(
            _notice(
                "clipped",
                f"{_images(share, pixels.n)} looked at hold numbers above data.white = {read.white or 1:g} (the "
                f"largest is {pixels.largest:g}; {pixels.clipped:.2%} of all pixels): they were set to white. Raise it "
                "unless that is meant.",
            )
        )
    edge = float(np.mean([look.edge_saturated for look in looks]))
    background = edge > BACKGROUND * pixels.saturated
    if pixels.saturated > (MOST_SATURATED if background else MANY_SATURATED):
        notices.append(
            _notice(
                "saturated",
                f"{pixels.saturated:.0%} of the pixels of {_images(pixels.n)} looked at are white or above: unless "
                "their background is white, the images are over-exposed or data.white is too small.",
            )
        )
    if pixels.transparent:
        notices.append(
            _notice(
                "transparent",
                f"{_images(pixels.transparent, pixels.n)} looked at are transparent in places and were laid over "
                "black; a training pipeline that drops the transparency (`convert('RGB')`, as torchvision does) sees "
                "the colours below it. Save them without transparency, as the models were trained.",
            )
        )
    return notices


def _usual_white(largest: float) -> str:
    if largest < 1:
        return f"{largest:.3g}"
    return f"{next((white for white in USUAL_WHITES if white >= largest), largest):.0f}"


def of_shapes(data: AuditSet, reading: Reading) -> list[Notice]:
    """Images that are not square and are squeezed to a square."""
    _, height, width = data.image_shape
    ratios = reading.sizes.max(axis=1) / reading.sizes.min(axis=1)
    squeezed = int((ratios > SQUEEZED).sum())
    if not squeezed or (reading.sizes == (height, width)).all():
        return []
    kinds = "of one shape" if np.ptp(reading.sizes[:, 0] / reading.sizes[:, 1]) < 0.02 else "of different shapes"
    return [
        _notice(
            "squeezed",
            f"{_images(squeezed, len(ratios))} are not square ({kinds}, sides up to 1 : {ratios.max():.2f}) and are "
            f"squeezed to {width} x {height}. A training pipeline that crops or pads shows its model other "
            "proportions: crop or pad the files as it does, if so.",
        )
    ]


def of_headers(read: DataRead, reading: Reading, ids: Sequence[str]) -> list[Notice]:
    """Images that were turned upright, of a reduced depth, or of a colour space without its profile."""
    notices = []
    total = len(reading.kinds)
    if reading.turned:
        names = _names([ids[row] for row in reading.turned[:EXAMPLES]], len(reading.turned))
        notices.append(
            _notice(
                "turned",
                f"{_images(len(reading.turned), total)} carry an EXIF orientation, by which they were turned upright "
                f"({names}); torchvision leaves them as they are stored. A model trained so has seen them turned: save "
                "them upright without it.",
            )
        )
    deep = {kind: n for kind, n in read.kinds.items() if kind.startswith("16-bit") and "grey" not in kind[:11]}
    if deep:
        text = f"{_images(sum(deep.values()), total)} hold colour of 16 bits a channel, of which the upper 8 were read."
        notices.append(_notice("reduced-depth", text))
    unwindowed = sum(n for kind, n in read.kinds.items() if kind.endswith(NOT_APPLIED))
    if unwindowed:
        text = (
            f"{_images(unwindowed, total)} carry a window (centre and width, by which a viewer shows them) that was "
            'not applied: their numbers were divided by white. Set data.window = "file", or [centre, width], if the '
            "models were trained on windowed images."
        )
        notices.append(_notice("window", text))
    foreign = {kind: n for kind, n in read.kinds.items() if any(word in kind for word in ("CMYK", "YCbCr", "LAB"))}
    if foreign:
        text = f"{_images(sum(foreign.values()), total)} are {', '.join(foreign)} and became RGB without profiles."
        notices.append(_notice("colour-space", text))
    return notices


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces or the Unicode form of their letters."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    return [group for group in groups.values() if len(group) > 1]


def of_names(data: AuditSet, read: DataRead) -> list[Notice]:
    """Classes or splits that may be one, and classes that the audited split lacks."""
    notices = []
    for what, present in (("classes", data.class_names), ("splits", tuple(read.splits))):
        for group in _alike(present):
            both = ", ".join(repr(name) for name in group)
            text = f"The {what} {both} differ only in case or spaces and are taken for different ones: are they one?"
            notices.append(_notice("similar-names", text))
    for name in data.class_names:
        if name.casefold() in NO_LABEL:
            text = f"One class is called '{name}', as programs write a missing label: are these images labelled?"
            notices.append(_notice("missing-labels", text))
    missing = [name for name, n in read.splits[read.audit_split].items() if n == 0]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        text = f"The audited split '{read.audit_split}' has no image of {names}: nothing is measured for it."
        notices.append(_notice("class-without-images", text))
    return notices


def of_mask_folder(
    data: AuditSet, audited: str, given: Mapping[str, np.ndarray], unused: Sequence[str]
) -> list[Notice]:
    """Files in data.masks of no image, and audited images without a mask beside others of their class that have one.

    `given` says for every region which rows of the whole set have a mask file.
    """
    notices = []
    if unused:
        names = _names(unused[:EXAMPLES], len(unused))
        files, which = ("1 file", "is") if len(unused) == 1 else (f"{len(unused)} files", "are")
        text = f"{files} in data.masks {which} the mask of no image ({names}): give every mask the path of its image."
        notices.append(_notice("masks-unused", text))
    inside = data.splits == audited
    for region, has in given.items():
        of_class = {name: inside & data.has(label) for label, name in enumerate(data.class_names)}
        partly = {name: rows & ~has for name, rows in of_class.items() if (rows & has).any() and (rows & ~has).any()}
        if partly:
            counts = ", ".join(f"{_images(int(r.sum()), int(of_class[n].sum()))} of {n}" for n, r in partly.items())
            first = data.ids[int(np.flatnonzero(np.any(list(partly.values()), axis=0))[0])]
            text = (
                f"{counts} in the audited split have no mask of region '{region}' (such as {first}): localisation is "
                "measured without them; add masks unless the region is absent there."
            )
            notices.append(_notice("masks-missing", text))
    return notices


def of_regions(audited: AuditSet) -> list[Notice]:
    """Regions that are empty, or cover everything, on every audited image looked at that has a mask."""
    notices = []
    # A low-discrepancy order: masks of all classes are among the first, in whatever order the rows stand.
    rows = np.asarray(audited.rows)[np.argsort(np.arange(len(audited)) * GOLDEN % 1, kind="stable")]
    for name, read in audited.regions.items():
        given = (mask for row in rows if (mask := read(int(row))) is not None)
        masks = [np.asarray(mask) for mask in islice(given, MASKS_LOOKED_AT)]
        what = f"masks of region '{name}' that were looked at"
        if not masks:
            notices.append(_notice("empty-region", f"No audited image has a mask of region '{name}'."))
        elif not any(mask.any() for mask in masks):
            text = f"All {len(masks)} {what} are empty: there will be no localisation. Inside is what is not zero."
            notices.append(_notice("empty-region", text))
        elif all(mask.all() for mask in masks if mask.any()):
            text = f"The {len(masks)} {what} are empty or cover the image: they tell nothing. Outside must be zero."
            notices.append(_notice("full-region", text))
    main = {MAIN_REGION, *(audited.class_names if audited.is_multi_label else ())}
    if audited.regions and not main & set(audited.regions):
        names = ", ".join(f"'{name}'" for name in audited.regions)
        text = (
            f"The data give the region {names} and none called '{MAIN_REGION}', the place that carries the class's "
            "meaning: there is no component localisation in the index. Call the masks of that place so."
        )
        notices.append(_notice("no-main-region", text))
    return notices
