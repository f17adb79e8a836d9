"""What is shipped at a start, by what was shipped before; on a cluster of dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from turbo_operator.catalog import shipped_objects
from turbo_operator.controller import catalog_sync
from turbo_operator.controller.catalog_sync import MEMORY_NAME
from turbo_operator.controller.kube import Kube, KubeError, RefusedError
from turbo_operator.resources import TURBOACCELERATOR, Resource

NAMESPACE = "turbo-system"
ALL = {entry["metadata"]["name"] for entry in shipped_objects()}
FORBIDDEN = RefusedError(403, "Forbidden", "may not patch configmaps")


class FakeKube(Kube):
    """Keeps accelerators and the one ConfigMap; `refusal` is what it says to whoever comes for the latter."""

    def __init__(self) -> None:
        self.accelerators: dict[str, Mapping[str, Any]] = {}
        self.memory: Mapping[str, Any] | None = None
        self.read_refusal: KubeError | None = None
        self.write_refusal: KubeError | None = None

    async def list_all(self, *_: object) -> list[dict[str, Any]]:
        return [dict(each) for each in self.accelerators.values()]

    async def find(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        assert (resource.kind, namespace, name) == ("ConfigMap", NAMESPACE, MEMORY_NAME)
        if self.read_refusal is not None:
            raise self.read_refusal
        return None if self.memory is None else dict(self.memory)

    async def apply(
        self, resource: Resource, wanted: Mapping[str, Any], *, force: bool = True
    ) -> dict[str, Any]:
        if resource is TURBOACCELERATOR:
            assert not force, "a user's edit wins"
            self.accelerators[wanted["metadata"]["name"]] = wanted
        elif self.write_refusal is not None:
            raise self.write_refusal
        else:
            assert (resource.kind, wanted["metadata"]["namespace"]) == ("ConfigMap", NAMESPACE)
            self.memory = wanted
        return dict(wanted)


@pytest.fixture
async def api() -> FakeKube:
    """After the first start."""
    fake = FakeKube()
    await catalog_sync.apply(fake, NAMESPACE, "Accelerator")
    assert set(fake.accelerators) == ALL
    assert fake.memory is not None
    assert set(fake.memory["data"]) == ALL
    return fake


async def test_a_deleted_one_stays_away_also_when_another_version_of_it_is_shipped(
    api: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = [{**each, "spec": {**each["spec"], "memory": "1Gi"}} for each in shipped_objects()]
    monkeypatch.setattr(catalog_sync, "shipped_objects", lambda _: later)
    del api.accelerators["h100"]
    await catalog_sync.apply(api, NAMESPACE, "Accelerator")
    assert set(api.accelerators) == ALL - {"h100"}
    assert {each["spec"]["memory"] for each in api.accelerators.values()} == {"1Gi"}


async def test_what_a_later_version_brings_is_created_and_what_it_no_longer_ships_is_not_forgotten(
    api: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = shipped_objects()
    brought = {**objects[0], "metadata": {"name": "brought-later"}}
    monkeypatch.setattr(catalog_sync, "shipped_objects", lambda _: (*objects[1:], brought))
    await catalog_sync.apply(api, NAMESPACE, "Accelerator")
    assert set(api.accelerators) == ALL | {"brought-later"}
    assert api.memory is not None
    assert set(api.memory["data"]) == ALL | {"brought-later"}


async def test_where_no_accelerator_is_left_all_are_shipped_anew(api: FakeKube) -> None:
    """The kinds were removed with all their objects, and the ConfigMap outlived them."""
    api.accelerators.clear()
    await catalog_sync.apply(api, NAMESPACE, "Accelerator")
    assert set(api.accelerators) == ALL


async def test_a_memory_that_may_not_be_read_is_not_written_over(
    api: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    memory, api.read_refusal = api.memory, FORBIDDEN
    del api.accelerators["h100"]
    await catalog_sync.apply(api, NAMESPACE, "Accelerator")
    assert set(api.accelerators) == ALL
    assert api.memory is memory
    assert "deleted TurboAccelerators come back: may not patch configmaps" in caplog.text


@pytest.mark.parametrize("refusal", [FORBIDDEN, KubeError(0, "Unreachable", "no connection")])
async def test_a_memory_that_cannot_be_written_is_told_of_and_nothing_else_fails(
    refusal: KubeError, caplog: pytest.LogCaptureFixture
) -> None:
    api = FakeKube()
    api.write_refusal = refusal
    await catalog_sync.apply(api, NAMESPACE, "Accelerator")
    assert set(api.accelerators) == ALL
    assert f"deleted TurboAccelerators come back: {refusal.message}" in caplog.text


async def test_while_the_api_server_cannot_be_reached_nothing_comes_back(api: FakeKube) -> None:
    api.read_refusal = KubeError(0, "Unreachable", "no connection")
    del api.accelerators["h100"]
    with pytest.raises(KubeError, match="no connection"):
        await catalog_sync.apply(api, NAMESPACE, "Accelerator")
    assert "h100" not in api.accelerators


async def test_accelerators_that_share_a_node_are_shipped_by_the_billing_unit(api: FakeKube) -> None:
    await catalog_sync.apply(api, NAMESPACE, "Node")
    units = {
        name: each["spec"].get("pricing", {}).get("billingUnit") for name, each in api.accelerators.items()
    }
    assert (units["h100"], units["l4"], units["cpu"]) == ("Node", None, None)
