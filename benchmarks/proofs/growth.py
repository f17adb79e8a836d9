"""What an engine keeps of requests that have gone: a tiny model behind small caches, which are full before
memory is looked at the first time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

from engines import run

from turbo_dev.tiny_engine import POSITIONS, VOCABULARY, grammars, network
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.suffix import Memory, SuffixDrafter
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import PROMPT_TILE, BlockPool
from turbo_runtime.messages import GenerationRequest, Grammar, SamplingParams
from turbo_runtime.models.runner import ModelRunner

TOGETHER, BLOCKS, STEP_TOKENS = 16, 384, 512
REMEMBERED_BYTES, REMEMBERED_TOKENS = 1 << 20, 512
OF_A_TENANT = 4  # requests, one after the other; then a tenant comes that was never there
ONE_GRAMMAR_IN = 10
ANSWER_TOKENS = 6


class Growth:
    """An engine, and the requests that it is asked."""

    def __init__(self, folder: Path) -> None:
        self._grammars = grammars(folder)
        self._memory = Memory(max_tokens=REMEMBERED_TOKENS, max_bytes=REMEMBERED_BYTES)
        model = ModelRunner(network(), blocks=BLOCKS, max_length=POSITIONS)
        check_batch_invariance(model, STEP_TOKENS)
        scheduler = Scheduler(
            BlockPool(BLOCKS),
            max_num_seqs=TOGETHER,
            max_num_batched_tokens=STEP_TOKENS,
            max_draft_tokens=4,
            max_length=POSITIONS,
            shared_tile=model.shared_tile,
        )
        drafters = Proposer(suffix=SuffixDrafter(self._memory))
        self.engine = Engine(model, scheduler, drafters, self._grammars)
        self._asked = 0

    @property
    def full(self) -> bool:
        """Whether what is remembered, the prefix cache and the grammars replace what they have."""
        block_pool = self.engine.scheduler.block_pool
        grammars_asked = self._asked // ONE_GRAMMAR_IN
        remembered = self._memory.num_bytes > 0.9 * REMEMBERED_BYTES
        num_cached = sum(map(block_pool.is_cached, block_pool.blocks))
        return remembered and num_cached > 0.8 * BLOCKS and grammars_asked > 100

    def ask(self, count: int) -> float:
        """Answer so many requests more; MiB that are resident afterwards."""
        errors = [
            answer.error
            for answer in run(self.engine, self._requests(count), 2 * TOGETHER).values()
            if answer.error
        ]
        if errors:
            raise RuntimeError(f"{len(errors)} of {count} requests failed: {errors[0]}")
        while self._memory.waiting:  # a server that has nothing else to do reads on
            self.engine.rest()
        self.engine.scheduler.check()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free is nothing kept
        return resident_mib()

    def close(self) -> None:
        """End the grammars' thread."""
        self._grammars.close()

    def _requests(self, count: int) -> Iterator[GenerationRequest]:
        first = self._asked
        self._asked += count
        for number in range(first, first + count):
            tenant = number // OF_A_TENANT
            shared, own = random.Random(tenant), random.Random(-1 - number)
            prompt = [shared.randrange(1, VOCABULARY) for _ in range(PROMPT_TILE)]
            prompt += [own.randrange(1, VOCABULARY) for _ in range(8 + number % 24)]
            grammar = Grammar("regex", f"[a-f]{{2,9}}-{number}") if number % ONE_GRAMMAR_IN == 0 else None
            params = SamplingParams(
                temperature=1.0, seed=number, max_tokens=ANSWER_TOKENS, grammar=grammar, logprobs=number % 3
            )
            yield GenerationRequest(f"r{number}", tuple(prompt), params, tenant=f"t{tenant}")


def resident_mib() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
