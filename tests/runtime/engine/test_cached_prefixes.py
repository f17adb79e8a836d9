"""The prefix cache under a real forward: what was found is, bit for bit, what would have been computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.tiny_engine import DeviceRunner, network
from turbo_dev.varlen_reference import varlen_attn_out
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.attention_probes import find_host_rule
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE, BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.attention.host import HostKVPool
from turbo_runtime.models.cuda_runner import CudaModelRunner
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.models.step_batch import Chunk

LENGTH = 256
BLOCKS = 64
GENERATOR = torch.Generator().manual_seed(4)
BASE = torch.randint(0, 61, (LENGTH,), generator=GENERATOR).tolist()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> ModelRunner:
    return ModelRunner(network(vocabulary=61), blocks=BLOCKS, max_length=LENGTH)


@pytest.fixture(params=[PROMPT_TILE, BLOCK_SIZE], ids=["whole tiles", "any block"])
def tile(request: pytest.FixtureRequest, model: ModelRunner) -> int:
    assert isinstance(model.pool, HostKVPool)
    assert find_host_rule(model.pool, inf).uniform  # so that any block may be shared
    return int(request.param)


def engine(
    model: ModelRunner, *, blocks: int = BLOCKS, step_tokens: int = 200, tile: int = PROMPT_TILE
) -> Engine:
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=8,
        max_num_batched_tokens=step_tokens,
        max_draft_tokens=4,
        max_length=LENGTH,
        shared_tile=tile,
    )
    return Engine(model, scheduler, Proposer(), control=EveryDraft())


def run(server: Engine, requests: Sequence[GenerationRequest]) -> dict[str, list[int]]:
    for request in requests:
        server.accept(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
        server.scheduler.check()
    return answers


def questions() -> list[GenerationRequest]:
    """Prompts that have from none to three tiles in common, on both sides of a tile's end, and some that part
    from the others within a tile.
    """
    cut = [200, 192, 193, 150, 129, 128, 64, 65, 200, 190]
    params = [SamplingParams(temperature=t, seed=5, max_tokens=24) for t in (0.0, 1.0)]
    whole = [
        GenerationRequest(
            f"r{i}", (*BASE[:length], *range(i % 3)), params[i % 2], choice=i, tenant="ab"[i // 8]
        )
        for i, length in enumerate(cut)
    ]
    parting = [
        GenerationRequest(
            f"p{i}", (*BASE[:common], *BASE[70 : 70 + rest]), params[i % 2], choice=i, tenant="a"
        )
        for i, (common, rest) in enumerate([(17, 60), (40, 100), (63, 1), (63, 64), (100, 40), (15, 90)])
    ]
    return [*whole, *parting]


@pytest.fixture(scope="module")
def alone(model: ModelRunner) -> dict[str, list[int]]:
    """Every answer from an engine that knows nothing."""
    torch.set_num_threads(1)
    answers: dict[str, list[int]] = {}
    for question in questions():
        answers |= run(engine(model), [question])
    return answers


@pytest.mark.parametrize(
    "make",
    [ModelRunner, DeviceRunner, partial(CudaModelRunner, op=varlen_attn_out)],
    ids=["cpu", "device", "cuda"],
)
def test_a_copied_block_is_read_as_the_one_that_it_was_copied_from(make: Callable[..., ModelRunner]) -> None:
    runner = make(network(vocabulary=61, positions=1024), blocks=8, max_length=512)
    tokens = [3 * n % 61 for n in range(runner.pool.block_size + 4)]
    end = len(tokens)
    runner.forward([Chunk(tokens, 0, [0, 1], 1, end)])
    expected = runner.forward([Chunk(tokens[10:], 10, [0, 2], 1, end)])
    runner.copy_blocks({5: 0})
    assert torch.equal(runner.forward([Chunk(tokens[10:], 10, [5, 6], 1, end)]).logits, expected.logits)
    runner.copy_blocks({7: 0, 0: 1})  # a source that is evicted and taken again in the same step
    assert torch.equal(runner.forward([Chunk(tokens[10:], 10, [7, 6], 1, end)]).logits, expected.logits)


def test_answers_are_the_same_where_prompts_are_found(
    model: ModelRunner, alone: dict[str, list[int]], tile: int
) -> None:
    server = engine(model, tile=tile)
    for question in questions():
        assert run(server, [question])[question.request_id] == alone[question.request_id]
    scheduler = server.scheduler
    further = 0 if tile == PROMPT_TILE else 100  # of prompts that end or part before a tile's end
    assert scheduler.cache_hits >= 64 * 9 + 16 + 32 + 48 + 48 + 96 + further
    assert scheduler.block_pool.evictions == 0


@pytest.mark.parametrize("step_tokens", [9, 70, 400])
def test_answers_that_come_together_are_the_same(
    model: ModelRunner, alone: dict[str, list[int]], step_tokens: int, tile: int
) -> None:
    server = engine(model, step_tokens=step_tokens, tile=tile)
    assert run(server, questions()) == alone
    assert run(server, questions()[::-1]) == alone


def test_answers_are_the_same_where_tiles_are_given_up_and_sequences_give_way(
    model: ModelRunner, alone: dict[str, list[int]], tile: int
) -> None:
    server = engine(model, blocks=18, tile=tile)
    assert run(server, questions()) == alone
    assert run(server, questions()[::-1]) == alone
    assert server.scheduler.preemptions > 0
    assert server.scheduler.block_pool.evictions > 0
    assert server.scheduler.cache_hits > 0


@pytest.mark.parametrize(("size", "alike", "copied"), [(16, 1, True), (256, 15, False), (256, 16, True)])
def test_a_block_is_copied_for_a_sixteenth_of_its_tokens_or_more(size: int, alike: int, copied: bool) -> None:
    scheduler = Scheduler(
        BlockPool(8, block_size=size),
        max_num_seqs=2,
        max_num_batched_tokens=4 * size,
        max_draft_tokens=0,
        max_length=4 * size,
        shared_tile=size,
    )
    first, second = range(2 * size), (*range(alike), *range(5000, 5000 + size))
    scheduler.add(GenerationRequest("first", tuple(first), SamplingParams(max_tokens=2)))
    (work,) = scheduler.schedule()
    scheduler.update_from_output(work, [1])
    scheduler.add(GenerationRequest("second", second, SamplingParams(max_tokens=2)))
    computed = {each.sequence.request_id: each.start for each in scheduler.schedule()}
    assert computed["second"] == (alike if copied else 0)
    assert bool(scheduler.take_copies()) == copied
