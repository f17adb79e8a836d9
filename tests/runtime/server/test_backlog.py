"""A client that lags behind the engine: it is brought up to date in few pieces, and nobody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from turbo_runtime.messages import GenerationRequest, SamplingParams, TokenEvent
from turbo_runtime.parsers import OutputParser
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server import metrics
from turbo_runtime.server.engine_client import EventQueue
from turbo_runtime.server.preprocessing import PreparedRequest
from turbo_runtime.server.request_output import MAX_EVENTS, OutputDelta, RequestOutput

MODEL: Any = SimpleNamespace(
    tokenizer=SimpleNamespace(
        decode=lambda ids: "".join(chr(97 + token % 26) for token in ids), is_skipped=lambda _: False
    ),
    stop_token_ids=frozenset(),
)


class Engine:
    """Hands over what a test puts."""

    def __init__(self) -> None:
        self.arrivals = EventQueue()
        self.ids: list[str] = []

    def submit(self, requests: Sequence[GenerationRequest]) -> EventQueue:
        self.ids = [request.request_id for request in requests]
        return self.arrivals

    def cancel(self, request_ids: Sequence[str]) -> None: ...


class Watch:
    """Writes down what is measured."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.ends: list[tuple[str, float]] = []

    def observe(self, metric: metrics.Metric, seconds: float) -> None:
        if metric is metrics.INTER_TOKEN_LATENCY:
            self.steps.append(seconds)

    def observe_first_token(self, seconds: float) -> None:
        self.first = seconds

    def observe_finish(
        self, reason: str, prompt: int, tokens: int, first: float | None, total: float
    ) -> None:
        self.ends.append((reason, total))


def asked(engine: Any, watch: Watch, n: int = 1, seconds: float = 60) -> RequestOutput:
    params = SamplingParams(max_tokens=10_000)
    job = PreparedRequest(((1, 2),), (params,), 0, n, (), lambda: OutputParser(None, None))
    config = SimpleNamespace(request_timeout_seconds=seconds)
    service = SimpleNamespace(engine=engine, metrics=watch, config=config)
    return RequestOutput(job, MODEL, service, lambda: None)


async def hear(answers: RequestOutput, tell: Callable[[OutputDelta], None]) -> None:
    async for piece in answers.deltas():
        tell(piece)


async def test_what_came_meanwhile_is_one_piece_of_each_answer() -> None:
    engine, watch = Engine(), Watch()
    with asked(engine, watch, n=2) as answers:
        for token in range(10):
            for request_id in engine.ids:
                engine.arrivals.put_nowait((TokenEvent(request_id, (token,)), 0.0))
        for request_id in engine.ids:
            engine.arrivals.put_nowait((TokenEvent(request_id, (10,), "length"), 0.0))
        pieces = [piece async for piece in answers.deltas()]
    assert [(piece.index, piece.parsed.content, piece.finish_reason) for piece in pieces] == [
        (0, "abcdefghijk", "length"),
        (1, "abcdefghijk", "length"),
    ]
    assert pieces[0].tokens == tuple(range(11))
    assert answers.completion_tokens == 22


async def test_what_came_before_an_error_is_told_before_it() -> None:
    engine, heard = Engine(), list[OutputDelta]()
    with asked(engine, Watch()) as answers:
        engine.arrivals.put_nowait((TokenEvent(engine.ids[0], (0, 1)), 0.0))
        engine.arrivals.put_nowait((TokenEvent(engine.ids[0], finish_reason="error", error="It broke."), 0.0))
        with pytest.raises(ApiError, match=r"It broke\."):
            await hear(answers, heard.append)
    assert [piece.parsed.content for piece in heard] == ["ab"]


async def test_a_backlog_is_worked_off_beside_others() -> None:
    engine = Engine()
    rounds = 20
    with asked(engine, Watch()) as answers:
        for token in range(rounds * MAX_EVENTS):
            last = token + 1 == rounds * MAX_EVENTS
            engine.arrivals.put_nowait((TokenEvent(engine.ids[0], (token,), "length" if last else None), 0.0))
        turns, ended = 0, False

        async def other() -> None:
            nonlocal turns
            while not ended:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        assert len([piece async for piece in answers.deltas()]) == rounds
        ended = True
        await beside
    assert turns >= rounds


async def test_a_backlog_does_not_outlive_the_time_of_its_request() -> None:
    engine = Engine()
    with asked(engine, Watch(), seconds=0.05) as answers:
        engine.arrivals.put_nowait((TokenEvent(engine.ids[0], (0,)), 0.0))
        engine.arrivals.put_nowait((TokenEvent(engine.ids[0], (1,)), 0.0))
        await asyncio.sleep(0.1)
        with pytest.raises(ApiError) as caught:
            await hear(answers, lambda _: None)
    assert caught.value.status == 408


async def test_a_slow_reader_does_not_make_the_engine_slow() -> None:
    engine, watch = Engine(), Watch()
    with asked(engine, watch) as answers:
        began = time.monotonic()
        for step in range(4):
            reason = "length" if step == 3 else None
            engine.arrivals.put_nowait((TokenEvent(engine.ids[0], (step,), reason), began + step * 0.01))
        await asyncio.sleep(0.2)  # the client takes nothing
        async for _ in answers.deltas():
            await asyncio.sleep(0.1)
    assert watch.steps == pytest.approx([0.01] * 3)
    ((reason, total),) = watch.ends
    assert reason == "length"
    assert total < 0.1
