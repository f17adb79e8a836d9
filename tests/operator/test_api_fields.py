"""Durations and quantities mean what Kubernetes says they mean, and names fit into labels."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from turbo_operator import api

_numbers = st.decimals(min_value=0, max_value=10**6, places=3).map(str)
_suffixes = st.sampled_from(
    ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
)


@given(number=_numbers, suffix=_suffixes)
def test_quantity_is_what_the_official_client_reads(number: str, suffix: str) -> None:
    assert api.quantity(number + suffix) == parse_quantity(number + suffix)


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1GB", "-1", "1.", ".5", "1e3", "١"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity: write it like"):
        api.quantity(text)


@given(
    hours=st.integers(0, 99), minutes=st.integers(0, 59), seconds=st.integers(0, 59), ms=st.integers(0, 999)
)
def test_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int, ms: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{ms}ms"
    whole = Decimal(hours * 3600 + minutes * 60 + seconds)
    assert api.Duration(text).seconds == float(whole + Decimal(ms) / 1000)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "-1s", "1d", "1s1", "1.s", "1h 5m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: write it like"):
        _ = api.Duration(text).seconds


# validation.IsValidLabelValue of k8s.io/apimachinery
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[-_.a-z0-9]{1,80}", fullmatch=True)))
def test_whatever_a_name_is_its_label_value_is_one_that_kubernetes_takes(name: str) -> None:
    value = api.label_value(name)
    assert len(value) <= 63
    assert _LABEL_VALUE.fullmatch(value)
    assert value == name or not (len(name) <= 63 and _LABEL_VALUE.fullmatch(name))


def test_names_that_are_cut_or_replaced_alike_have_unlike_label_values() -> None:
    unlike = ["-legal--x", "legal--x", "a b", "a+b", "--", "..", "é", "a" * 63, "a" * 64, "a" * 65]
    assert len({api.label_value(name) for name in unlike}) == len(unlike)
    assert api.label_value("a b").startswith("a-b-")
    assert api.label_value("support-4f21c9aa") == "support-4f21c9aa"


def test_money_keeps_its_cents() -> None:
    td = api.parse(
        {
            "apiVersion": api.API_VERSION,
            "kind": "TurboDeployment",
            "metadata": {"name": "x"},
            "spec": {"model": {"uri": "hf://a/b"}, "cost": {"maxPerHour": "0.10"}},
        }
    )
    assert td.spec.cost is not None
    assert td.spec.cost.max_per_hour == Decimal("0.1")
    assert td.spec.dump()["cost"]["maxPerHour"] == "0.10"


@pytest.mark.parametrize(
    ("uri", "on_hub", "hub_id", "claim", "path"),
    [
        ("hf://acme/tiny", True, "acme/tiny", None, None),
        ("pvc://models", False, None, "models", ""),
        ("pvc://models/", False, None, "models", ""),
        ("pvc://models/a/b.gguf", False, None, "models", "a/b.gguf"),
        ("pvc://models/folder/", False, None, "models", "folder"),
    ],
)
def test_uri_says_where_the_model_is(
    uri: str, on_hub: bool, hub_id: str | None, claim: str | None, path: str | None
) -> None:
    model = api.Model(uri=uri)
    assert model.on_hub is on_hub
    if on_hub:
        assert model.hub_id == hub_id
    else:
        assert (model.claim, model.path) == (claim, path)


@pytest.mark.parametrize("uri", ["pvc://models/tiny.gguf", "pvc://models/tiny.gguf/"])
def test_a_gguf_file_is_served_by_turbo_however_its_uri_ends(uri: str) -> None:
    assert api.TurboDeploymentSpec.model_validate({"model": {"uri": uri}}).engines == (api.EngineName.TURBO,)


DIGEST = "sha256:" + "0f" * 32


@pytest.mark.parametrize(
    ("uri", "image", "path"),
    [
        ("oci://ghcr.io/acme/tiny:1.0", "ghcr.io/acme/tiny:1.0", ""),
        ("oci://127.0.0.1:5000/tiny:v1/models/", "127.0.0.1:5000/tiny:v1", "models"),
        (f"oci://quay.io/a/b/c@{DIGEST}/models/x.gguf", f"quay.io/a/b/c@{DIGEST}", "models/x.gguf"),
    ],
)
def test_uri_says_which_image_the_model_is_in_and_where(uri: str, image: str, path: str) -> None:
    model = api.Model(uri=uri)
    assert (model.on_hub, model.image, model.path) == (False, image, path)


def test_what_nobody_writes_has_these_values() -> None:
    """The API server and `parse` have their defaults from one source: a slip there is one of both."""

    def filled(**spec: object) -> dict[str, object]:
        document = {"kind": "TurboDeployment", "metadata": {"name": "x"}, "spec": spec}
        return api.parse({"apiVersion": api.API_VERSION, **document}).spec.dump()

    smallest = {
        "model": {"uri": "hf://a/b", "dtype": "Auto"},
        "engine": {"type": "Auto"},
        "speculation": {"mode": "Auto", "method": "Auto", "placement": "Auto"},
        "replicas": 1,
        "scaling": {
            "behavior": {"scaleUp": {"selectPolicy": "Max"}, "scaleDown": {"selectPolicy": "Max"}},
        },
        "planPolicy": {"objective": "Cost", "minSavingFraction": "0.10", "apply": "Auto"},
        "podTemplate": {"metadata": {}, "spec": {}},
        "rollout": {
            "minReadySeconds": 10,
            "progressDeadline": "10m",
            "canary": {
                "gates": {"maxErrorFraction": "0.01", "minSpeedupRatio": "0.8"},
                "minGenerationDuration": "60s",
                "minDuration": "10m",
                "minSpeedupRatio": "1.02",
            },
        },
        "drain": {"timeout": "120s"},
        "routing": "Service",
        "suspend": False,
    }
    assert filled(model={"uri": "hf://a/b"}) == smallest
    accelerators = {"capacityTypes": ["OnDemand"], "pendingTimeout": "10m"}
    assert filled(model={"uri": "hf://a/b"}, accelerators={}) == {**smallest, "accelerators": accelerators}
