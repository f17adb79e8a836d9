"""Whether another pass of an autoregressive drafter is worth its time.

A pass gives a token for each draft. It is worth the chance that all before that token are right, that others
are wrong about it and that the drafter is right: its usual confidence at that depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from turbo_runtime.drafters.interface import SURE

_DEPTHS = 8  # drafted positions that are told apart
_NEW = 0.1  # weight of the newest pass
# For each pass left out, since what is never tried never improves: of the way to certainty, and of the time
# that a pass is said to take, which a single slow one may have spoiled.
_RECOVERY, _FORGETTING = 1 / 256, 1 / 1024


class PassGate:
    """Learns what the passes of one drafter take and promise."""

    def __init__(self) -> None:
        self._seconds = 0.0  # of a pass; 0: not known, and worth finding out
        self._confidence = [1.0] * _DEPTHS

    def pays(self, depth: int, drafts: Iterable[tuple[float, float]], token_seconds: float) -> bool:
        """Whether a pass is worth its time where a token is worth `token_seconds`. `drafts`: for each, the
        chance that all its tokens so far are accepted, and the best confidence of others in the next one.
        """
        depth, drafts = min(depth, _DEPTHS - 1), list(drafts)
        tokens = self._confidence[depth] * sum(so_far * (1.0 - others) for so_far, others in drafts)
        if tokens * token_seconds >= self._seconds:
            return True
        if any(others < SURE for _, others in drafts):  # else no pass would be made in any case
            self._confidence[depth] += _RECOVERY * (1.0 - self._confidence[depth])
            self._seconds -= _FORGETTING * self._seconds
        return False

    def learn(self, depth: int, seconds: float, confidences: Sequence[float]) -> None:
        """Learn from a pass that gave tokens of these confidences."""
        if not confidences:
            return
        depth = min(depth, _DEPTHS - 1)
        self._seconds += (_NEW if self._seconds else 1.0) * (seconds - self._seconds)
        mean = sum(confidences) / len(confidences)
        self._confidence[depth] += _NEW * (mean - self._confidence[depth])
