"""How many draft slots of a step each answer is likely to use, by what was verified for it lately. Pure.

Slots that are promised to drafts are taken from prompts, and a promise that nobody uses makes everybody's
prompts slower; what prompts leave is the drafts' anyway.
"""

from __future__ import annotations

from collections import defaultdict

_NEW, _NEW_OF_ALL = (
    0.3,
    0.02,
)  # weight of the newest step: in what one answer uses, and in what one usually does
_LEAST = 0.25  # tokens a step, below which nothing is promised


class Demand:
    """Drafted tokens of a step, for each answer."""

    def __init__(self) -> None:
        self._usual = 0.0  # where a new answer begins
        self._lately: defaultdict[str, float] = defaultdict(lambda: self._usual)

    def of(self, request_id: str) -> int:
        """Slots that the answer is likely to use; 0 where it drafts next to nothing."""
        lately = self._lately.get(request_id, self._usual)
        return -int(-lately // 1) if lately >= _LEAST else 0

    def book(self, request_id: str, verified: int, slots: int) -> None:
        """A step verified so many of its drafted tokens, of `slots`. All of them might have been more; none
        were no sign.
        """
        if not slots:
            return
        seen = verified if verified < slots else 2 * slots
        self._usual += _NEW_OF_ALL * (seen - self._usual)
        self._lately[request_id] += _NEW * (seen - self._lately[request_id])

    def forget(self, request_id: str) -> None:
        """The request ended."""
        self._lately.pop(request_id, None)
