"""A model that gives no numbers for one token: whoever has it fails alone, now and later."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.runners import RUNNERS
from turbo_dev.tiny_engine import network
from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import GenerationRequest, SamplingParams, TokenEvent
from turbo_runtime.models.runner import ModelRunner

POISON = 7
BLOCKS, LENGTH = 64, 200


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Callable[..., ModelRunner]:
    return RUNNERS[request.param]


@pytest.fixture(scope="module", params=[float("nan"), float("inf")], ids=["nan", "inf"])
def poisoned(request: pytest.FixtureRequest, runner: Callable[..., ModelRunner]) -> Iterator[ModelRunner]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = network()
    embedding = weights.get_input_embeddings().weight
    weights.get_output_embeddings().weight = torch.nn.Parameter(embedding.clone(), requires_grad=False)
    embedding[POISON] = request.param
    model = runner(weights, blocks=BLOCKS, max_length=LENGTH)
    assert check_batch_invariance(model, max_num_batched_tokens=96, limit_seconds=60).guarantee == "bitwise"
    yield model
    torch.set_num_threads(before)


def engine(model: ModelRunner, drafters: Proposer | None = None) -> Engine:
    scheduler = Scheduler(
        BlockPool(BLOCKS),
        max_num_seqs=8,
        max_num_batched_tokens=96,
        max_draft_tokens=4,
        max_length=LENGTH,
        shared_tile=model.shared_tile,
    )
    return Engine(model, scheduler, drafters or Proposer(), control=EveryDraft())


def ask(name: str, prompt: list[int], **params: object) -> GenerationRequest:
    wanted = {"temperature": 0.0, "max_tokens": 12, "bad_words": ((POISON,),), **params}
    return GenerationRequest(name, tuple(prompt), SamplingParams(**wanted))  # type: ignore[arg-type]


def healthy(number: int) -> GenerationRequest:
    length = 1 + 37 * number % 90
    prompt = [(3 * i + number) % 50 for i in range(length)]
    return ask(f"healthy {number}", [token + (token >= POISON) for token in prompt])


def run(server: Engine, requests: list[GenerationRequest]) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in requests}
    for request in requests:
        server.accept(request)
    while not server.idle:
        for event in server.step().events:
            events[event.request_id].append(event)
        server.scheduler.check(server.audit.table)
    return events


def text(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


def all_finite(model: ModelRunner) -> bool:
    return all(bool(each.isfinite().all()) for each in (*model.pool.keys, *model.pool.values))


@pytest.mark.parametrize("length", [1, 2, 49, 65, 150])
@pytest.mark.parametrize("place", [0, -1])
def test_an_answer_without_numbers_fails_alone_beside_others_and_before_others(
    poisoned: ModelRunner, length: int, place: int
) -> None:
    fine = [healthy(number) for number in range(6)]
    expected = {
        request.request_id: text(run(engine(poisoned), [request])[request.request_id]) for request in fine
    }
    prompt = [1] * length
    prompt[place] = POISON
    server = engine(poisoned)
    events = run(server, [ask("first", prompt), *fine[:3], ask("between", prompt), *fine[3:]])
    for name in ("first", "between"):
        assert "not finite" in str(events[name][-1].error)
        assert not events[name][-1].refused, "the model is at fault, not the request"
    later = [ask(f"again {i}", list(request.prompt)) for i, request in enumerate(fine)]
    after = run(server, [ask("third", prompt, prompt_logprobs=2), *later])
    assert "not finite" in str(after["third"][-1].error)
    for i, request in enumerate(fine):
        assert text(events[request.request_id]) == expected[request.request_id]
        assert text(after[f"again {i}"]) == expected[request.request_id]
    assert all_finite(poisoned)


class Poisonous(Proposer):
    """Drafts what the model has no numbers for, as the first token or as the second."""

    def propose(
        self,
        wants: Sequence[DraftRequest],
        _least: float = 0.0,
        _pays: Callable[[Hashable], bool] = bool,
        _worth: float = 0.0,
        /,
    ) -> list[Draft]:
        drafts = ((1, POISON, 2), (POISON, 1, 2))
        return [Draft(drafts[len(want.tokens) % 2], (0.9, 0.9, 0.9)) for want in wants]


def test_a_draft_without_numbers_spoils_no_answer(poisoned: ModelRunner) -> None:
    fine = [healthy(number) for number in range(4)]
    expected = run(engine(poisoned), fine)
    found = run(engine(poisoned, Poisonous()), fine)
    for request in fine:
        assert text(found[request.request_id]) == text(expected[request.request_id]) != []
    assert all_finite(poisoned)


@pytest.mark.parametrize("prompt", [[1, 2, 3], [1, 2, 3, 4]])
def test_an_answer_that_comes_upon_such_a_token_is_told_up_to_it_with_any_drafts(
    poisoned: ModelRunner, prompt: list[int]
) -> None:
    request = ask("wish", prompt, bad_words=(), logit_bias=((POISON, 1000.0),))
    plain, drafted = (run(engine(poisoned, each), [request])["wish"] for each in (Proposer(), Poisonous()))
    assert text(plain) == text(drafted) == [POISON]
    assert "not finite" in str(plain[-1].error)
    assert not plain[-1].refused
    assert plain[-1].error == drafted[-1].error
