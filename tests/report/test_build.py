"""The page: self-contained, complete for each shape of an audit, escaped, accessible."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import audit
from audit.errors import ResultsError
from audit.report.build import render_report
from audit.results import Answered, AuditResult, ComparedMethod, Failure, Interval, NotComputed, Robust

VOID = {"meta", "link", "img", "br", "input"}
SHAPES = {
    "four": {},
    "one": {"models": ["plain"], "n_queries": 2},
    "robust": {"n_queries": 0},
    "twelve": {"models": ["trades", "plain", *(f"candidate-{i}" for i in range(10))], "n_queries": 9, "size": 16},
}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed where it was opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


TEN = "ten"
"""Ten classes, no generator."""


@pytest.fixture(scope="module")
def pages(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, options in SHAPES.items():
        root = tmp_path_factory.mktemp(name)
        results = support_results.example_audit(root, **options)
        made[name] = render_report(support_results.write_audit(root, results))
    root = tmp_path_factory.mktemp(TEN)
    made[TEN] = render_report(support_results.write_audit(root, support_results.ten_class_audit(root)))
    return made


def shown_text(support_results: ModuleType, root: Path, results: AuditResult) -> str:
    return Page(render_report(support_results.write_audit(root, results)).read_text(encoding="utf-8")).text


@pytest.mark.parametrize("shape", [*SHAPES, TEN])
def test_page_needs_nothing_else(pages: dict[str, Path], shape: str):
    html = pages[shape].read_text(encoding="utf-8")
    page = Page(html)
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), attributes
    assert not re.search(r"@import|url\((?!data:)", html)
    # One script where there is a gallery, and no other may run: the page names it by its hash.
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(page.all("script")) == len(scripts) == (0 if shape in ("robust", TEN) else 1)
    assert "default-src 'none'" in html
    for script in scripts:
        assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in html


@pytest.mark.parametrize("shape", [*SHAPES, TEN])
def test_page_is_accessible(pages: dict[str, Path], shape: str):
    page = Page(pages[shape].read_text(encoding="utf-8"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") for cell in page.all("th"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for _, a in page.tags if (a.get("href") or "").startswith("#")]
    assert {t.removeprefix("#") for t in targets if t} <= set(ids)
    assert {label["for"] for label in page.all("label")} == {field["id"] for field in page.all("input")}
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(a.get("tabindex") == "0" for _, a in page.tags if a.get("class") == "scroll")


def test_contents_of_a_full_audit(pages: dict[str, Path]):
    shown = Page(pages["four"].read_text(encoding="utf-8")).text.replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "shortcut is last: 71 % of its edit lies on the marker",
        "What does each model decide by?",
        "Its edits keep to the region that carries the class: 62 % of the edit lies there, on 8.0 % of the image.",
        "counterfactuals by an unnamed method",
        "61 [56, 66]",
        "Who is surely above whom?",
        "healthy 95 %",
        "not flipped",
        "less sure than asked",
        "marker 71 %",
        "one scale for all models",
        "2 more query images",
        "Recall",
        "phantom-factors c0ffeec0",
        "Rejects adversarial examples",
        "The robust accuracy of plain under PGD is untrusted. Square fools 12.5 %",
        "What each attack of the ensemble left standing",
        "0.0210 [0.0180, 0.0260]",
        "trades \N{MINUS SIGN} plain",
        "+23.0 [+20.0, +26.0]",
        "failed 0.12 > 0.05",
        "jpeg compression",
        "The same classes from another source",
        "Which pixels does an attack need?",
        "canonical FID",
        "the Inception weights are not on this machine",
        "How to read the index",
        "marker_correlation = 0.0",
        "c0ffee" * 10,
    ):
        assert words in shown, words


def test_an_untrusted_number_is_marked_wherever_it_is_shown(pages: dict[str, Path]):
    page = Page(pages["four"].read_text(encoding="utf-8"))
    marks = [a for a in page.all("a") if a.get("class") == "flag"]
    assert len(marks) == 3  # in the ranking at the one radius without ensemble, in the table of accuracies at both
    assert all(a["href"] == "#trust" and "Square fools" in (a["title"] or "") for a in marks)


def test_every_model_has_its_counterfactual_and_edit_map_on_every_query(pages: dict[str, Path]):
    alts = [image["alt"] or "" for image in Page(pages["four"].read_text(encoding="utf-8")).all("img")]
    for model in ("trades", "trades-small", "plain", "shortcut"):
        assert sum(alt.startswith(f"Counterfactual of {model} ") for alt in alts) == 8
        assert sum(alt.startswith(f"Edit map of {model} ") for alt in alts) == 8
    assert sum(alt.startswith("Query image") for alt in alts) == sum(alt.startswith("Inversion") for alt in alts) == 8


def test_every_counterfactual_has_its_semifactual_on_demand(pages: dict[str, Path]):
    html = pages["four"].read_text()
    alts = [alt for alt in re.findall(r'alt="([^"]*)"', html) if alt.startswith("Semifactual of ")]
    assert len(alts) == len([alt for alt in re.findall(r'alt="([^"]*)"', html) if alt.startswith("Counterfactual of ")])
    assert html.count("<summary>semifactual and trace</summary>") == len(alts) > 0
    assert "the last opacity before it flips at step 22" in html


def test_a_ruin_is_told_and_not_shown(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain"], n_queries=2, size=16)
    results.models[0].queries[1].ruined = True
    shown = shown_text(support_results, tmp_path, results)
    assert shown.count("no edit within the generator's range") == 1
    alts = re.findall(r'alt="([^"]*)"', (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert sum(alt.startswith("Counterfactual of plain ") for alt in alts) == 1


def test_robustness_only_says_what_is_missing(pages: dict[str, Path]):
    shown = Page(pages["robust"].read_text(encoding="utf-8")).text
    assert "Index of 100" not in shown  # no column of dashes
    assert "the configuration names no generator" in shown
    assert 'id="ranking"' not in pages["robust"].read_text(encoding="utf-8")  # the table of accuracies comes first
    assert "side by side" not in shown
    assert "How to read the index" not in shown


def test_robustness_only_audit_of_ten_classes(pages: dict[str, Path]):
    html = pages[TEN].read_text(encoding="utf-8")
    page = Page(html)
    shown = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "Three of four models fall from 92\N{EN DASH}94 % to 0 % under the ensemble at eps 8/255 (500 images); ",
        "wong2020fast keeps the highest accuracy: 43.4 % [39, 48] (clean 83.3 %)",
        "Clean accuracy1000 images",
        "There is no index without counterfactuals: the configuration names no generator",
        "Is it as sure as it is right?",
        "93 % to 100 % 97.3 % 94.3 %",
        "resnet20, accuracy in % by severity",
        "Recall: share of each class's images that is classified rightly",
        "under Ensemble at eps 8/255",
        "airplane → cat14 of 100 (14.0 %)",
        "Whole confusion matrices",
        "Ensemble 2/255500 images",
        "airplane → cat PGD 2/255, shown \N{MULTIPLICATION SIGN}64",
        "passed 0.00 ≤ 0.09 64 images, eps 2/255",
        "passed 0.00 ≤ 0.09 64 images, eps 0.5",
        "failed 0.12 > 0.09 500 images, eps 8/255",
        "The limit on a share of images (0.09 is 9 %) tolerates two points",
        "severities are those of CIFAR-10-C. All rows are of the same 500 images",
        "not corrupted93.0 %",
    ):
        assert words.replace(" ", "") in shown.replace(" ", ""), words
    assert "Index" not in shown
    # The ensemble's numbers stand beside the clean ones: recalls of single classes have a table of their own.
    heads = re.findall(r"<thead>.*?</thead>", html, re.DOTALL)
    accuracy = next(head for head in heads if "Clean accuracy" in head)
    assert accuracy.count("<th ") == 7
    checks = next(head for head in heads if "Check</th>" in head)
    assert checks.count("<th ") == 5
    alts = [image["alt"] or "" for image in page.all("img")]
    assert sum(alt.startswith("Attacked test/") for alt in alts) == 16
    assert sum(alt.startswith("Perturbation of test/") for alt in alts) == 16


def test_models_that_failed_or_answer_one_class_are_told(support_results: ModuleType, tmp_path: Path):
    results = support_results.ten_class_audit(tmp_path)
    failed, constant, *_ = results.models
    failed.failed = Failure(stage="robust accuracy", why="its forward asserts.")
    failed.robust, failed.clean.accuracy, failed.clean.n = Robust(), Interval(value=None), 0
    failed.clean.confusion, failed.clean.recall = None, {}
    constant.clean.confusion = [[100] + [0] * 9 for _ in range(10)]
    shown = shown_text(support_results, tmp_path, results)
    assert "resnet20 could not be audited to the end. Robust accuracy: its forward asserts." in shown
    assert "resnet56 answers \N{LEFT DOUBLE QUOTATION MARK}airplane" in shown
    assert "mobilenetv2_x1_4 falls from" in shown


def test_older_results_have_no_columns_of_dashes(pages: dict[str, Path]):
    html = pages["robust"].read_text(encoding="utf-8")  # neither confusions nor recall under attack
    table = next(part for part in re.findall(r"<table.*?</table>", html, re.DOTALL) if "Recall:" in part)
    assert "missing" not in table
    assert "\N{EN DASH}" not in table
    assert table.count('<th scope="col"') == 1 + 4
    assert "What is mistaken for what" not in html
    assert "What an attack adds" not in html


def test_very_many_classes_show_the_hardest(support_results: ModuleType, tmp_path: Path):
    results = support_results.ten_class_audit(tmp_path)
    results.classes = [f"class-{i:03d}" for i in range(200)]
    for model in results.models:
        model.clean.recall = {name: i / 200 for i, name in enumerate(results.classes)}
        model.clean.confusion = None
    html = render_report(support_results.write_audit(tmp_path, results)).read_text(encoding="utf-8")
    assert "The 30 classes of the lowest recall, of 200" in html
    assert 'class="pin">class-029<' in html
    assert 'class="pin">class-030<' not in html
    assert "Whole confusion matrices" not in html


def test_of_very_many_classes_a_cell_names_a_few_and_lpips_has_a_column_where_it_is_known(
    support_results: ModuleType, tmp_path: Path
):
    results = support_results.example_audit(tmp_path, ["plain", "trades"], n_queries=3, size=16)
    plain, trades = results.models
    plain.left_out, trades.left_out = {f"class-{i:03d}": i for i in range(200)}, {"class-007": 7, "class-008": 0}
    plain.counterfactuals.operating_point = {f"class-{i:03d}": 0.9 for i in range(200)}

    def table() -> str:
        html = render_report(support_results.write_audit(tmp_path, results)).read_text(encoding="utf-8")
        return next(part for part in re.findall(r"<table.*?</table>", html, re.DOTALL) if "Left out" in part)

    without = table()
    most = ["199 class-199", "198 class-198", "197 class-197"]
    assert re.findall(r">(\d+ class-\d+)<", without) == [*most, "7 class-007"]
    assert re.findall(r"and \d+ more", without) == ["and 197 more", "and 196 more"]
    assert without.count("class-000 90") == 1
    assert "LPIPS" not in without
    plain.counterfactuals.lpips = plain.counterfactuals.perceptual
    with_one = table()
    assert with_one.count(">LPIPS<") == 1
    assert with_one.count("<td") == without.count("<td") + 2


def test_missing_parts_and_weights_of_the_index_are_told(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain"], n_queries=1, size=16)
    assert "All parts weigh the same." in shown_text(support_results, tmp_path, results)
    results.models[0].components.localisation = None
    results.models[0].not_computed.append(
        NotComputed(what="localisation", why="the data has no regions", paths=["components.localisation"])
    )
    results.config["ranking"]["transfer"] = 2.0
    shown = shown_text(support_results, tmp_path, results)
    assert "without localisation" in shown
    assert "transfer 2" in shown
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'title="not computed: the data has no regions"' in html


def test_response_has_its_column_and_what_does_not_count_is_told(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain"], n_queries=1, size=16)
    assert "Response" not in shown_text(support_results, tmp_path, results)  # of an earlier version
    results = results.model_copy(
        update={
            "component_definitions": 3,
            "index_weights": {"validity": 1.0, "sparsity": 1.0, "localisation": 2.0, "response": 8.0},
        }
    )
    results.models[0].components.response, results.models[0].counterfactuals.answered = 0.875, None
    shown = shown_text(support_results, tmp_path, results)
    assert "The parts are weighted: validity 1, sparsity 1, localisation 2, response 8." in shown
    assert "Realism, transfer are shown beside them and do not count." in shown
    assert "0.88" in shown
    assert "the edits of all models, 88 % is answered to their part in the region." in shown
    assert "with a tenth more and less exposure" not in shown
    results.models[0].counterfactuals.answered = Answered(region=0.875, rest=0.025, acquisition=0.1)
    shown = shown_text(support_results, tmp_path, results.model_copy(update={"component_definitions": 4}))
    assert "88 % is answered to the edits' part in the region, 2 % to their rest and 10 % to exposure and" in shown
    assert "Counted outside is also what it answers to the unedited image with a tenth more and less exposure" in shown
    results.models[0].counterfactuals.answered = Answered(region=0.875, rest=0.125, acquisition=None)  # not asked
    shown = shown_text(support_results, tmp_path, results.model_copy(update={"component_definitions": 4}))
    assert "the edits of all models, 88 % is answered to their part in the region." in shown
    assert "with a tenth more and less exposure" not in shown
    results.models[0].components.response = None
    results.models[0].not_computed.append(
        NotComputed(what="response", why="it is alone", paths=["components.response"])
    )
    assert "without response" in shown_text(support_results, tmp_path, results)


def test_the_page_says_which_numbers_rest_on_the_network_that_steered(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain"], n_queries=1, size=16)
    assert "not independent" not in shown_text(support_results, tmp_path, results)
    results.judged_by_steering, results.realism_kernel = ["components.realism", "counterfactuals.judges"], "energy"
    shown = shown_text(support_results, tmp_path, results)
    assert shown.count("not independent of it: realism, the judge fitted on its features.") == 1
    assert "by energy distance" in shown


def test_axioms_are_told_in_edits_and_copies_are_no_judges_of_transfer(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain"], n_queries=2, size=16)
    shown = " ".join(shown_text(support_results, tmp_path, results).split())
    assert "plain-again a copy of the model, no part of transfer" in shown
    table = shown[shown.index("Are they sound") :]
    assert re.search(r"Null edit ?in edits.*There and back ?in edits.*Flips shared ?by.*plain ?0.48 ?0.40", table)
    assert f"plain-again judge {'c0' * 32}" in shown or f"plain-againjudge{'c0' * 32}" in shown
    counterfactuals = results.models[0].counterfactuals
    counterfactuals.copies, counterfactuals.nafr, counterfactuals.axioms.reversibility = [], None, None
    shown = shown_text(support_results, tmp_path, results)
    assert not any(words in shown for words in ("There and back", "Came back", "Flips shared"))
    counterfactuals.axioms = None
    assert "Are they sound" not in shown_text(support_results, tmp_path, results)


def test_the_power_of_judges_is_shown_where_it_was_recorded(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain", "trades"], n_queries=1, size=16)
    assert "Power, its weight" in " ".join(shown_text(support_results, tmp_path, results).split())
    for model in results.models:
        for judge in model.counterfactuals.judges:
            judge.power = None
    assert "Power" not in shown_text(support_results, tmp_path, results)


def test_images_of_its_own_and_mistakes_are_marked(support_results: ModuleType, tmp_path: Path) -> None:
    results = support_results.example_audit(tmp_path, ["plain", "trades"], n_queries=3, size=16)
    plain, trades = results.models
    plain.unpaired, plain.queries = True, plain.queries[:2]
    trades.queries[1].wrong, trades.queries[1].source = True, "cardiomegaly"
    shown = shown_text(support_results, tmp_path, results)
    assert shown.count("not explained on this image") == 1
    assert shown.count("was called cardiomegaly") == 1
    assert "plain unpaired" in shown
    assert "come from a bootstrap over the query images" in shown


def test_numbers_that_are_not_finite_never_show(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, n_queries=2, size=16)
    nan = float("nan")

    def spoil(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        return nan if isinstance(value, float) and key not in ("eps", "level") else value

    values = results.model_dump(mode="json")
    values = {key: value if key == "config" else spoil(value, key) for key, value in values.items()}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(values))
    html = render_report(file).read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"base64,[\w+/=]+", "", html), re.IGNORECASE)


def test_names_from_the_results_are_escaped(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, models=["plain"], n_queries=1, size=16)
    evil = '"><script>alert(1)</script>'
    text = results.model_dump_json()
    for name in ("plain", "phantom demo", "phantom-factors", "healthy", "opacity-000", "marker", "Inception"):
        # A name is a word of its own: `explained` is a field of the results.
        text = re.sub(
            rf'(?<!/)"([^"/]*)(?<![a-z]){name}(?![a-z])([^"/]*)"(?!/)',
            json.dumps(evil + name).replace("\\", r"\\"),
            text,
        )
    (tmp_path / "results.json").write_text(text)
    html = render_report(tmp_path / "results.json").read_text(encoding="utf-8")
    assert html.count("<script") == 1  # the gallery's own
    Page(html)


def test_methods_are_compared_in_a_table_a_model(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, n_queries=4, size=16)
    assert "Methods compared" not in shown_text(support_results, tmp_path, results)
    model = results.models[0]
    parts = model.components.model_copy(update={"transfer": None})
    why = NotComputed(what="transfer", why="nobody judges it", paths=["components.transfer"])
    model.methods = {
        "pixel": ComparedMethod(
            components=parts, counterfactuals=model.counterfactuals, queries=model.queries[:3], not_computed=[why]
        ),
        "broken": ComparedMethod(failed=Failure(stage="counterfactuals", why="It had no <idea>.")),
    }
    results.environment.seconds["counterfactuals by pixel"] = 8.0
    shown = shown_text(support_results, tmp_path, results)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    (table,) = re.findall(r'<table class="methods">.*?</table>', html, re.DOTALL)
    assert table.count("<img") == 2 * 2 * 3
    assert "audited" in table
    assert 'title="not computed: nobody judges it"' in table
    assert "It had no <idea>." in shown
    images = sum(one.counterfactuals.n for one in results.models)
    assert f">{8.0 / images:.2f}<" in table


def test_missing_image_leaves_nothing_half_written(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, n_queries=1, size=16)
    file = support_results.write_audit(tmp_path, results)
    (tmp_path / results.models[0].queries[0].counterfactual_image).unlink()
    with pytest.raises(ResultsError, match="is not in"):
        render_report(file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "results.json"]


def test_report_goes_where_it_is_asked(support_results: ModuleType, tmp_path: Path):
    file = support_results.write_audit(tmp_path, support_results.example_audit(tmp_path, n_queries=0))
    assert render_report(file, tmp_path / "new" / "other.html") == tmp_path / "new" / "other.html"
    with pytest.raises(ResultsError, match="cannot be written"):
        render_report(file, file / "report.html")


def test_colours_have_contrast_in_light_and_dark():
    css = (Path(audit.__file__).parent / "report" / "templates" / "report.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block)) for block in re.findall(r":root \{([^}]*)\}", css)
    ]

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for theme in themes[:2]:
        for pair in ("ink paper", "muted paper", "accent paper", "warn warn-paper", "ink raised"):
            front, back = pair.split()
            light, dark = sorted((luminance(theme[front]), luminance(theme[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)
