"""Between its inbox and its steps the engine keeps neither from its turn, and says only what is news."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any, cast

from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.process import MAX_MESSAGES, serve
from turbo_runtime.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    GenerationRequest,
    Shutdown,
    StepOutput,
    TokenEvent,
)


class Flood:
    """Has a message whenever it is asked, until so many were taken."""

    def __init__(self, messages: int) -> None:
        self.left = messages

    def get(self, block: bool = True, timeout: float | None = None) -> GenerationRequest | Abort | Shutdown:
        assert block
        assert timeout is not None
        self.left -= 1
        return Abort(f"r{self.left}") if self.left >= 0 else Shutdown()

    def empty(self) -> bool:
        return False


class Busy:
    """An engine that is never idle; each step says what it is told to."""

    idle = False

    def __init__(self, said: list[StepOutput]) -> None:
        self.taken: list[int] = [0]  # messages before each step
        self._said = said

    def accept(self, message: GenerationRequest | Abort) -> None:
        self.taken[-1] += 1

    def step(self) -> StepOutput:
        self.taken.append(0)
        return self._said[min(len(self.taken) - 2, len(self._said) - 1)]


class Outbox:
    def __init__(self) -> None:
        self.said: list[EngineReady | StepOutput | EngineFailed] = []

    def put(self, item: EngineReady | StepOutput | EngineFailed, /) -> None:
        self.said.append(item)


def no_beat() -> None:
    pass


def test_steps_are_computed_however_many_messages_come() -> None:
    engine = Busy([StepOutput((), EngineStats())])
    serve(cast("Engine", engine), cast("Any", Flood(3 * MAX_MESSAGES + 5)), cast("Any", Outbox()), no_beat)
    assert engine.taken == [MAX_MESSAGES] * 3 + [5]


def test_a_step_without_news_is_not_told() -> None:
    waiting, running = EngineStats(waiting_requests=1), EngineStats(running_requests=1)
    token = StepOutput((TokenEvent("r", (1,)),), running)
    steps = [
        StepOutput((), waiting),
        StepOutput((), waiting),
        StepOutput((), running),
        token,
        token,
        StepOutput((), running),
    ]
    outbox = Outbox()
    serve(
        cast("Engine", Busy(steps)),
        cast("Any", Flood(len(steps) * MAX_MESSAGES)),
        cast("Any", outbox),
        no_beat,
    )
    assert outbox.said == [steps[0], steps[2], token, token]


class Idle:
    """An engine with a request that gives its block back once it is cancelled."""

    idle, audit = True, SimpleNamespace(pending=False)

    def __init__(self) -> None:
        self._stats = EngineStats(running_requests=1, kv_blocks_used=1)

    def accept(self, message: GenerationRequest | Abort) -> None:
        self._stats = EngineStats()

    def stats(self) -> EngineStats:
        return self._stats


def test_an_idle_engine_tells_what_a_cancel_left() -> None:
    outbox = Outbox()
    serve(cast("Engine", Idle()), cast("Any", Flood(2)), cast("Any", outbox), no_beat)
    assert outbox.said == [
        StepOutput((), EngineStats(running_requests=1, kv_blocks_used=1)),
        StepOutput((), EngineStats()),
    ]


class Tiring:
    """An engine and its inbox: busy for three steps without a message, then at rest three times, then ended.
    Notes each in `turns`.
    """

    audit = SimpleNamespace(pending=False)

    def __init__(self) -> None:
        self.turns: list[str] = []

    @property
    def idle(self) -> bool:
        return self.turns.count("step") == 3

    def stats(self) -> EngineStats:
        return EngineStats()

    def step(self) -> StepOutput:
        self.turns.append("step")
        return StepOutput((), EngineStats())

    def rest(self) -> None:
        self.turns.append("rest")

    def empty(self) -> bool:
        return True

    def get(self, block: bool = True, timeout: float | None = None) -> Shutdown:
        assert block
        assert timeout is not None
        if self.turns.count("rest") < 3:
            raise queue.Empty
        return Shutdown()


def test_there_is_a_beat_before_each_step_and_before_each_wait_of_an_idle_engine() -> None:
    engine = Tiring()
    serve(
        cast("Engine", engine),
        cast("Any", engine),
        cast("Any", Outbox()),
        lambda: engine.turns.append("beat"),
    )
    assert engine.turns == [*["beat", "step"] * 3, "beat", *["beat", "rest"] * 3, "beat"]
