"""What `kubectl apply` would leave of an object that is there and one that is written."""

from __future__ import annotations

from typing import Any

import pytest

from turbo_operator.cli.manifests import Found, merge_patch, overlay_accelerators


@pytest.mark.parametrize(
    ("there", "written", "left"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3, "z": 4}}, {"a": {"x": 1, "y": 3, "z": 4}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": 1}, {"a": {"x": 1, "y": None}}, {"a": {"x": 1}}),
        ({"a": 1}, None, None),
    ],
)
def test_maps_are_merged_and_all_else_is_replaced(there: Any, written: Any, left: Any) -> None:
    assert merge_patch(there, written) == left


def test_an_object_lies_over_the_one_of_its_name_and_over_those_before_it() -> None:
    live = {"mine": body(memory="24Gi", tflops={"bf16": "100", "fp8": "200"}, memoryBandwidthGBps="300")}
    written = [Found("one", body(tflops={"fp8": "250"})), Found("two", body(memory="48Gi"))]
    row = overlay_accelerators(live, written)["mine"]
    assert row.flops == {"bf16": 100e12, "fp8": 250e12}
    assert (row.memory_bandwidth, row.memory_bytes) == (300e9, 48 << 30)
    assert live["mine"]["spec"]["memory"] == "24Gi"


def body(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.turbo.dev/v1alpha1",
        "kind": "TurboAccelerator",
        "metadata": {"name": "mine"},
        "spec": {"resourceName": "nvidia.com/gpu", **spec},
    }
