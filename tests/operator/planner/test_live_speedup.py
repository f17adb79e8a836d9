"""The speedup on pods of vLLM: what drafts save by the step-time model, and nothing that is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_examples import MIDDLE, fast, named
from turbo_operator.api import PlanStatus, TurboDeployment, TurboDeploymentStatus, parse
from turbo_operator.drafts.speedup import GenerationStats
from turbo_operator.planner.performance.live_speedup import add_generation_seconds
from turbo_operator.snapshot import LoadSample, Occupancy, PodView
from turbo_runtime.contract.documents import Load

CATALOG = named(fast("card", 80, "1.00"))


def td(method: str = "EAGLE3") -> TurboDeployment:
    plan = PlanStatus(hash="v2a", engine="VLLM", accelerator="card", tensor=1, method=method)
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {"model": {"uri": "hf://acme/model", "maxModelLen": 4096}},
            "status": TurboDeploymentStatus(plan=plan).dump(),
        }
    )


def pod(
    drafts: int, tokens_each: int, accepted: int, others: int, among: float = 1.0, **fields: Any
) -> PodView:
    """A pod that has verified so many drafts, and made so many tokens without any."""
    generated = drafts + accepted + others
    load = Load(
        0, 0, 0, 0, 0.0, 1000, drafts, drafts * tokens_each, accepted, generated, "distribution", False
    )
    start = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "distribution", draining=False)
    sample = LoadSample(100.0, load, 1.0, Occupancy(10.0, 10.0 * among, 5000.0), start)
    view = PodView("a", "v2a", "Running", True, "10.0.0.1", None, None, load=sample, engine="VLLM")
    return replace(view, **fields)


def speedup(it: PodView, method: str = "EAGLE3") -> float | None:
    (only,) = add_generation_seconds(td(method), MIDDLE, CATALOG, [it])
    assert only.load is not None
    stats = GenerationStats.of(only.load.load)
    return None if stats is None else stats.plain_seconds / stats.seconds


def test_drafts_that_are_right_save_time_and_those_that_are_wrong_cost_some() -> None:
    right, wrong = speedup(pod(1000, 3, 3000, 0)), speedup(pod(1000, 3, 0, 0))
    assert right is not None
    assert wrong is not None
    assert 2.0 < right < 4.0
    assert 0.5 < wrong < 1.0


def test_without_drafts_there_is_no_gain() -> None:
    assert speedup(pod(0, 0, 0, 500), "Off") == pytest.approx(1.0)


def test_what_a_pod_did_before_it_was_observed_is_no_gain_of_now() -> None:
    """After a restart of the operator a day's history counted at the load of the moment."""
    seen = pod(1000, 3, 2000, 0)
    assert seen.load is not None
    (anew,) = add_generation_seconds(
        td(), MIDDLE, CATALOG, [replace(seen, load=LoadSample(9.0, seen.load.load))]
    )
    assert anew.load is not None
    assert GenerationStats.of(anew.load.load) == GenerationStats(0.0, 0.0)


def test_guesses_from_the_text_cost_their_verification_alone() -> None:
    guessed, learnt = (speedup(pod(1000, 3, 1500, 0), method) for method in ("NGram", "EAGLE3"))
    assert guessed is not None
    assert learnt is not None
    assert guessed > learnt > 1.0


@given(
    st.integers(1, 1000), st.integers(1, 8), st.floats(0.0, 1.0), st.integers(0, 1000), st.floats(1.0, 64.0)
)
def test_more_right_tokens_never_mean_a_smaller_gain(
    drafts: int, tokens: int, share: float, others: int, among: float
) -> None:
    accepted = int(drafts * tokens * share)
    less, more = (speedup(pod(drafts, tokens, count, others, among)) for count in (accepted // 2, accepted))
    assert less is not None
    assert more is not None
    assert less <= more * (1 + 1e-9)


@pytest.mark.parametrize(
    "unknown",
    [
        pod(10, 3, 20, 0, engine="Turbo"),  # which reports its own seconds
        pod(10, 3, 20, 0, plan_hash="v2other"),
        pod(10, 3, 20, 0, load=None),
    ],
)
def test_what_is_not_known_stays_unknown(unknown: PodView) -> None:
    assert add_generation_seconds(td(), MIDDLE, CATALOG, [unknown]) == (unknown,)


def test_the_passes_of_a_draft_model_are_not_known() -> None:
    it = pod(10, 3, 20, 0)
    assert add_generation_seconds(td("DraftModel"), MIDDLE, CATALOG, [it]) == (it,)
    slow = {"card": replace(CATALOG["card"], memory_bandwidth=None)}
    (only,) = add_generation_seconds(td(), MIDDLE, slow, [it])
    assert only == it
