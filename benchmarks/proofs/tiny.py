"""Every parameter on a tiny model: drafter x k x batch x size of the cache x tokens of a step, all that is
told of an answer compared with what is told of it computed alone and without drafts.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engines import Answer, run

from proofs.guessing import Guessing
from turbo_dev import lora
from turbo_dev.coupling import MUTANTS, Verifier
from turbo_dev.drafting import EveryDraft
from turbo_dev.eagle3_draft import write
from turbo_dev.runners import RUNNERS
from turbo_dev.tiny_engine import POSITIONS, VOCABULARY, WANTED, grammars, network
from turbo_runtime.drafters.eagle3 import load_eagle3
from turbo_runtime.drafters.heads import Heads, HeadsDrafter
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.model import FirstLayersDrafter, ModelDrafter
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine import loop
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool, blocks_for
from turbo_runtime.messages import EngineStats, GenerationRequest, SamplingParams
from turbo_runtime.models.adapters import read_adapter
from turbo_runtime.sampling.grammar.matcher import Grammars
from turbo_runtime.sampling.noise import Noise

BLOCKS, FEW_BLOCKS = 32 * blocks_for(POSITIONS), blocks_for(POSITIONS) + 8
STEP_TOKENS = (48, 160, 512)
BATCHES = (1, 2, 4, 8, 16, 32)
DRAFTS = (1, 2, 4, 8, 12)
COPIES = 4  # of each wanted set of parameters, with prompts of their own
HEADS = 4
DRAFTERS = ("suffix", "heads", "auto", "guess", "off", "eagle3", "model", "layers")


@dataclass(frozen=True)
class Way:
    """One way to compute all answers."""

    drafter: str
    drafts: int
    batch: int
    blocks: int
    step_tokens: int


def ways(count: int) -> list[Way]:
    """`count` different ways, which take every value of everything by turns."""
    drafters = itertools.cycle(DRAFTERS)
    every = itertools.product(STEP_TOKENS, (BLOCKS, FEW_BLOCKS), DRAFTS, BATCHES)
    found = [Way(next(drafters), drafts, batch, blocks, tokens) for tokens, blocks, drafts, batch in every]
    stride = 11  # has no factor in common with their number, so that every value comes up soon
    return [found[stride * n % len(found)] for n in range(count)]


class Tiny:
    """The model, the requests, and what each answer is."""

    def __init__(self, folder: Path, runner: str) -> None:
        """`runner`: one of RUNNERS."""
        self._folder = folder
        adapters = [
            read_adapter(name, str(place), "tiny", torch.float32, torch.device("cpu"))
            for name, place in lora.write_random(folder, network("eager"), scale=0.02).items()
        ]
        self.model = RUNNERS[runner](network(), blocks=BLOCKS, max_length=POSITIONS, adapters=adapters)
        report = check_batch_invariance(self.model, max_num_batched_tokens=max(STEP_TOKENS), limit_seconds=60)
        if report.guarantee != "bitwise":
            raise RuntimeError(f"this machine's products are not exact: {report.reason}")
        self.grammars: Grammars = grammars(folder)
        self.requests = _requests()
        self.alone: dict[str, Answer] = {}
        for request in self.requests:
            self.alone |= run(self.engine(Way("off", 0, 1, BLOCKS, 160)), [request], 1)

    def engine(self, way: Way) -> Engine:
        """An engine that remembers nothing."""
        scheduler = Scheduler(
            BlockPool(way.blocks),
            max_num_seqs=way.batch,
            max_num_batched_tokens=way.step_tokens,
            max_draft_tokens=way.drafts,
            max_length=POSITIONS,
            shared_tile=self.model.shared_tile,
        )
        # a pass of these takes as long as one of so small a model, and would seldom pay
        control = EveryDraft() if way.drafter in ("eagle3", "model", "layers") else None
        return Engine(self.model, scheduler, self._drafters(way), self.grammars, control)

    def _drafters(self, way: Way) -> Proposer:
        if way.drafter == "guess":
            known = {name: answer.tokens for name, answer in self.alone.items()}
            return Guessing(known, VOCABULARY, wrong=0.2, seed=way.batch)
        if way.drafter in ("off", "suffix"):
            return Proposer(ActiveDrafts("off" if way.drafter == "off" else "suffix"))
        decoder, every, noise = self.model.decoder, torch.arange(VOCABULARY), Noise(VOCABULARY)
        if way.drafter == "eagle3":
            target = Target("", decoder.embedding, decoder.output_rows, self.model)
            write(self._folder, target, self.model, every, (0, 1, 1))
            return Proposer(ActiveDrafts("eagle3", eagle3=load_eagle3(self._folder, target, noise)))
        if way.drafter == "layers":
            return Proposer(ActiveDrafts("model", model=FirstLayersDrafter(self.model, 1, noise)))
        if way.drafter == "model":  # itself, with a cache of its own
            itself, size = self.model.beside(network(), POSITIONS), self.model.pool.block_size
            return Proposer(ActiveDrafts("model", model=ModelDrafter(itself, noise, block_size=size)))
        heads = Heads(
            decoder.embedding, decoder.output_rows(every), every, heads=HEADS, markov_rank=4
        ).requires_grad_(False)
        return Proposer(
            ActiveDrafts("heads" if way.drafter == "heads" else "auto", HeadsDrafter(heads, noise))
        )


def _requests() -> list[GenerationRequest]:
    """Prompts of 5 to 190 tokens; half of them begin with the same tiles, at two tenants, for two adapters
    and for the model itself.
    """
    generator = torch.Generator().manual_seed(4)

    def some(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    shared = some(130)
    found = []
    for number, (copy, wanted) in enumerate(itertools.product(range(COPIES), WANTED)):
        own = some(5 + 11 * number % 40) * 2
        prompt = shared[: 64 + 33 * (number % 3)] + own[:40] if copy % 2 else own
        params = SamplingParams(**{"seed": number, "max_tokens": 40, **wanted})
        asker: dict[str, Any] = {"choice": copy, "tenant": "ab"[number % 2], "lora_id": number % 3}
        found.append(GenerationRequest(f"r{number}", tuple(prompt), params, **asker))
    return found


def compare(tiny: Tiny, chosen: Sequence[Way]) -> Iterator[tuple[Way, int, EngineStats]]:
    """For each way how many answers are told otherwise than alone, and the engine's counters."""
    for number, way in enumerate(chosen):
        engine = tiny.engine(way)
        order = tiny.requests[number % 7 :] + tiny.requests[: number % 7]
        answers = run(engine, order, way.batch + 2, check=True)
        yield way, sum(answers[name] != answer for name, answer in tiny.alone.items()), engine.stats()


def caught(tiny: Tiny) -> int:
    """How many of the broken verifiers give any other answer."""
    free = [request for request in tiny.requests if request.params.grammar is None]
    way = Way("guess", 4, 8, BLOCKS, 160)

    def differs(mutant: Verifier) -> bool:
        with patch.object(loop, "verify", mutant):
            answers = run(tiny.engine(way), free, 8)
        return any(answers[request.request_id] != tiny.alone[request.request_id] for request in free)

    return sum(map(differs, MUTANTS))


def with_tiny(work: Callable[[Tiny], None], runner: str) -> None:
    """Do something with the tiny model on a runner; its grammars' thread ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = Tiny(Path(folder), runner)
        try:
            work(tiny)
        finally:
            tiny.grammars.close()
