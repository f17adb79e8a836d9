"""kopf without its memory: what it would keep on objects to tell one change from the next.

Only event handlers are registered, which need none of it; but kopf copies every object of every event several
times to compare it, which is a third of an event's work.
"""

from __future__ import annotations

from typing import Any

import kopf


class NoDiffs(kopf.DiffBaseStorage):  # type: ignore[misc]  # kopf's types are not followed
    """Remembers no object."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object is worth comparing."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """There is nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


class NoProgress(kopf.ProgressStorage):  # type: ignore[misc]
    """Remembers no handler."""

    def fetch(self, **_: Any) -> Any:
        """There is nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""

    def purge(self, **_: Any) -> None:
        """Nothing was kept."""

    def touch(self, **_: Any) -> None:
        """Nobody is to be woken."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """There is nothing of it in an object."""
        return essence
