"""spruce-audit: does an image classifier decide for the right reason?

`run_audit` runs a whole audit; the command line `spruce-audit` does the same. Both are described in the README.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.pipeline.runner import run_audit
    from audit.results import AuditResult

__all__ = ["AuditResult", "run_audit"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `import audit` and `spruce-audit --help` should not load torch.
    if name == "run_audit":
        from audit.pipeline.runner import run_audit

        return run_audit
    if name == "AuditResult":
        from audit.results import AuditResult

        return AuditResult
    raise AttributeError(f"module 'audit' has no attribute '{name}'")
