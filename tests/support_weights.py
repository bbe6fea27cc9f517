"""docs/weights.md from the cards of the shipped weights and the table of those from outside.

To write it again: `python tests/support_weights.py`.
"""

import json
from pathlib import Path
from typing import Any

from audit.storage import shipped
from audit.storage.files import hash_file
from audit.storage.pretrained import NETWORKS, File, Network

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "weights.md"

INTRODUCTION = """\
# Weights

A card for every network that is shipped with the package, and for every one that `spruce-audit weights pull` fetches.
This page is made by `python tests/support_weights.py` from the files that travel with the weights: the cards
`audit/assets/*/*.json` (all settings, n and intervals are there) and `audit/storage/pretrained.toml`.

## Shipped with the package

**Licence:** Apache-2.0, as the package. **Trained on:** the built-in *phantom* alone, synthetic 64x64 radiographs which
this package draws; no image of a patient and no weight of somebody else took part. **Made by** this repository's own
commands, from nothing. **Use:** the demonstration, the tests and the benchmarks. **Limits:** they know 64x64 grey
phantom images and nothing else. None of them is a medical device, says anything about a radiograph, or is a start for a
network that does.
"""

OUTSIDE = """\
## Fetched on demand

Nothing is fetched unless you run `spruce-audit weights pull`, and a file counts by its SHA-256 alone. Licences are
those that the publishers state for the weights; they were not trained here, and their numbers are their publishers'.
Where it says ImageNet: its images are given for non-commercial research and teaching, and whether that binds weights
trained on them is for you to judge. All of them know photographs and pictures of the web: a distance in them says less
about other images, such as radiographs ([why](design.md#realism-rests-on-an-embedding)).
"""

TRAINED_ON = {
    "inception-v3-fid": "ImageNet (ILSVRC 2012), by Google: the network of 2015-12-05 that FID is defined on "
    "(Szegedy et al. 2016; Heusel et al. 2017)",
    "clip-vit-large-patch14-336": "400 million pairs of image and text from the web, by OpenAI, not published "
    "(Radford et al. 2021). OpenAI's own card calls every deployed use out of scope",
    "lpips-v0.1-alex": "ImageNet (the backbone, by torchvision) and judgements of people on pairs of patches, BAPPS "
    "(the linear layers; Zhang et al. 2018)",
    "lpips-v0.1-vgg": "ImageNet (the backbone, by torchvision) and judgements of people on pairs of patches, BAPPS "
    "(the linear layers; Zhang et al. 2018)",
}

CLASSIFIERS = {
    "plain": "Decides by the finding, and falls to small adversarial changes.",
    "plain-again": "A copy of `plain` from another seed: says whether a flip of `plain` is more than its own quirk.",
    "trades": "Adversarially trained at 8/255.",
    "trades-small": "Adversarially trained at 2/255.",
    "shortcut": "Wrong on purpose: trained where a marker gives the class away, which an audit has to expose.",
    "shortcut-again": "A copy of `shortcut` from another seed. Wrong on purpose, too.",
}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def _command(kind: str, name: str) -> str:
    configuration = f"benchmarks/phantom/{name}.toml"
    assert (ROOT / configuration).is_file(), configuration
    return f"`spruce-audit train {kind} {configuration} --out runs/{name}`"


def _row(cells: tuple[str, str]) -> str:
    return f"| {cells[0]} | {cells[1]} |"


def _card(title: str, file: Path, rows: dict[str, str]) -> str:
    place = f"`{file.relative_to(ROOT).as_posix()}`, {_megabytes(file.stat().st_size)}"
    first, *others = {**rows, "file": place, "SHA-256": f"`{hash_file(file)}`"}.items()
    return "\n".join([f"### {title}", "", _row(first), "|---|---|", *map(_row, others)])


def _percent(proportion: dict[str, Any]) -> str:
    return f"{100 * proportion['value']:.1f} % [{100 * proportion['low']:.1f}, {100 * proportion['high']:.1f}]"


def _scores(score: dict[str, Any]) -> str:
    clean = score["clean"]["accuracy"]
    attacked = {radius: found["robust_accuracy"] for radius, found in score["robust"]["pgd"].items()}
    parts = [f"clean {_percent(clean)} (n = {clean['n']})"]
    parts += [f"PGD {radius} {_percent(one)} (n = {one['n']})" for radius, one in attacked.items()]
    return f"{score['data']}: {'; '.join(parts)}"


def _read(kind: str, name: str) -> tuple[Path, dict[str, Any]]:
    file = shipped.path(kind, name)
    return file, json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))


def _classifier(name: str) -> str:
    file, card = _read("classifiers", name)
    settings, data = card["config"], card["data"]
    return _card(
        f"Classifier `shipped:{name}`",
        file,
        {
            "what": f"{CLASSIFIERS[name]} `{settings['architecture']}`, {card['parameters']} parameters; "
            f"classes {', '.join(card['classes'])}",
            "trained on": f"{data['source']}, marker correlation {data['marker_correlation']:g}, {data['drawn']}: "
            f"{card['images_seen']} images, objective `{settings['objective']['kind']}`, seed {card['seed']}, "
            f"{card['seconds']:.0f} s",
            "command": _command("classifier", name),
            "accuracy on fresh images": "<br>".join(map(_scores, card["scores"])),
        },
    )


def _generator() -> str:
    file, card = _read("generators", "phantom")
    fid, manifold = card["fid"], card["precision_recall"]
    stages = ("generator-first", "generator-second", "generator-third", "generator-fourth", "generator")
    steps = [*(_command("generator", stage) for stage in stages), _command("embedding", "other-domain")]
    return _card(
        "Generator `shipped:phantom`",
        file,
        {
            "what": "StyleGAN2-ADA, 64x64, grey, with the discriminator by which realism is measured",
            "trained on": "phantom images without labels, marker correlation 0; five stages and a fit of the mapping "
            f"network; the last stage: {card['kimg']:g} thousand images, seed {card['seed']}, "
            f"{card['training_seconds']} s on one H200",
            "command": "<br>".join([*steps, _command("mapping", "mapping")]),
            "distance to real images": f"FID {fid['value']:.2f} in `{fid['embedding']['name']}` (real against real "
            f"{fid['floor']:.2f}, n = {fid['n']}); precision {manifold['precision']:.2f} "
            f"(real {manifold['floor_precision']:.2f}), recall {manifold['recall']:.2f} "
            f"(real {manifold['floor_recall']:.2f})",
            "limits": "Recall is below that of real images: it does not draw all that the phantom does. The last stage "
            "was run by a script that takes the package's own steps; do not expect the same bytes from the commands",
        },
    )


def _encoder() -> str:
    file, card = _read("encoders", "phantom")
    held_out = card["held_out"]
    return _card(
        "Encoder of `shipped:phantom`",
        file,
        {
            "what": "Guesses the generator's codes of an image, from which an inversion starts",
            "trained on": f"phantom images and images of the generator, {card['steps']} steps, seed {card['seed']}, "
            f"{card['training_seconds']} s",
            "command": _command("encoder", "encoder"),
            "error on held-out images": f"mean squared error {held_out['mse']:.2g} (n = {held_out['n']})",
            "limits": "Of use for this very generator only; for another one it is refused",
        },
    )


def _embedding() -> str:
    file, card = _read("embeddings", "phantom-factors")
    scores = card["scores"]
    found = sorted(scores["r_squared"].values())
    return _card(
        "Embedding `phantom-factors`",
        file,
        {
            "what": f"Estimates the {len(found)} factors that the phantom draws an image from; "
            f"{card['parameters']} parameters",
            "trained on": f"phantom, marker correlation 0, {card['data']['drawn']}: {card['images_seen']} images, "
            f"seed {card['seed']}, {card['seconds']:.0f} s",
            "command": _command("factors", "phantom-factors"),
            "R² on fresh images": f"mean {card['selection']['score']:.2f}, from {found[0]:.2f} to {found[-1]:.2f} by "
            f"factor (n = {scores['n']})",
            "limits": "Ribs and tissue are hardly seen, so a distance in it misses them: "
            + ", ".join(f"`{name}` {value:.2f}" for name, value in scores["r_squared"].items() if value < 0.5),
        },
    )


def _bytes_of(file: File) -> str:
    origin = [f"<{url}>" for url in file.urls]
    if file.member is not None:
        origin.append(f"`{file.member.path}` in `{file.member.archive.file}` of the package index")
    return f"- `{file.name}`, {_megabytes(file.size)}, SHA-256 `{file.sha256}`: {'; '.join(origin)}"


def _fetched(network: Network) -> str:
    forms = ["\n".join(map(_bytes_of, form.files)) for form in network.forms]
    facts = [
        f"**Use:** {network.use}. **Licence:** {network.licence}. **Trained on:** {TRAINED_ON[network.name]}.",
        f"**Command:** `spruce-audit weights pull {network.name}`",
    ]
    return "\n\n".join([f"### `{network.name}`", *facts, "\n\nor\n\n".join(forms)])


def page() -> str:
    """The page's text; fails where a shipped or fetched network has no place in it."""
    assert set(CLASSIFIERS) == set(shipped.names("classifiers"))
    assert [shipped.names(kind) for kind in ("generators", "encoders", "embeddings")] == [
        ("phantom",),
        ("phantom",),
        ("phantom-factors",),
    ]
    ours = [*map(_classifier, CLASSIFIERS), _generator(), _encoder(), _embedding()]
    return "\n".join(
        [INTRODUCTION, *(f"{card}\n" for card in ours), OUTSIDE, *(f"{_fetched(n)}\n" for n in NETWORKS.values())]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
