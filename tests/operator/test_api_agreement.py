"""An object has two judges, `parse` and the API server with our CRD, and they agree on every object."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from turbo_dev.access import Access
from turbo_operator import api

NAMESPACE = "api-agreement"


def _values(good: list[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly good ones, so that objects with many fields are accepted often enough to learn from."""
    return st.integers(0, 9).flatmap(lambda die: odd if die == 0 else st.sampled_from(good))


_odd_uris = [
    "hf://a",
    "hf://a/b/c",
    "pvc://c/x y",
    "pvc://c/..",
    "pvc://c/../d",
    "pvc://C/d",
    "hf://a/b\n",
    "c/d\n",
    "oci://r/a",
    "oci://a:1",
    "oci://r/a:1/../b",
    "s3://a",
    "s3://A-b/c",
    "s3://abc/.d",
    "s3://abc/d/..",
    "s3://abc//d",
]
_uris = _values(
    [
        *("hf://a/b", "hf://A-1/b_2.x", "pvc://c", "pvc://c/", "pvc://c//d", "pvc://c/a..b"),
        *("pvc://c/d/e.gguf", "oci://r.io/a/b:1", "oci://r.io:5000/a__b/c-d@sha256:" + "0f" * 32 + "/m/"),
        *("s3://abc", "s3://a.b-c/", "s3://abc/d/e=f.g/"),
    ],
    st.sampled_from(_odd_uris),
)
_durations = _values(
    ["1s", "1m30s", "0.5h", "60m", "250ms"],
    st.just("\u0661s")  # a digit, though none of ours
    | st.from_regex(r"\A[0-9]{0,4}(\.[0-9]{1,2})?(ms|s|m|h|d)?([0-9]{1,3}[smh])?\n?\Z"),
)
_money = _values(["0.80", "24", "0.000001"], st.from_regex(r"\A-?[0-9]{0,11}(\.[0-9]{0,7})?\n?\Z"))
_quantities = _values(
    [1, "1", "400m", "1.5Gi", "2k"],
    st.one_of(st.integers(-1, 9), st.from_regex(r"\A[0-9]{0,3}(\.[0-9]{0,2})?(m|Gi|G|KB|k|e3)?\n?\Z")),
)
_names = _values(["a", "a-1", "a.b"], st.from_regex(r"\A[a-zA-Z0-9_.-]{0,6}\n?\Z"))


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_lengths = st.fixed_dictionaries(
    {"mean": _values([1, 600], st.integers(-1, 1))},
    optional={"p95": _values([600, 16_777_216], st.integers(-1, 1))},
)
_latency = st.fixed_dictionaries(
    {"max": _durations | st.sampled_from(["0s", "0.0ms", "0h0m"])},
    optional={"percentile": _values([50, 90, 95, 99], st.integers(49, 100))},
)
_rate = st.fixed_dictionaries(
    {
        "type": _values(["Pods", "Percent"], st.just("Share")),
        "value": _values([1, 100], st.integers(-1, 10_001)),
        "periodSeconds": _values([1, 60, 1800], st.integers(-1, 1801)),
    }
)
_rules = _some(
    stabilizationWindowSeconds=_values([0, 300, 3600], st.integers(-1, 3601)),
    policies=st.lists(_rate, max_size=3),
    selectPolicy=_values(["Max", "Min", "Disabled"], st.just("Most")),
)
_variables = st.fixed_dictionaries(
    {"name": _values(["A", "_b"], _names), "value": st.sampled_from(["", "x"])}
)
_pod_template = _some(
    metadata=_some(
        labels=st.dictionaries(
            _values(
                ["a", "team.org/x"], st.sampled_from(["app.kubernetes.io/name", "serving.turbo.dev/role"])
            ),
            _names,
        ),
        annotations=st.dictionaries(
            _values(["app.kubernetes.io/name", "x"], st.just("serving.turbo.dev/applied-hash")), _names
        ),
    ),
    spec=_some(
        resources=_some(
            requests=st.dictionaries(_values(["cpu", "memory"], st.just("nvidia.com/gpu")), _quantities),
        ),
        env=st.lists(_variables, max_size=2),
    ),
)
_specs = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries({"uri": _uris}, optional={"revision": _names, "name": _names})},
    optional={
        "speculation": _some(
            mode=st.sampled_from(["Auto", "Required", "Disabled"]),
            method=_values(
                ["Auto", "Suffix", "TurboHeads"], st.sampled_from(["EAGLE3", "DraftModel", "MTP"])
            ),
            draftModel=st.fixed_dictionaries({"uri": _uris}),
            placement=_values(["Auto"], st.sampled_from(["Colocated", "Separate", "CPU"])),
            maxDraftTokens=_values([0, 8, 64], st.integers(-1, 65)),
        ),
        "engine": _some(type=_values(["Auto", "Turbo"], st.just("VLLM"))),
        "accelerators": _some(
            allowed=_values([["a"], ["a", "b"]], st.lists(_names, max_size=3)),
            capacityTypes=_values(
                [["OnDemand"], ["Spot", "Reserved"]],
                st.lists(st.sampled_from(["OnDemand", "Spot", "Reserved"]), max_size=3),
            ),
            maxPerReplica=_values([1, 64], st.integers(0, 65)),
            maxTotal=_values([1, 100_000], st.integers(0, 1)),
            pendingTimeout=_durations,
        ),
        "parallelism": _some(
            tensor=_values([1], st.integers(0, 65)), pipeline=_values([1], st.integers(0, 2))
        ),
        "workload": _some(
            inputTokens=_lengths,
            outputTokens=_lengths,
            requestsPerSecond=_money,
            concurrency=_values([1, 1_000_000], st.integers(-1, 1)),
        ),
        "targets": _some(timeToFirstToken=_latency, timePerOutputToken=_latency, tokensPerSecond=_money),
        "cost": _some(
            maxPerHour=_money,
            maxPerMillionTokens=_money,
            currency=st.just("USD"),
        ),
        "scaling": _some(
            mode=st.sampled_from(["Planned", "Metrics", "External"]),
            minReplicas=_values([1, 3], st.integers(-1, 1001)),
            maxReplicas=_values([3, 1000], st.integers(-1, 1001)),
            behavior=_some(scaleUp=_rules, scaleDown=_rules),
        ),
        "planPolicy": _some(
            objective=st.sampled_from(["Cost", "Latency", "Throughput"]),
            minSavingFraction=_values(
                ["0", "0.10", "1", "1.000000"], _money | st.sampled_from(["1.000001", "2"])
            ),
        ),
        "replicas": _values([0, 1, 1000], st.integers(-1, 1001)),
        "cache": _some(
            persistentVolumeClaim=st.fixed_dictionaries({"claimName": _names}),
            emptyDir=_some(sizeLimit=_quantities),
        ),
        "drain": _some(timeout=_durations),
        "podTemplate": _pod_template,
    },
)


@pytest.fixture(scope="module")
def dry_run(api_server: Access) -> Iterator[httpx.Client]:
    """Of both kinds; the paths are relative to the group."""
    if api_server.ca is None or api_server.token is None:
        pytest.skip(
            "speaks HTTP to the embedded API server, for its speed, and TURBO_TEST_CONTEXT names another"
        )
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    path = f"/apis/{api.API_VERSION}/"
    with httpx.Client(
        base_url=api_server.url + path,
        params={"dryRun": "All", "fieldValidation": "Strict"},
        headers={"Authorization": f"Bearer {api_server.token}"},
        verify=ssl.create_default_context(cafile=str(api_server.ca)),
        trust_env=False,
    ) as client:
        yield client


@pytest.mark.cluster
@settings(max_examples=200, deadline=None)
@given(spec=_specs)
def test_parse_and_api_server_agree(dry_run: httpx.Client, spec: dict[str, Any]) -> None:
    written = {
        "apiVersion": api.API_VERSION,
        "kind": "TurboDeployment",
        "metadata": {"name": "x"},
        "spec": spec,
    }
    answer = dry_run.post(f"namespaces/{NAMESPACE}/turbodeployments", json=written)
    try:
        parsed, refused = api.parse(written), None
    except api.InvalidObject as problem:
        parsed, refused = None, problem
    event("accepted" if parsed else "refused")
    said = answer.json().get("message", "nothing against it")
    assert answer.status_code == (201 if parsed else 422), f"parse: {refused}; API server: {said}"
    if parsed:
        stored = answer.json()["spec"]
        assert api.parse({**written, "spec": stored}) == parsed, "defaults differ"
        assert set(stored) >= {"model", "engine", "speculation", "replicas", "drain", "suspend"}


_memory = _values(
    ["80Gi", "22.5Gi", "80G"],
    st.integers(-1, 1) | st.from_regex(r"\A-?[0-9]{0,3}(\.[0-9]{0,2})?(Gi|KB|m)?\n?\Z"),
)
_accelerators = st.fixed_dictionaries(
    {"resourceName": _values(["cpu", "nvidia.com/gpu"], _names), "memory": _memory},
    optional={
        "quantity": _quantities,
        "memoryBandwidthGBps": _money,
        "tflops": st.fixed_dictionaries(
            {"bf16": _money}, optional={"fp8": _money, "int8": _money, "fp4": _money}
        ),
        "countPerNode": _values([1, 8, 1024], st.integers(0, 1025)),
        "interconnectGBps": _money,
        "networkGBps": _money,
        "capacityTypes": _some(
            **dict.fromkeys(
                ("onDemand", "spot", "reserved"),
                st.sampled_from([{"nodeSelector": {"pool": "cheap"}}, {"nodeSelector": {}}, {}]),
            )
        ),
        "provisioning": st.sampled_from(["Fixed", "Elastic"]),
        "maxCount": _values([0, 100_000], st.integers(-1, 0)),
        "efficiency": _some(
            bandwidth=_money, expertBandwidth=_money, flops=_money, expertFlops=_money, layerSeconds=_money
        ),
        "pricing": st.fixed_dictionaries(
            {"perAcceleratorHour": _some(onDemand=_money, spot=_money, reserved=_money)},
            optional={
                "billingUnit": st.sampled_from(["Accelerator", "Node", "Rack"]),
                "currency": st.just("USD"),
                "source": _values(["mine"], st.just("")),
                "asOf": _values(["2026-01-19"], st.sampled_from(["2026-1-9", "2026-01-19\n"])),
            },
        ),
    },
)


@pytest.mark.cluster
@settings(max_examples=100, deadline=None)
@given(spec=_accelerators)
def test_parse_and_api_server_agree_on_accelerators(dry_run: httpx.Client, spec: dict[str, Any]) -> None:
    written = {
        "apiVersion": api.API_VERSION,
        "kind": "TurboAccelerator",
        "metadata": {"name": "x"},
        "spec": spec,
    }
    answer = dry_run.post("turboaccelerators", json=written)
    try:
        parsed, refused = api.parse_accelerator(written), None
    except api.InvalidObject as problem:
        parsed, refused = None, problem
    event("accepted" if parsed else "refused")
    said = answer.json().get("message", "nothing against it")
    assert answer.status_code == (201 if parsed else 422), f"parse: {refused}; API server: {said}"
    if parsed:
        assert api.parse_accelerator({**written, "spec": answer.json()["spec"]}) == parsed, "defaults differ"
