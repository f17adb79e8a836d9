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
]
_uris = _values(
    ["hf://a/b", "hf://A-1/b_2.x", "pvc://c", "pvc://c/", "pvc://c//d", "pvc://c/a..b", "pvc://c/d/e.gguf"],
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


_variables = st.fixed_dictionaries(
    {"name": _values(["A", "_b"], _names), "value": st.sampled_from(["", "x"])}
)
_template = _some(
    labels=st.dictionaries(
        _values(["a", "team.org/x"], st.sampled_from(["app.kubernetes.io/name", "serving.turbo.dev/role"])),
        _names,
    ),
    annotations=st.dictionaries(
        _values(["app.kubernetes.io/name", "x"], st.just("serving.turbo.dev/applied-hash")), _names
    ),
    resources=_some(
        requests=st.dictionaries(_values(["cpu", "memory"], st.just("nvidia.com/gpu")), _quantities),
    ),
    env=st.lists(_variables, max_size=2, unique_by=lambda variable: variable["name"]),
)
_specs = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries({"uri": _uris}, optional={"revision": _names, "servedName": _names})},
    optional={
        "speculation": _some(
            mode=st.sampled_from(["Auto", "Required", "Disabled"]),
            method=st.sampled_from(["Auto", "Suffix"]),
            maxDraftTokens=_values([0, 8, 64], st.integers(-1, 65)),
        ),
        "accelerators": _some(allowed=_values([["a"], ["a", "b"]], st.lists(_names, max_size=3))),
        "cost": _some(maxPerHour=_money),
        "replicas": _values([0, 1, 1000], st.integers(-1, 1001)),
        "drain": _some(timeout=_durations),
        "template": _template,
    },
)


@pytest.fixture(scope="module")
def dry_run(api_server: Access) -> Iterator[httpx.Client]:
    if api_server.ca is None or api_server.token is None:
        pytest.skip(
            "speaks HTTP to the embedded API server, for its speed, and TURBO_TEST_CONTEXT names another"
        )
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    path = f"/apis/{api.API_VERSION}/namespaces/{NAMESPACE}/turbodeployments"
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
    answer = dry_run.post("", json=written)
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
