"""Load the classifiers that a configuration names."""

from audit.classifiers.mode import preserve_mode

__all__ = ["preserve_mode"]
