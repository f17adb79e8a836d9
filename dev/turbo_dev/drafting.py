"""Choices of drafts that no clock has a part in, for tests and benchmarks of what must not depend on them."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence

from turbo_runtime.speculation.controller import GoodputController
from turbo_runtime.speculation.step_cost import StepShape


class EveryDraft(GoodputController):
    """Everything that is proposed is verified."""

    def __init__(self) -> None:
        super().__init__(None, lambda tokens: tokens)

    @property
    def asks(self) -> bool:
        """In every step."""
        return True

    def length(self, proposed: int) -> int:
        """How much of one draft is verified."""
        return proposed

    def costly_pay(self, _key: Hashable) -> bool:
        """Always."""
        return True

    def min_acceptance(self, shape: StepShape, answers: int) -> float:  # noqa: ARG002  a clock has a part in it
        """Any chance is worth a try."""
        return 0.0

    def token_seconds(self, shape: StepShape, answers: int) -> float:  # noqa: ARG002
        """No pass takes too long."""
        return math.inf

    def spare(self, shape: StepShape) -> float:  # noqa: ARG002
        """Time enough to read whatever waits."""
        return 1.0

    def select_draft_lengths(
        self,
        acceptances: Sequence[Sequence[float]],
        shape: StepShape,  # noqa: ARG002  it is what is not looked at
        answers: int,  # noqa: ARG002
        drafting: float,  # noqa: ARG002
    ) -> list[int]:
        """Each draft by itself."""
        return [self.length(len(each)) for each in acceptances]


class NoDraft(EveryDraft):
    """Nothing is proposed, nor verified of what a grammar forces."""

    @property
    def asks(self) -> bool:
        """Never."""
        return False

    def length(self, proposed: int) -> int:  # noqa: ARG002
        """Nothing of it."""
        return 0


class RandomDrafts(EveryDraft):
    """In some steps, and of the drafts any first part."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    @property
    def asks(self) -> bool:
        """In more steps than not."""
        return self._random.random() < 0.7

    def length(self, proposed: int) -> int:
        """Any."""
        return self._random.randint(0, proposed)
