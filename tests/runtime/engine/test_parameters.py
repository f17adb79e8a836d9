"""Every parameter through the engine: with drafts, in company and under preemption as alone without."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from turbo_dev import tiny_engine
from turbo_dev.drafting import EveryDraft
from turbo_dev.runners import RUNNERS
from turbo_dev.tiny_engine import VOCABULARY, WANTED, network
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import Abort, GenerationRequest, Grammar, SamplingParams, TokenEvent
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.grammar.matcher import Grammars

LENGTH = 200


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=RUNNERS)
def paged(request: pytest.FixtureRequest) -> ModelRunner:
    model = RUNNERS[request.param](network(), blocks=64, max_length=LENGTH)
    report = check_batch_invariance(model, max_num_batched_tokens=48, limit_seconds=60)
    assert report.guarantee == "bitwise", report.reason
    return model


def test_every_parameter_that_changes_the_text_is_among_those_that_are_tried() -> None:
    parameters = {field.name for field in fields(SamplingParams)}
    about_drafts = {"draft_method", "max_draft_tokens"}
    assert parameters - about_drafts - {"seed"} == {name for wanted in WANTED for name in wanted}


def engine(model: ModelRunner, compiled: Grammars | None, *, drafts: int = 8, blocks: int = 64) -> Engine:
    scheduler = Scheduler(
        BlockPool(blocks),
        max_num_seqs=6,
        max_num_batched_tokens=48,
        max_draft_tokens=drafts,
        max_length=LENGTH,
    )
    return Engine(model, scheduler, Proposer(), compiled, EveryDraft())


def requests(drafting: str = "auto") -> list[GenerationRequest]:
    generator = torch.Generator().manual_seed(4)
    found = []
    for number, wanted in enumerate(WANTED):
        prompt = torch.randint(1, VOCABULARY, (5 + 7 * number % 40,), generator=generator).tolist()
        params = SamplingParams(**{"seed": number, "max_tokens": 40, "draft_method": drafting, **wanted})
        found.append(GenerationRequest(f"r{number}", tuple(prompt * 2), params))
    return found


def run(server: Engine, wanted: list[GenerationRequest]) -> dict[str, list[TokenEvent]]:
    for request in wanted:
        server.accept(request)
    events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in wanted}
    while not server.idle:
        for event in server.step().events:
            events[event.request_id].append(event)
    return events


def told(events: list[TokenEvent]) -> tuple[object, ...]:
    """All that an answer says, however it was cut into steps."""
    tokens = [token for event in events for token in event.tokens]
    logprobs = [one for event in events for one in event.logprobs]
    prompt = [event.prompt_logprobs for event in events if event.prompt_logprobs is not None]
    return tokens, logprobs, prompt, events[-1].finish_reason, events[-1].error


@pytest.fixture(scope="module")
def alone(paged: ModelRunner, compiled: Grammars) -> dict[str, tuple[object, ...]]:
    """Every answer computed alone, without speculation."""
    found = {}
    for request in requests("off"):
        found[request.request_id] = told(
            run(engine(paged, compiled, drafts=0), [request])[request.request_id]
        )
    return found


@pytest.mark.parametrize(("drafts", "blocks"), [(0, 64), (2, 64), (8, 64), (8, 16)])
def test_every_parameter_says_the_same_with_any_drafts_in_any_company(
    paged: ModelRunner, compiled: Grammars, alone: dict[str, tuple[object, ...]], drafts: int, blocks: int
) -> None:
    server = engine(paged, compiled, drafts=drafts, blocks=blocks)
    events = run(server, requests())
    assert {name: told(each) for name, each in events.items()} == alone
    stats = server.stats()
    assert (stats.preemptions > 0) == (blocks == 16)
    if drafts:
        assert 0 < stats.accepted_tokens < stats.draft_tokens


def test_answers_obey_what_was_asked_for(alone: dict[str, tuple[object, ...]]) -> None:
    def tokens(number: int) -> list[int]:
        found = alone[f"r{number}"][0]
        assert isinstance(found, list)
        return found

    assert 9 not in tokens(4)
    assert len(tokens(5)) > 12
    assert tokens(5)[-1] < 40
    runs = tokens(6)
    assert 5 not in runs
    assert (17, 23) not in itertools.pairwise(runs)
    said = json.loads(tiny_engine.tokenizer().decode(tokens(8)))
    assert len(said) == 3
    assert all(item["a"] in ("x", "yy") for item in said)
    assert alone["r8"][3] == "stop"
    assert len(set(tokens(1))) > len(set(tokens(0)))


def test_logprobs_are_those_of_transformers(alone: dict[str, tuple[object, ...]]) -> None:
    request = requests()[7]
    answer, logprobs, (prompt,), _, _ = alone["r7"]  # type: ignore[misc]
    ids = [*request.prompt, *answer]  # type: ignore[misc]
    law = torch.log_softmax(network("eager")(torch.tensor([ids])).logits[0].double(), -1)
    for position, found in enumerate([*prompt, *logprobs], 1):  # type: ignore[misc]
        row = law[position - 1]
        assert found.token == ids[position]
        assert found.logprob == pytest.approx(float(row[found.token]), abs=1e-4)
        best = row.topk(len(found.top))
        assert [p for _, p in found.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert len(prompt) == len(request.prompt) - 1  # type: ignore[arg-type]
    assert len(logprobs) == len(answer)  # type: ignore[arg-type]
    assert {len(found.top) for found in prompt} == {2}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("params", "invalid", "sentence"),
    [
        ({"grammar": Grammar("regex", "(")}, "grammar", "the regex cannot be used"),
        ({"logit_bias": ((VOCABULARY, 1.0),)}, "request", "logit_bias names token 270"),
    ],
)
def test_what_cannot_be_served_is_refused_and_harms_nobody(
    paged: ModelRunner,
    compiled: Grammars,
    alone: dict[str, tuple[object, ...]],
    params: dict[str, Any],
    invalid: str,
    sentence: str,
) -> None:
    bad = GenerationRequest("bad", (1, 2), SamplingParams(**params))
    events = run(engine(paged, compiled), [bad, requests()[0]])
    (refusal,) = events["bad"]
    assert refusal.refused == invalid
    assert refusal.error is not None
    assert sentence in refusal.error
    assert told(events["r0"]) == alone["r0"]


def test_an_answer_with_nothing_left_to_say_ends_with_a_sentence(paged: ModelRunner) -> None:
    every = tuple((token,) for token in range(VOCABULARY))
    server = engine(paged, None)
    (event,) = run(server, [GenerationRequest("r", (1, 2), SamplingParams(bad_words=every))])["r"]
    assert (event.finish_reason, event.refused) == ("error", "request")
    assert event.error is not None
    assert "no token is left to choose from" in event.error
    assert server.scheduler.block_pool.num_used == 0


def test_an_answer_can_be_cancelled_while_its_grammar_is_compiled(
    paged: ModelRunner, compiled: Grammars
) -> None:
    server = engine(paged, compiled)
    words = "|".join(f"w{i}x[0-9a-f]*y{i}" for i in range(3000))
    server.accept(GenerationRequest("r", (1, 2), SamplingParams(grammar=Grammar("regex", f"({words})"))))
    assert not server.idle
    server.accept(Abort("r"))
    assert server.idle


def test_an_engine_without_a_tokenizer_refuses_grammars(paged: ModelRunner) -> None:
    params = SamplingParams(grammar=Grammar("json_object"))
    (event,) = run(engine(paged, None), [GenerationRequest("r", (1, 2), params)])["r"]
    assert event.error == "this engine was started without a tokenizer, which a grammar needs"


@pytest.mark.parametrize("number", [0, 8], ids=["queued", "compiling"])
def test_an_id_that_is_in_use_is_not_taken_again_and_harms_nobody(
    paged: ModelRunner, compiled: Grammars, alone: dict[str, tuple[object, ...]], number: int
) -> None:
    """Neither gets the other's words: the second is a fault of whoever sent it, and has no client."""
    server = engine(paged, compiled)
    first, other = requests()[number], requests()[1]
    events = run(server, [first, replace(other, request_id=first.request_id)])
    assert told(events[first.request_id]) == alone[first.request_id]
