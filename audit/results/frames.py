"""The values of a `results.json` as tidy tables, for `AuditResult.to_pandas`.

This file works on plain values (`AuditResult.model_dump()`). A value with an interval becomes the columns `x`, `x.low`,
`x.high` and `x.n`; a group of values the columns `group.x`; lists and values by image have tables of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from audit.errors import ResultsError

if TYPE_CHECKING:
    import pandas as pd

Values = Mapping[str, Any]
Row = dict[str, Any]
INTERVAL = {"value", "low", "high", "level", "n"}
ATTACKS = ("pgd", "pgd_l2", "ensemble", "ensemble_l2")
DISTANCES = ("fid", "cmmd", "mmd")
OWN_TABLES = {*ATTACKS, "attacks", "corruptions", "labels", "methods", "reliance", "vulnerability"}
BY_IMAGE = {"outcomes", "distances_by_image", "agreed_by", "trace"}


def frames(result: Values) -> "dict[str, pd.DataFrame]":
    """Return the tables by name; a table without rows is there, empty.

    `models`: a row a model. `labels`: a row a label and model (multi-label). `queries`: a row a counterfactual; its
    `method` is the audited one or one that it is compared with. `attacks`: a row an attack, radius, model and, where
    there are several, label. `outcomes`: a row an image of such an attack: what fooled the model, if anything did.
    `corruptions`: a row a corruption, severity and model. `reactions`: a row an intervention, strength and model.
    `regions`: a row a region, method and model, where edits lie. `distributions`: a row a distance (FID, CMMD, MMD),
    target class, method and model. `comparisons`: a row a pair of models. `sites`: a
    row a number, model and site, of audits that were joined.

    Raises ResultsError where pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ResultsError("Tables need pandas: run `pip install 'spruce-audit[export]'`.") from None
    rows: dict[str, list[Row]] = {
        "models": [flat(model) for model in result["models"]],
        "labels": [],
        "queries": [],
        "attacks": [],
        "outcomes": [],
        "corruptions": [],
        "reactions": [],
        "regions": [],
        "distributions": [],
        "comparisons": [flat(one) for one in result["comparisons"]],
        "sites": list(_sites(result["sites"])),
    }
    for model in result["models"]:
        name = {"model": model["name"]}
        rows["labels"] += [name | {"label": label} | flat(one) for label, one in model["labels"].items()]
        for where, one in (({}, model), *(({"label": label}, one) for label, one in model["labels"].items())):
            for attack, outcomes in _attacks(one["robust"]):
                rows["attacks"].append(name | where | attack)
                key = {column: attack[column] for column in ("attack", "norm", "eps")}
                rows["outcomes"] += [
                    name | where | key | {"image": image, "outcome": outcome} for image, outcome in outcomes.items()
                ]
            rows["corruptions"] += [name | where | row for row in _corruptions(one["robust"]["corruptions"])]
        rows["reactions"] += [name | row for row in _reactions(model["reliance"])]
        audited = (model["counterfactuals"] or {}).get("method")
        for method, one in ((audited, model), *model["methods"].items()):
            key, edits = name | {"method": method}, one["counterfactuals"] or {}
            rows["queries"] += [key | flat(row) for row in one["queries"]]
            rows["regions"] += [key | flat(region) for region in edits.get("regions", ())]
            rows["distributions"] += [key | flat(one) for metric in DISTANCES for one in edits.get(metric, ())]
    return {table: pd.DataFrame(found) for table, found in rows.items()}


def flat(values: Values, prefix: str = "") -> Row:
    """Return the single values of a nested group by their dotted names; lists and tables of their own are left out."""
    found: Row = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key in OWN_TABLES or key in BY_IMAGE:
            continue
        if isinstance(value, Mapping):
            if set(value) == INTERVAL:
                found |= {name: value["value"], f"{name}.n": value["n"]} | _bounds(name, (value["low"], value["high"]))
            elif key == "component_intervals":
                for component, bounds in value.items():
                    found |= _bounds(f"{prefix}components.{component}", bounds)
            else:
                found |= flat(value, f"{name}.")
        elif key.endswith("interval") and value is not None:
            found |= _bounds(name.removesuffix("_interval"), value)
        elif not isinstance(value, (list, tuple)):
            found[name] = value
    return found


def _bounds(name: str, bounds: Sequence[float | None]) -> Row:
    return {f"{name}.low": bounds[0], f"{name}.high": bounds[1]}


def _attacks(robust: Values) -> Iterator[tuple[Row, Values]]:
    """Every attack and radius with its numbers, and its outcomes by image."""
    tables = {name: robust[name] for name in ATTACKS} | robust["attacks"]
    for attack, radii in tables.items():
        for one in radii.values():
            yield {"attack": attack.removesuffix("_l2")} | flat(one), one["outcomes"]


def _sites(sites: Values | None) -> Iterator[Row]:
    for one in (sites or {}).get("numbers", ()):
        for site, number in one["by_site"].items():
            yield {"model": one["model"], "metric": one["metric"], "site": site} | flat({"number": number})


def _corruptions(corruptions: Values | None) -> Iterator[Row]:
    for one in (corruptions or {}).get("corruptions", ()):
        for severity, accuracy in one["accuracy"].items():
            yield {"corruption": one["name"], "severity": int(severity)} | flat({"accuracy": accuracy})


def _reactions(reliance: Values | None) -> Iterator[Row]:
    for one in (reliance or {}).get("interventions", ()):
        for reaction in one["reactions"]:
            yield {"intervention": one["name"], "kind": one["kind"]} | flat({**reaction, "variants": []})
