"""The states that are learnt from are those that answers were drawn from, and what is evaluated is what the
engine does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from turbo_dev.drafting import EveryDraft
from turbo_dev.fitting import Said as Stated
from turbo_dev.fitting import fit, say, words_of
from turbo_dev.tiny_engine import write
from turbo_runtime.cli.distill import MAX_RUNNING
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.distill.data.examples import TrainingExamples
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.evaluation import speedup_benchmark
from turbo_runtime.distill.evaluation.record import evaluate
from turbo_runtime.distill.evaluation.speedup_benchmark import Run, compute_speedup, runs, ways
from turbo_runtime.distill.heads import count_accepted
from turbo_runtime.distill.target import LIKELIEST, TargetModel, _likeliest
from turbo_runtime.drafters import proposer
from turbo_runtime.drafters.heads import Heads, HeadsDrafter
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.engine.speculator import Speculator
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.prompts import Prompt

LENGTHS = (4, 17, 64, 100)
HEADS = 3
SEED = 5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TargetModel]:
    folder = tmp_path_factory.mktemp("tiny")
    write(folder)
    template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    before = torch.get_num_threads()
    yield TargetModel(
        RuntimeConfig(
            str(folder), device="cpu", dtype="float32", threads=1, max_num_seqs=8, max_num_batched_tokens=64
        )
    )
    torch.set_num_threads(before)


def test_a_chat_is_read_as_the_server_reads_it(served: TargetModel) -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    sent = Prompt("a", "d", ({"role": "developer", "content": parts},))
    assert served.encode(sent) == served.encode(
        Prompt("b", "d", ({"role": "system", "content": "be brief"},))
    )


def params(temperature: float) -> SamplingParams:
    return SamplingParams(temperature=temperature, seed=SEED, max_tokens=40, stop_token_ids=frozenset({0}))


def asked(temperature: float = 0.0) -> list[TokenizedPrompt]:
    generator = torch.Generator().manual_seed(8)
    prompts = [tuple(torch.randint(1, 250, (length,), generator=generator).tolist()) for length in LENGTHS]
    return [TokenizedPrompt("training", "d", prompt, 0, temperature, SEED) for prompt in prompts]


def stated(served: TargetModel, temperature: float) -> list[Stated]:
    """Answers and states as the engine has them while it answers."""
    engine = served.engines([ActiveDrafts("off")])[0]
    return say(
        engine, [GenerationRequest(str(n), one.prompt, params(temperature)) for n, one in enumerate(asked())]
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_states_that_are_computed_anew_are_those_of_answering(
    served: TargetModel, temperature: float
) -> None:
    told = stated(served, temperature)
    said = [Completion(one, tuple(known.tokens)) for one, known in zip(asked(), told, strict=True)]
    assert [one.tokens for one in said] == served.answer(asked(temperature), params(temperature))
    places = TrainingExamples.joined(list(served.examples(said, params(temperature or 1.0))))
    assert len(places) == sum(len(one.tokens) for one in said)
    torch.testing.assert_close(
        places.hidden, torch.cat([known.states for known in told]), rtol=1e-4, atol=1e-4
    )
    law = (served.model.decoder.logits(places.hidden).float() / (temperature or 1.0)).softmax(-1)
    assert places.likely.shape == (len(places), LIKELIEST)
    torch.testing.assert_close(places.chances, law.gather(1, places.likely.long()), rtol=1e-3, atol=1e-5)
    if not temperature:
        assert places.likely[:, 0].tolist() == places.tokens.tolist()


@pytest.fixture(scope="module")
def heads(served: TargetModel) -> Heads:
    told = [*stated(served, 0.0)[::2], *stated(served, 0.8)[::2]]
    return fit(served.target, told, words_of(told), heads=HEADS, markov_rank=8, steps=150)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_evaluation_counts_what_the_engine_counts_when_it_verifies_every_draft(
    served: TargetModel, heads: Heads, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposer, "MIN_ACCEPTANCE", 0.0)  # else it leaves out what it has no hope for
    answers = served.answer(asked(temperature), params(temperature))
    said = [Completion(one, tokens) for one, tokens in zip(asked(temperature), answers, strict=True)]
    source = HeadsDrafter(heads, served.noise)
    taken = []
    for one in said:
        states = TrainingExamples.joined(list(served.examples([one], params(1.0)))).hidden
        taken.append(count_accepted(one, states, source))
    found = evaluate([*zip(said, taken, strict=True)], HEADS)
    assert sum(map(sum, taken)) > 5
    engine = served.engines([ActiveDrafts("heads", HeadsDrafter(heads, served.noise))])[0]
    engine.speculation = Speculator(engine.speculation.drafters, EveryDraft())
    steps = 0
    for number, one in enumerate(said):  # one by one: beside a prompt there may be no room for drafts
        engine.accept(
            GenerationRequest(
                str(number), one.request.prompt, replace(params(temperature), max_draft_tokens=HEADS)
            )
        )
        while not engine.idle:
            steps += sum(bool(event.tokens) for event in engine.step().events)
    committed = sum(len(one.tokens) for one in said) - len(said)  # the first of each comes with its prompt
    assert found.acceptance_length == pytest.approx(committed / (steps - len(said)))


def test_a_speedup_is_over_the_same_prompts_without_drafts_and_counts_answers_that_differ(
    served: TargetModel, heads: Heads
) -> None:
    answers = served.answer(asked(), params(0.0))
    said = [Completion(one, tokens) for one, tokens in zip(asked(), answers, strict=True)]
    found = list(
        runs(
            served,
            ways(lambda: ActiveDrafts("auto", HeadsDrafter(heads, served.noise))),
            said,
            said[:1],
            said[1:2],
            params(0.0),
            2,
        )
    )
    assert [run.round for run in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for each in range(0, 9, 3):
        assert {run.way for run in found[each : each + 3]} == {"none", "memory", "draft"}
    assert {len(run.answers) for run in found} == {2}  # two parts, since two are asked together
    assert all(not run.drafts for run in found if run.way == "none")
    of_two = compute_speedup(2, found)
    assert (of_two.batch, of_two.prompts, of_two.differing) == (2, 2, 0)
    wrong = [replace(run, answers=((1,), *run.answers[1:])) if run.way == "draft" else run for run in found]
    assert compute_speedup(2, wrong).differing == 3
    slower = [replace(run, seconds=1.0 if run.way == "none" else 0.5) for run in found]
    assert compute_speedup(2, slower).after == pytest.approx(2.0)


def test_every_batch_size_is_measured_with_as_many_at_a_time(tmp_path: Path) -> None:
    write(tmp_path)
    most = max(speedup_benchmark.BATCHES)
    assert most == MAX_RUNNING
    config = RuntimeConfig(str(tmp_path), device="cpu", dtype="float32", threads=1, max_num_seqs=MAX_RUNNING)
    model = TargetModel(config)
    short = SamplingParams(temperature=0.0, max_tokens=4)
    requests = [TokenizedPrompt("test", "d", (5, number, 7)) for number in range(most)]
    answers = model.answer(requests, short)
    completions = [Completion(one, tokens) for one, tokens in zip(requests, answers, strict=True)]
    plain = {"none": lambda: ActiveDrafts("off")}
    (run,) = runs(model, plain, completions, [], [], short, most, rounds=1)
    assert run.answers == tuple(answers)


def run_of(steps: Iterator[Run | None]) -> Run:
    *before, run = steps
    assert not any(before)
    assert run is not None
    return run


def test_of_a_step_prompts_are_charged_the_share_that_they_are_of_those_answered(
    served: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(
        speedup_benchmark, "time", SimpleNamespace(perf_counter=lambda: next(ticks))
    )  # a step takes 1 s
    answers = served.answer(asked(), params(0.0))
    first, *others = [Completion(one, tokens) for one, tokens in zip(asked(), answers, strict=True)]

    def run(company: list[Completion], batch: int) -> Run:
        bench = speedup_benchmark.Bench(served.engines([ActiveDrafts("off")])[0], params(0.0))
        return run_of(bench.answer("none", 0, [first], company, batch))

    alone, accompanied = run([], 3), run(others, 3)
    assert alone.answers == accompanied.answers == (first.tokens,)
    assert alone.seconds == len(first.tokens)
    assert accompanied.seconds == pytest.approx(alone.seconds / 3)


def test_each_run_begins_with_what_is_known_and_a_warm_up_that_is_not_counted(
    served: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = served.answer(asked(), params(0.0))
    first, second, *others = [Completion(one, tokens) for one, tokens in zip(asked(), answers, strict=True)]
    did: list[tuple[str, int, list[Completion]]] = []
    counted: list[tuple[int, int]] = []  # of one engine
    remember, answer = speedup_benchmark.Bench.remember, speedup_benchmark.Bench.answer

    def remembers(bench: speedup_benchmark.Bench, known: list[Completion]) -> None:
        did.append(("remember", id(bench), known))
        remember(bench, known)

    def answers_all(
        bench: speedup_benchmark.Bench, way: str, number: int, expected: list[Completion], *more: Any
    ) -> Iterator[Run | None]:
        did.append(("answer", id(bench), expected))
        run = run_of(answer(bench, way, number, expected, *more))
        counted.append((run.drafts, run.accepted))
        stats = bench._engine.stats()
        assert (stats.drafts, stats.accepted_tokens) == tuple(map(sum, zip(*counted, strict=True)))
        yield run

    monkeypatch.setattr(speedup_benchmark.Bench, "remember", remembers)
    monkeypatch.setattr(speedup_benchmark.Bench, "answer", answers_all)
    way = {"memory": lambda: ActiveDrafts("suffix")}
    for number, run in enumerate(runs(served, way, [first], others, [second], params(0.0), 1, rounds=2)):
        assert (run.round, run.answers) == (number, (first.tokens,))
        assert [(name, told) for name, _, told in did] == [
            ("remember", others),
            ("answer", [second]),
            ("answer", [first]),
        ]
        assert len({bench for _, bench, _ in did}) == 1
        did.clear()
        counted.clear()


@pytest.mark.parametrize("together", [True, False])
def test_ways_take_steps_in_turn_in_another_order_each_round_where_the_cache_holds_all(
    served: TargetModel, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    answers = served.answer(asked(), params(0.0))
    first = Completion(asked()[0], answers[0])
    stepped: list[str] = []
    held: dict[str, range] = {}
    answer = speedup_benchmark.Bench.answer

    def answers_all(bench: speedup_benchmark.Bench, way: str, *more: Any) -> Iterator[Run | None]:
        block_pool = bench._engine.scheduler.block_pool
        held[way] = block_pool.blocks
        for run in answer(bench, way, *more):
            if run is None:
                stepped.append(way)
                bench._engine.scheduler.check()
            yield run

    monkeypatch.setattr(speedup_benchmark.Bench, "answer", answers_all)
    monkeypatch.setattr(TargetModel, "can_hold", lambda served, *asked: together)
    of_two = {"none": lambda: ActiveDrafts("off"), "memory": lambda: ActiveDrafts("suffix")}
    found = runs(served, of_two, [first], [], [], params(0.0), 1, rounds=2)
    for order in (["none", "memory"], ["memory", "none"]):
        assert {next(found).way for _ in of_two} == {*of_two}
        if together:
            assert stepped[:4] == order * 2
            assert not {*held["none"]} & {*held["memory"]}
        else:
            assert list(dict.fromkeys(stepped)) == order
            assert sorted(stepped, key=order.index) == stepped
            assert held["none"] == held["memory"]
        assert max(max(blocks) for blocks in held.values()) < served.model.pool.blocks
        stepped.clear()
    assert list(found) == []


def test_the_cache_holds_requests_of_several_engines_in_parts_of_like_size(served: TargetModel) -> None:
    blocks = served.model.pool.blocks
    assert served.can_hold(2, blocks // 2, BLOCK_SIZE)
    assert not served.can_hold(2, blocks // 2, BLOCK_SIZE + 1)
    assert not served.can_hold(3, blocks // 2, BLOCK_SIZE)


@pytest.mark.parametrize(
    ("top_k", "top_p", "wanted"),
    [
        (0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (2, 1.0, [0.625, 0.375, 0, 0]),
        (0, 0.7, [0.625, 0.375, 0, 0]),
        (0, 0.4, [1, 0, 0, 0]),
        (3, 0.6, [0.625, 0.375, 0, 0]),
    ],
)
def test_the_law_that_is_learnt_is_the_one_served(top_k: int, top_p: float, wanted: list[float]) -> None:
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).log()
    ids, chances = _likeliest(logits, SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p))
    assert ids.tolist() == [[2, 0, 3, 1]]
    assert chances[0].tolist() == pytest.approx(wanted)
