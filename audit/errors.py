"""Errors that the user can mend: one sentence saying what is wrong, where, and how to mend it.

The command line prints the sentence and exits with status 2; a traceback is kept for our own defects.
"""

import re

LONGEST = 3000
"""Characters of a sentence; what a file says of itself may be of any length."""
_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Bytes that are no text, and characters that move the cursor, break the line or turn the direction of reading."""


def readable(name: object) -> str:
    """Text of a name for people and for results, in which nothing can act on a terminal or on the text around it.

    Control characters and bytes that are no UTF-8 (of a Latin-1 file name) are escaped, as `\\x1b` and `\\xe4`.
    """
    return _UNREADABLE.sub(_escaped, str(name))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])  # Python holds the byte 0xe4 that is no UTF-8 as U+DCE4
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class AuditError(Exception):
    """Base of every error that the caller can mend; `str(error)` is the sentence to show, one line of valid Unicode."""

    def __init__(self, sentence: str) -> None:
        text = readable(sentence)
        # The end says how to mend it: what is too long stands in the middle.
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


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
