"""--what-if changes one thing of a TurboDeployment and leaves the rest as it was written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator import api
from turbo_operator.cli.plan_query import KNOBS, changed

WRITTEN = {
    "apiVersion": "serving.turbo.dev/v1alpha1",
    "kind": "TurboDeployment",
    "metadata": {"name": "chat"},
    "spec": {
        "model": {"uri": "hf://Qwen/Qwen3-8B"},
        "workload": {"concurrency": 8, "inputTokens": {"mean": 300, "p95": 400}},
        "targets": {"timeToFirstToken": {"max": "2s", "percentile": 99}},
        "speculation": {"method": "Suffix", "maxDraftTokens": 4},
    },
}
VALUES = {
    "accelerators": "h100,l40s",
    "capacityTypes": "Spot,OnDemand",
    "maxPerReplica": "2",
    "maxTotal": "8",
    "tensor": "1",
    "pipeline": "1",
    "data": "1",
    "engine": "Turbo",
    "speculation": "off",
    "maxDraftTokens": "3",
    "dtype": "Float32",
    "maxModelLen": "4096",
    "requestsPerSecond": "4",
    "concurrency": "16",
    "inputTokens": "1000",
    "outputTokens": "200",
    "timeToFirstToken": "1s",
    "timePerOutputToken": "25ms",
    "tokensPerSecond": "1000",
    "maxPerHour": "20",
    "maxPerMillionTokens": "0.60",
    "objective": "Cost",
    "replicas": "3",
    "minReplicas": "2",
    "maxReplicas": "9",
}


def spec(asked: str) -> Any:
    return changed(WRITTEN, asked)["spec"]


def test_every_key_has_an_example_here() -> None:
    assert set(VALUES) == set(KNOBS)


@given(st.sampled_from(sorted(VALUES)))
def test_every_change_is_an_object_of_the_api_and_leaves_the_written_one_alone(key: str) -> None:
    before = copy.deepcopy(WRITTEN)
    for value in (VALUES[key], ""):
        assert isinstance(api.parse(changed(WRITTEN, f"{key}={value}")), api.TurboDeployment)
    assert before == WRITTEN


def test_lists_are_divided_at_commas() -> None:
    assert spec("accelerators=h100, l40s")["accelerators"] == {"allowed": ["h100", "l40s"]}


def test_a_rate_takes_the_place_of_a_concurrency() -> None:
    assert spec("requestsPerSecond=4")["workload"] == {
        "inputTokens": {"mean": 300, "p95": 400},
        "requestsPerSecond": "4",
    }


def test_a_mean_takes_its_percentile_with_it_and_a_bound_keeps_it() -> None:
    assert spec("inputTokens=5000")["workload"]["inputTokens"] == {"mean": 5000}
    assert spec("timeToFirstToken=1s")["targets"] == {"timeToFirstToken": {"max": "1s", "percentile": 99}}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("off", {"mode": "Disabled"}),
        ("Required", {"mode": "Required", "method": "Suffix", "maxDraftTokens": 4}),
        ("eagle3", {"mode": "Required", "method": "EAGLE3"}),
    ],
)
def test_speculation_is_off_auto_or_a_method_and_required_of_what_is_there(
    value: str, found: dict[str, str]
) -> None:
    assert spec(f"speculation={value}")["speculation"] == found


def test_an_empty_value_leaves_the_field_out() -> None:
    assert spec("timeToFirstToken=")["targets"] == {}
    assert spec("maxPerHour=") == WRITTEN["spec"]
