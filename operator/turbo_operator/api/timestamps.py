"""Points in time as Kubernetes writes them, to the second and in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(epoch: float) -> str:
    """Seconds since the epoch as text, like 2026-01-19T08:30:00Z; fractions are dropped."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(stamp: str) -> float:
    """Such a text, or one with a fraction, in seconds since the epoch; ValueError when it is none."""
    return datetime.fromisoformat(stamp).timestamp()
