"""SmolLM2-135M in the engine: one seed is one text, whatever is drafted and whoever else is served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.model import ensure
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.builder import choose_dtype
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import EngineStats, GenerationRequest, SamplingParams
from turbo_runtime.model_files.source import find
from turbo_runtime.models.loader import load_model
from turbo_runtime.models.runner import ModelRunner

pytestmark = pytest.mark.model

LENGTH = 160
TOKENS = 32
BUSY_MACHINE_SECONDS = 300.0
PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.8, top_p=0.9, seed=4),
    SamplingParams(temperature=1.0, top_k=40, seed=5),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.95, seed=2**64 - 1),
)


def requests() -> list[GenerationRequest]:
    """Prompts of ids that come again and again, so that the drafter has something to say."""
    generator = torch.Generator().manual_seed(5)
    requests = []
    for number, params in enumerate(PARAMS):
        words = torch.randint(400, 4000, (5 + 3 * number,), generator=generator).tolist()
        requests.append(GenerationRequest(f"r{number}", tuple(words * 3), replace(params, max_tokens=TOKENS)))
    return requests


@pytest.fixture(scope="module")
def smollm2() -> Iterator[ModelRunner]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    model = ModelRunner(
        load_model(find(str(ensure()), None), choose_dtype("auto", cpu), cpu), blocks=128, max_length=LENGTH
    )
    report = check_batch_invariance(model, max_num_batched_tokens=128, limit_seconds=BUSY_MACHINE_SECONDS)
    assert report.guarantee == "bitwise", report.reason
    yield model
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(smollm2: ModelRunner) -> dict[str, list[int]]:
    """Every answer without speculation and without company."""
    answers: dict[str, list[int]] = {}
    for request in requests():
        answers |= run(smollm2, [replace(request, params=replace(request.params, draft_method="off"))])[0]
    assert all(len(answer) == TOKENS for answer in answers.values())
    return answers


def run(
    model: ModelRunner,
    requests: Sequence[GenerationRequest],
    *,
    drafts: int = 0,
    blocks: int = 128,
    step_tokens: int = 128,
) -> tuple[dict[str, list[int]], EngineStats]:
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=8,
        max_num_batched_tokens=step_tokens,
        max_draft_tokens=drafts,
        max_length=LENGTH,
    )
    server = Engine(model, scheduler, Proposer(), control=EveryDraft())
    for request in requests:
        server.accept(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
    return answers, server.stats()


@pytest.mark.parametrize(
    ("drafts", "step_tokens", "blocks"), [(0, 128, 18), (1, 40, 128), (4, 128, 17), (8, 64, 128)]
)
def test_one_seed_is_one_text_for_any_drafts_company_and_pressure(
    smollm2: ModelRunner, alone: dict[str, list[int]], drafts: int, step_tokens: int, blocks: int
) -> None:
    together, stats = run(smollm2, requests()[::-1], drafts=drafts, step_tokens=step_tokens, blocks=blocks)
    assert together == alone
    if drafts:
        assert 0 < stats.accepted_tokens < stats.draft_tokens
    else:  # every step adds one token to all: the blocks must run out
        assert stats.preemptions > 0
