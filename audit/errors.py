"""Errors that are the user's to mend: one sentence saying what is wrong, where, and how to mend it.

The command line prints the sentence and exits with status 2; a traceback is kept for our own defects.
"""


class AuditError(Exception):
    """Base of every error that the caller can mend; `str(error)` is the sentence to show."""


class ConfigError(AuditError):
    """The configuration is not valid: unknown key, wrong type, value out of range, file missing."""


class DataError(AuditError):
    """The images, labels, splits or regions cannot be used."""


class ClassifierError(AuditError):
    """A classifier cannot be loaded or does not keep the contract of `audit.classifiers.Classifier`."""


class GeneratorError(AuditError):
    """A generator checkpoint cannot be read or does not fit the data."""


class MetricError(AuditError):
    """A metric is not defined on its input (too few images, wrong shape, values outside [0, 1])."""


class WeightsError(AuditError):
    """Weights of a pretrained network cannot be had, or are not the registered ones."""


class ResultsError(AuditError):
    """A results file cannot be read or is of another schema version."""
