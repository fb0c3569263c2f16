"""Which peerd this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def peerd_version() -> str:
    """As installed; "source" when run from a folder without installing."""
    try:
        return version("peerd")
    except PackageNotFoundError:
        return "source"
