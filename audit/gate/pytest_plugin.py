"""The checks of a gate as tests of pytest, and the fixture `spruce_audit` for tests of one's own.

pytest imports this module in every run of every project that has the package installed, so it imports nothing of the
package before an option or a test asks for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from audit.gate.evaluate import Check, GateOutcome, Status
    from audit.results import AuditResult

Unmeasured = Literal["fail", "skip", "xfail"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; none of them does anything unless it is given."""
    group = parser.getgroup("spruce-audit", "gate of spruce-audit")
    group.addoption("--spruce-results", metavar="RESULTS.json", help="audit that the gate and `spruce_audit` look at")
    group.addoption("--spruce-policy", metavar="GATE.toml", help="policy of which every check becomes a test")
    group.addoption("--spruce-baseline", metavar="OLD.json", help="earlier results that rules on change compare with")
    group.addoption(
        "--spruce-unmeasured",
        choices=("fail", "skip", "xfail"),
        default="fail",
        help="what becomes of a check that was not measured or is inconclusive (default: fail)",
    )


@dataclass(frozen=True)
class SpruceAudit:
    """The results that `--spruce-results` names, to be asked for what a rule of a gate asks for."""

    results: "AuditResult"
    baseline: "AuditResult | None"
    unmeasured: Unmeasured

    def require(self, **rule: Any) -> None:
        """Fail the test unless the rule, given by the keys of a `[[rule]]`, holds for every model it names."""
        from audit.config import parse_config
        from audit.gate.evaluate import WORST_FIRST, Policy, evaluate_gate

        policy = parse_config(Policy, {"rule": [rule]}, "spruce_audit.require")
        outcome = evaluate_gate(self.results, policy, self.baseline)
        checks = sorted(outcome.checks, key=lambda check: WORST_FIRST.index(check.status))
        worst = [check.sentence for check in checks if check.status == outcome.status]
        _settle(outcome.status, "\n".join(worst), self.unmeasured)


@pytest.fixture(scope="session")
def spruce_audit(pytestconfig: pytest.Config) -> SpruceAudit:
    """Results of an audit: `spruce_audit.require(metric="clean.accuracy", min=0.9)`; skips without --spruce-results."""
    if pytestconfig.getoption("spruce_results") is None:
        pytest.skip("no audit to look at: give --spruce-results RESULTS.json")
    return _given(pytestconfig)


def _given(config: pytest.Config) -> SpruceAudit:
    from audit.results import ResultsError, read_results

    files = (config.getoption(f"spruce_{name}") for name in ("results", "baseline"))
    try:
        results, baseline = (None if f is None else read_results(config.invocation_params.dir / f) for f in files)
    except ResultsError as error:
        raise pytest.UsageError(str(error)) from None
    assert results is not None
    return SpruceAudit(results, baseline, config.getoption("spruce_unmeasured"))


def _settle(status: "Status", sentence: str, unmeasured: Unmeasured) -> None:
    if status == "pass":
        return
    if status == "fail" or unmeasured == "fail":
        pytest.fail(sentence, pytrace=False)
    if unmeasured == "skip":
        pytest.skip(sentence)
    pytest.xfail(sentence)


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among the tests
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for every check of the policy, if there is one."""
    policy = config.getoption("spruce_policy")
    if policy is None:
        return
    if config.getoption("spruce_results") is None:
        raise pytest.UsageError("--spruce-policy needs --spruce-results RESULTS.json: the audit that it is checked on.")
    items += PolicyFile.from_parent(session, path=config.invocation_params.dir / policy).collect()


class PolicyFile(pytest.File):
    """A policy, whose tests are its checks."""

    def collect(self) -> Iterator["CheckItem"]:
        from audit.config import ConfigError
        from audit.gate.evaluate import evaluate_gate, load_policy

        given = _given(self.config)
        try:
            outcome = evaluate_gate(given.results, load_policy(self.path), given.baseline)
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from None
        for check in outcome.checks:
            name = f"{check.rule}: {check.model}: {check.metric} {check.requirement}"
            yield CheckItem.from_parent(self, name=name, outcome=outcome, check=check)


class CheckItem(pytest.Item):
    """One check: it fails with the check's sentence."""

    def __init__(self, *, outcome: "GateOutcome", check: "Check", **given: Any) -> None:
        super().__init__(**given)
        self.check, self.verdict = check, outcome.verdict(check)
        if check.measured is not None:
            self.user_properties.append((f"{check.model}.{check.metric}", check.measured))

    def runtest(self) -> None:
        """Pass, fail or stand as unmeasured, as the gate decided."""
        _settle(self.verdict, self.check.sentence, self.config.getoption("spruce_unmeasured"))

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return where the test comes from, and its heading."""
        return self.path, None, self.name
