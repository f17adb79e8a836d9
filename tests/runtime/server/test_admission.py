"""A full queue turns away who filled it, and nobody who was let in is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbo_dev.server_process import PATIENCE
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.messages import GenerationRequest, SamplingParams
from turbo_runtime.server.admission import AdmissionSlots, Amount
from turbo_runtime.server.engine_client import EngineClient

PLENTY = 1 << 30
KEYS = "flood:sk-flood-1\ncalm:sk-calm-01\n"


def crowd(limit: int, **tenants: int) -> AdmissionSlots:
    """One full up to its limit with the answers of these tenants, of a token each."""
    admission = AdmissionSlots(Amount(limit, PLENTY))
    for tenant, answers in tenants.items():
        admission.add(tenant, answers, answers)
    return admission


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans()), max_size=120),
)
def test_limits_hold_and_each_tenant_has_its_share(limit: int, asked: list[tuple[int, int, bool]]) -> None:
    admission = AdmissionSlots(Amount(limit, PLENTY))
    own: dict[str, int] = {}
    for number, answers, leaves in asked:
        tenant = f"t{number}"
        here = own.get(tenant, 0)
        if leaves and here:
            admission.add(tenant, -1, -1)
            own[tenant] -= 1
            continue
        present = {tenant, *(each for each, count in own.items() if count)}
        total = sum(own.values()) + answers
        rejection = admission.find_rejection(tenant, answers, answers)
        within_share = total <= 2 * limit and (here + answers) * len(present) <= limit
        assert (rejection is None) == (total <= limit or within_share)
        if rejection is None:
            admission.add(tenant, answers, answers)
            own[tenant] = here + answers
        elif answers <= limit:  # else it could never come in
            assert rejection[1] == total - limit
        assert admission.answers == sum(own.values()) <= 2 * limit


def test_who_comes_new_gets_its_share_of_what_another_filled() -> None:
    admission = crowd(6, a=6)
    rejection = admission.find_rejection("a", 1, 1)
    assert rejection is not None
    assert rejection[0] == "The queue is full: 6 answers of at most 6 are running or waiting."
    for tenant, share in (("b", 3), ("c", 2)):
        for _ in range(share):
            assert admission.find_rejection(tenant, 1, 1) is None
            admission.add(tenant, 1, 1)
        assert admission.find_rejection(tenant, 1, 1) is not None


def test_shares_of_many_tenants_together_stay_below_twice_the_limit() -> None:
    admission = AdmissionSlots(Amount(60, PLENTY))
    let_in = []
    for tenant in "abcde":
        let_in.append(0)
        while admission.find_rejection(tenant, 1, 1) is None:
            admission.add(tenant, 1, 1)
            let_in[-1] += 1
    assert let_in == [60, 30, 20, 10, 0]


def test_long_prompts_fill_a_queue_too_and_leave_it_when_they_end() -> None:
    admission = AdmissionSlots(Amount(100, 200))
    admission.add("a", 2, 120)
    rejection = admission.find_rejection("a", 1, 200)
    assert rejection is not None
    assert "120 prompt tokens of at most 200" in rejection[0]
    assert rejection[1] == 2  # 120 tokens too many, 60 an answer
    assert admission.find_rejection("a", 1, 80) is None
    admission.add("a", -2, -120)
    assert admission.find_rejection("a", 1, 200) is None


async def test_one_tenants_flood_is_turned_away_and_another_is_served(launch: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    server = launch("--max-num-seqs=2", "--max-queued-requests=2", f"--api-key-file={keys}")
    held = {"model": "echo", "prompt": "hold", "max_tokens": 150}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:

        def ask(key: str, **fields: Any) -> Any:
            headers = {"Authorization": f"Bearer {key}"}
            return client.post("completions", json={**held, **fields}, headers=headers)

        flood = [asyncio.create_task(ask("sk-flood-1")) for _ in range(12)]
        await _first_done(flood, 8)  # what is too much of it
        calm = [await ask("sk-calm-01", prompt="hello", temperature=0) for _ in range(3)]
        again = await ask("sk-flood-1")
        replies = await asyncio.gather(*flood)
    assert [reply.status_code for reply in calm] == [200] * 3
    assert again.status_code == 429
    assert int(again.headers["retry-after"]) >= 1
    assert sorted(reply.status_code for reply in replies) == [200] * 4 + [429] * 8
    whole = [reply.json()["usage"]["completion_tokens"] for reply in replies if reply.status_code == 200]
    assert whole == [150] * 4  # nothing that was let in was cut for another's sake


async def test_salts_do_not_make_one_tenant_many(launch: Any) -> None:
    server = launch("--max-num-seqs=1", "--max-queued-requests=1")
    body = {"model": "echo", "prompt": "hold", "max_tokens": 100}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        replies = await asyncio.gather(
            *[client.post("completions", json={**body, "cache_salt": f"s{n}"}) for n in range(6)]
        )
    assert sorted(reply.status_code for reply in replies) == [200] * 2 + [429] * 4


async def test_tokens_that_wait_are_bounded_beside_those_that_run(launch: Any) -> None:
    server = launch("--max-model-len=16384", "--max-queued-prompt-tokens=100")  # the cache has 16,384
    long = "hold " + "x" * 9000
    body = {"model": "echo", "prompt": long, "max_tokens": 100}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=PATIENCE) as client:
        two = [asyncio.create_task(client.post("completions", json=body)) for _ in range(2)]
        await _first_done(two, 1)
        assert (await client.post("completions", json={**body, "prompt": "short"})).status_code == 200
        refused, served = sorted(await asyncio.gather(*two), key=lambda reply: -reply.status_code)
    assert (refused.status_code, served.status_code) == (429, 200)
    assert "9004 prompt tokens of at most 16484" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"), [({"prompt": ["abc"] * 6}, "prompt"), ({"prompt": "abc", "n": 6}, "n")]
)
def test_what_could_never_be_let_in_is_a_400(launch: Any, fields: dict[str, Any], param: str) -> None:
    server = launch("--max-num-seqs=2", "--max-queued-requests=3")
    reply = httpx.post(f"{server.url}/v1/completions", json={"model": "echo", **fields})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert "asks for 6 answers, and this server takes in at most 5 at once" in error["message"]


async def _first_done(tasks: list[asyncio.Task[Any]], count: int) -> None:
    done: set[asyncio.Task[Any]] = set()
    while len(done) < count:
        left = [task for task in tasks if task not in done]
        done |= (await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED))[0]


async def test_requests_under_one_name_do_not_mix(server: Any) -> None:
    """A client may send what it likes as the request's id: the engine knows it by another."""
    headers = {"X-Request-Id": "same"}
    texts = [f"text {letter} " * 9 for letter in "abcdefgh"]
    asked = {"model": "echo", "temperature": 0, "n": 2, "max_tokens": 99}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=PATIENCE, headers=headers) as client:
        replies = await asyncio.gather(
            *[client.post("completions", json={**asked, "prompt": text}) for text in texts]
        )
    for text, reply in zip(texts, replies, strict=True):
        assert {choice["text"] for choice in reply.json()["choices"]} == {text}


async def test_the_link_hands_no_id_over_twice() -> None:
    link = EngineClient(RuntimeConfig("m"), lambda *_: None, "")
    one, other = (GenerationRequest("same", (number,), SamplingParams()) for number in (1, 2))
    waiting = link.submit([one])
    with pytest.raises(ValueError, match="request same is running or waiting already"):
        link.submit([other])
    link.fail_all("over")
    event, _ = await waiting.get()
    assert event.error == "over"
