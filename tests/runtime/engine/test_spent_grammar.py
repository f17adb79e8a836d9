"""Answers under one grammar share its limits. Whether one fails depends on its own tokens all the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from llguidance import LLParserLimits

from turbo_dev.drafting import EveryDraft, NoDraft
from turbo_dev.tiny_engine import grammars, network
from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Scheduler
from turbo_runtime.engine.startup.invariance_check import check_batch_invariance
from turbo_runtime.kv_cache.block_pool import BlockPool
from turbo_runtime.messages import Abort, GenerationRequest, Grammar, SamplingParams
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.grammar import compiler
from turbo_runtime.sampling.grammar.matcher import Grammars

COSTLY = Grammar("regex", "[ab]*a[ab]{60}c")  # each token is a state that was not there before
STATES = 260
TOKENS = 100
A = ord("a") - ord("!") + 1  # the tokenizer's bytes follow its end


@pytest.fixture(scope="module")
def model() -> Iterator[ModelRunner]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    paged = ModelRunner(network(), blocks=96, max_length=200)
    assert check_batch_invariance(paged, max_num_batched_tokens=64, limit_seconds=60).guarantee == "bitwise"
    yield paged
    torch.set_num_threads(before)


@pytest.fixture
def few_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Grammars]:
    """Of what one answer needs half as much again, for all that come."""
    monkeypatch.setattr(compiler, "LIMITS", LLParserLimits(max_lexer_states=STATES, verbose_errors=False))
    made = grammars(tmp_path)
    yield made
    made.close()


class Letters(Proposer):
    """Drafts letters, some of them right by chance."""

    def propose(
        self,
        wants: Sequence[DraftRequest],
        _least: float = 0.0,
        _pays: Callable[[Hashable], bool] = bool,
        _worth: float = 0.0,
        /,
    ) -> list[Draft]:
        return [
            Draft(tuple(A + (len(want.tokens) * i // 3 + i) % 2 for i in range(4)), (0.5,) * 4)
            for want in wants
        ]


def engine(model: ModelRunner, under: Grammars, *, drafts: bool) -> Engine:
    scheduler = Scheduler(
        BlockPool(96), max_num_seqs=4, max_num_batched_tokens=64, max_draft_tokens=4, max_length=200
    )
    control = EveryDraft() if drafts else NoDraft()
    return Engine(model, scheduler, Letters() if drafts else Proposer(), under, control)


def ask(number: int, tokens: int = TOKENS) -> GenerationRequest:
    params = SamplingParams(seed=number, max_tokens=tokens, grammar=COSTLY, logit_bias=((A + 2, -100.0),))
    return GenerationRequest(f"r{number}", (3, number), params)


def run(server: Engine, requests: list[GenerationRequest]) -> dict[str, tuple[list[int], str | None]]:
    found: dict[str, tuple[list[int], str | None]] = {each.request_id: ([], None) for each in requests}
    for request in requests:
        server.accept(request)
    while not server.idle:
        for event in server.step().events:
            tokens, _ = found[event.request_id]
            found[event.request_id] = ([*tokens, *event.tokens], event.error)
        server.scheduler.check(server.audit.table)
    return found


def test_no_answer_fails_for_what_others_or_drafts_spent(model: ModelRunner, few_states: Grammars) -> None:
    requests = [ask(number) for number in range(6)]
    alone = run(engine(model, few_states, drafts=False), requests[:1])
    for request in requests[1:]:
        few_states.compile_alone(COSTLY).result()  # and forget what was spent
        alone |= run(engine(model, few_states, drafts=False), [request])
    assert all(error is None and len(tokens) == TOKENS for tokens, error in alone.values())
    assert run(engine(model, few_states, drafts=False), requests) == alone
    assert run(engine(model, few_states, drafts=True), requests) == alone


def test_an_answer_that_is_too_much_by_itself_fails_at_the_same_token_with_any_drafts(
    model: ModelRunner, few_states: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "LIMITS", LLParserLimits(max_lexer_states=70, verbose_errors=False))
    requests = [ask(number) for number in range(3)]
    plain = run(engine(model, few_states, drafts=False), requests)
    assert all(error and "too costly" in error for _, error in plain.values())
    assert all(0 < len(tokens) < TOKENS for tokens, _ in plain.values())
    assert run(engine(model, few_states, drafts=True), requests) == plain


def test_a_spent_grammar_is_compiled_anew_for_those_to_come(model: ModelRunner, few_states: Grammars) -> None:
    server = engine(model, few_states, drafts=False)
    run(server, [ask(number) for number in range(4)])
    spent = few_states.compile(COSTLY)
    run(server, [ask(number) for number in range(4, 9)])
    assert few_states.compile(COSTLY) is not spent


def test_an_answer_may_leave_while_its_grammar_is_compiled_again(
    model: ModelRunner, few_states: Grammars
) -> None:
    server = engine(model, few_states, drafts=False)
    requests = [ask(number) for number in range(4)]
    for request in requests:
        server.accept(request)
    while not server.idle:
        server.step()
        for request in requests:
            if request.request_id in server.samplers and not server.samplers.ready(request.request_id):
                server.accept(Abort(request.request_id))
    server.scheduler.check(server.audit.table)
    assert not server.samplers.compiling
