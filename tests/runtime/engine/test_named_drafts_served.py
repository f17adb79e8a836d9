"""Requests choose among drafts that come and go in the real engine: each ends with its own text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turbo_dev.fitting import say, write
from turbo_dev.server_process import PATIENCE
from turbo_runtime.drafters import loader
from turbo_runtime.drafters.heads import Heads
from turbo_runtime.drafters.loader import DraftLoader, WatchedFile
from turbo_runtime.drafters.proposer import Proposer
from turbo_runtime.drafters.target import Target
from turbo_runtime.engine.loop import Engine
from turbo_runtime.messages import DEFAULT_DRAFT, DraftStats, GenerationRequest

MakeEngine = Callable[..., Engine]
NAMES = [DEFAULT_DRAFT, "good", "poor", "cold", "dropped"]
SELECTIONS: list[dict[str, object]] = [
    {"heads": "poor", "named": {"good": "good", "poor": "poor"}},
    {"named": {"good": "good", "cold": "cold"}},
    {"drafter": "heads", "heads": "good", "named": {"poor": "cold", "cold": "nowhere"}},
    {"heads": "nowhere", "named": {"dropped": "good"}},
    {"heads": "good"},
    {"drafter": "suffix", "named": {"good": "good"}},
    {"drafter": "eagle"},
]


@dataclass(frozen=True)
class Bench:
    """Requests, their answers without drafts, and an engine that follows a file before every step."""

    wanted: list[GenerationRequest]
    alone: dict[str, list[int]]
    engine: Engine
    file: WatchedFile

    def select(self, selection: object) -> None:
        """As a mounted ConfigMap: the old one or the new one, never half of it."""
        scratch = self.file.path.with_suffix(".new")
        scratch.write_text(json.dumps(selection))
        scratch.replace(self.file.path)

    def until(self, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < end
            self.engine.step()


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory,
    target: Target,
    tiny_heads: Heads,
    make_engine: MakeEngine,
    ask: Callable[[float], list[GenerationRequest]],
) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("named")
    ids = torch.arange(50)
    write(folder / "good", tiny_heads, target, "good-1")
    for name in ("poor", "cold"):
        heads = Heads(target.embedding, target.output_rows(ids), ids, heads=2, markov_rank=4)
        write(folder / name, heads, target, f"{name}-1")
    wanted = [*ask(0.0)[:5], *ask(0.8)[2:7]]
    alone = {one.request_id: say(make_engine(), [one])[0].tokens for one in wanted}
    (folder / "drafts.json").write_text(json.dumps(SELECTIONS[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "LOOK_SECONDS", 0.0)
        file = WatchedFile(folder / "drafts.json", DraftLoader(target, make_engine().noise).load)
        drafters = Proposer(file.wait(time.monotonic()), file=file)
        yield Bench(wanted, alone, make_engine(drafters, blocks=40, step_tokens=96), file)  # type: ignore[arg-type]
        file.close()


CHOICES = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(NAMES), st.integers(0, 6)), min_size=1, max_size=12
)


@given(choices=CHOICES, selections=st.lists(st.sampled_from(SELECTIONS), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_chosen_and_whatever_comes_and_goes_answers_are_those_without_drafts(
    bench: Bench, choices: list[tuple[int, str, int]], selections: list[dict[str, object]]
) -> None:
    """Each choice: a request, its draft, and the steps until the next request comes."""
    engine = bench.engine
    answers: dict[str, list[int]] = {}
    swaps = dict(zip(range(0, len(choices), 3), selections, strict=False))

    def step() -> None:
        for event in engine.step().events:
            assert event.error is None
            answers[event.request_id].extend(event.tokens)

    for number, (which, draft, steps) in enumerate(choices):
        if number in swaps:
            bench.select(swaps[number])
        request = bench.wanted[which]
        name = f"{number}/{request.request_id}"
        answers[name] = []
        engine.accept(replace(request, request_id=name, draft=draft))
        for _ in range(steps):
            step()
    while not engine.idle:
        step()
    assert answers == {name: bench.alone[name.partition("/")[2]] for name in answers}


def test_a_request_whose_draft_is_dropped_goes_on_with_the_default(bench: Bench) -> None:
    engine = bench.engine
    bench.select({"drafter": "heads", "heads": "good", "named": {"cold": "cold"}})
    bench.until(lambda: [each.name for each in engine.stats().by_draft] == [DEFAULT_DRAFT, "cold"])
    request = max(bench.wanted[::2], key=lambda one: len(bench.alone[one.request_id]))
    engine.accept(replace(request, request_id="mine", draft="cold"))
    said: list[int] = []

    def drafted(name: str) -> int:
        return next((each.draft_tokens for each in engine.stats().by_draft if each.name == name), 0)

    while not drafted("cold"):
        said += [token for event in engine.step().events for token in event.tokens]
    before = drafted(DEFAULT_DRAFT)
    bench.select({"drafter": "heads", "heads": "good"})
    # taken up while the engine looks on, so that the rest of the answer is drafted by the default
    engine.speculation.drafters.poll(time.monotonic())
    found = bench.file._loading
    assert found is not None
    found.result(PATIENCE)
    while not engine.idle:
        said += [token for event in engine.step().events for token in event.tokens]
    assert said == bench.alone[request.request_id]
    assert drafted(DEFAULT_DRAFT) > before
    assert [each.name for each in engine.stats().by_draft] == [DEFAULT_DRAFT]


def test_what_was_drafted_is_counted_for_the_draft_that_was_chosen(
    bench: Bench, make_engine: MakeEngine, target: Target
) -> None:
    bench.select({"drafter": "heads", "heads": "poor", "named": {"good": "good"}})
    loaded = DraftLoader(target, make_engine().noise).load(bench.file.path)
    engine = make_engine(Proposer(loaded))
    known = bench.wanted[::2]
    for request in known:
        engine.accept(replace(request, draft="good"))
    while not engine.idle:
        engine.step()
    stats = engine.stats()
    none, chosen = stats.by_draft
    assert none == DraftStats(DEFAULT_DRAFT, "poor-1")
    assert (chosen.name, chosen.version) == ("good", "good-1")
    assert (chosen.drafts, chosen.draft_tokens, chosen.accepted_tokens) == (
        stats.drafts,
        stats.draft_tokens,
        stats.accepted_tokens,
    )
    assert 0 < chosen.accepted_tokens < chosen.draft_tokens
    assert (chosen.own_draft_tokens, chosen.own_accepted_tokens) == (
        chosen.draft_tokens,
        chosen.accepted_tokens,
    )
