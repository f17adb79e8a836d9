"""The figures of a benchmark's passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from turbo_runtime.client.sse import Progress


@dataclass(slots=True)
class Pass:
    """All answers of one mode."""

    name: str
    seconds: float = 0.0  # wall time of the whole passes together, and `tokens` those of their answers
    tokens: int = 0
    answers: list[Progress] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def took(self, seconds: float, answers: Sequence[Progress]) -> None:
        """A pass is done. One that is not would count time in which tokens came that nobody has counted."""
        self.seconds += seconds
        self.tokens += sum(one.tokens for one in answers)

    @property
    def tokens_per_second(self) -> float | None:
        """Of all requests together; None before a pass is done."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verified draft, the mean over answers that had drafts; None where none had."""
        known = [one.acceptance_length for one in self.answers if one.acceptance_length is not None]
        return sum(known) / len(known) if known else None

    def to_first(self, share: float) -> float | None:
        """A percentile of the seconds to the first token."""
        return percentile([one.to_first for one in self.answers if one.to_first is not None], share)

    def per_token(self, share: float) -> float | None:
        """A percentile of the seconds per output token."""
        times = (one.seconds_per_token for one in self.answers)
        return percentile([time for time in times if time is not None], share)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The least value that is not below so large a share of all (nearest rank); None of nothing."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
