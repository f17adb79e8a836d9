"""Events are told in their order, are bounded, and hold nothing up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from turbo_operator.controller import event_recorder
from turbo_operator.controller.event_recorder import (
    BURST,
    MAX_NOTE,
    REFILL_SECONDS,
    EventRecorder,
    TokenBucket,
    TokenBuckets,
)
from turbo_operator.controller.kube import KubeError, RefusedError
from turbo_operator.resources import Resource
from turbo_operator.status.transitions import Transition

BODY = {"metadata": {"name": "chat", "namespace": "team", "uid": "u"}}
NOW = 1_700_000_000.5


class Server:
    """Keeps what is created; refuses what `refused` names. `full` is set once there are `count`."""

    def __init__(self, count: int, refused: str = "") -> None:
        self.events: list[dict[str, Any]] = []
        self.count, self.refused, self.full = count, refused, asyncio.Event()

    async def create(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        assert resource.path(body["metadata"]["namespace"]) == "/apis/events.k8s.io/v1/namespaces/team/events"
        if body["reason"] == self.refused:
            raise RefusedError(403, "Forbidden", "may not create events")
        self.events.append(body)
        if len(self.events) == self.count:
            self.full.set()
        return body


async def written(recorder: EventRecorder, server: Server) -> None:
    task = asyncio.create_task(recorder.run())
    async with asyncio.timeout(5):
        await server.full.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_events_of_one_moment_are_told_in_their_order_under_names_of_their_own() -> None:
    server = Server(2)
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    found = [Transition(False, "Planned", "Why."), Transition(True, "OOMKilled", "Pod chat-x.")]
    recorder.record(BODY, found, TokenBuckets(TokenBucket), NOW)
    await written(recorder, server)
    assert [event["reason"] for event in server.events] == ["Planned", "OOMKilled"]
    assert [event["type"] for event in server.events] == ["Normal", "Warning"]
    assert [event["eventTime"] for event in server.events] == [
        "2023-11-14T22:13:20.500000Z",
        "2023-11-14T22:13:20.500001Z",
    ]
    assert len({event["metadata"]["name"] for event in server.events}) == 2
    assert server.events[0]["regarding"] == {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboDeployment",
        "name": "chat",
        "namespace": "team",
        "uid": "u",
    }


async def test_one_that_is_not_taken_does_not_hold_up_the_next() -> None:
    server = Server(1, refused="Planned")
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    found = [Transition(False, "Planned", "Why."), Transition(False, "Serving", "It serves.")]
    recorder.record(BODY, found, TokenBuckets(TokenBucket), NOW)
    await written(recorder, server)
    assert [event["reason"] for event in server.events] == ["Serving"]


async def test_a_state_that_flaps_is_told_a_few_times_and_what_is_usual_besides() -> None:
    server = Server(BURST + 1)
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    buckets = TokenBuckets(TokenBucket)
    for _ in range(BURST + 10):
        recorder.record(BODY, [Transition(True, "CrashLoopBackOff", "Again.")], buckets, NOW)
    recorder.record(BODY, [Transition(False, "Serving", "It serves.")], buckets, NOW)
    await written(recorder, server)
    told = [event["reason"] for event in server.events]
    assert told == ["CrashLoopBackOff"] * BURST + ["Serving"], "each type has its own"


def test_a_token_bucket_fills_again_up_to_its_burst() -> None:
    bucket = TokenBucket()
    assert [bucket.take(100.0) for _ in range(BURST + 1)] == [True] * BURST + [False]
    assert bucket.take(100.0 + REFILL_SECONDS)
    assert not bucket.take(100.0 + REFILL_SECONDS)
    assert [bucket.take(1e9) for _ in range(BURST + 1)] == [True] * BURST + [False]


async def test_a_long_sentence_is_cut_to_what_the_api_server_takes() -> None:
    server = Server(1)
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    recorder.record(BODY, [Transition(False, "Planned", "ä" * MAX_NOTE)], TokenBuckets(TokenBucket), NOW)
    await written(recorder, server)
    note = server.events[0]["note"]
    assert note.endswith("ä…")
    assert MAX_NOTE - 3 <= len(note.encode()) <= MAX_NOTE


async def test_one_that_fails_for_the_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_recorder, "RETRY_SECONDS", (0.0, 0.0))
    server = Server(1)
    create, failures = server.create, [KubeError(429, "TooManyRequests", "later")] * 2

    async def fail_first(resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return await create(resource, body)

    monkeypatch.setattr(server, "create", fail_first)
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    recorder.record(BODY, [Transition(False, "Serving", "It serves.")], TokenBuckets(TokenBucket), NOW)
    await written(recorder, server)
    assert [event["reason"] for event in server.events] == ["Serving"]
