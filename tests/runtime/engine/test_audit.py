"""The audit: what is right is found right, and what is broken is found out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from turbo_dev.audited import (
    BLOCKS,
    KINDS,
    asked,
    block_keys,
    engine,
    finish_audits,
    model,
    requests,
    run,
    terms,
)
from turbo_dev.coupling import MUTANTS, Verifier
from turbo_dev.tiny_engine import VOCABULARY, WANTED
from turbo_runtime.engine import loop
from turbo_runtime.engine.audit import MAX_WAITING, Audit
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.scheduler import Sequence
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.messages import Abort, GenerationRequest, Grammar
from turbo_runtime.models.runner import ModelRunner
from turbo_runtime.sampling.grammar.matcher import Grammars
from turbo_runtime.sampling.search import SEARCH

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models() -> dict[str, ModelRunner]:
    return {kind: model(kind) for kind in KINDS}


Make = Callable[..., Engine]


@pytest.fixture
def make(models: dict[str, ModelRunner], compiled: Grammars) -> Make:
    def made(kind: str = "exact", *, share: float = 1.0, blocks: int = BLOCKS) -> Engine:
        return engine(models[kind], compiled, terms(kind, share), blocks)

    return made


def finished(request: GenerationRequest, answer: Iterable[int]) -> Sequence:
    return Sequence(request, [*request.prompt, *answer], ())


# -- what is right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [BLOCKS, 16])
def test_an_honest_engine_passes_with_every_parameter_in_company_and_under_preemption(
    make: Make, kind: str, blocks: int
) -> None:
    server = make(kind, blocks=blocks)
    run(server, *requests())
    stats = server.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert (stats.preemptions > 0) == (blocks == 16)
    assert finish_audits(server) == (len(WANTED), 0)


def test_an_answer_from_a_cached_prefix_passes(make: Make) -> None:
    server = make()
    run(server, asked("a"))
    run(server, asked("b"))
    assert server.stats().prefix_cache_hits == len(asked("b").prompt) - 1
    assert finish_audits(server) == (2, 0)


# -- what is broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_is_found_out(
    make: Make, mutant: Verifier, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(kind)
    monkeypatch.setattr(loop, "verify", mutant)
    # a matcher of a grammar cannot be fed what it forbids
    plain = [request for request in requests() if request.params.grammar is None]
    run(server, *plain)
    audits, mismatches = finish_audits(server)
    assert audits == len(plain)
    assert mismatches > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_prefix_cache_is_found_out(make: Make, kind: str) -> None:
    server = make(kind)
    run(server, asked("a", temperature=0.0))
    cached = server.scheduler.block_pool.find(block_keys(server))
    for values in server.model.pool.values:
        values[:, cached[0] * BLOCK_SIZE : (cached[-1] + 1) * BLOCK_SIZE] *= -3.0
    run(server, asked("b", temperature=0.0))
    assert finish_audits(server) == (2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_token_or_a_wrong_end_is_found_and_told_by_its_place_without_its_text(
    make: Make, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, request = make(kind), asked(temperature=0.9)
    answer = run(server, request)["r"]
    assert finish_audits(server) == (1, 0)
    other = (*answer[:6], (answer[6] + 1) % VOCABULARY, *answer[7:])
    wrong = ((other, "length", 7), (answer[:-3], "length", 9), (answer, "stop", 12))
    for number, (said, reason, place) in enumerate(wrong, 1):
        caplog.clear()
        server.audit.offer(finished(request, said), reason)
        assert finish_audits(server) == (1 + number, number)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage() == (
            "audit: the answer to request r is not what the model gives without speculation "
            f"(guarantee {terms(kind, 1.0)[1]}): it differs from token {place} of {len(said)} on"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_the_parameters_forbid_is_found(make: Make, kind: str) -> None:
    server, request = make(kind), asked(temperature=0.0)
    answer = run(server, request)["r"]
    assert finish_audits(server) == (1, 0)
    forbidden = replace(request, params=replace(request.params, bad_words=((answer[4],),)))
    server.audit.offer(finished(forbidden, answer), "length")
    ungrammatical = replace(request, params=replace(request.params, grammar=Grammar("regex", "[a-f]{3,30}")))
    run(server, ungrammatical)
    finish_audits(server)
    server.audit.offer(finished(ungrammatical, answer), "length")
    assert finish_audits(server) == (4, 2)


# -- which are audited ------------------------------------------------------------------------------------


def test_nothing_is_audited_at_a_share_of_0(make: Make) -> None:
    server = make(share=0.0)
    run(server, asked())
    assert not server.audit.pending
    assert finish_audits(server) == (0, 0)


def test_the_id_says_which_and_the_share_how_many(make: Make) -> None:
    def taken(share: float) -> list[bool]:
        server, found = make(), []
        for number in range(2000):
            audit = Audit(server.model, server.scheduler, server.samplers, share, "bitwise", SEARCH)
            audit.offer(finished(asked(f"chatcmpl-{number}"), (1,)), "length")
            found.append(audit.pending)
        return found

    assert taken(0.1) == taken(0.1)
    assert 150 < sum(taken(0.1)) < 250
    assert sum(taken(1.0)) == 2000


def test_an_answer_that_failed_or_was_cancelled_is_not_audited(make: Make) -> None:
    server = make()
    server.accept(asked("wrong", logit_bias=((VOCABULARY, 1.0),)))
    server.accept(asked("left"))
    server.step()
    server.accept(Abort("left"))
    assert server.idle
    assert not server.audit.pending


def test_of_many_answers_the_latest_are_kept(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    server, request = make(), asked()
    answer = run(server, request)["r"]
    assert finish_audits(server) == (1, 0)
    wrong = (*answer[:-1], (answer[-1] + 1) % VOCABULARY)
    for number in range(MAX_WAITING + 5):
        server.audit.offer(finished(replace(request, request_id=f"r{number}"), wrong), "length")
    assert finish_audits(server) == (1 + MAX_WAITING, MAX_WAITING)
    assert "request r5 " in caplog.records[0].getMessage()


def test_an_answer_whose_grammar_would_have_to_be_compiled_is_left_out(
    make: Make, compiled: Grammars
) -> None:
    server = make()
    run(server, asked(grammar=Grammar("regex", "[xyz]{4}")))
    for number in range(100):
        compiled.compile(Grammar("regex", f"a{number}"))
    assert server.audit.pending
    assert finish_audits(server) == (0, 0)
