"""Which version of the package this is, without loading anything heavy."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Version of the installed package, or '0+source' when it is run from a source tree that is not installed."""
    try:
        return version("spruce-audit")
    except PackageNotFoundError:
        return "0+source"
