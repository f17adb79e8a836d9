"""What drafts are assumed to gain and cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.plan_cases import plan
from turbo_dev.plan_examples import MIDDLE, SMALL, fast, named, spec
from turbo_operator.api import EngineName, Method, Placement, PlanReason, Speculation
from turbo_operator.catalog import shapes
from turbo_operator.planner.capabilities import ENGINES, OFF, engine_of
from turbo_operator.planner.performance import speculation
from turbo_operator.planner.performance.speculation import (
    PRIORS,
    SpeculationOption,
    committed,
    find_fastest,
    list_options,
)

SHAPE = shapes.shipped("Qwen/Qwen3-8B")
assert SHAPE is not None
DRAFT = shapes.shipped("Qwen/Qwen3-0.6B")
METHODS = st.sampled_from(sorted(PRIORS))
seconds = st.floats(1e-4, 10.0)


@pytest.mark.parametrize("method", sorted(PRIORS))
def test_a_prior_commits_what_was_published_at_its_depth(method: Method) -> None:
    prior = PRIORS[method]
    assert committed(method, prior.depth) == pytest.approx(prior.acceptance_length, rel=1e-6)


@given(METHODS, st.integers(0, 32))
def test_more_drafts_commit_more_but_never_more_than_one_each(method: Method, drafts: int) -> None:
    few, more = committed(method, drafts), committed(method, drafts + 1)
    assert few <= more <= few + 1.0
    assert committed(method, 0) == 1.0


@given(st.sampled_from(("Suffix", OFF)), st.integers(0, 64))
def test_nothing_is_assumed_of_suffix_drafts(method: str, drafts: int) -> None:
    assert committed(method, drafts) == 1.0


@given(
    METHODS, st.integers(1, 16), st.lists(seconds, min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1)
)
def test_drafting_is_never_slower_than_not(
    method: Method, ceiling: int, plain: list[float], verify: float, draft: float
) -> None:
    step = np.array([plain])
    best, number = find_fastest(
        SpeculationOption(method, None, ceiling),
        lambda k: step * (1.0 + verify * k),
        lambda k: step * draft * k,
    )
    assert (best <= step).all()
    assert ((number >= 0) & (number <= ceiling)).all()
    reported = np.array([committed(method, int(k)) for k in number[0]])
    assert best[0] == pytest.approx(step[0] * (1.0 + (verify + draft) * number[0]) / reported)


@given(
    METHODS,
    st.integers(1, 16),
    st.lists(st.tuples(seconds, st.floats(0, 1)), min_size=2, max_size=8),
    st.floats(0, 1),
)
def test_a_number_that_is_fixed_is_one_for_all_rows_and_slower_than_none_in_no_row(
    method: Method, ceiling: int, rows: list[tuple[float, float]], draft: float
) -> None:
    plain, verify = np.array(rows).T[:, None]
    option = SpeculationOption(method, None, ceiling)

    def fastest(*, is_fixed: bool) -> tuple[Any, Any]:
        def step(k: float) -> Any:
            return plain * (1.0 + verify * k)

        return find_fastest(option, step, lambda k: plain * draft * k, is_fixed=is_fixed)

    (best, (numbers,)), (free, _) = fastest(is_fixed=True), fastest(is_fixed=False)
    number = int(numbers[0])
    assert set(numbers) == {number}
    assert best == pytest.approx(plain * (1.0 + (verify + draft) * number) / committed(method, number))
    assert (free <= best * (1.0 + 1e-12)).all()
    assert (best <= plain * (1.0 + 1e-12)).all()
    for other in option.drafts():
        tried = plain * (1.0 + (verify + draft) * other) / committed(method, other)
        assert (tried > plain).any() or best[0, -1] <= tried[0, -1] * (1.0 + 1e-12)


def test_each_engine_offers_its_own_methods_and_none_last() -> None:
    assert SHAPE is not None
    turbo, vllm = (
        [item.method for item in list_options(Speculation(), engine, SHAPE, None)] for engine in ENGINES
    )
    assert turbo == ["Suffix", "TurboHeads", OFF]
    assert vllm == ["EAGLE3", OFF]


def test_guesses_of_which_no_gain_is_known_are_vllms_only_where_they_are_named() -> None:
    # It drafts as many for whatever load, where engine Turbo stops before they cost time.
    assert SHAPE is not None
    vllm = engine_of(EngineName.VLLM)
    for method in ("Suffix", "NGram"):
        named = Speculation.model_validate({"method": method})
        assert [item.method for item in list_options(named, vllm, SHAPE, None)] == [method, OFF]


def test_a_draft_model_may_be_in_three_places() -> None:
    assert SHAPE is not None
    asked = Speculation.model_validate({"method": "DraftModel", "draftModel": {"uri": "hf://a/b"}})
    actual = [item.placement for item in list_options(asked, engine_of(EngineName.VLLM), SHAPE, DRAFT)]
    assert actual == [*Placement, None]
    pinned = asked.model_copy(update={"placement": "Separate"})
    assert [item.placement for item in list_options(pinned, engine_of(EngineName.VLLM), SHAPE, DRAFT)] == [
        Placement.SEPARATE,
        None,
    ]


def test_modes_close_what_they_name() -> None:
    assert SHAPE is not None
    disabled = list_options(Speculation.model_validate({"mode": "Disabled"}), ENGINES[0], SHAPE, None)
    required = list_options(Speculation.model_validate({"mode": "Required"}), ENGINES[0], SHAPE, None)
    assert [item.method for item in disabled] == [OFF]
    assert OFF not in [item.method for item in required]


TRAINING = {
    "persistentVolumeClaim": {"claimName": "drafts"},
    "prompts": {"type": "ConfigMap", "configMap": {"name": "prompts"}},
}
SOURCES = {"training": {"training": TRAINING}, "a draft": {"draftRef": {"name": "a"}}, "nothing yet": {}}


@pytest.mark.parametrize("mode", ["Auto", "Required"])
@pytest.mark.parametrize("source", SOURCES)
def test_heads_are_planned_as_the_suffix_drafts_that_they_draft_beside(mode: str, source: str) -> None:
    heads = spec(speculation={"mode": mode, "method": "TurboHeads", **SOURCES[source]})
    suffix = spec(speculation={"mode": mode, "method": "Suffix"})
    catalog = named(fast("a", 80, "1.00"))
    result = plan(heads, MIDDLE, catalog)
    assert result.choice is not None
    assert result.choice.method == Method.SUFFIX
    assert result.choice == plan(suffix, MIDDLE, catalog).choice


def test_only_an_engine_that_has_heads_drafts_for_them() -> None:
    assert SHAPE is not None
    asked = Speculation.model_validate({"method": "TurboHeads", "training": TRAINING})
    turbo, vllm = ([item.method for item in list_options(asked, engine, SHAPE, None)] for engine in ENGINES)
    assert turbo == ["Suffix", OFF]
    assert vllm == [OFF]


def test_a_pass_of_a_head_costs_a_fraction_of_the_model() -> None:
    assert SHAPE is not None
    for method in (Method.EAGLE3, Method.MTP, Method.TURBO_HEADS):
        assert 1 / SHAPE.layers < speculation.pass_share(method, SHAPE) < 0.2


@pytest.mark.parametrize("mode", ["Auto", "Required"])
def test_a_draft_model_of_another_vocabulary_is_refused_with_both_sizes(mode: str) -> None:
    other = replace(SMALL, vocab_size=MIDDLE.vocab_size + 128)  # as a padded table of the same tokenizer has
    drafts = {"mode": mode, "draftModel": {"uri": "hf://a/b"}}
    asked = spec(speculation=drafts, engine={"type": "VLLM"})
    catalog = named(fast("a", 80, "1.00"))
    result = plan(asked, MIDDLE, catalog, draft=other)
    assert (result.choice, result.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert f"spec.speculation.draftModel has a vocabulary of {other.vocab_size} tokens" in result.detail
    assert f"{MIDDLE.vocab_size}" in result.detail
    same = replace(SMALL, vocab_size=MIDDLE.vocab_size)
    assert "vocabulary" not in plan(asked, MIDDLE, catalog, draft=same).detail
    assert plan(spec(speculation=drafts), MIDDLE, catalog, draft=other).choice, "Turbo compares tokenizers"


@pytest.mark.parametrize("mode", ["Auto", "Required"])
def test_a_draft_model_of_unknown_shape_is_refused_where_nothing_else_may_draft(mode: str) -> None:
    drafts = {"mode": mode, "method": "DraftModel", "draftModel": {"uri": "hf://a/b"}}
    asked = spec(engine={"type": "VLLM"}, speculation=drafts)
    result = plan(asked, MIDDLE, named(fast("a", 80, "1.00")))
    assert (result.choice, result.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert result.detail.startswith("The shape of spec.speculation.draftModel is not known")


@pytest.mark.parametrize("mode", ["Auto", "Required"])
def test_mtp_of_a_model_without_its_layers_is_refused_and_says_what_the_model_lacks(mode: str) -> None:
    wanted = spec(engine={}, speculation={"method": "MTP", "mode": mode})
    refused = plan(wanted, MIDDLE, named(fast("a", 80, "1")))
    assert (refused.choice, refused.reason) == (None, PlanReason.NOT_YET_SUPPORTED)
    assert "spec.speculation.method is MTP" in refused.detail
    assert "num_nextn_predict_layers" in refused.detail
    assert "write another method, or leave it out" in refused.detail
    able = plan(wanted, replace(MIDDLE, mtp_layers=1), named(fast("a", 80, "1")))
    assert able.choice is not None
    assert able.choice.method == Method.MTP
