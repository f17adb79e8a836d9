"""The version of the installed distribution."""

from __future__ import annotations

from importlib import metadata


def turbo_version() -> str:
    """Such as `0.1.0`; `unknown` in a source tree that is not installed."""
    try:
        return metadata.version("turbo-operator")
    except metadata.PackageNotFoundError:
        return "unknown"
