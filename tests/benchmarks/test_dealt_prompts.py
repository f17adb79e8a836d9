"""Who learns for the speculation benchmark learns from prompts that nobody is asked, and drafts with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from engines import fresh
from peers.contest import CACHED, PLAIN, TRANSFORMERS, TURBO, Contest, Worker
from peers.domains import Asked, Domain, Wanted, deal
from peers.learning import Learning
from peers.worker import Job, Result
from speculation import _in_turn, _measured

from turbo_dev.drafting import EveryDraft
from turbo_dev.tiny_engine import VOCABULARY, network
from turbo_runtime.drafters.interface import DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.models.runner import ModelRunner

PROMPTS = [[number, 7] for number in range(60)]
WANTED = Wanted(prompts=20, tokens=100, warm=4, learn=12, runs=5, answer_tokens=40, stop=[0])


class Answering:
    """Every fourth answer loops."""

    def begin(self, *_: Any) -> None:
        """Nothing is remembered."""

    def answer(self, _competitor: Any, prompts: list[list[int]], *_: Any) -> Result:
        return Result([[5] * 40 if prompt[0] % 4 == 0 else [prompt[0]] * 5 for prompt in prompts])


def dealt(prompts: list[list[int]]) -> Domain:
    return deal(cast("Contest", Answering()), "numbers", prompts, WANTED)


def test_what_is_learnt_from_is_asked_nobody() -> None:
    domain = dealt(PROMPTS)
    asked = [one.prompt for one in domain.asked]
    parts = [*asked, *domain.warm, *domain.learn]
    assert (len(asked), len(domain.warm), len(domain.learn)) == (20, 4, 12)
    assert len({tuple(prompt) for prompt in parts}) == len(parts)
    assert dealt(PROMPTS[:36]).learn == PROMPTS[32:36]
    assert dealt(PROMPTS[:32]).learn == []


def test_outputs_that_recur_and_what_they_copy_are_counted() -> None:
    long = list(range(12))
    asked = [Asked([1], [*long, 99]), Asked([2], [5, 6]), Asked([3], [7, 8])]
    domain = Domain("text", [], [], [asked], 0, [[50, *long], [5, 6]], [[7, 8], [9]])
    assert domain.recurring == (1, 2)
    assert domain.copied_fraction == 12 / 17
    assert dealt(PROMPTS).recurring == (0, 0), "each output is another"
    assert len(dealt(PROMPTS).learn_answers) == 12


def test_an_engine_takes_from_others_none_of_what_they_learn_of_step_times(engine: Engine) -> None:
    """Found by a review: a server without drafts measured the plain step for one with drafts."""
    one, other = fresh(engine), fresh(engine)
    costs = {id(each.speculation.control.cost) for each in (engine, one, other)}
    assert len(costs) == 3


@pytest.fixture
def engine() -> Iterator[Engine]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = ModelRunner(network(), blocks=64, max_length=128)
    scheduler = Scheduler(
        BlockPool(64), max_num_seqs=8, max_num_batched_tokens=128, max_draft_tokens=4, max_length=128
    )
    yield Engine(model, scheduler, Proposer(), control=EveryDraft())
    torch.set_num_threads(before)


def test_a_draft_is_learnt_once_brings_its_answers_and_remembers_nothing_between_runs(
    engine: Engine, tmp_path: Path
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=20)
    requests = [GenerationRequest(f"l{n}", (n + 1, n + 2, n + 3), params) for n in range(6)]
    learning = Learning(engine, "tiny", tmp_path)
    first, second = learning.drafters(requests), learning.drafters(requests)
    brought = second._suffix.num_bytes
    first.finish("old", [1, 2, 3, 4, 5, 6], 1, "")
    first.read(100)
    assert first._suffix.num_bytes > brought > 0
    assert (first.versions["default"], second._suffix.num_bytes) == ("fitted", brought)
    width = engine.model.decoder.embedding.shape[1]
    want = DraftRequest("r", [9, 8, 7], 3, 4, "", 0, 0.0, torch.ones(width), "heads")
    draft = first.propose([want])[0]
    assert {origin.source for origin in draft.origins} == {"heads"}
    assert draft == second.propose([want])[0]
    assert all(0 <= token < VOCABULARY for token in draft.tokens)


def test_who_remembers_answers_is_warmed_on_all_prompts_and_others_on_what_fills_a_prefix_cache() -> None:
    contest = Contest({}, 1, 1, 10, Path())
    warmed: list[list[list[int]]] = []

    class Hearing:
        def answer(self, job: Job) -> Result:
            warmed.append(job.warm)
            return Result([])

    warm = [[number] for number in range(24)]
    for one in (TURBO, PLAIN, TRANSFORMERS):
        contest._workers[one.process] = cast("Worker", Hearing())
        contest.begin(one, warm, (4, [0]))
    assert warmed == [warm, warm[:CACHED], warm[:CACHED]]


@pytest.mark.parametrize(
    ("at_a_time", "expected"),
    [
        (1, [(TURBO, 1), (PLAIN, 1), (PLAIN, 2), (TURBO, 2), (TURBO, 3), (PLAIN, 3)]),
        (8, [(TURBO, 1, 2, 3), (PLAIN, 1, 2, 3)]),
    ],
)
def test_each_prompt_goes_to_all_in_turn_in_an_order_that_moves_on(
    at_a_time: int, expected: list[tuple[Any, ...]]
) -> None:
    calls = list[tuple[Any, ...]]()

    class Recording:
        def answer(self, competitor: Any, prompts: list[list[int]], *_: Any) -> Result:
            calls.append((competitor, *[prompt[0] for prompt in prompts]))
            return Result(prompts, 2.0)

    asked = [Asked([number], [number]) for number in (1, 2, 3)]
    both = (PLAIN, TURBO)
    results = _in_turn(cast("Contest", Recording()), both, asked, at_a_time, (4, [0]), 1)
    assert calls == expected
    found = _measured(results[PLAIN], asked, [0])
    assert (found.tokens, found.asked, found.same) == (3, 3, 3)
    assert found.seconds == 2.0 * len(results[PLAIN])
