"""Engines that audit every answer of a tiny model, and what to ask of them."""

from __future__ import annotations

from typing import Any

import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.tiny_engine import POSITIONS, VOCABULARY, WANTED, network
from turbo_runtime.contract.documents import Guarantee
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance, set_free
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.grammar.matcher import Grammars

BLOCKS = 64
# rows are proven equal; they are not held to be; they differ by far more
KINDS = {"exact": torch.float32, "loose": torch.float32, "coarse": torch.bfloat16}
# a tile that can be shared, and a remainder
PROMPT = tuple(torch.randint(1, VOCABULARY, (40,), generator=torch.Generator().manual_seed(8)).tolist() * 2)


def model(kind: str) -> ModelRunner:
    """The tiny model of that kind; AssertionError where this machine cannot have it exact."""
    made = ModelRunner(network().to(KINDS[kind]), blocks=BLOCKS, max_length=POSITIONS)
    if kind == "exact":
        report = check_batch_invariance(made, max_num_batched_tokens=64, limit_seconds=60)
        assert report.guarantee == "bitwise", report.reason
    else:
        set_free(made)
    return made


def terms(kind: str, share: float) -> tuple[float, Guarantee]:
    """What a model of that kind is held to."""
    return share, "bitwise" if kind == "exact" else "distribution"


def engine(
    model: ModelRunner, grammars: Grammars | None, audit: tuple[float, Guarantee], blocks: int = BLOCKS
) -> Engine:
    """Verifies all that is drafted."""
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=6,
        max_num_batched_tokens=64,
        max_draft_tokens=8,
        max_length=min(POSITIONS, blocks * BLOCK_SIZE),
        shared_tile=model.shared_tile,
    )
    return Engine(model, scheduler, Proposer(), grammars, EveryDraft(), *audit)


def requests() -> list[GenerationRequest]:
    """Every parameter; the prompts repeat themselves, so that there is something to draft."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for number, wanted in enumerate(WANTED):
        prompt = torch.randint(1, VOCABULARY, (5 + 7 * number % 40,), generator=generator).tolist()
        params = SamplingParams(**{"seed": number, "max_tokens": 40, **wanted})
        found.append(GenerationRequest(f"r{number}", tuple(prompt * 2), params, choice=number % 3))
    return found


def asked(name: str = "r", tokens: int = 12, **params: Any) -> GenerationRequest:
    """One answer to the prompt."""
    return GenerationRequest(name, PROMPT, SamplingParams(seed=3, max_tokens=tokens, **params))


def run(server: Engine, *requests: GenerationRequest) -> dict[str, tuple[int, ...]]:
    """The answers."""
    for request in requests:
        server.accept(request)
    said: dict[str, tuple[int, ...]] = {request.request_id: () for request in requests}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            said[event.request_id] += event.tokens
    return said


def finish_audits(server: Engine) -> tuple[int, int]:
    """Rest until all is audited: how many were, and how many of them were found otherwise."""
    while server.audit.pending:
        server.rest()
    server.rest()  # looks into the books of the last
    assert server.scheduler.block_pool.num_used == 0
    return server.stats().audits, server.stats().audit_mismatches


def block_keys(server: Engine) -> tuple[bytes, ...]:
    """Of the blocks of the prompt that may be shared."""
    keys = server.scheduler.add(asked("keys")).keys
    sequence = server.scheduler.find("keys")
    assert sequence is not None
    server.scheduler.finish(sequence)
    return keys
