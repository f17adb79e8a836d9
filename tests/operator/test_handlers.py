"""What the wiring does with what a watch shows, before any request to an API server."""

from __future__ import annotations

import asyncio
from typing import Any

from kubernetes.aio.client import ApiClient
from prometheus_client import REGISTRY

from turbo_operator import gauges, resources
from turbo_operator.cache import Key
from turbo_operator.handlers import Operator
from turbo_operator.kube import Kube
from turbo_operator.settings import Settings

KEY = Key("team", "gone")


def desired() -> float | None:
    return REGISTRY.get_sample_value("turbo_desired_replicas", {"namespace": "team", "name": "gone"})


async def test_a_deleted_object_leaves_no_figures_even_if_no_child_of_its_goes_after_it() -> None:
    body: dict[str, Any] = {
        "metadata": {"namespace": "team", "name": "gone", "uid": "u", "resourceVersion": "1"},
        "spec": {},
    }
    async with ApiClient() as client:
        operator = Operator(Settings(runtime_image="turbo"), Kube(client))
        operator.cache.put_deployment(body)
        gauges.DESIRED_REPLICAS.labels(KEY.namespace, KEY.name).set(2)
        working = asyncio.create_task(operator.queue.run())
        operator.drop(resources.TURBODEPLOYMENT, body)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if desired() is None:
                break
        working.cancel()
    assert desired() is None
