"""`gate`: check results against a policy."""

from pathlib import Path
from typing import Annotated

import typer

from audit.runtime.terminal import say


def gate(
    results: Annotated[Path, typer.Argument(metavar="[RESULTS.json]")] = Path("report/results.json"),
    policy: Annotated[Path, typer.Option("--policy", help="TOML file of rules; `init` writes one")] = Path("gate.toml"),
    baseline: Annotated[Path | None, typer.Option("--baseline", help="earlier results to compare with")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="write JUnit XML to this file")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="write the Markdown summary to this file")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON (`spruce-audit schema gate`), no Markdown")
    ] = False,
) -> None:
    """Check results against a policy: exit status 0 passed, 1 failed, 2 not measured or inconclusive."""
    from audit.errors import ConfigError
    from audit.gate.evaluate import evaluate_gate
    from audit.gate.policy import load_policy
    from audit.gate.render import JUNIT_MARK, MARKDOWN_MARK, to_json, to_junit_xml, to_markdown
    from audit.results import read_results
    from audit.storage.own_files import check_own, write_own

    for file, mark in ((junit, JUNIT_MARK), (markdown, MARKDOWN_MARK)):
        if file is not None:
            check_own(file, mark)
    measured = read_results(results)
    if not policy.exists():
        raise ConfigError(f"Policy '{policy}' does not exist: name one with --policy; `spruce-audit init` writes one.")
    outcome = evaluate_gate(measured, load_policy(policy), None if baseline is None else read_results(baseline))
    summary = to_markdown(outcome)
    if junit is not None:
        write_own(junit, to_junit_xml(outcome))
    if markdown is not None:
        write_own(markdown, summary)
    say(to_json(outcome) if as_json else summary)
    raise typer.Exit(outcome.exit_status)
