"""A pass that fails costs the requests of its step at most, and for want of memory none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turbo_dev.drafting import EveryDraft
from turbo_dev.runners import RUNNERS
from turbo_dev.tiny_engine import network
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine import loop
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams, TokenEvent
from turbo_runtime.models.runner import Forward, ModelRunner
from turbo_runtime.models.step_batch import Chunk
from turbo_runtime.sampling.noise import Noise
from turbo_runtime.sampling.rows import DrawnRows

BLOCKS, LENGTH, STEP = 64, 128, 96
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=RUNNERS)
def model(request: pytest.FixtureRequest) -> ModelRunner:
    return RUNNERS[request.param](network(), blocks=BLOCKS, max_length=LENGTH)


def engine(model: ModelRunner) -> Engine:
    scheduler = Scheduler(
        BlockPool(BLOCKS),
        max_num_seqs=4,
        max_num_batched_tokens=STEP,
        max_draft_tokens=4,
        max_length=LENGTH,
        shared_tile=model.shared_tile,
    )
    return Engine(model, scheduler, Proposer(), control=EveryDraft())


def requests(count: int) -> list[GenerationRequest]:
    params = SamplingParams(temperature=0.0, max_tokens=12)
    prompts = [tuple((3 * i + n) % 50 for i in range(10 + 20 * n)) for n in range(count)]
    return [GenerationRequest(f"r{n}", prompt, params) for n, prompt in enumerate(prompts)]


def run(server: Engine, asked: Sequence[GenerationRequest]) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in asked}
    for request in asked:
        server.accept(request)
    while not server.idle:
        for event in server.step().events:
            events[event.request_id].append(event)
        server.scheduler.check(server.audit.table)
    assert server.scheduler.block_pool.num_used == 0
    return events


def texts(events: dict[str, list[TokenEvent]]) -> dict[str, list[int]]:
    return {name: [token for event in each for token in event.tokens] for name, each in events.items()}


def failing(
    model: ModelRunner, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Sequence[Chunk]], str | None]
) -> None:
    """Let passes fail, with keys and values half written as a kernel leaves them that did not end."""
    forward = model.execute

    def wrong(chunks: Sequence[Chunk], layers: Sequence[int] = ()) -> Forward:
        problem = fails(chunks)
        if problem is None:
            return forward(chunks, layers)
        forward(chunks)
        for chunk in chunks:
            first = chunk.table[chunk.start // 16] * 16 + chunk.start % 16
            nan = torch.full((1, model.pool.kv_heads, model.pool.key_width), torch.nan)
            model.pool.write(0, torch.tensor([first]), nan, nan)
        raise RuntimeError(problem)

    monkeypatch.setattr(model, "execute", wrong)


def test_only_the_requests_of_the_step_that_failed_end_and_all_others_say_the_same(
    model: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {name: text for each in requests(4) for name, text in texts(run(engine(model), [each])).items()}
    passes = 0

    def once(chunks: Sequence[Chunk]) -> str | None:
        nonlocal passes
        passes += 1
        return "an illegal instruction" if passes == 2 else None

    failing(model, monkeypatch, once)
    server = engine(model)
    first, later = requests(4)[:2], requests(4)[2:]
    events = run(server, first)
    for each in events.values():
        assert each[-1].finish_reason == "error"
        assert (
            each[-1].error == "the engine failed in a step of this request: an illegal instruction; try again"
        )
        assert not each[-1].refused
    assert texts(run(server, [*later, *first])) == alone


def test_for_want_of_memory_a_step_shrinks_and_nobody_notices(
    model: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(4)
    alone = {name: text for each in asked for name, text in texts(run(engine(model), [each])).items()}
    most = 30
    failing(
        model, monkeypatch, lambda chunks: NO_MEMORY if sum(len(c.tokens) for c in chunks) > most else None
    )
    server = engine(model)
    assert texts(run(server, asked)) == alone
    assert server.scheduler.max_num_batched_tokens == STEP // 4


def test_steps_grow_again_and_shrink_again_where_there_still_is_no_memory(
    model: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_GROW_AFTER", 10)
    asked = requests(4)
    alone = {name: text for each in asked for name, text in texts(run(engine(model), [each])).items()}
    most = 1
    failing(
        model, monkeypatch, lambda chunks: NO_MEMORY if sum(len(c.tokens) for c in chunks) > most else None
    )
    server, sizes = engine(model), list[int]()
    for request in asked:
        server.accept(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in asked}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            tokens[event.request_id] += event.tokens
        sizes.append(server.scheduler.max_num_batched_tokens)
        most = 1 if len(sizes) < 40 else LENGTH  # what took the memory is gone
    assert tokens == alone
    assert sizes[:6] == [48, 24, 12, 6, 3, 1]
    assert sizes[6:40].count(3) >= 2, "they grow after 10 passes, and shrink at one of more than a token"
    assert max(sizes[6:40]) == 3
    for number in range(8):
        run(server, [replace(request, request_id=f"{number}") for request in asked[:1]])
    assert (server.scheduler.max_num_batched_tokens, server.scheduler.max_num_seqs) == (STEP, 4)


def test_for_want_of_memory_to_draw_fewer_run_together_and_nobody_notices(
    model: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(4)
    alone = {name: text for each in asked for name, text in texts(run(engine(model), [each])).items()}
    server = engine(model)
    kernels = server._kernels

    def draw(logits: Tensor, rows: DrawnRows, noise: Noise) -> Tensor:
        if len(logits) > 2:
            raise RuntimeError(NO_MEMORY)
        return kernels.draw(logits, rows, noise)

    monkeypatch.setattr(server, "_kernels", kernels._replace(draw=draw))
    assert texts(run(server, asked)) == alone
    assert server.scheduler.max_num_seqs <= 3


def test_an_engine_whose_every_pass_fails_ends(model: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(model, monkeypatch, lambda _: "broken")
    server = engine(model)

    def ask_on() -> None:
        for number in range(100):
            server.accept(GenerationRequest(str(number), (1, 2), SamplingParams(max_tokens=1)))
            server.step()

    with pytest.raises(RuntimeError, match="broken"):
        ask_on()


def test_an_audit_whose_pass_fails_leaves_numbers_in_its_blocks(
    model: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(4)
    scheduler = engine(model).scheduler
    server = Engine(model, scheduler, Proposer(), control=EveryDraft(), audit_fraction=1.0)
    for steps in range(12):
        run(server, asked)
        for _ in range(steps):
            server.rest()
        with monkeypatch.context() as broken:
            failing(model, broken, lambda _: "an illegal instruction")
            server.rest()
        assert all(tensor.isfinite().all() for tensor in model.pool.keys + model.pool.values)
        while server.audit.pending:
            server.rest()
    assert server.stats().audit_mismatches == 0
