"""From an audit in memory to its folder: results first, then pictures, then the report.

Results are stored before a picture is drawn, so that a full disk, a name that cannot be written or a fault of the
report costs no number. Whatever fails after that is said in one sentence, with the place of the results.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from audit.config import AuditConfig, container_of, is_embedding_file, is_shipped, recorded
from audit.errors import AuditError, ConfigError
from audit.pipeline.pictures import without_pictures
from audit.pipeline.sites.share import write_minimal
from audit.report.build import render_report
from audit.results import AuditResult, NotComputed
from audit.runtime.environment import Stopwatch
from audit.storage.files import atomic_write_text
from audit.storage.output import MINIMAL_FILE, REPORT_FILE, RESULTS_FILE, Output


class ReportError(AuditError):
    """Pictures or report could not be made; `result` is what was measured, and it is stored."""

    def __init__(self, result: AuditResult, sentence: str) -> None:
        super().__init__(sentence)
        self.result = result


def inputs_of(config: AuditConfig, file: Path | None, cache: Path | None) -> dict[str, Path]:
    """Return every file and folder that an audit reads or keeps its cache in, by what it is called to the user."""
    named: dict[str, str | Path | None] = {
        "the configuration": file,
        "the cache": cache,
        "the data (data.path)": None if config.data.is_phantom else config.data.path,
        "the masks (data.masks)": None if config.data.mask_arrays else config.data.masks,
        "the second source (data.shift)": config.data.shift,
        "the generator": None if config.generator is None else config.generator.path,
        "the encoder": config.inversion.encoder,
        "the embedding": config.metrics.embedding if is_embedding_file(config.metrics.embedding) else None,
        "the perceptual embedding": config.metrics.perceptual if is_embedding_file(config.metrics.perceptual) else None,
    }
    for one in (*config.classifiers, *config.judge_checkpoints):
        place, _, _ = (one.factory or "").rpartition(":")
        named[f"the checkpoint of '{one.name}'"] = one.checkpoint
        contained = container_of(one.file)
        named[f"the file of '{one.name}'"] = one.file if contained is None else contained[1]
        named[f"the factory of '{one.name}'"] = place if place.endswith(".py") else None
    return {
        what: Path(place)
        for what, place in named.items()
        if place is not None and not is_shipped(str(place)) and str(place) != "phantom"
    }


WHERE_IT_RUNS = frozenset({"device", "max_memory", "engine", "workers", "ray"})
"""Keys that say where an audit runs, not what it measures."""


def check_same_audit(out: Path, config: AuditConfig, base: Path) -> None:
    """Raise ConfigError if the folder `out` holds the results of another configuration than `config` of folder `base`.

    What lies there and cannot be read is left to the check of the output, which replaces nothing but an audit's files.
    """
    try:
        earlier = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    differing = next(iter(_differing(_complete(earlier), _complete(recorded(config, base)))), None)
    if differing is not None:
        raise ConfigError(
            f"Output folder '{out}' holds the results of another configuration (its {differing} is another): name "
            "another folder, or replace them with --overwrite (in Python overwrite=True)."
        )


def _complete(values: Any) -> Any:
    """Fill recorded settings with the defaults of keys that an earlier version did not know."""
    try:
        return AuditConfig.model_validate(values).model_dump(mode="json", exclude=set(WHERE_IT_RUNS))
    except ValidationError:
        return values


def _differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted paths at which two settings differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differing(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from _differing(mine, theirs, f"{path}.{i}")
    elif one != other:
        yield path


def results_text(result: AuditResult) -> str:
    """Return `results.json` as text; a number that is not finite becomes null and is listed as not computed."""
    values = result.model_dump(mode="json")
    bad: list[str] = []
    values = _finite(values, "", bad)
    if bad:
        why = f"these numbers are not finite: {', '.join(bad[:20])}{', ...' if len(bad) > 20 else ''}"
        of_models = [path.split(".", 2)[2] for path in bad if path.startswith("models.")]
        note = NotComputed(what="some numbers", why=why, paths=list(dict.fromkeys(of_models)))
        values["not_computed"].append(note.model_dump(mode="json"))
    return json.dumps(values, indent=1, allow_nan=False)


def _finite(value: Any, path: str, bad: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one, f"{path}.{key}".lstrip("."), bad) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one, f"{path}.{i}", bad) for i, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        bad.append(path)
        return None
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, AuditError):
        return str(error).rstrip(".")
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}{f' ({error.filename})' if error.filename else ''}"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def write_audit(
    result: AuditResult, output: Output, save: Callable[[Path], None], watch: Stopwatch, *, share: bool = False
) -> None:
    """Write `result`, the pictures that `save` draws into a folder, and the report, to `output`.

    With `share` what may leave a site is written as well.

    Raises ReportError if pictures or report cannot be made: the results are then in the output, and the sentence says
    how to render them later. Raises ConfigError naming another place of the results if the output cannot be written.
    """
    output.keep(results_text(without_pictures(result)))
    stored = output.folder / RESULTS_FILE
    later = f"`spruce-audit report {shlex.quote(str(stored))}` renders the report"

    def failed(what: str, error: Exception) -> ReportError:
        return ReportError(result, f"{what} ({_reason(error)}); the results are in '{stored}', and {later} later.")

    try:
        save(output.staged)
        atomic_write_text(output.staged / RESULTS_FILE, results_text(result))
        if share:
            write_minimal(output.staged / RESULTS_FILE, output.staged / MINIMAL_FILE)
    except Exception as error:
        raise failed("The pictures could not be written", error) from error
    unrendered: Exception | None = None
    try:
        with watch.stage("report"):
            render_report(output.staged / RESULTS_FILE, output.staged / REPORT_FILE)
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are to stay
        unrendered = error
    try:
        output.publish()
    except (AuditError, OSError) as error:
        raise failed("The pictures and the report could not be put in their place", error) from error
    if unrendered is not None:
        raise failed("The report could not be rendered", unrendered) from unrendered
