"""Our engine, once in memory for all competitors: each has a memory, a part of the KV cache, and an estimate
of the time of steps of its own. A request says whether it is drafted for, and a job which prompts a draft
learns from.
"""

from __future__ import annotations

import atexit
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engines import fresh, run

from peers.worker import Answerer, Job, Result, Setup, serve
from turbo_runtime.contract.config import DraftMethod, DType, RuntimeConfig
from turbo_runtime.engine.threads import settle_threads
from turbo_runtime.messages import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from turbo_runtime.engine.loop import Engine
    from turbo_runtime.speculation.step_cost import StepCost

_PARTS = 5  # of the KV cache: each competitor's own, and that of learning


def load(setup: Setup) -> Answerer:
    """The engine as `turbo serve` starts it."""
    settle_threads(setup.threads)
    from turbo_runtime.engine.startup.builder import start_engine

    config = RuntimeConfig(
        setup.model,
        dtype=cast("DType", setup.settings["dtype"]),
        threads=setup.threads,
        max_model_len=setup.max_length,
    )
    engine, ready = start_engine(config, time.monotonic())
    if ready.guarantee != "bitwise":
        raise RuntimeError(f"the guarantee is {ready.guarantee}: this machine's products are not exact")

    import torch

    from peers.learning import Learning

    scratch = tempfile.TemporaryDirectory(prefix="turbo-draft-")
    atexit.register(scratch.cleanup)
    blocks = engine.scheduler.block_pool.num_blocks // _PARTS
    learning = Learning(fresh(engine, blocks=blocks), ready.digest or "", Path(scratch.name))
    servers: dict[str, Engine] = {}
    places: dict[str, int] = {}  # in the KV cache; the first part is for learning
    costs: dict[str, StepCost] = {}

    def known(who: str) -> StepCost:
        """What it knows of the time of steps: at first what the engine found at its start."""
        if who not in costs:
            costs[who] = deepcopy(engine.speculation.control.cost, {id(engine.model): engine.model})
        return costs[who]

    def answer(job: Job) -> Result:
        if job.begins:
            place = places.setdefault(job.who, len(places) + 1)
            assert place < _PARTS
            servers[job.who] = server = fresh(engine, blocks=blocks, first_block=place * blocks)
            server.speculation.control.cost = known(job.who)
            if job.learn:
                server.speculation.drafters = learning.drafters(requests(job, job.learn, "l"))
            if job.bring:
                server.speculation.drafters = learning.starting(requests(job, job.bring, "b"))
            if job.warm:
                run(server, requests(job, job.warm, "w"), len(job.warm))
                while server.speculation.drafters.waiting:  # a server that has been idle since, as a new pod
                    server.speculation.rest()
        return _answer(servers[job.who], job, torch.backends.cpu.get_cpu_capability())

    return answer


def _answer(engine: Engine, job: Job, instructions: str) -> Result:
    before = engine.stats()
    asked = requests(job, job.prompts, "r")
    began = time.perf_counter()
    answers = run(engine, asked, job.at_a_time)
    seconds = time.perf_counter() - began
    after = engine.stats()
    return Result(
        [answers[request.request_id].tokens for request in asked],
        seconds,
        after.drafts - before.drafts,
        after.accepted_tokens - before.accepted_tokens,
        instructions,
    )


def requests(job: Job, prompts: list[list[int]], name: str) -> list[GenerationRequest]:
    params = SamplingParams(
        temperature=0.0,
        max_tokens=job.max_tokens,
        stop_token_ids=frozenset(job.stop),
        draft_method=cast("DraftMethod", job.variant),
    )
    return [
        GenerationRequest(f"{name}{number}", tuple(prompt), params) for number, prompt in enumerate(prompts)
    ]


if __name__ == "__main__":
    serve(load)
