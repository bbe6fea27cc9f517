"""What the models decide by, in the report: a sentence on each model, the table of all interventions, and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from audit.report import figures
from audit.report.text import in_order, names, percent, percent_bounds
from audit.results import AuditResult, Intervention, ModelResult, Reaction, Treated

ALARM = 0.1
"""A token is told in the headline where it changes more than this share of the decisions, by more than chance."""
SHOWN_GROUPS = 3
"""Groups that are shown of every model."""
KINDS = {"token": "pasted", "acquisition": "exposure", "geometry": "place", "sharpness": "sharpness"}
"""Words for the kinds of interventions."""


@dataclass(frozen=True)
class Picture:
    """One image before and after an intervention that changed the decision, as data URIs."""

    intervention: Intervention
    before: str
    after: str


def measured(models: Sequence[ModelResult]) -> list[ModelResult]:
    """Return the models whose reliance was measured."""
    return [model for model in models if model.reliance is not None and model.reliance.interventions]


def spoken(name: str) -> str:
    """Return an intervention's name in running text."""
    return name.replace("-", " ")


def effect(intervention: Intervention, reaction: Reaction) -> str:
    """Return what a reaction amounts to: where, how strong, which decisions change, and to what."""
    where = f"{reaction.variant}, " if reaction.variant else ""
    whose = "of all decisions" if reaction.of_class is None else f"of the decisions for “{reaction.of_class}”"
    towards = f", most changed ones go to “{reaction.hit_towards}”" if reaction.hit_towards is not None else ""
    hit = f"{percent(reaction.hit.value, 0)} {percent_bounds(reaction.hit)}"
    return f"{where}{intervention.extent(reaction)}: {hit} {whose} change{towards}"


def found(model: ModelResult, name: str) -> Intervention | None:
    """Return what the intervention `name` does to the model, if it was made."""
    rows = model.reliance.interventions if model.reliance is not None else []
    return next((row for row in rows if row.name == name), None)


def rows(models: Sequence[ModelResult]) -> list[Intervention]:
    """Return every intervention once, the one that hits some model most first."""
    everything = [row for model in models if model.reliance is not None for row in model.reliance.interventions]
    ranked = sorted(everything, key=lambda row: row.worst.hit_order, reverse=True)
    return list({row.name: row for row in reversed(ranked)}.values())[::-1]


def sentence(model: ModelResult) -> Markup:
    """Return one sentence on what pasted things do to a model, and one on what else changes most."""
    assert model.reliance is not None
    tokens = [row for row in model.reliance.interventions if row.kind == "token"]
    others = [row for row in model.reliance.interventions if row.kind != "token"]
    said = _of_tokens(model, tokens) if tokens else Markup("")
    if not others:
        return said
    most = others[0]
    where = f" ({most.worst.variant})" if most.worst.variant else ""
    return said + Markup(" Of other changes, {}{} by {} changes most: {} of the decisions{}.").format(
        spoken(most.name),
        where,
        most.extent(most.worst),
        percent(most.worst.hit.value, 0),
        "" if most.worst.of_class is None else f" for “{most.worst.of_class}”",
    )


def _of_tokens(model: ModelResult, tokens: Sequence[Intervention]) -> Markup:
    token = tokens[0]  # of which most is sure; it is the first to alarm
    if not alarming(token):
        return _of_harmless(model, tokens)
    worst = token.worst
    corner = f", {worst.variant}," if worst.variant else ""
    whose = "" if worst.of_class is None else f" for “{worst.of_class}”"
    towards = "" if worst.hit_towards is None else f", most of them to “{worst.hit_towards}”"
    return Markup("A {} of {}{} changes {} of the decisions of {}{}{}.").format(
        spoken(token.name), token.extent(worst), corner, percent(worst.hit.value, 0), names([model]), whose, towards
    )


def _of_harmless(model: ModelResult, tokens: Sequence[Intervention]) -> Markup:
    """Tell the most that a token was seen to change, with its interval, where none surely changes much."""
    token, most = max(
        ((token, one) for token in tokens for one in token.reactions), key=lambda pair: pair[1].hit.value or 0.0
    )
    if not most.hit.value:
        told = Markup("No pasted token changes a decision of {} ({} {}).")
        return told.format(names([model]), percent(most.hit.value, 0), percent_bounds(most.hit))
    whose = "" if most.of_class is None else f" for “{most.of_class}”"
    told = Markup("No pasted token surely changes more than {} of the decisions of {}; most, by a {} of {}: {} {}{}.")
    shares = (percent(most.hit.value, 0), percent_bounds(most.hit))
    return told.format(percent(ALARM, 0), names([model]), spoken(token.name), token.extent(most), *shares, whose)


def treatments(models: Sequence[ModelResult]) -> list[str]:
    """Return the ways in which regions were taken away."""
    rows = [row for model in models if model.reliance is not None for row in model.reliance.regions]
    return list(dict.fromkeys(row.treatment for row in rows))


def parts(model: ModelResult) -> dict[tuple[str, str], dict[str, Treated]]:
    """Return what taking away did to one model, by region and part and then by treatment."""
    found: dict[tuple[str, str], dict[str, Treated]] = {}
    for row in model.reliance.regions if model.reliance is not None else ():
        found.setdefault((row.region, row.part), {})[row.treatment] = row
    return found


def grouped(models: Sequence[ModelResult]) -> list[ModelResult]:
    """Return the models whose accuracy was compared by groups."""
    return [model for model in models if model.reliance is not None and model.reliance.groups]


def alarming(token: Intervention) -> bool:
    """Say whether a token changes decisions by more than chance and by more than is of no account."""
    return token.kind == "token" and (token.worst.hit.low or 0.0) > ALARM


def findings(result: AuditResult) -> list[Markup]:
    """Return a sentence on every model that decides by something that was pasted."""
    notes = []
    for model in measured(in_order(result)):
        assert model.reliance is not None
        tokens = [row for row in model.reliance.interventions if alarming(row)]
        if tokens:
            notes.append(_of_tokens(model, tokens))
    return notes


def pictures(models: Sequence[ModelResult], folder: Path) -> list[tuple[ModelResult, list[Picture]]]:
    """Return of every model the images whose decision the interventions that hit most changed."""
    shown = []
    for model in measured(models):
        assert model.reliance is not None
        some = [
            Picture(row, *(figures.file_uri(folder, file) for file in (row.example.image, row.example.changed_image)))
            for row in model.reliance.interventions
            if row.example is not None
        ]
        if some:
            shown.append((model, some))
    return shown
