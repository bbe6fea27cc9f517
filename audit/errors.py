"""Errors that the user can mend: one sentence saying what is wrong, where, and how to mend it.

The command line prints the sentence and exits with status 2; a traceback is kept for our own defects.
"""

import re


def readable(name: object) -> str:
    """Text of a name for people and for results: bytes that are no UTF-8 (of a Latin-1 file name) stand as `\\xe4`."""
    return re.sub("[\ud800-\udfff]", _escaped, str(name))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])  # Python holds the byte 0xe4 that is no UTF-8 as U+DCE4
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class AuditError(Exception):
    """Base of every error that the caller can mend; `str(error)` is the sentence to show, and valid Unicode."""

    def __init__(self, sentence: str) -> None:
        super().__init__(readable(sentence))


class ConfigError(AuditError):
    """The configuration is not valid: unknown key, wrong type, value out of range, file missing."""


class DataError(AuditError):
    """The images, labels, splits or regions cannot be used."""


class ClassifierError(AuditError):
    """A classifier cannot be loaded or does not keep the contract of `audit.classifiers.Classifier`."""


class ModelFault(ClassifierError):
    """The network of the classifier called `model` failed while it ran; what it said is part of the sentence."""

    def __init__(self, model: str, sentence: str) -> None:
        super().__init__(sentence)
        self.model = model


class MethodError(AuditError):
    """A counterfactual method failed, or returned something else than counterfactuals of the query images."""


class GeneratorError(AuditError):
    """A generator checkpoint cannot be read or does not fit the data."""


class MetricError(AuditError):
    """A metric is not defined on its input (too few images, wrong shape, values outside [0, 1])."""


class WeightsError(AuditError):
    """Weights of a pretrained network cannot be had, or are not the registered ones."""


class ResultsError(AuditError):
    """A results file cannot be read or is of another schema version."""


class Terminated(SystemExit):
    """A signal ended the process; a class of its own, because a foreign network may call `sys.exit` as well."""
