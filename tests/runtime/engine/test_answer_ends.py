"""The token that ends an answer is never drafted: it comes with those before it anyway, and wins nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import GenerationRequest, Grammar, TokenEvent
from turbo_runtime.sampling.grammar.matcher import Grammars

MakeEngine, Ask = Callable[..., Engine], Callable[[float], list[GenerationRequest]]


def answered(server: Engine, request: GenerationRequest) -> list[TokenEvent]:
    server.accept(request)
    events: list[TokenEvent] = []
    while not server.idle:
        events += server.step().events
    return events


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


def test_an_end_that_is_remembered_is_not_drafted(make_engine: MakeEngine, ask: Ask) -> None:
    server, request = make_engine(), ask(0.0)[3]
    # drafters read all there is in every step: how much it is otherwise, the clock says
    server.speculation.control.spare = lambda shape: 1.0  # type: ignore[method-assign]
    plain = tokens_of(answered(server, request))
    end = next(token for token in reversed(plain) if plain.index(token) >= 6)
    params = replace(request.params, stop_token_ids=frozenset({end}))
    first, again = (
        answered(server, replace(request, request_id=name, params=params)) for name in ("first", "again")
    )
    assert tokens_of(first) == tokens_of(again) == plain[: plain.index(end) + 1]
    assert sum(event.accepted for event in again) > 3
    assert all(event.accepted == len(event.tokens) - 1 for event in again)


def test_an_end_that_a_grammar_forces_is_not_drafted(
    make_engine: MakeEngine, ask: Ask, compiled: Grammars
) -> None:
    server, request = make_engine(grammars=compiled), ask(0.0)[0]
    params = replace(request.params, grammar=Grammar("regex", "abcdefgh"))
    events = answered(server, replace(request, params=params))
    assert events[-1].finish_reason == "stop"
    assert [len(event.tokens) for event in events] == [7, 2]
    assert all(event.accepted == len(event.tokens) - 1 for event in events)


def test_an_answer_that_was_given_before_begins_with_drafts_in_the_step_of_its_prompt(
    make_engine: MakeEngine, ask: Ask
) -> None:
    server, request = make_engine(), ask(0.0)[0]
    server.speculation.control.spare = lambda shape: 1.0  # type: ignore[method-assign]
    plain = tokens_of(answered(server, request))
    server.rest()
    again = answered(server, replace(request, request_id="again"))
    assert tokens_of(again) == plain
    assert again[0].accepted > 0
    assert again[0].cached_tokens is not None


def test_a_prompt_tells_its_logprobs_in_a_step_that_drafts_too(make_engine: MakeEngine, ask: Ask) -> None:
    request = ask(0.0)[0]
    wanted = replace(request, params=replace(request.params, prompt_logprobs=2, logprobs=2))
    plain = answered(make_engine(), replace(wanted, params=replace(wanted.params, draft_method="off")))
    server = make_engine()
    server.speculation.control.spare = lambda shape: 1.0  # type: ignore[method-assign]
    answered(server, wanted)
    server.rest()
    again = answered(server, replace(wanted, request_id="again"))
    assert again[0].accepted > 0
    assert again[0].prompt_logprobs is not None
    assert len(again[0].prompt_logprobs) == len(request.prompt) - 1
    assert again[0].prompt_logprobs == next(e.prompt_logprobs for e in plain if e.prompt_logprobs is not None)
    assert [one for e in again for one in e.logprobs] == [one for e in plain for one in e.logprobs]


def test_the_step_of_a_prompt_in_which_few_drafters_draft_says_nothing_of_an_answers_demand(
    make_engine: MakeEngine, ask: Ask
) -> None:
    server, request = make_engine(), ask(0.0)[0]
    server.accept(request)
    while not server.step().events:
        pass
    assert request.request_id not in server.speculation.demand._lately
    server.step()
    assert request.request_id in server.speculation.demand._lately
