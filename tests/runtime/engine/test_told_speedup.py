"""What an event says of its answer's speedup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from turbo_dev.drafting import EveryDraft
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import GenerationRequest


class Counting(EveryDraft):
    """Tells as a speedup how many steps of an answer were learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Counter[str] = Counter()

    def learn(self, shape: Any, outcomes: Sequence[Any], times: Any) -> None:
        super().learn(shape, outcomes, times)
        self.steps.update(outcome.request_id for outcome in outcomes)

    def speedup_of(self, request_id: str) -> float | None:
        return float(self.steps[request_id])

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        del self.steps[request_id]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_step_that_ends_an_answer_counts_too_and_then_it_is_forgotten(
    make_engine: Callable[..., Engine], ask: Callable[[float], list[GenerationRequest]], temperature: float
) -> None:
    control = Counting()
    engine = make_engine(None, control)
    for request in ask(temperature):
        engine.accept(request)
    events: Counter[str] = Counter()
    while not engine.idle:
        for event in engine.step().events:
            events[event.request_id] += 1
            assert event.speedup == events[event.request_id]
    assert len(events) > 5
    assert not control.steps
