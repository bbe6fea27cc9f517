"""Two real audits of the same shipped models, joined, and what may leave a site."""

from pathlib import Path

import pytest

from audit.cli.arguments import folder_names
from audit.errors import ResultsError
from audit.gate.between import between
from audit.gate.evaluate import Policy, Rule, evaluate_gate
from audit.pipeline.runner import run_audit
from audit.pipeline.sites.merge import merge
from audit.pipeline.sites.share import minimal
from audit.report.build import render_report
from audit.report.export.model_card import model_card
from audit.report.series import Listed, series_page
from audit.results import AuditResult

CONFIG = """
seed = {seed}
reliance = false
[data]
path = "phantom"
phantom = {{ calibration = 30, audit = {audit}, marker_correlation = {marker} }}
[robustness]
n = {n}
eps = ["2/255"]
attacks = ["pgd"]
steps = 2
trust = {{ n = 8, square_queries = 10 }}
distance = {{ n = 6, norms = ["Linf"] }}
corruptions = {{ names = ["gaussian_noise"], severities = [1, 3], n = 10 }}
[[classifiers]]
name = "plain"
checkpoint = "shipped:plain"
[[classifiers]]
name = "shortcut"
checkpoint = "shipped:shortcut"
"""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AuditResult]:
    found = {}
    for name, seed, audit, marker, n in (("north", 0, 60, 1.0, 12), ("south", 1, 90, 0.0, 16)):
        folder = tmp_path_factory.mktemp(name)
        (folder / "audit.toml").write_text(CONFIG.format(seed=seed, audit=audit, marker=marker, n=n))
        found[name] = run_audit(folder / "audit.toml", out=folder / "out")
    return found


def test_counts_of_sites_are_summed(sites: dict[str, AuditResult]) -> None:
    joined = merge(sites)
    for i, model in enumerate(joined.models):
        parts = [one.models[i] for one in sites.values()]
        assert model.clean.n == sum(part.clean.n for part in parts) == 150
        hits = sum(round(part.clean.accuracy.value * part.clean.n) for part in parts)
        assert model.clean.accuracy.value == pytest.approx(hits / 150)
        assert model.clean.confusion == [
            [a + b for a, b in zip(*rows, strict=True)]
            for rows in zip(*(part.clean.confusion for part in parts), strict=True)
        ]
        attack = model.robust.pgd["2/255"]
        assert attack.robust_accuracy.n == 28
        assert set(attack.outcomes) == {
            f"{name}/{row}" for name, one in sites.items() for row in one.models[i].robust.pgd["2/255"].outcomes
        }
        assert model.robust.distances[0].n == 12
        assert model.robust.corruptions.n == 20
        assert model.index is None
    assert joined.classes == sites["north"].classes
    assert joined.data["audited"] == 150


def test_calibration_and_scores_are_those_of_all_images(sites: dict[str, AuditResult]) -> None:
    joined = merge(sites).models[0].clean
    gaps = sum(abs(one.confidence - one.accuracy.value) * one.accuracy.n for one in joined.confidence_bins)
    assert joined.ece == pytest.approx(gaps / 150)
    for i, name in enumerate(merge(sites).classes):
        assert joined.recall[name] == pytest.approx(joined.confusion[i][i] / sum(joined.confusion[i]))


def test_intervals_know_the_sites(sites: dict[str, AuditResult]) -> None:
    joined = merge(sites)
    # The shortcut needs the marker, which is where its class is at one site and anywhere at the other.
    row = next(one for one in joined.sites.numbers if (one.model, one.metric) == ("shortcut", "clean.accuracy"))
    assert row.p_value < 0.01
    assert row.i2 > 0.8
    accuracy = joined.models[1].clean.accuracy
    assert accuracy.low <= row.across.low
    assert accuracy.high >= row.across.high
    assert {one.metric for one in joined.sites.numbers} == {"clean.accuracy", "robust.pgd.2/255", "robust.corruptions"}
    assert all(-1 <= one.across.low <= one.across.high <= 1 for one in joined.sites.numbers)
    pairs = [one for one in joined.sites.numbers if one.model == "plain \N{MINUS SIGN} shortcut"]
    assert len(pairs) == len(joined.differences) == 3


def test_what_is_shared_holds_no_image_and_is_joined_alike(sites: dict[str, AuditResult], tmp_path: Path) -> None:
    shared = {name: minimal(one) for name, one in sites.items()}
    for one in shared.values():
        text = one.model_dump_json()
        assert "images/" not in text
        assert "shipped" not in text
        assert "test-0" not in text
    whole, joined = merge(sites), merge(shared)
    assert joined.sites.numbers == whole.sites.numbers
    assert joined.models[0].clean == whole.models[0].clean.model_copy(update={"misclassified": None})
    assert all(image.startswith(("north/", "south/")) for image in whole.models[0].clean.misclassified)
    assert joined.models[0].robust.pgd["2/255"].outcomes == {}
    assert [note.paths for note in joined.models[0].not_computed] == [["robust.distances.Linf"]]
    (tmp_path / "results.json").write_text(shared["north"].model_dump_json())
    render_report(tmp_path / "results.json")


def test_what_does_not_match_is_refused_with_the_reason(sites: dict[str, AuditResult]) -> None:
    north, south = sites.values()

    def refused(**changes: object) -> str:
        with pytest.raises(ResultsError) as caught:
            merge({"north": north, "south": south.model_copy(update=changes, deep=True)})
        return str(caught.value)

    other = [south.models[0].model_copy(update={"weights_sha256": "0" * 64}), south.models[1]]
    assert "'plain' has other weights" in refused(models=other)
    assert "the models are plain, shortcut and plain" in refused(models=south.models[:1])
    assert "the classes are" in refused(classes=[*south.classes[::-1]])
    assert "another generator" in refused(generator_sha256="0" * 64)
    steps = {**south.config, "robustness": {**south.config["robustness"], "steps": 7}}
    assert "robustness.steps is 2 and 7" in refused(config=steps)
    assert "are of the same images" in refused(data=north.data)
    weighed = [
        one.model_copy(update={"generator_sha256": "0" * 64, "config": {**one.config, "ranking": ranking}}, deep=True)
        for one, ranking in ((north, {"response": 8.0, "bootstrap": 100}), (south, {"response": 1.0, "bootstrap": 200}))
    ]
    with pytest.raises(ResultsError, match=r"ranking.response is 8.0 and 1.0"):  # bootstrap may differ
        merge(dict(zip(("north", "south"), weighed, strict=True)))
    with pytest.raises(ResultsError, match="two results files"):
        merge({"north": north})


def test_a_number_that_one_site_lacks_is_told(sites: dict[str, AuditResult]) -> None:
    north, south = (one.model_copy(deep=True) for one in sites.values())
    south.models[0].robust.pgd = {}
    joined = merge({"north": north, "south": south})
    assert joined.models[0].robust.pgd == {}
    assert joined.models[0].not_computed[0].why == "not measured at south"


def test_the_report_shows_each_site(sites: dict[str, AuditResult], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(merge(sites).model_dump_json())
    html = render_report(tmp_path / "results.json").read_text(encoding="utf-8")
    for words in ('id="sites"', "north<br>", "south<br>", "A site like these", "150 images", "2 sites"):
        assert words in html


def test_a_gate_checks_joined_numbers_and_says_why_there_is_no_index(sites: dict[str, AuditResult]) -> None:
    policy = Policy(rule=(Rule(metric="clean.accuracy", min=0.1, models=("plain",)), Rule(metric="index", min=10)))
    accuracy, *indices = evaluate_gate(merge(sites), policy).checks
    assert accuracy.status == "pass"
    assert {one.status for one in indices} == {"not measured"}
    assert all("is not joined over sites" in one.sentence for one in indices)


def test_joined_audits_are_compared_where_their_sites_and_images_are_the_same(sites: dict[str, AuditResult]) -> None:
    policy = Policy(rule=(Rule(metric="clean.accuracy", max_drop=0.01, models=("plain",)),))
    joined = merge(sites)

    def check(before: AuditResult) -> tuple[str, str]:
        (found,) = evaluate_gate(joined, policy, before).checks
        return found.status, found.sentence

    assert check(merge(sites))[0] == "pass"
    renamed = merge({"north": sites["north"], "west": sites["south"]})
    assert "of the sites north, west there and of the sites north, south here" in check(renamed)[1]
    assert "of one place there and of the sites north, south here" in check(sites["north"])[1]
    other = sites["south"].model_copy(update={"data": sites["south"].data | {"audited_sha256": "0" * 64}})
    assert "it was measured on other images" in check(merge({"north": sites["north"], "south": other}))[1]
    silent = joined.model_copy(update={"data": {k: v for k, v in joined.data.items() if k != "audited_sha256"}})
    assert "the sites do not say which images" in check(silent)[1]


def test_a_change_of_joined_numbers_knows_the_sites(sites: dict[str, AuditResult]) -> None:
    joined = merge(sites)
    plain, shortcut = joined.models
    across = next(one for one in joined.differences if one.metric == "clean.accuracy").difference
    found = between("clean.accuracy", plain, shortcut, joined, joined)
    assert (found.value, found.low, found.high) == (across.value, across.low, across.high)
    apart = between("clean.accuracy", plain, shortcut, joined, merge(sites))  # two audits: as if of other images
    assert apart.high - apart.low >= plain.clean.accuracy.high - plain.clean.accuracy.low


def test_the_baseline_stays_one(sites: dict[str, AuditResult]) -> None:
    roles = {
        name: one.model_copy(
            update={"models": [one.models[0].model_copy(update={"role": "baseline"}), *one.models[1:]]}
        )
        for name, one in sites.items()
    }
    joined = merge({name: minimal(one) for name, one in roles.items()})
    assert [model.role for model in joined.models] == ["baseline", None]
    policy = Policy(rule=(Rule(metric="clean.accuracy", max_drop=0.01),))
    (check,) = evaluate_gate(joined, policy).checks
    assert (check.model, check.status) == ("shortcut", "fail")
    with pytest.raises(ResultsError, match="'plain' is the baseline in one of them only"):
        merge({"north": roles["north"], "south": sites["south"]})


def test_joined_audits_are_exported_with_the_numbers_of_every_site(sites: dict[str, AuditResult]) -> None:
    pytest.importorskip("pandas", reason="pandas (extra 'export') is not installed")
    joined = merge(sites)
    assert "2 sites, which audited images of their own: north (60 images), south (90 images)" in model_card(
        joined, "plain"
    )
    table = joined.to_pandas()["sites"]
    rows = table[(table["model"] == "plain") & (table["metric"] == "clean.accuracy")]
    assert rows["site"].tolist() == ["north", "south"]
    assert rows["number"].tolist() == [one.models[0].clean.accuracy.value for one in sites.values()]
    assert rows["number.n"].tolist() == [60, 90]
    assert sites["north"].to_pandas()["sites"].empty


def test_joined_audits_stand_beside_others(sites: dict[str, AuditResult]) -> None:
    page = series_page([Listed("all", merge(sites)), Listed("north", sites["north"])], between)
    assert "2 sites" in page
    assert "it is of the sites north, south there and of one place here" in page
    assert "no number may be compared" in page


def test_sites_are_called_by_their_folders() -> None:
    assert folder_names([Path("a/results.json"), Path("b/results.json")]) == ["a", "b"]
    assert folder_names([Path("x/out/results.json"), Path("y/out/results.json")]) == ["x", "y"]
    assert [name.split("/")[-1] for name in folder_names([Path("a/one.json"), Path("a/two.json")])] == ["one", "two"]
