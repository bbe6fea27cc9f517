"""An attack of another package in report and gate, which know the results only."""

from pathlib import Path
from types import ModuleType

import pytest

from audit.config import parse_config
from audit.gate.evaluate import Policy, evaluate_gate
from audit.gate.policy import attack_of, doubts_of, metrics_of
from audit.gate.ranges import range_of
from audit.report.build import render_report
from audit.report.robustness import attack_columns, headline_columns, metric_title
from audit.report.verdict import told_column, verdict
from audit.results import AuditResult, Interval, MinimalDistance, Transferred

CW = "torchattacks:CW"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def results(support_results: ModuleType, folder: Path) -> AuditResult:
    found = support_results.example_audit(folder)
    for model in found.models:
        template = next(iter(model.robust.pgd.values()))
        for radius in ("1", "1.5"):
            model.robust.table(CW, "L2")[radius] = template.model_copy(
                update={
                    "norm": "L2",
                    "eps": float(radius),
                    "steps": None,
                    "restarts": None,
                    "source": "torchattacks 3.5.1",
                    "untrusted": ["It saw nothing."] if radius == "1.5" else [],
                }
            )
        row = MinimalDistance(
            norm="L2", median=Interval(value=0.7, n=4), largest=9.0, attack=CW, n=4, standing=0, distances_by_image={}
        )
        model.robust.distances.append(row)
    return AuditResult.model_validate_json(found.model_dump_json())


def test_it_has_a_column_and_leaves_the_headline_to_our_own(results: AuditResult) -> None:
    columns = {column.metric: column for column in attack_columns(results.models)}
    assert columns[f"robust.attacks.{CW}_l2.1.5"].title == f"{CW}, L2"
    assert CW not in {column.attack_name for column in headline_columns(results.models)}
    assert metric_title(f"robust.attacks.{CW}_l2.1", results.models) == f"{CW}, L2 1"
    assert metric_title("robust.pgd.8/255", results.models) == "PGD 8/255"


def test_the_report_shows_it(results: AuditResult, folder: Path) -> None:
    (folder / "results.json").write_text(results.model_dump_json())
    page = render_report(folder / "results.json").read_text(encoding="utf-8")
    assert f"{CW}, L2" in page
    assert "torchattacks 3.5.1" in page
    assert "None steps" not in page


def test_the_gate_bounds_it_and_hears_its_doubts(results: AuditResult) -> None:
    model = results.models[0]
    assert metrics_of(model)[f"robust.distances.{CW}/L2.median"].value == pytest.approx(0.7)
    # The radius '1' begins '1.5' as well.
    assert attack_of(model, f"robust.attacks.{CW}_l2.1.5").eps == 1.5
    assert attack_of(model, f"robust.attacks.{CW}_l2.1.recall.x").eps == 1
    assert doubts_of(model, f"robust.attacks.{CW}_l2.1.5").untrusted == ("It saw nothing.",)
    assert doubts_of(model, f"robust.attacks.{CW}_l2.1").untrusted == ()
    rule = {"metric": f"robust.attacks.{CW}_l2.1.5", "models": [model.name], "min": 0.0}
    (check,) = evaluate_gate(results, parse_config(Policy, {"rule": [rule]}, "the test")).checks
    assert "It saw nothing." in check.sentence


def test_an_attack_that_no_norm_bounds_has_a_column_and_leads_nothing(results: AuditResult) -> None:
    audit = results.model_copy(deep=True)
    for model in audit.models:
        template = next(iter(model.robust.pgd.values()))
        update = {"eps": 1.0, "extent": "30deg,10%", "steps": None, "restarts": None}
        model.robust.table("rotation-translation", "Linf")["30deg,10%"] = template.model_copy(update=update)
    column = next(one for one in attack_columns(audit.models) if not one.bounded)
    assert (column.title, column.size) == ("Rotation and translation", "30deg,10%")
    assert column not in headline_columns(audit.models)
    assert told_column(audit) != column
    metric = "robust.attacks.rotation-translation.30deg,10%"
    assert metrics_of(audit.models[0])[metric].value == audit.models[0].robust.pgd["2/255"].robust_accuracy.value
    for model in audit.models:
        for table in ("pgd", "pgd_l2", "ensemble", "ensemble_l2"):
            getattr(model.robust, table).clear()
        model.robust.attacks = {"rotation-translation": model.robust.attacks["rotation-translation"]}
        model.index = model.rank = None
    assert headline_columns(audit.models) == [told_column(audit)] == [column]
    assert "under Rotation and translation of 30deg,10%" in str(verdict(audit))


@pytest.mark.parametrize(("square", "rays"), [(0.5, 0.25), (0.25, 0.5)])
def test_of_attacks_by_answers_sentence_and_table_tell_the_one_that_brings_down_more(
    results: AuditResult, square: float, rays: float
) -> None:
    audit = results.model_copy(deep=True)
    for model in audit.models:
        template = model.robust.pgd["2/255"]
        for table in ("pgd", "pgd_l2", "ensemble", "ensemble_l2"):
            getattr(model.robust, table).clear()
        kept = {"square": square, "rays": rays}
        tables = {
            name: {"2/255": template.model_copy(update={"robust_accuracy": Interval(value=value, n=4)})}
            for name, value in kept.items()
        }
        model.robust.attacks = {name: tables[name] for name in ("square", "rays")}
    (column,) = headline_columns(audit.models)
    assert column == told_column(audit)
    assert column.attack_name == ("square" if square < rays else "rays")


def test_what_the_images_of_one_model_do_to_the_others_has_a_table(results: AuditResult, folder: Path) -> None:
    audit = results.model_copy(deep=True)
    first, second, *_ = audit.models
    share = Interval(value=0.25, low=0.1, high=0.5, n=20)
    second.robust.transfers = [Transferred(source=first.name, metric="robust.pgd.8/255", accuracy=share, fooled=share)]
    (folder / "results.json").write_text(audit.model_dump_json())
    page = render_report(folder / "results.json").read_text(encoding="utf-8")
    table = page[page.index("Whom do the attacked images") :].split("</table>")[0]
    assert "PGD 8/255" in table
    assert "25.0 %" in table.replace("\N{NO-BREAK SPACE}", " ")
    assert "itself" in table
    metric = f"robust.transfers.{first.name}.robust.pgd.8/255.fooled"
    assert metrics_of(second)[metric].value == 0.25
    assert range_of(metric) == (0.0, 1.0)
