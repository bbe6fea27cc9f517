"""The command line: parses arguments, calls the package, prints where the results are. No logic of its own.

Exit status: 0 done (gate: passed); 1 gate failed, and nothing else; 2 an error that the user can mend, an audit that is
not complete (a model failed), or a gate that could not be decided; 70 a defect of this program; 129 hung up,
130 interrupted, 143 terminated.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text
from typer import rich_utils

from audit.errors import AuditError, Terminated
from audit.runtime.progress import choose_style
from audit.runtime.terminal import finish, forgive, say, show

if TYPE_CHECKING:
    from types import FrameType

    from audit.results import Attack, AuditResult, ModelResult

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="Audit image classifiers: do they decide for the right reason?",
)  # fmt: skip
train_app = typer.Typer(no_args_is_help=True, help="Train what an audit needs: classifiers, generator, embedding.")
app.add_typer(train_app, name="train")
generator_app = typer.Typer(no_args_is_help=True, help="Look into generator files of any kind; runs no code they hold.")
app.add_typer(generator_app, name="generator")
weights_app = typer.Typer(no_args_is_help=True, help="Pretrained networks from outside: what is there, fetch, check.")
app.add_typer(weights_app, name="weights")

Out = Annotated[Path, typer.Option("--out", help="folder for the outputs")]
DEFECT = 70
"""Exit status of a defect of this program (EX_SOFTWARE of sysexits.h)."""
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="configuration file")]


def _note_spelling(value: str) -> str:
    from audit.config import note_on_spelling

    if (note := note_on_spelling(value)) is not None:
        say(f"Note: {note}", err=True)
    return value


GeneratorFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="safetensors, a .pt of torch (rosinality's too), a StyleGAN2-ADA .pkl, or shipped:NAME",
        callback=_note_spelling,
    ),
]

ProgressOption = Annotated[
    Literal["none", "plain", "rich"] | None,
    typer.Option("--progress", help="nothing, lines, or bars; default: bars on a terminal, lines elsewhere"),
]
LogJson = Annotated[bool, typer.Option("--log-json", help="progress as a JSON object a line, on standard error")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="folder that keeps inversions and counterfactuals between runs")
]


def _print_version(asked: bool) -> None:
    if asked:
        from audit.storage.version import package_version

        say(f"spruce-audit {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Audit image classifiers: do they decide for the right reason?"""
    forgive()
    choose_style(None)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spruce-audit"


def _audit(config: Path, out: Path, cache: Path | None) -> None:
    from audit.pipeline.runner import run_audit
    from audit.pipeline.writing import ReportError

    try:
        result = run_audit(config, out, cache)
    except ReportError as error:
        _show_result(error.result)
        raise
    _show_result(result)
    say(f"Report:  {out / 'report.html'}\nResults: {out / 'results.json'}")
    for model in result.models:
        if model.failed is not None:
            say(f"spruce-audit: model '{model.name}' failed in {model.failed.stage}: {model.failed.why}", err=True)
    if not result.complete:
        raise typer.Exit(2)


def _show_result(result: "AuditResult") -> None:
    from audit.report.provenance import input_line
    from audit.report.robustness import strongest_columns

    attacks = strongest_columns(result.models)
    table = Table(title=Text(result.name))
    # Lines are broken here and nowhere else: a narrow terminal would cut a doubt off.
    for heading in ("rank", "model", "index", "95 %\ninterval", "clean", *(f"{a.title}\n{a.radius}" for a in attacks)):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for model in sorted(result.models, key=lambda m: (m.rank is None, m.rank or 0, -(m.index or 0))):
        interval = "-" if model.index_interval is None else "{:.1f} to {:.1f}".format(*model.index_interval)
        table.add_row(
            "-" if model.rank is None else str(model.rank),
            Text(model.name + _state(model)),
            "-" if model.index is None else f"{model.index:.1f}",
            interval,
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
    return "\n(unreliable)" if model.unreliable else "\n(unpaired)" if model.unpaired else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _robust(attack: "Attack | None") -> str:
    if attack is None:
        return "-"
    doubt = "\n(untrusted)" if attack.untrusted else "\n(unchecked)" if attack.unchecked else ""
    return _percent(attack.robust_accuracy.value) + doubt


@app.command()
def run(
    config: ConfigFile,
    out: Out = Path("reports/runs/audit"),
    cache: CacheOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="compute everything anew and keep nothing")] = False,
    progress: ProgressOption = None,
    log_json: LogJson = False,
) -> None:
    """Audit the classifiers that CONFIG.toml names; writes results.json, the images and report.html."""
    choose_style("json" if log_json else progress)
    _audit(config, out, None if no_cache else cache or _default_cache())


@app.command()
def demo(out: Out = Path("spruce-audit-demo"), progress: ProgressOption = None, log_json: LogJson = False) -> None:
    """Audit the four shipped classifiers on the built-in phantom: offline, a few minutes on two cores."""
    from audit.data.demo import demo_config

    choose_style("json" if log_json else progress)
    _audit(demo_config(), out, None)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    out: Annotated[Path | None, typer.Option("--out", help="file to write; default: report.html beside it")] = None,
) -> None:
    """Render the HTML report of earlier results again."""
    from audit.report.build import render_report
    from audit.storage.output import record

    written = render_report(results, out)
    record(written)
    say(written)


@app.command()
def gate(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    policy: Annotated[Path, typer.Option("--policy", help="TOML file of rules")],
    baseline: Annotated[Path | None, typer.Option("--baseline", help="earlier results to compare with")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="write JUnit XML to this file")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="write the Markdown summary to this file")] = None,
) -> None:
    """Check results against a policy: exit status 0 passed, 1 failed, 2 incomplete or not measured."""
    from audit.gate.evaluate import JUNIT_MARK, MARKDOWN_MARK, evaluate_gate, to_junit_xml, to_markdown
    from audit.gate.policy import load_policy
    from audit.results import read_results
    from audit.storage.output import check_own, write_own

    for file, mark in ((junit, JUNIT_MARK), (markdown, MARKDOWN_MARK)):
        if file is not None:
            check_own(file, mark)
    outcome = evaluate_gate(
        read_results(results), load_policy(policy), None if baseline is None else read_results(baseline)
    )
    summary = to_markdown(outcome)
    if junit is not None:
        write_own(junit, to_junit_xml(outcome))
    if markdown is not None:
        write_own(markdown, summary)
    say(summary)
    raise typer.Exit(outcome.exit_status)


@app.command()
def schema(what: Annotated[Literal["config", "results"], typer.Argument(help="whose schema to print")]) -> None:
    """Print the JSON Schema of a configuration (for editors) or of results.json."""
    import json

    from audit.config import AuditConfig
    from audit.results import json_schema

    say(
        json.dumps(AuditConfig.model_json_schema() if what == "config" else json_schema(), indent=2, ensure_ascii=False)
    )


def _claim(out: Path, name: str) -> None:
    from audit.storage.output import claim

    checkpoint = f"{name}.checkpoint.pt"
    claim(out, (f"{name}.safetensors", f"{name}.json", checkpoint), checkpoint)


def _claim_generator(out: Path, kind: str, start: str | None) -> None:
    from audit.storage.output import claim

    names = [f"{kind}.safetensors", f"{kind}.json", "history.jsonl", "checkpoint.pt"]
    if kind == "generator":
        names += ["samples.png", "samples"]
    claim(out, names, "checkpoint.pt", (start,))


@train_app.command("classifier")
def train_classifier_command(config: ConfigFile, out: Out = Path("runs/classifier")) -> None:
    """Train a classifier: plain, pgd-at, trades, mart, awp-trades, vat or ald; presets spruce-plain, spruce-trades.

    Writes safetensors and a card. A killed run goes on where it was. For several GPUs or processes:
    torchrun --nproc-per-node 2 -m audit.cli train classifier CONFIG.toml
    """
    from audit.runtime.distributed import is_first
    from audit.training.classifier.config import load_classifier_train_config
    from audit.training.classifier.train import train_classifier

    settings = load_classifier_train_config(config)
    _claim(out, settings.name)
    weights = train_classifier(settings, out)
    if is_first():
        say(weights)


@train_app.command("factors")
def train_factors_command(config: ConfigFile, out: Out = Path("runs/factors")) -> None:
    """Train the phantom's embedding: a network that regresses its causal factors."""
    from audit.training.classifier.config import load_factors_train_config
    from audit.training.embedding.factors import train_factors

    settings = load_factors_train_config(config)
    _claim(out, settings.name)
    say(train_factors(settings, out))


@train_app.command("generator")
def train_generator_command(config: ConfigFile, out: Out = Path("runs/generator")) -> None:
    """Train a StyleGAN2-ADA generator; a killed run goes on where it was.

    For several GPUs or processes: torchrun --nproc-per-node 2 -m audit.cli train generator CONFIG.toml
    """
    from audit.runtime.distributed import is_first
    from audit.training.generator.config import load_generator_train_config
    from audit.training.generator.train import run_generator_training

    settings = load_generator_train_config(config)
    _claim_generator(out, "generator", settings.start_from)
    weights = run_generator_training(settings, out)
    if is_first():
        say(weights)


@train_app.command("mapping")
def train_mapping_command(config: ConfigFile, out: Out = Path("runs/mapping")) -> None:
    """Fit the mapping network of a trained generator to mean and covariance of real images' features."""
    from audit.training.generator.mapping import run_mapping_fit
    from audit.training.generator.mapping_config import load_fit_mapping_config

    settings = load_fit_mapping_config(config)
    _claim_generator(out, "generator", settings.generator)
    say(run_mapping_fit(settings, out))


@train_app.command("embedding")
def train_embedding_command(config: ConfigFile, out: Out = Path("runs/embedding")) -> None:
    """Train a domain embedding without labels, which metrics.embedding can name, with a card.

    A killed run goes on where it was; torchrun as for classifiers.
    """
    from audit.runtime.distributed import is_first
    from audit.training.embedding.config import load_embedding_train_config
    from audit.training.embedding.train import train_embedding

    settings = load_embedding_train_config(config)
    _claim(out, settings.name)
    weights = train_embedding(settings, out)
    if is_first():
        say(weights)


@train_app.command("encoder")
def train_encoder_command(config: ConfigFile, out: Out = Path("runs/encoder")) -> None:
    """Train the encoder that brings images into a generator's latent space."""
    from audit.training.encoder.config import load_encoder_train_config, run_encoder_training

    settings = load_encoder_train_config(config)
    _claim_generator(out, "encoder", settings.generator)
    say(run_encoder_training(settings, out))


@generator_app.command("inspect")
def inspect_generator_command(
    file: GeneratorFile,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what FILE is: format, architecture, parameters, hash, metadata, and the globals that a pickle asks for."""
    import json

    from audit.generator.commands import as_lines, inspect_generator

    found = inspect_generator(file)
    say(json.dumps(found, indent=2) if as_json else "\n".join(as_lines(found)))
    if "refused" in found:
        raise typer.Exit(2)


@generator_app.command("convert")
def convert_generator_command(
    file: GeneratorFile, out: Annotated[Path, typer.Option("--out", help="safetensors file to write")]
) -> None:
    """Write the generator in FILE in our format, with its discriminator where it has one."""
    from audit.generator.commands import convert_generator
    from audit.generator.files.load import load_generator

    say(convert_generator(file, out))
    for note in load_generator(out).notes:
        say(f"Note: {note}", err=True)


@generator_app.command("sample")
def sample_generator_command(
    file: GeneratorFile,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write")],
    n: Annotated[int, typer.Option("--n", help="number of images")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    truncation: Annotated[
        float, typer.Option("--truncation", min=0, max=2, help="0 is the mean image, 1 the whole variety")
    ] = 0.7,
    label: Annotated[int | None, typer.Option("--class", help="class to draw; default: all in turn")] = None,
) -> None:
    """Draw a grid of images; the same seed gives the same images."""
    from audit.generator.commands import sample_generator

    say(sample_generator(file, out, n, seed, truncation, label))


@weights_app.command("list")
def list_weights_command() -> None:
    """Show the networks that metrics can use: purpose, licence, size of a download, and where they are."""
    from audit.storage.pretrained import NETWORKS, find

    table = Table()
    for heading in ("name", "use", "licence", "MB", "there"):
        table.add_column(heading, justify="right" if heading == "MB" else "left", no_wrap=heading == "name")
    places = []
    for network in NETWORKS.values():
        there = find(network.name)
        forms = network.forms if there is None else (there[0],)
        sizes = " or ".join(f"{sum(file.size for file in form.files) / 1e6:.0f}" for form in forms)
        there_or_not = "absent" if there is None else "present"
        table.add_row(*(Text(cell) for cell in (network.name, network.use, network.licence, sizes, there_or_not)))
        places += [f"{network.name}: {path}" for path in (there[1] if there else ())]
    show(table)
    # Below the table, where a long path stays in one piece.
    say("\n".join(places) or "None is there; `spruce-audit weights pull` fetches them.")


@weights_app.command("pull")
def pull_weights_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
    every: Annotated[bool, typer.Option("--all", help="every network of the list")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="take files or archives from this folder; nothing is downloaded")
    ] = None,
) -> None:
    """Fetch networks, check their SHA-256 and place them; an interrupted download goes on where it was."""
    from audit.storage.pretrained import NETWORKS, pull

    if bool(names) == every:
        raise typer.BadParameter("give the names of networks, or --all")
    for name, paths in pull(tuple(NETWORKS) if every else tuple(names or ()), source).items():
        say(f"{name}: {', '.join(map(str, paths))}")


@weights_app.command("verify")
def verify_weights_command(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None) -> None:
    """Hash the files again; with NAME they have to be there. Exit status 2 if one is not the registered one."""
    from audit.storage.pretrained import verify

    for name, paths in verify(names or ()).items():
        say(f"{name}: {'absent' if paths is None else 'sound, ' + ', '.join(map(str, paths))}")


def _end(number: int, _: "FrameType | None") -> None:
    """Unwind like an interrupted run, so that what is half-written vanishes; a second signal does not cut that off."""
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated(128 + number)


def main() -> None:
    """Run the command line; an error that the user can mend is one sentence and exit status 2."""
    forgive()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` asks for that
            signal.signal(number, _end)
    status = _status()
    finish()
    sys.exit(status)


def _status() -> int:
    """Run the command; only a gate's own verdict ends with 1."""
    try:
        status = app(standalone_mode=False)
    except AuditError as error:
        return _mend(str(error))
    except OSError as error:
        return _mend(f"'{error.filename or 'a file'}' cannot be used: {error.strerror or error}.")
    except KeyboardInterrupt:
        status = 130
    except Terminated as stop:
        return int(str(stop.code))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a defect is told from a failed gate by its exit status
        return _unexpected(error)
    if status == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is undone: a second Ctrl-C shall not change how it ends
        say("spruce-audit: interrupted; nothing half-written was left.", err=True)
    return status if isinstance(status, int) else 0


def _unexpected(error: BaseException) -> int:
    if isinstance(error.__context__, BrokenPipeError):  # the reader of a help page went away
        return 0
    if hasattr(error, "format_message") and isinstance(error, Exception):  # wrong usage of the command line
        rich_utils.rich_format_error(error)  # type: ignore[arg-type]
        return 2
    if not isinstance(error, ImportError):  # torch itself may be what cannot be imported
        from audit.runtime.memory import out_of_memory

        if out_of_memory(error):
            return _mend("There is not enough memory: lower the batch size, or max_memory.")
    say("".join(traceback.format_exception(error)).rstrip(), err=True)
    say("spruce-audit: this is a defect of the program; please report the lines above.", err=True)
    return DEFECT


def _mend(sentence: str) -> int:
    say(f"spruce-audit: {sentence}", err=True)
    return 2


if __name__ == "__main__":
    main()
