"""The audit: what is right is found right, what is broken is found out, and nobody waits for it."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from turbo_dev.coupling import MUTANTS, Verifier
from turbo_dev.drafting import EveryDraft
from turbo_dev.tiny_engine import POSITIONS, VOCABULARY, WANTED, grammars, network
from turbo_runtime.contract import Guarantee
from turbo_runtime.drafters.drafters import Drafters
from turbo_runtime.engine import loop
from turbo_runtime.engine.audit import MOST_WAITING, Audit, AuditTerms
from turbo_runtime.engine.blocks import BLOCK_SIZE, PROMPT_TILE, BlockLedger
from turbo_runtime.engine.check import check_arithmetic, set_free
from turbo_runtime.engine.grammar import Grammars
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.model import Chunk, Forward, PagedModel
from turbo_runtime.engine.process import REST_SECONDS, serve
from turbo_runtime.engine.request import Failed, Grammar, Ready, SamplingParams, Step, Stop, Submit
from turbo_runtime.engine.scheduler import Scheduler

BLOCKS = 64
GUARANTEES: tuple[Guarantee, ...] = ("bytes", "law")
# what every part of a prompt is in: a tile that is shared, and a remainder
PROMPT = tuple(torch.randint(1, VOCABULARY, (40,), generator=torch.Generator().manual_seed(8)).tolist() * 2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grammars]:
    made = grammars(tmp_path_factory.mktemp("tokenizer"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def models() -> dict[Guarantee, PagedModel]:
    """One whose rows are proven equal, and one whose rows are not held to be."""
    exact, loose = (PagedModel(network(), blocks=BLOCKS, max_length=POSITIONS) for _ in range(2))
    report = check_arithmetic(exact, max_step_tokens=64, limit_seconds=60)
    assert report.guarantee == "bytes", report.reason
    set_free(loose)
    return {"bytes": exact, "law": loose}


Make = Callable[..., Engine]


@pytest.fixture
def make(models: dict[Guarantee, PagedModel], compiled: Grammars) -> Make:
    def made(
        guarantee: Guarantee = "bytes", *, share: float = 1.0, blocks: int = BLOCKS, drafts: int = 8
    ) -> Engine:
        scheduler = Scheduler(
            BlockLedger(blocks),
            max_running=6,
            max_step_tokens=64,
            max_draft_tokens=drafts,
            max_length=min(POSITIONS, blocks * BLOCK_SIZE),
        )
        terms = AuditTerms(share, guarantee)
        return Engine(models[guarantee], scheduler, Drafters(), compiled, EveryDraft(), terms)

    return made


def requests() -> list[Submit]:
    """Every parameter; the prompts repeat themselves, so that there is something to draft."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for number, wanted in enumerate(WANTED):
        prompt = torch.randint(1, VOCABULARY, (5 + 7 * number % 40,), generator=generator).tolist()
        params = SamplingParams(**{"seed": number, "max_tokens": 40, **wanted})
        found.append(Submit(f"r{number}", tuple(prompt * 2), params, choice=number % 3))
    return found


def asked(name: str = "r", tokens: int = 12, **params: object) -> Submit:
    return Submit(name, PROMPT, SamplingParams(seed=3, max_tokens=tokens, **params))  # type: ignore[arg-type]


def run(server: Engine, *submits: Submit) -> dict[str, tuple[int, ...]]:
    """The answers."""
    for submit in submits:
        server.accept(submit)
    said = dict.fromkeys((submit.request_id for submit in submits), ())
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            said[event.request_id] += event.tokens  # type: ignore[assignment]
    return said


def finish_audits(server: Engine) -> tuple[int, int]:
    """Rest until all is audited: how many were, and how many of them were found otherwise."""
    while server.audit.pending:
        server.rest()
    server.rest()  # looks into the books of the last
    assert server.scheduler.ledger.num_used == 0
    return server.stats().audits, server.stats().audit_mismatches


# -- what is right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("blocks", [BLOCKS, 16])
def test_an_honest_engine_passes_with_every_parameter_in_company_and_under_preemption(
    make: Make, guarantee: Guarantee, blocks: int
) -> None:
    server = make(guarantee, blocks=blocks)
    run(server, *requests())
    stats = server.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert (stats.preemptions > 0) == (blocks == 16)
    assert finish_audits(server) == (len(WANTED), 0)


def test_an_answer_from_a_cached_prefix_passes(make: Make) -> None:
    server = make()
    run(server, asked("a"))
    run(server, asked("b"))
    assert server.stats().prefix_cache_hits == PROMPT_TILE
    assert finish_audits(server) == (2, 0)


# -- what is broken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_verifier_is_found_out(
    make: Make, mutant: Verifier, guarantee: Guarantee, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(guarantee)
    monkeypatch.setattr(loop, "verify", mutant)
    # a matcher of a grammar cannot be fed what it forbids
    submits = [submit for submit in requests() if submit.params.grammar is None]
    run(server, *submits)
    audits, mismatches = finish_audits(server)
    assert audits == len(submits)
    assert mismatches > 0


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_broken_prefix_cache_is_found_out(make: Make, guarantee: Guarantee) -> None:
    server = make(guarantee)
    run(server, asked("a", temperature=0.0))
    cached = server.scheduler.prefixes.find(asked_keys(server))
    for values in server.model.pool.values:
        values[:, cached[0] * BLOCK_SIZE : (cached[-1] + 1) * BLOCK_SIZE] *= -3.0
    run(server, asked("b", temperature=0.0))
    assert finish_audits(server) == (2, 1)


def asked_keys(server: Engine) -> tuple[bytes, ...]:
    """Of the prompt's cached tiles."""
    keys = server.scheduler.add(asked("keys")).keys
    sequence = server.scheduler.find("keys")
    assert sequence is not None
    server.scheduler.finish(sequence)
    return keys


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_one_wrong_token_or_a_wrong_end_is_found_and_told_by_its_place_without_its_text(
    make: Make, guarantee: Guarantee, caplog: pytest.LogCaptureFixture
) -> None:
    server, submit = make(guarantee), asked(temperature=0.9)
    answer = run(server, submit)["r"]
    assert finish_audits(server) == (1, 0)
    other = (*answer[:6], (answer[6] + 1) % VOCABULARY, *answer[7:])
    wrong = ((other, "length", 7), (answer[:-3], "length", 9), (answer, "stop", 12))
    for number, (said, reason, place) in enumerate(wrong, 1):
        caplog.clear()
        server.audit.offer(submit, said, reason)
        assert finish_audits(server) == (1 + number, number)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert record.getMessage() == (
            "audit: the answer to request r is not what the model gives without speculation "
            f"(guarantee {guarantee}): it differs from token {place} of {len(said)} on"
        )


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_token_that_the_parameters_forbid_is_found(make: Make, guarantee: Guarantee) -> None:
    server, submit = make(guarantee), asked(temperature=0.0)
    answer = run(server, submit)["r"]
    assert finish_audits(server) == (1, 0)
    forbidden = replace(submit, params=replace(submit.params, bad_words=((answer[4],),)))
    server.audit.offer(forbidden, answer, "length")
    ungrammatical = replace(submit, params=replace(submit.params, grammar=Grammar("regex", "[a-f]{3,30}")))
    run(server, ungrammatical)
    finish_audits(server)
    server.audit.offer(ungrammatical, answer, "length")
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
            audit = Audit(server.model, server.scheduler, server.laws, AuditTerms(share, "bytes"))
            audit.offer(asked(f"chatcmpl-{number}"), (1,), "length")
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
    server.accept(loop.Cancel("left"))
    assert server.idle
    assert not server.audit.pending


def test_of_many_answers_the_latest_are_kept(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    server, submit = make(), asked()
    answer = run(server, submit)["r"]
    assert finish_audits(server) == (1, 0)
    wrong = (*answer[:-1], (answer[-1] + 1) % VOCABULARY)
    for number in range(MOST_WAITING + 5):
        server.audit.offer(replace(submit, request_id=f"r{number}"), wrong, "length")
    assert finish_audits(server) == (1 + MOST_WAITING, MOST_WAITING)
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


# -- nobody waits, nothing is left behind -----------------------------------------------------------------


class Passes:
    """Counts what the model computes."""

    def __init__(self, model: PagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = []  # of each pass
        forward = model.forward

        def counted(chunks: list[Chunk]) -> Forward:
            self.tokens.append(sum(len(chunk.tokens) for chunk in chunks))
            return forward(chunks)

        monkeypatch.setattr(model, "forward", counted)


class Inbox:
    """Says what it is to say at the given look into it, and ends; keeps how long each look would wait."""

    def __init__(self, said: dict[int, Submit | Stop]) -> None:
        self.said = said
        self.waits: list[float | None] = []

    def get(self, block: bool = True, timeout: float | None = None) -> Submit | Stop:
        assert block
        self.waits.append(timeout)
        if message := self.said.get(len(self.waits) - 1):
            return message
        raise queue.Empty

    def empty(self) -> bool:
        return True  # while it computes; an idle engine asks `get`


class Outbox:
    """Keeps what is said, and at which look into the inbox."""

    def __init__(self, inbox: Inbox) -> None:
        self.steps: list[tuple[int, Step]] = []
        self._inbox = inbox

    def put(self, item: Ready | Step | Failed, /) -> None:
        assert isinstance(item, Step)
        self.steps.append((len(self._inbox.waits), item))


def test_a_message_that_comes_amid_an_audit_is_served_after_one_small_step_and_before_the_rest(
    make: Make, models: dict[Guarantee, PagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make()
    inbox = Inbox({0: asked("a", 30), 6: asked("b", 30), 200: Stop()})
    outbox = Outbox(inbox)
    passes = Passes(models["bytes"], monkeypatch)
    serve(server, inbox, outbox)
    # after the first answer a rest begins the audit: two steps for the prompt, one for each token
    assert inbox.waits[:7] == [REST_SECONDS, REST_SECONDS, 0, 0, 0, 0, 0]
    told = [(look, event.request_id) for look, step in outbox.steps for event in step.events]
    assert {look for look, name in told if name == "a"} == {1}
    assert {look for look, name in told if name == "b"} == {7}
    ended = {audits: look for audits in (2, 1) for look, step in outbox.steps if step.stats.audits == audits}
    # each takes 2 + 29 steps, and one look goes to a message: the first audit went on where it was
    assert ended == {1: 1 + 31 + 1, 2: 1 + 31 + 1 + 31}
    assert inbox.waits[7] == REST_SECONDS
    assert set(inbox.waits[8:64]) == {0.0}
    assert set(inbox.waits[64:]) == {REST_SECONDS}
    assert server.stats().audit_mismatches == 0
    assert max(passes.tokens) == PROMPT_TILE


def test_a_stop_amid_an_audit_ends_at_once(
    make: Make, models: dict[Guarantee, PagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(models["bytes"], monkeypatch)

    def computed(share: float) -> int:
        server, inbox = make(share=share), Inbox({0: asked("a", 30), 5: Stop()})
        passes.tokens.clear()
        serve(server, inbox, Outbox(inbox))
        assert server.audit.pending == (share > 0)
        return len(passes.tokens)

    assert computed(1.0) == computed(0.0) + 4  # one for each look into the inbox before


def test_requests_that_want_the_blocks_get_them_and_the_audit_begins_again(make: Make) -> None:
    def served(share: float) -> tuple[object, ...]:
        server = make(share=share, blocks=16)
        run(server, asked("first", 30))
        for _ in range(8 if share else 0):
            server.rest()
        assert len(server.audit.table) == (6 if share else 0)
        said = run(server, *requests())
        stats = server.stats()
        return said, stats.preemptions, stats.draft_tokens, server

    *without, _ = served(0.0)
    *found, server = served(1.0)
    assert isinstance(server, Engine)
    assert found == without
    assert len(server.audit.table) == 0
    assert finish_audits(server) == (1 + len(WANTED), 0)


def test_with_room_for_all_the_audit_keeps_its_blocks_and_the_books_add_up(make: Make) -> None:
    server = make()
    run(server, asked("first", 30))
    for _ in range(8):
        server.rest()
    held = tuple(server.audit.table)
    assert held
    assert server.stats().kv_blocks_used == 0  # they are to be had by whoever comes
    server.accept(asked("second"))
    while not server.idle:
        server.step()
        server.scheduler.check(server.audit.table)
    assert tuple(server.audit.table) == held
    assert finish_audits(server) == (2, 0)


def test_an_audit_changes_no_other_figure_and_leaves_nothing_in_cache_and_drafters(make: Make) -> None:
    server = make()
    run(server, *requests())
    before = server.stats(), len(server.scheduler.prefixes), server.speculation.drafters.num_bytes
    tiles, learnt = set(server.scheduler.prefixes.find(asked_keys(server))), []
    server.speculation.control.learn = learnt.append  # type: ignore[method-assign, assignment]
    audits, _ = finish_audits(server)
    after = replace(server.stats(), audits=0, step_tokens=before[0].step_tokens)
    assert audits == len(WANTED)
    assert (after, len(server.scheduler.prefixes), server.speculation.drafters.num_bytes) == before
    assert set(server.scheduler.prefixes.find(asked_keys(server))) == tiles
    assert not learnt


def test_what_a_rest_tells_is_no_step_of_so_many_tokens(make: Make) -> None:
    server = make()
    run(server, asked())
    told = [step for step in (server.rest() for _ in range(40)) if step]
    assert [(step.stats.audits, step.stats.step_tokens) for step in told] == [(1, 0)]


def test_an_audit_that_fails_is_logged_and_the_engine_goes_on(
    make: Make,
    models: dict[Guarantee, PagedModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make()
    run(server, asked("a"))
    server.rest()
    assert server.audit.table
    with monkeypatch.context() as broken:
        broken.setattr(models["bytes"], "forward", lambda _: 1 // 0)
        server.rest()
    assert "the audit of request a failed" in caplog.text
    run(server, asked("b"))
    assert finish_audits(server) == (1, 0)
