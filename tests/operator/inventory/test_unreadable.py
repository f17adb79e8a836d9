"""Quantities as Kubernetes writes them are read; an object with another one is left out, and said so once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_operator import resources
from turbo_operator.controller.informer import Reflector
from turbo_operator.controller.kube import Kube
from turbo_operator.inventory import usage
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.resources import Resource

GPU = "nvidia.com/gpu"
MOST = (2**63 - 1) * 1000  # no quantity is larger
Event = tuple[str, dict[str, Any]]


class FakeKube(Kube):
    """Lists what it is given, then shows the changes, then stays silent."""

    def __init__(self, listed: Sequence[dict[str, Any]], changes: Sequence[Event] = ()) -> None:
        self._listed = listed
        self._changes = changes
        self.shown = asyncio.Event()

    async def pages(self, *_: object) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        yield list(self._listed), "10"

    async def watch(self, *_: object) -> AsyncIterator[Event]:
        for change in self._changes:
            yield change
        self.shown.set()
        await asyncio.Event().wait()


async def follow(
    resource: Resource, listed: Sequence[dict[str, Any]], changes: Sequence[Event] = ()
) -> InventoryStore:
    """What the inventory holds when a reflector has seen the list and every change."""
    api, inventory = FakeKube(listed, changes), InventoryStore(lambda _: None)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(Reflector(api, inventory, resource, None).run())
        await api.shown.wait()
        task.cancel()
    inventory.take_stock({}, 0.0)
    return inventory


def body(name: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "team", "name": name, "uid": name, "resourceVersion": "1"}, **fields}


def node(name: str, gpus: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
        "status": {"allocatable": {GPU: gpus}},
    }


def pod(name: str, gpus: str) -> dict[str, Any]:
    containers = [{"name": "c", "resources": {"requests": {GPU: gpus}}}]
    return body(name, spec={"nodeName": "n", "containers": containers})


def quota(name: str, gpus: str) -> dict[str, Any]:
    return body(name, spec={"hard": {f"requests.{GPU}": gpus}})


def complaints(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [
        (record.__dict__["object"], record.getMessage())
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]


async def test_a_node_whose_amounts_cannot_be_read_has_no_room_and_the_others_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = [("MODIFIED", node("odd", "lots")), ("ADDED", node("later", "8"))]
    inventory = await follow(resources.NODE, [node("odd", "lots"), node("even", "4")], changes)
    assert {name: each.allocatable for name, each in inventory.stock.nodes.items()} == {
        "even": {GPU: 4000},
        "later": {GPU: 8000},
    }
    ((name, message),) = complaints(caplog)
    assert name == "odd"
    assert message.startswith(f"Node is left out: status.allocatable.{GPU}: 'lots' is no quantity")


async def test_a_pod_whose_amounts_cannot_be_read_holds_nothing_and_the_others_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inventory = await follow(
        resources.POD, [pod("odd", "two"), pod("even", "2")], [("ADDED", pod("later", "1"))]
    )
    assert inventory.stock.held == {"n": {GPU: 3000}}
    ((name, message),) = complaints(caplog)
    assert name == "team/odd"
    assert message.startswith(f"Pod is left out: spec.containers.resources.requests.{GPU}: 'two'")


async def test_a_quota_whose_amounts_cannot_be_read_bounds_nothing_and_the_others_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inventory = await follow(resources.QUOTA, [quota("odd", "1 2"), quota("even", "2")])
    assert [each.hard for each in inventory.stock.quotas] == [{f"requests.{GPU}": 2000}]
    ((name, message),) = complaints(caplog)
    assert name == "team/odd"
    assert message.startswith(f"ResourceQuota is left out: spec.hard.requests.{GPU}: '1 2'")


async def test_an_object_counts_again_when_it_is_mended_and_is_told_of_again_when_it_breaks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, odd = ("MODIFIED", node("n", "4")), ("MODIFIED", node("n", "lots"))
    assert list((await follow(resources.NODE, [node("n", "4")], [odd])).stock.nodes) == []
    assert list((await follow(resources.NODE, [node("n", "lots")], [good])).stock.nodes) == ["n"]
    caplog.clear()
    await follow(resources.NODE, [node("n", "4")], [odd, odd, good, odd])
    assert len(complaints(caplog)) == 2
    gone = await follow(resources.NODE, [node("n", "lots")], [("DELETED", node("n", "lots"))])
    gone.keep_only("Node", set(), "11", None)
    assert list(gone.stock.nodes) == []


_SUFFIXES = {
    **{letter: 10**exponent for letter, exponent in zip("kMGTPE", range(3, 21, 3), strict=True)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)},
    "": 1,
    "e3": 10**3,
    "E+2": 10**2,
    "e0": 1,
}


@given(st.sampled_from(["", "+"]), st.integers(0, 10**9), st.sampled_from(sorted(_SUFFIXES)))
def test_every_whole_quantity_is_read_and_none_exceeds_the_largest(
    sign: str, number: int, suffix: str
) -> None:
    value = min(number * _SUFFIXES[suffix] * 1000, MOST)
    assert usage.amounts({"cpu": f"{sign}{number}{suffix}"}, "status") == {"cpu": value}


@pytest.mark.parametrize("text", ["-1", "-100u", "-.5Gi", "-1e999999999"])
def test_less_than_nothing_is_refused_with_its_field(text: str) -> None:
    """Found in a trial: it counted as 0, and the plan did not say why the node had no room."""
    with pytest.raises(ValueError, match=r"^status\.cpu: .* is below 0: write 0 or more"):
        usage.amounts({"cpu": text}, "status")
    assert usage.amounts({"cpu": "-0"}, "status") == {"cpu": 0}


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [
        ("2", 2000),
        ("1e3", 10**6),
        ("1Ki", 1_024_000),
        ("1E", 10**21),
        ("100u", 1),
        ("5n", 1),
        ("1500u", 2),
        ("0u", 0),
        ("2000000n", 2),
        (".5", 500),
        ("5.", 5000),
        ("+.5Ki", 512_000),
        ("1E3", 10**6),
        ("1e-3", 1),
        ("12e+1", 120_000),
        ("1e-400", 1),
        ("1e999999999", MOST),
        ("0e999999999", 0),
        ("9" * 400 + "Ei", MOST),
        ("0." + "0" * 400 + "1", 1),
    ],
)
def test_every_form_of_a_quantity_is_read_and_rounded_away_from_nothing(text: str, thousandths: int) -> None:
    assert usage.amounts({"cpu": text}, "status") == {"cpu": thousandths}


_NO_NUMBER = ["", ".", "+", "Gi", "--1", "0x1", "1_0", "1,5", "١", "NaN", "Infinity", "lots"]
_NO_SUFFIX = ["1 Gi", " 1", "1\n", "1GB", "1K", "1ki", "1mi", "1e", "1e1.5", "1e3k", "1e1Ki"]


@pytest.mark.parametrize("text", _NO_NUMBER + _NO_SUFFIX)
def test_what_is_no_quantity_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(ValueError, match=r"^status\.cpu: .* is no quantity"):
        usage.amounts({"cpu": text}, "status")


@given(st.text(alphabet="0123456789+-.eEinumkKMGTP", max_size=24) | st.text(max_size=8))
def test_any_text_is_read_within_bounds_or_refused_with_its_field(text: str) -> None:
    try:
        (value,) = usage.amounts({"cpu": text}, "status").values()
    except ValueError as error:
        assert str(error).startswith("status.cpu: ")  # noqa: PT017  that it raises is not the claim
    else:
        assert -MOST <= value <= MOST
