"""The audit takes idle time only: nobody waits for it, and it leaves nothing behind."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from turbo_dev.audited import BLOCKS, asked, block_keys, engine, finish_audits, model, requests, run, terms
from turbo_dev.tiny_engine import WANTED
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.process import REST_SECONDS, serve
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE
from turbo_runtime.messages import EngineFailed, EngineReady, GenerationRequest, Shutdown, StepOutput
from turbo_runtime.models.runner import Forward, ModelRunner
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.grammar.matcher import Grammars

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exact() -> ModelRunner:
    return model("exact")


Make = Callable[..., Engine]


@pytest.fixture
def make(exact: ModelRunner, compiled: Grammars) -> Make:
    def made(share: float = 1.0, blocks: int = BLOCKS) -> Engine:
        return engine(exact, compiled, terms("exact", share), blocks)

    return made


class Passes:
    """Counts what the model computes."""

    def __init__(self, model: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []  # of each pass
        forward = model.forward

        def counted(chunks: list[Chunk]) -> Forward:
            self.tokens.append(sum(len(chunk.tokens) for chunk in chunks))
            return forward(chunks)

        monkeypatch.setattr(model, "forward", counted)


class Inbox:
    """Says what it is to say at the given look into it, and ends; keeps how long each look would wait."""

    def __init__(self, said: dict[int, GenerationRequest | Shutdown]) -> None:
        self.said = said
        self.waits: list[float | None] = []

    def get(self, block: bool = True, timeout: float | None = None) -> GenerationRequest | Shutdown:
        assert block
        self.waits.append(timeout)
        if message := self.said.get(len(self.waits) - 1):
            return message
        raise queue.Empty

    def empty(self) -> bool:
        return True  # while it computes; an idle engine asks `get`


class Outbox:
    """Keeps what is said, and at which look into the inbox."""

    def __init__(self, inbox: Inbox) -> None:
        self.steps: list[tuple[int, StepOutput]] = []
        self._inbox = inbox

    def put(self, item: EngineReady | StepOutput | EngineFailed, /) -> None:
        assert isinstance(item, StepOutput)
        self.steps.append((len(self._inbox.waits), item))


def no_beat() -> None:
    pass


def test_a_message_that_comes_amid_an_audit_is_served_after_one_small_step_and_before_the_rest(
    make: Make, exact: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make()
    inbox = Inbox({0: asked("a", 30), 6: asked("b", 30), 200: Shutdown()})
    outbox = Outbox(inbox)
    passes = Passes(exact, monkeypatch)
    serve(server, cast("Any", inbox), cast("Any", outbox), no_beat)
    # after the first answer a rest begins the audit: two steps for the prompt, one for each token
    assert inbox.waits[:7] == [REST_SECONDS, REST_SECONDS, 0, 0, 0, 0, 0]
    told = [(look, event.request_id) for look, step in outbox.steps for event in step.events]
    assert {look for look, name in told if name == "a"} == {1}
    assert {look for look, name in told if name == "b"} == {7}
    ended = {audits: look for audits in (2, 1) for look, step in outbox.steps if step.stats.audits == audits}
    # each takes 2 + 29 steps, and one look goes to a message: the first audit went on where it was
    assert ended == {1: 1 + 31 + 1, 2: 1 + 31 + 1 + 31}
    assert inbox.waits[7] == REST_SECONDS
    assert set(inbox.waits[8:64]) == {0.0}
    assert set(inbox.waits[64:]) == {REST_SECONDS}
    assert server.stats().audit_mismatches == 0
    assert max(passes.tokens) == PROMPT_TILE


def test_a_stop_amid_an_audit_ends_at_once(
    make: Make, exact: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(exact, monkeypatch)

    def computed(share: float) -> int:
        server, inbox = make(share=share), Inbox({0: asked("a", 30), 5: Shutdown()})
        passes.tokens.clear()
        serve(server, cast("Any", inbox), cast("Any", Outbox(inbox)), no_beat)
        assert server.audit.pending == (share > 0)
        return len(passes.tokens)

    assert computed(1.0) == computed(0.0) + 4  # one for each look into the inbox before


def test_requests_that_want_the_blocks_get_them_and_the_audit_begins_again(
    make: Make, compiled: Grammars
) -> None:
    for request in requests():  # when a request's grammar is compiled, it would begin
        if request.params.grammar:
            compiled.matcher(compiled.compile(request.params.grammar))

    def served(share: float) -> tuple[object, ...]:
        server = make(share=share, blocks=16)
        # drafters read all there is in every step, and draft all they can: how much otherwise, the clock says
        control = server.speculation.control
        control.spare = lambda shape: 1.0  # type: ignore[method-assign]
        control.min_acceptance = lambda shape, answers: 0.0  # type: ignore[method-assign]
        run(server, asked("first", 30))
        for _ in range(8):
            server.rest()
        assert len(server.audit.table) == (6 if share else 0)
        said = run(server, *requests())
        stats = server.stats()
        return said, stats.preemptions, stats.draft_tokens, server

    *without, _ = served(0.0)
    *found, server = served(1.0)
    assert isinstance(server, Engine)
    assert found == without
    assert len(server.audit.table) == 0
    assert finish_audits(server) == (1 + len(WANTED), 0)


def test_with_room_for_all_the_audit_keeps_its_blocks_and_the_books_add_up(make: Make) -> None:
    server = make()
    run(server, asked("first", 30))
    for _ in range(8):
        server.rest()
    held = tuple(server.audit.table)
    assert held
    assert server.stats().kv_blocks_used == 0  # they are to be had by whoever comes
    server.accept(asked("second"))
    while not server.idle:
        server.step()
        server.scheduler.check(server.audit.table)
    assert tuple(server.audit.table) == held
    assert finish_audits(server) == (2, 0)


def test_an_audit_changes_no_other_figure_and_leaves_nothing_in_cache_and_drafters(make: Make) -> None:
    server = make()
    run(server, *requests())
    while server.speculation.drafters.waiting:
        server.speculation.rest()
    pool, suffix = server.scheduler.block_pool, server.speculation.drafters._suffix
    stats, cached, num_bytes = (
        server.stats(),
        [*map(pool.is_cached, pool.blocks)],
        suffix.num_bytes,
    )
    tiles, learnt = set(pool.find(block_keys(server))), []
    server.speculation.control.learn = learnt.append  # type: ignore[method-assign, assignment]
    audits, _ = finish_audits(server)
    assert audits == len(WANTED)
    assert replace(server.stats(), audits=0) == stats
    assert ([*map(pool.is_cached, pool.blocks)], suffix.num_bytes) == (cached, num_bytes)
    assert set(pool.find(block_keys(server))) == tiles
    assert not learnt


def test_an_audit_that_fails_is_logged_and_the_engine_goes_on(
    make: Make, exact: ModelRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = make()
    run(server, asked("a"))
    server.rest()
    assert server.audit.table
    with monkeypatch.context() as broken:
        broken.setattr(exact, "forward", lambda _: 1 // 0)
        server.rest()
    assert "the audit of request a failed" in caplog.text
    run(server, asked("b"))
    assert finish_audits(server) == (1, 0)
