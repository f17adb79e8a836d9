"""What `make bench NAME=distill` makes of acceptance that was measured here, for other models and devices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distillation.larger_models import (
    MOST,
    Served,
    Verification,
    count_passes,
    gain,
    places,
    steps_of,
    verify_whole,
)

from turbo_dev.tiny_engine import write
from turbo_operator.catalog.shapes import shipped
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.distill.data.responses import Completion, TokenizedPrompt
from turbo_runtime.distill.target import TargetModel
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.model import load_first_layers
from turbo_runtime.messages import SamplingParams

SMALL = shipped("HuggingFaceTB/SmolLM2-135M-Instruct")
THIRD = 1 / 3
PARAMS = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write(folder)
    config = RuntimeConfig(
        str(folder), device="cpu", dtype="float32", threads=1, max_num_seqs=8, max_num_batched_tokens=64
    )
    return TargetModel(config)


def everywhere() -> dict[str, Served]:
    assert SMALL is not None
    return {served.name: served for served in places(SMALL, 4, 2)}


def test_drafts_that_are_never_right_are_not_verified_anywhere() -> None:
    wrong = [Verification((0.1, 0.05), 0, {})] * 10
    for served in everywhere().values():
        assert gain(wrong, served, 1, THIRD) == (1.0, 0)


def test_drafts_that_are_always_right_and_free_gain_about_their_length_where_weights_bound_a_step() -> None:
    right = [Verification((1.0,) * 4, 4, {})] * 10
    times, length = gain(right, everywhere()["8B on an H100"], 1, THIRD)
    assert length == 4
    assert 4.5 < times <= 5.0


def test_a_drafter_must_be_worth_its_passes_which_cost_a_small_model_more_than_a_large_one() -> None:
    passed = [Verification((0.6, 0.36), number % 2, {"eagle3": 3}) for number in range(10)]
    places = everywhere()
    small, large = places["135M on this CPU"], places["8B on an L4"]
    assert small.shares(THIRD)["eagle3"] > 2 * large.shares(THIRD)["eagle3"]
    assert gain(passed, small, 1, THIRD)[0] < gain(passed, large, 1, THIRD)[0]
    dear = [Verification((0.6, 0.36), number % 2, {"model": 3}) for number in range(10)]
    assert gain(dear, large, 1, 1.0) == (1.0, 0)


def test_what_is_right_beyond_what_is_verified_comes_in_the_next_steps() -> None:
    """Half of the drafts are right to the end: eighteen tokens in nine steps and one, of one draft each."""
    claims = tuple(0.9**place for place in range(1, MOST + 1))
    found = [Verification(claims, 16, {}), Verification(claims, 0, {})]
    steps = [step for one in found for step in steps_of(one, 1, [1.0, 1.0], {})]
    assert steps == [(2, 1.0)] * 8 + [(1, 1.0), (1, 1.0)]


def test_a_drafter_is_charged_its_passes_in_each_step_that_drafts_again() -> None:
    one = Verification((0.9, 0.8, 0.7, 0.6), 4, {"eagle3": 4, "heads": 1})
    steps = list(steps_of(one, 2, [1.0] * 5, {"eagle3": 0.1, "heads": 0.01}))
    assert steps == [(3, pytest.approx(1.21)), (2, pytest.approx(1.11))]


def test_every_draft_is_verified_whole_and_its_passes_are_counted(served: TargetModel) -> None:
    prompts = [TokenizedPrompt("test", "tiny", (number, 7, 9, 11)) for number in range(4)]
    answers = served.answer(prompts, PARAMS)
    said = [Completion(one, answer) for one, answer in zip(prompts, answers, strict=True)]

    def one_layer() -> ActiveDrafts:
        return ActiveDrafts("model", model=load_first_layers(1, served.target, served.noise))

    steps = verify_whole(served, one_layer, said, [], said[:1], PARAMS)
    assert sum(1 + step.accepted for step in steps) == sum(len(one.tokens) for one in said)
    assert any(step.claims for step in steps)
    for step in steps:
        assert step.accepted <= len(step.claims) <= MOST
        assert all(0.0 < claim <= 1.0 for claim in step.claims)
        assert step.passes["model"] in (len(step.claims), len(step.claims) + 1) or not step.claims
    remembered = verify_whole(served, lambda: ActiveDrafts("suffix"), said, said, [], PARAMS)
    assert len(remembered) < sum(len(one.tokens) for one in said) / 2  # the very answers
    assert all(step.passes == {} for step in remembered)


def test_passes_are_those_that_a_drafter_makes_for_what_others_drafted_too() -> None:
    eagle3 = SimpleNamespace(guess=lambda _requests, _fed: "logits")
    heads = SimpleNamespace(next_candidates=lambda confidence: [None if confidence[0] > 0.9 else "token"])
    drafts: Any = SimpleNamespace(own={"eagle3": eagle3, "heads": heads})
    since = count_passes(cast("ActiveDrafts", drafts))
    eagle3.guess([], {0: []})  # behind its own state
    eagle3.guess([], {0: [5, 6, 7]})  # three tokens that memory drafted
    for confidence in (0.95, 0.2, 0.2):
        heads.next_candidates([confidence])
    assert since() == {"eagle3": 4, "heads": 1}
    heads.next_candidates([0.95])  # of which no head computes anything
    assert since() == {"eagle3": 0, "heads": 0}
