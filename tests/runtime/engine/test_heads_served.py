"""Turbo heads in the real engine: drafts are taken and refused, answers are those without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import pytest
import torch

from turbo_dev import host_syncs
from turbo_dev.drafting import EveryDraft, RandomDrafts
from turbo_dev.fitting import say
from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.heads import Heads, HeadsDrafter
from turbo_runtime.drafters.interface import Draft, DraftRequest
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.engine.speculator import BatchEntry
from turbo_runtime.messages import GenerationRequest

MakeEngine = Callable[..., Engine]
FEW_BLOCKS = 14  # the longest sequence may have 13

Asked = tuple[list[GenerationRequest], dict[str, list[int]]]


@pytest.fixture(scope="module", params=[0.0, 0.8], ids=["greedy", "sampled"])
def asked(
    request: pytest.FixtureRequest, make_engine: MakeEngine, ask: Callable[..., list[GenerationRequest]]
) -> Asked:
    """Requests, and their answers alone and without drafts."""
    wanted = ask(request.param)
    return wanted, {one.request_id: say(make_engine(), [one])[0].tokens for one in wanted}


class Counting(Proposer):
    """Tells whose tokens were proposed."""

    def __init__(self, in_use: ActiveDrafts) -> None:
        super().__init__(in_use)
        self.sources: Counter[str] = Counter()

    def propose(
        self,
        wants: Sequence[DraftRequest],
        least: float = 0.0,
        pays: Callable[[Hashable], bool] = bool,
        worth: float = 0.0,
        /,
    ) -> list[Draft]:
        drafts = super().propose(wants, least, pays, worth)
        self.sources.update(origin.source for draft in drafts for origin in draft.origins)
        return drafts


@pytest.mark.parametrize(
    ("blocks", "step_tokens"), [(160, 160), (160, 48), (FEW_BLOCKS, 160), (FEW_BLOCKS, 70)]
)
@pytest.mark.parametrize("drafter", ["heads", "auto"])
def test_answers_are_those_without_drafts_in_company_chunks_and_preemption(
    make_engine: MakeEngine,
    tiny_heads: Heads,
    asked: Asked,
    drafter: DraftMethod,
    blocks: int,
    step_tokens: int,
) -> None:
    wanted, alone = asked
    sources: Counter[str] = Counter()
    for control in (EveryDraft(), RandomDrafts(3)):
        plain = make_engine()
        heads = HeadsDrafter(tiny_heads, plain.noise, at_once=plain.model.asynchronous)
        drafters = Counting(ActiveDrafts(drafter, heads))
        server = make_engine(drafters, control, blocks=blocks, step_tokens=step_tokens)
        for request in wanted:
            server.accept(request)
        answers: dict[str, list[int]] = {request.request_id: [] for request in wanted}
        while not server.idle:
            for event in server.step().events:
                assert event.error is None
                answers[event.request_id].extend(event.tokens)
            server.scheduler.check()
        assert answers == alone
        stats = server.stats()
        assert 0 < stats.accepted_tokens < stats.draft_tokens
        assert drafters.sources["heads"] > 0
        sources += drafters.sources
        if blocks == FEW_BLOCKS:
            assert stats.preemptions > 0
    # Together: how often memory is the surer one for sampled answers depends on the machine.
    assert set(sources) == ({"heads"} if drafter == "heads" else {"heads", "suffix"})


def test_heads_that_know_the_answers_shorten_them(
    make_engine: MakeEngine, tiny_heads: Heads, asked: Asked
) -> None:
    known = asked[0][::2]
    server = make_engine(Proposer(ActiveDrafts("heads", HeadsDrafter(tiny_heads, make_engine().noise))))
    for request in known:
        server.accept(request)
    while not server.idle:
        server.step()
    stats = server.stats()
    assert stats.generated_tokens > 1.4 * sum(
        stats.verified_draft_length
    )  # tokens over the passes that gave them


def test_a_step_waits_once_for_the_heads_and_on_a_device_once_for_its_tokens(
    make_engine: MakeEngine, tiny_heads: Heads, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = HeadsDrafter(tiny_heads, make_engine().noise, at_once=True)
    server = make_engine(Proposer(ActiveDrafts("auto", heads)))
    propose, drafting = server.speculation.propose, list[int]()

    def counting(parts: Sequence[BatchEntry]) -> None:
        with host_syncs.counted() as waits:
            propose(parts)
        drafting.append(waits.total())

    monkeypatch.setattr(server.speculation, "propose", counting)
    for request in asked[0]:
        server.accept(request)
    while not server.idle:
        with host_syncs.counted() as waits:
            server.step()
        if server.model.asynchronous:
            assert waits.total() == 1 + drafting[-1], waits
    assert {*drafting} == {0, 1}
    assert server.stats().by_draft[0].own_accepted_tokens > 0


def test_heads_whose_weights_overflow_end_nothing(
    make_engine: MakeEngine, target: Target, asked: Asked
) -> None:
    wanted, alone = asked
    every = torch.arange(target.embedding.shape[0])
    heads = Heads(target.embedding, target.output_rows(every), every, heads=4, markov_rank=4)
    heads.block_bias.data.fill_(3e38)
    heads.eval().requires_grad_(False)
    server = make_engine(Proposer(ActiveDrafts("auto", HeadsDrafter(heads, make_engine().noise))))
    for request in wanted:
        server.accept(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in wanted}
    while not server.idle:
        for event in server.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)
    assert answers == alone
