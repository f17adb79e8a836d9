"""A tiny model that heads are fitted to, and engines over it, for tests of drafts in the real loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TypeAlias

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.fitting import Said, fit, say, words_of
from turbo_dev.runners import RUNNERS
from turbo_dev.tiny_engine import VOCABULARY, grammars, network
from turbo_runtime.drafters.heads import Heads
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.grammar.matcher import Grammars
from turbo_runtime.speculation.controller import GoodputController

BLOCKS, LONGEST, TOKENS = 160, 208, 40
LENGTHS = (4, 9, 13, 17, 6, 21, 11, 30, 100, 148)  # of prompts: in one block, in several tiles and chunks

MakeEngine: TypeAlias = Callable[..., Engine]
Ask: TypeAlias = Callable[[float], list[GenerationRequest]]


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Torch computes with three threads, whatever the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made() -> Iterator[list[Scheduler | Engine]]:
    """Every scheduler that was made since the list was last emptied, and every engine after its own."""
    found: list[Scheduler | Engine] = []
    with pytest.MonkeyPatch.context() as patched:
        for kind in (Scheduler, Engine):
            patched.setattr(kind, "__init__", _kept(kind.__init__, found))
        yield found


def _kept(init: Callable[..., None], found: list[Scheduler | Engine]) -> Callable[..., None]:
    @wraps(init)
    def keep(self: Scheduler | Engine, *args: object, **named: object) -> None:
        init(self, *args, **named)
        found.append(self)

    return keep


@pytest.fixture(autouse=True)
def no_block_leaks(made: list[Scheduler | Engine]) -> Iterator[None]:
    """However a test leaves its engines, the books of their blocks are right."""
    yield
    held = {id(one.scheduler): one.audit.table for one in made if isinstance(one, Engine)}
    schedulers = [one for one in made if isinstance(one, Scheduler)]
    made.clear()
    for scheduler in schedulers:
        scheduler.check(held.get(id(scheduler), ()))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products cost less than to share them out among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grammars]:
    """Grammars of the tiny tokenizer."""
    made = grammars(tmp_path_factory.mktemp("tokenizer"))
    yield made
    made.close()


@pytest.fixture(scope="module", params=RUNNERS)
def tiny_model(request: pytest.FixtureRequest, one_thread: None) -> ModelRunner:
    """The runner for CPUs, or that for GPUs with an attention that runs here."""
    paged = RUNNERS[request.param](network(), blocks=BLOCKS, max_length=LONGEST)
    report = check_batch_invariance(paged, max_num_batched_tokens=160, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    return paged


@pytest.fixture(scope="module")
def make_engine(tiny_model: ModelRunner) -> MakeEngine:
    """An engine over the tiny model that remembers nothing; every draft is verified by default."""

    def make(
        drafters: Proposer | None = None,
        control: GoodputController | None = None,
        *,
        blocks: int = BLOCKS,
        step_tokens: int = 160,
        grammars: Grammars | None = None,
    ) -> Engine:
        scheduler = Scheduler(
            BlockPool(blocks),
            max_num_seqs=8,
            max_num_batched_tokens=step_tokens,
            max_draft_tokens=6,
            max_length=LONGEST,
            shared_tile=tiny_model.shared_tile,
        )
        chosen = EveryDraft() if control is None else control  # one that knows no request yet is falsy
        return Engine(tiny_model, scheduler, drafters or Proposer(), grammars, chosen)

    return make


@pytest.fixture(scope="session")
def ask() -> Ask:
    """One request for each length of a prompt, at a temperature."""

    def requests(temperature: float) -> list[GenerationRequest]:
        generator = torch.Generator().manual_seed(6)
        found = []
        for number, length in enumerate(LENGTHS):
            prompt = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
            params = SamplingParams(temperature=temperature, seed=number, max_tokens=TOKENS)
            found.append(GenerationRequest(f"r{number} at {temperature}", tuple(prompt), params))
        return found

    return requests


@pytest.fixture(scope="module")
def target(tiny_model: ModelRunner) -> Target:
    return Target("tiny", tiny_model.decoder.embedding, tiny_model.decoder.output_rows)


@pytest.fixture(scope="module")
def tiny_heads(make_engine: MakeEngine, ask: Ask, target: Target) -> Heads:
    """Fitted to every other answer, so that the rest is new to them."""
    said: list[Said] = say(make_engine(), [*ask(0.0)[::2], *ask(0.8)[::2]])
    return fit(target, said, words_of(said), heads=4, markov_rank=8, steps=150)
