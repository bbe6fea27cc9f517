"""What an audit says of one model, as a Hugging Face model card: `model-index` metadata and a section of text.

Written by huggingface_hub, which timm brings, so that the metadata is what its hub reads.
"""

import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from audit.errors import ResultsError
from audit.results import AuditResult, Interval, ModelResult


def card_files(result: AuditResult) -> dict[str, bytes]:
    """Return the contents of a card for every model, by the file's name."""
    names = [re.sub(r"[^\w.-]+", "-", model.name).strip(".-") or "model" for model in result.models]
    files = [f"{place:02}-{name}.md" if names.count(name) > 1 else f"{name}.md" for place, name in enumerate(names)]
    return {file: model_card(result, model.name).encode() for file, model in zip(files, result.models, strict=True)}


def model_card(result: AuditResult, name: str) -> str:
    """Return the card of the model `name`, Markdown behind YAML metadata; raises ResultsError for an unknown name.

    `model-index` holds accuracy, the lowest robust accuracy of each attack and the index; the text has their intervals,
    what they rest on, and what may not be believed.
    """
    model = next((one for one in result.models if one.name == name), None)
    if model is None:
        names = ", ".join(f"'{one.name}'" for one in result.models)
        raise ResultsError(f"The results hold no model '{name}': name one of {names}.")
    numbers = _numbers(model)
    source = str(result.data.get("source", result.name))
    metadata = ModelCardData(
        model_name=model.name,
        pipeline_tag="image-classification",
        tags=["image-classification", "spruce-audit"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=source,
                dataset_name=result.name,
                metric_type=kind,
                metric_name=title,
                metric_value=round(number.value, 4),
            )
            for kind, title, number in numbers
            if number.value is not None
        ],
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{_text(result, model, numbers)}"))


def _numbers(model: ModelResult) -> list[tuple[str, str, Interval]]:
    """Type, title and value of every number of the card."""
    found = []
    if model.clean.accuracy.value is not None:
        found.append(("accuracy", "Accuracy", model.clean.accuracy))
    if model.label_summary is not None:
        found.append(("roc_auc", "AUROC, macro", model.label_summary.auroc))
    for table in model.robust.tables():
        for radius, attack in table.radii.items():
            found.append(("accuracy", f"Accuracy under attack: {table.title}, {radius}", attack.robust_accuracy))
    if model.index is not None:
        low, high = model.index_interval or (None, None)
        n = 0 if model.counterfactuals is None else model.counterfactuals.n
        found.append(("spruce-index", "Meaningfulness index", Interval(value=model.index, low=low, high=high, n=n)))
    return found


def _text(result: AuditResult, model: ModelResult, numbers: list[tuple[str, str, Interval]]) -> str:
    lines = [
        "## Audit",
        "",
        f"Audited by spruce-audit on {result.created[:10]}: {_plain(result.name)}, seed {result.seed}, weights "
        f"SHA-256 `{model.weights_sha256}`.",
        *_sites(result),
        "",
        "| number | value | 95 % interval | images |",
        "|---|---|---|---|",
    ]
    lines += [f"| {_plain(title)} | {_number(one.value)} | {_bounds(one)} | {one.n} |" for _, title, one in numbers]
    doubts = [*model.unreliable]
    if model.failed is not None:
        doubts.append(f"The audit of this model ended early ({model.failed.stage}): {model.failed.why}")
    if model.veto is not None:
        doubts.append(f"Its index is 0: {model.veto}")
    if model.robust.trusted is not True and model.robust.tables():
        doubts.append(
            "The robust accuracies are upper bounds that a trust check speaks against."
            if model.robust.trusted is False
            else "Not all trust checks of the attacks were made."
        )
    lines += ["", *(f"- {_plain(doubt)}" for doubt in doubts)]
    lines += [
        "",
        "The index compares models of one audit only. A robust accuracy is an upper bound: no attack proves that there "
        "is no better one.",
    ]
    return "\n".join(lines) + "\n"


def _sites(result: AuditResult) -> list[str]:
    if result.sites is None:
        return []
    told = ", ".join(f"{_plain(site.name)} ({site.n} images)" for site in result.sites.sites)
    return [
        "",
        f"Joined from the audits of {len(result.sites.sites)} sites, which audited images of their own: {told}.",
    ]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names come from files and may hold anything."""
    escaped = "".join(f"\\{one}" if one in "\\`*_[]<>|#" else one for one in text)
    return " ".join(escaped.split())


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def _bounds(one: Interval) -> str:
    return "" if one.low is None or one.high is None else f"{_number(one.low)} to {_number(one.high)}"
