"""What the wiring does with what a watch shows, before any request to an API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration
from prometheus_client import REGISTRY

from turbo_operator.controller import deployment_metrics
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.handlers import Operator, on_loop_error
from turbo_operator.controller.kube import Kube
from turbo_operator.settings import Settings

KEY = Key("team", "gone")
BODY: dict[str, Any] = {
    "metadata": {"namespace": "team", "name": "gone", "uid": "u", "resourceVersion": "1"},
    "spec": {},
}


def desired() -> float | None:
    return REGISTRY.get_sample_value(
        "turbo_deployment_desired_replicas", {"namespace": "team", "name": "gone"}
    )


@contextlib.asynccontextmanager
async def working() -> AsyncIterator[Operator]:
    """An operator that has shown figures of BODY and works; no API server answers it."""
    async with ApiClient(Configuration(host="http://127.0.0.1:9")) as client:
        operator = Operator(Settings(runtime_image="turbo"), Kube(client))
        operator.cache.put_deployment(BODY)
        deployment_metrics.DESIRED_REPLICAS.labels(KEY.namespace, KEY.name).set(2)
        task = asyncio.create_task(operator.queue.run())
        yield operator
        task.cancel()


async def until_no_figures() -> None:
    async with asyncio.timeout(5):
        while desired() is not None:  # noqa: ASYNC110  the registry tells nobody
            await asyncio.sleep(0.01)


async def test_a_deleted_object_leaves_no_figures_even_if_no_child_of_its_goes_after_it() -> None:
    async with working() as operator:
        operator.handler.drop("TurboDeployment", BODY)
        await until_no_figures()


async def test_an_object_whose_spec_cannot_be_read_has_no_figures() -> None:
    """What was planned and measured is not looked at any more: a figure would stand still."""
    invalid = {"spec": {"model": {"uri": "ftp://old"}}}
    newer = {**BODY, **invalid, "metadata": {**BODY["metadata"], "resourceVersion": "2"}}
    async with working() as operator:
        operator.handler.put("TurboDeployment", newer)
        await until_no_figures()


def test_a_stream_that_ends_with_the_loop_leaves_no_traceback_and_any_other_fault_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found in CI: a watch of the framework does not end as it is told to when the operator gives up."""
    kept: list[AsyncIterator[int]] = []

    async def stream() -> AsyncIterator[int]:
        try:
            yield 1
        except GeneratorExit:
            raise RuntimeError("generator didn't stop after athrow()") from None

    async def work() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_loop_error)
        kept.append(stream())
        await anext(kept[0])
        loop.call_exception_handler({"message": "another fault"})

    asyncio.run(work())
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["another fault"]
