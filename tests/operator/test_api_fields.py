"""Durations and quantities mean what Kubernetes says they mean."""

from __future__ import annotations

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
    assert api.seconds(text) == float(Decimal(hours * 3600 + minutes * 60 + seconds) + Decimal(ms) / 1000)


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "-1s", "1d", "1s1", "1.s", "1h 5m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration: write it like"):
        api.seconds(text)


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
        assert (model.claim, model.claim_path) == (claim, path)
