"""`run` and `demo`: audit, print the ranking and say where the report is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from audit.cli.arguments import (
    CacheOption,
    CacheSize,
    ConfigFile,
    Out,
    Quick,
    Standard,
    Thorough,
    cache_folder,
    chosen_effort,
    size_in_bytes,
)
from audit.runtime.progress import choose_style
from audit.runtime.terminal import plain, say, show

if TYPE_CHECKING:
    from audit.config import Effort
    from audit.results import Attack, AuditResult, ModelResult
    from audit.storage.cache import Store

ProgressOption = Annotated[
    Literal["none", "plain", "rich"] | None,
    typer.Option("--progress", help="nothing, lines, or bars; default: bars on a terminal, lines elsewhere"),
]
LogJson = Annotated[bool, typer.Option("--log-json", help="progress as a JSON object a line, on standard error")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace the results of another configuration that lie in the output folder")
]

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="run TorchScript and torch.export files whatever they do; they can do whatever you can"
    ),
]

Share = Annotated[
    Literal["minimal"] | None,
    typer.Option("--share", help="write, beside the results, what of them may leave a site, as the command share does"),
]


def _audit(
    config: Path,
    out: Path,
    cache: "Store | None",
    *,
    effort: "Effort | None" = None,
    baseline: str | None = None,
    overwrite: bool = False,
    allow_code: bool = False,
    share: Literal["minimal"] | None = None,
) -> None:
    from audit.config import load_config

    if load_config(config, effort).workers not in ("auto", 1):
        from audit.runtime.processes import start_ahead

        start_ahead()  # they load beside this process, which takes seconds to do so itself
    from audit.pipeline.runner import run_audit
    from audit.pipeline.writing import ReportError
    from audit.storage.output import MINIMAL_FILE

    try:
        result = run_audit(
            config,
            out,
            cache,
            effort=effort,
            baseline=baseline,
            overwrite=overwrite,
            allow_code=allow_code,
            share=share,
        )
    except ReportError as error:
        _show_result(error.result)
        raise
    _show_result(result)
    say(f"Report:  {out / 'report.html'}\nResults: {out / 'results.json'}")
    if share is not None:
        say(f"To share: {out / MINIMAL_FILE}")
    for model in result.models:
        if model.failed is not None:
            say(f"spruce-audit: model '{model.name}' failed in {model.failed.stage}: {model.failed.why}", err=True)
    if not result.complete:
        raise typer.Exit(2)


def _show_result(result: "AuditResult") -> None:
    from audit.report.provenance import input_line
    from audit.report.robustness import strongest_columns

    attacks = strongest_columns(result.models)
    table = Table(title=plain(result.name))
    ranked = any(model.index is not None or model.rank is not None for model in result.models)
    leading = ("rank", "model", "index", "95 %\ninterval") if ranked else ("model",)
    # Lines are broken here and nowhere else: a narrow terminal would cut a doubt off.
    for heading in (*leading, "clean", *(f"{a.title}\n{a.radius}" for a in attacks)):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for model in sorted(result.models, key=lambda m: (m.rank is None, m.rank or 0, -(m.index or 0))):
        name = plain(model.name + _state(model))
        rank = "-" if model.rank is None else str(model.rank)
        index = "-" if model.index is None else f"{model.index:.1f}"
        interval = "-" if model.index_interval is None else "{:.1f} to {:.1f}".format(*model.index_interval)
        table.add_row(
            *((rank, name, index, interval) if ranked else (name,)),
            _percent(model.clean.accuracy.value),
            *(_robust(attack.attack(model)) for attack in attacks),
        )
    show(table, whole=True)
    for line in filter(None, map(input_line, result.models)):
        say(line)
    for notice in result.notices:
        say(f"Note on {notice.subject}: {notice.text}")


def _state(model: "ModelResult") -> str:
    if model.failed is not None:
        return "\n(failed)"
    if model.unreliable:
        return "\n(unreliable)"
    return "\n(unpaired)" if model.unpaired else f"\n({model.role})" if model.role is not None else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _robust(attack: "Attack | None") -> str:
    if attack is None:
        return "-"
    doubt = "\n(untrusted)" if attack.untrusted else "\n(unchecked)" if attack.unchecked else ""
    return _percent(attack.robust_accuracy.value) + doubt


def run(
    config: ConfigFile,
    *,
    out: Out = Path("report"),
    cache: CacheOption = None,
    cache_size: CacheSize = "20GB",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="compute everything anew and keep nothing")] = False,
    quick: Quick = False,
    standard: Standard = False,
    thorough: Thorough = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="CHECKPOINT", help="audit these older weights too, for a gate to compare with"
        ),
    ] = None,
    overwrite: Overwrite = False,
    allow_code: AllowCode = False,
    share: Share = None,
    progress: ProgressOption = None,
    log_json: LogJson = False,
) -> None:
    """Audit the classifiers that CONFIG.toml names; writes results.json, the images and report.html."""
    from audit.storage.cache import Store

    choose_style("json" if log_json else progress)
    effort = chosen_effort(quick, standard, thorough)
    store = None if no_cache else Store(cache_folder(cache), size_in_bytes(cache_size))
    _audit(
        config, out, store, effort=effort, baseline=baseline, overwrite=overwrite, allow_code=allow_code, share=share
    )


def demo(
    out: Out = Path("spruce-audit-demo"),
    overwrite: Overwrite = False,
    progress: ProgressOption = None,
    log_json: LogJson = False,
) -> None:
    """Audit the four shipped classifiers on the built-in phantom: offline, a few minutes on two cores."""
    from audit.data.demo import demo_config

    choose_style("json" if log_json else progress)
    _audit(demo_config(), out, None, overwrite=overwrite)
