"""Scraping real HTTP servers in the pods' place: an answer is a load, everything else is unknown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from turbo_operator.api import GROUP
from turbo_operator.controller.cache.pods import Root
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.load import vllm_load
from turbo_operator.controller.load.scraper import NUM_CONNECTIONS, Scraper
from turbo_operator.snapshot import LoadSample
from turbo_runtime.contract.documents import PROGRESS_PATH, JobProgress, Load, StepTime
from turbo_runtime.contract.endpoints import LOAD_PATH, METRICS_PATH, PORT

KEY = Key("team", "chat")
VLLM_PAGE = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_text(encoding="utf-8")
LOAD = Load(2, 3, 10, 0, 0.5, 1000, 3, 9, 6, 40, "bitwise", False)


def pod(name: str, address: str, ready: bool = True) -> dict[str, Any]:
    labels = {f"{GROUP}/deployment": KEY.name, f"{GROUP}/role": "serving", f"{GROUP}/plan-hash": "abc"}
    owner = {"kind": "ReplicaSet", "name": "chat-abc-1", "uid": "rs", "controller": True}
    return {
        "metadata": {
            "namespace": KEY.namespace,
            "name": name,
            "uid": name,
            "resourceVersion": "1",
            "labels": labels,
            "ownerReferences": [owner],
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def with_root() -> Cache:
    """A cache that knows what controls the pods."""
    cache = Cache()
    cache.pods.put_root("rs", Root(KEY, "td", "abc"))
    return cache


@contextlib.asynccontextmanager
async def runtime(address: str, answer: Any, path: str = LOAD_PATH) -> AsyncIterator[None]:
    """A server on the runtime's port of one loopback address."""
    application = web.Application()
    application.router.add_get(path, answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()


def waiting(key: Key) -> float | None:
    labels = {"namespace": key.namespace, "name": key.name, "state": "waiting"}
    return REGISTRY.get_sample_value("turbo_operator_deployment_requests", labels)


async def test_loads_come_from_pods_that_answer_and_the_others_are_unknown() -> None:
    healthy = True

    async def good(_: web.Request) -> web.Response:
        if not healthy:
            raise web.HTTPServiceUnavailable
        return web.Response(text=LOAD.to_json())

    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(text="not a load")

    async def hollow(_: web.Request) -> web.Response:
        return web.Response(text=LOAD.to_json().replace('"running_requests":2', '"running_requests":null'))

    async def endless(_: web.Request) -> web.Response:
        return web.Response(text=" " * (1 << 20) + LOAD.to_json())

    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response(text=LOAD.to_json())

    cache = with_root()
    answers = {"good": good, "nonsense": nonsense, "silent": silent, "hollow": hollow, "endless": endless}
    async with contextlib.AsyncExitStack() as servers:
        for number, (name, answer) in enumerate(answers.items(), 31):
            await servers.enter_async_context(runtime(f"127.0.0.{number}", answer))
            cache.pods.put(pod(name, f"127.0.0.{number}"))
        cache.pods.put(pod("refusing", "127.0.0.41"))
        cache.pods.put(pod("loading", "127.0.0.31", ready=False))
        clock = iter((100.0, 110.0)).__next__
        scraper = Scraper(cache, period=1000, timeout=3, wake=pytest.fail, clock=clock)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
            await scraper.scrape(session)
            assert waiting(KEY) == 3
            healthy = False
            await scraper.scrape(session)
    assert waiting(KEY) is None
    samples = {each.name: each.load for each in cache.observe(KEY, "td").pods}
    assert samples.pop("good") == LoadSample(100.0, LOAD)
    assert set(samples.values()) == {None}


async def test_the_load_of_vllm_is_read_from_its_page_of_metrics() -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text=VLLM_PAGE)

    cache, vllm = with_root(), pod("vllm", "127.0.0.57")
    vllm["metadata"]["labels"][f"{GROUP}/engine"] = "VLLM"
    cache.pods.put(vllm)
    scraper = Scraper(cache, period=1000, timeout=5, wake=pytest.fail, clock=lambda: 100.0)
    async with runtime("127.0.0.57", page, METRICS_PATH), aiohttp.ClientSession() as session:
        await scraper.scrape(session)
    (only,) = cache.observe(KEY, "td").pods
    assert only.load == LoadSample(100.0, vllm_load.parse(VLLM_PAGE))


def test_a_page_of_vllm_is_a_load() -> None:
    load = vllm_load.parse(VLLM_PAGE)
    assert (load.running_requests, load.waiting_requests, load.kv_cache_tokens) == (0, 0, 91 * 128)
    assert (load.drafts, load.draft_tokens, load.accepted_tokens, load.generated_tokens) == (1, 4, 2, 40)
    assert (load.prompts, load.prompt_tokens, load.guarantee) == (1, 6, "distribution")
    assert (load.decode_seconds, load.decode_tokens) == (1.5522942949974095, 39)  # but the first of 40


def test_the_engines_of_one_server_count_together() -> None:
    own, busy = '{engine="0",model_name="chat"}', VLLM_PAGE
    for name, value in {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_perc": 0.5,
    }.items():
        busy = busy.replace(f"{name}{own} 0.0", f"{name}{own} {value}")
    one, two = vllm_load.parse(busy), vllm_load.parse(busy + busy.replace('engine="0"', 'engine="1"'))
    assert (one.running_requests, one.waiting_requests, one.waiting_tokens) == (3, 2, 2 * 6)
    assert (two.running_requests, two.waiting_requests) == (6, 4)
    assert (two.kv_cache_tokens, two.running_tokens) == (2 * one.kv_cache_tokens, 2 * one.running_tokens)
    assert two.kv_cache_usage == one.kv_cache_usage == 0.5


def test_the_latencies_of_all_engines_are_in_one_histogram() -> None:
    one = vllm_load.parse(VLLM_PAGE)
    two = vllm_load.parse(VLLM_PAGE + VLLM_PAGE.replace('engine="0"', 'engine="1"'))
    for name in ("time_to_first_token", "time_per_output_token"):
        single, double = getattr(one, name), getattr(two, name)
        assert sum(single.counts) == 1
        assert double == replace(single, counts=tuple(2 * count for count in single.counts))
        assert all(above < up_to for above, up_to in zip(single.above, single.up_to, strict=True))


@pytest.mark.parametrize(
    ("buckets", "why"),
    [
        ('{le="0.1"} 3\nNAME{le="+Inf"} 2', "shrink"),
        ('{le="NaN"} 3', "end at"),
        ('{le="-1"} 3', "end at"),
        ('{le="soon"} 3', "could not convert"),
    ],
)
def test_a_histogram_that_cannot_be_is_no_load(buckets: str, why: str) -> None:
    name = "vllm:time_to_first_token_seconds_bucket"
    page = f'vllm:num_requests_running{{a="b"}} 1\n{name}{buckets.replace("NAME", name)}\n'
    with pytest.raises(ValueError, match=why):
        vllm_load.parse(page)


@pytest.mark.parametrize("value", ["+Inf", "NaN", "-5", "1e300"])
def test_a_figure_that_no_counter_has_is_no_load(value: str) -> None:
    """The pod's image is the user's choice, and an error that is not caught ends the operator."""
    with pytest.raises(ValueError, match="cannot be"):
        vllm_load.parse(f'vllm:num_requests_running{{a="b"}} {value}\n')
    cache = f'vllm:cache_config_info{{num_gpu_blocks="{"9" * 5000}",block_size="1"}} 1\n'
    long = f'vllm:num_requests_running{{a="b"}} 1\n{cache}'
    assert vllm_load.parse(long).kv_cache_tokens == 0


def test_a_page_of_another_program_is_no_load() -> None:
    with pytest.raises(ValueError, match="num_requests_running"):
        vllm_load.parse("# TYPE up gauge\nup 1\n")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_pod_that_answers_with_a_redirect_leads_nowhere_and_is_unknown(status: int) -> None:
    """Its image is the user's choice, and the operator reaches what that user does not."""
    led: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        led.append(request.path)
        return web.Response(text=LOAD.to_json())

    async def redirect(_: web.Request) -> web.Response:
        headers = {"Location": f"http://127.0.0.56:{PORT}/metadata"}
        return web.Response(status=status, headers=headers, text=LOAD.to_json())

    cache = with_root()
    cache.pods.put(pod("cunning", "127.0.0.55"))
    scraper = Scraper(cache, period=1000, timeout=5, wake=pytest.fail, clock=lambda: 100.0)
    async with (
        runtime("127.0.0.55", redirect),
        runtime("127.0.0.56", elsewhere, "/metadata"),
        aiohttp.ClientSession() as session,
    ):
        await scraper.scrape(session)
    assert led == []
    assert [each.load for each in cache.observe(KEY, "td").pods] == [None]


@pytest.mark.parametrize(
    ("policy", "step_times", "wakes"),
    [
        ("Metrics", None, 2),
        ("External", None, 0),
        ("External", (StepTime(1, 1, 64, 0.01),), 1),
    ],
)
async def test_a_load_wakes_whoever_scales_by_it_and_a_first_step_time_everybody(
    policy: str, step_times: tuple[StepTime, ...] | None, wakes: int
) -> None:
    async def good(_: web.Request) -> web.Response:
        return web.Response(text=replace(LOAD, step_times=step_times).to_json())

    woken: list[Key] = []
    cache = with_root()
    meta = {"namespace": KEY.namespace, "name": KEY.name, "uid": "td", "resourceVersion": "1"}
    cache.put_deployment({"metadata": meta, "spec": {"scaling": {"mode": policy}}})
    cache.pods.put(pod("good", "127.0.0.53"))
    scraper = Scraper(cache, period=1000, timeout=5, wake=woken.append, clock=lambda: 100.0)
    async with runtime("127.0.0.53", good), aiohttp.ClientSession() as session:
        await scraper.scrape(session)
        await scraper.scrape(session)
    assert woken == [KEY] * wakes


async def test_a_pod_is_asked_until_it_has_drained() -> None:
    asked = 0

    async def good(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text=LOAD.to_json())

    cache = with_root()
    cache.pods.put(pod("good", "127.0.0.54"))
    scraper = Scraper(cache, period=1000, timeout=5, wake=pytest.fail, clock=lambda: 100.0)
    async with runtime("127.0.0.54", good), aiohttp.ClientSession() as session:
        await scraper.scrape(session)
        drains = pod("good", "127.0.0.54", ready=False)
        drains["metadata"] |= {"resourceVersion": "2", "deletionTimestamp": "2026-01-01T00:00:00Z"}
        cache.pods.put(drains)
        await scraper.scrape(session)
        cache.pods.drop(drains)
        await scraper.scrape(session)
    assert asked == 2


async def test_pods_that_do_not_answer_keep_no_other_from_being_asked() -> None:
    """A node that is cut off takes more pods with it than are asked at the same time."""
    cache, woken = with_root(), asyncio.Event()

    async def good(_: web.Request) -> web.Response:
        return web.Response(text=replace(LOAD, step_times=(StepTime(1, 1, 64, 0.01),)).to_json())

    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with runtime("127.0.0.31", silent), runtime("127.0.0.32", good):
        for number in range(2 * NUM_CONNECTIONS):
            cache.pods.put(pod(f"cut-off-{number}", "127.0.0.31"))
        cache.pods.put(pod("well", "127.0.0.32"))
        scraper = Scraper(cache, 1000, 0.5, wake=lambda _: woken.set(), clock=lambda: 100.0)
        loop = asyncio.create_task(scraper.run())
        await asyncio.wait_for(woken.wait(), 10)
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


async def test_the_loop_goes_on_until_it_is_cancelled() -> None:
    asked = asyncio.Queue[None]()

    async def good(_: web.Request) -> web.Response:
        asked.put_nowait(None)
        return web.Response(text=LOAD.to_json())

    cache = with_root()
    cache.pods.put(pod("good", "127.0.0.51"))
    scraper = Scraper(cache, period=0.01, timeout=1.0, wake=pytest.fail, clock=lambda: 100.0)
    async with runtime("127.0.0.51", good):
        task = asyncio.create_task(scraper.run())
        async with asyncio.timeout(5):
            for _ in range(3):
                await asked.get()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_how_far_a_training_is_is_read_and_wakes_at_a_tenth_of_a_stage() -> None:
    done = 41

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=JobProgress("answers", done, 100, "prompts").to_json())

    body = pod("trainer", "127.0.0.91", ready=False)
    body["metadata"]["ownerReferences"][0] |= {"kind": "Job", "name": "chat-train-1"}
    body["status"]["containerStatuses"] = [
        {"name": "train", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    ]
    cache, woken = with_root(), []
    cache.pods.put(body)
    scraper = Scraper(cache, 1.0, 1.0, woken.append, lambda: 7.0)
    async with runtime("127.0.0.91", answer, PROGRESS_PATH), aiohttp.ClientSession() as session:
        await scraper.scrape(session)
        assert woken == [KEY]
        done = 49
        await scraper.scrape(session)
        assert woken == [KEY]
        done = 50
        await scraper.scrape(session)
        assert woken == [KEY, KEY]
    (seen,) = cache.observe(KEY, "td").trainings
    assert seen.progress == JobProgress("answers", 50, 100, "prompts")
    assert cache.observe(KEY, "td").pods == ()
    body["metadata"]["resourceVersion"] = "2"
    cache.pods.put(body)  # what a watch shows does not know it
    assert cache.observe(KEY, "td").trainings == (seen,)
