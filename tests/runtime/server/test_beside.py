"""What is done before the engine hears of a request is bounded, beside other requests, and ends when nobody
waits for it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from turbo_dev.server_process import PATIENCE
from turbo_runtime.protocol import CompletionRequest, parse
from turbo_runtime.protocol.errors import ApiError
from turbo_runtime.server.admission import AdmissionSlots, Amount
from turbo_runtime.server.connections import run_until_disconnect
from turbo_runtime.server.preprocessing import prepare_completion
from turbo_runtime.server.service import ThreadOffload
from turbo_runtime.tokenization.tokenizer import max_token_bytes

LONG = "zqxj" * 100_000


class Counting:
    """Three bytes a token; writes down what it is asked to tokenise."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.words: list[str] = []

    def encode(self, text: str) -> tuple[int, ...]:
        self.prompts.append(text)
        return (1,) * len(text)

    def encode_written(self, text: str) -> tuple[int, ...]:
        self.words.append(text)
        return (2, len(text))

    def min_tokens(self, text: str) -> int:
        return len(text) // 3


def model_of(tokenizer: Counting) -> Any:
    info = SimpleNamespace(vocab_size=100)
    return SimpleNamespace(tokenizer=tokenizer, info=info, context=1000, stop_token_ids=frozenset())


def test_bad_words_are_tokenised_once_for_all_prompts() -> None:
    tokenizer = Counting()
    body = {"model": "m", "prompt": ["a", "bb", "ccc"], "bad_words": ["x", "y"], "max_tokens": 5}
    job = prepare_completion(parse(CompletionRequest, body), model_of(tokenizer), lambda: True)
    assert tokenizer.words == ["x", " x", "y", " y"]
    assert [len(prompt) for prompt in job.prompts] == [1, 2, 3]
    assert {params.bad_words for params in job.params} == {((2, 1), (2, 2))}
    assert [params.max_tokens for params in job.params] == [5, 5, 5]


def test_a_text_that_no_context_holds_is_not_tokenised() -> None:
    tokenizer = Counting()
    body = {"model": "m", "prompt": ["a", "b" * 3000]}
    with pytest.raises(ApiError) as caught:
        prepare_completion(parse(CompletionRequest, body), model_of(tokenizer), lambda: True)
    assert caught.value.code == "context_length_exceeded"
    assert tokenizer.prompts == []


def test_prompts_that_nobody_waits_for_are_not_tokenised() -> None:
    tokenizer = Counting()
    request = parse(CompletionRequest, {"model": "m", "prompt": ["a", "b", "c"]})
    with pytest.raises(ApiError):
        prepare_completion(request, model_of(tokenizer), lambda: len(tokenizer.prompts) < 2)
    assert tokenizer.prompts == ["a", "b"]


@given(
    text=st.text(st.sampled_from(list(" \n a\u0301e\u1100\u1161\u11a8▁ß🎈<")) | st.characters(codec="utf-8")),
    nfc=st.booleans(),
)
def test_no_text_has_fewer_tokens_than_its_bytes_allow(text: str, nfc: bool) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(alphabet)} | {"ĠĠ": 256}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    longest = max_token_bytes(tokenizer)
    assert longest == (6 if nfc else 2)
    assert len(text.encode()) // longest <= len(tokenizer.encode(text).ids)


@pytest.mark.parametrize("what", ["normalizer", "vocabulary", "strip"])
def test_where_text_may_vanish_no_bound_is_known(what: str) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet[1:] if what == "vocabulary" else alphabet
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if what == "normalizer":
        tokenizer.normalizer = normalizers.Strip()
    if what == "strip":
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    assert max_token_bytes(tokenizer) is None


def test_more_answers_than_are_let_in_are_refused_before_anything_is_tokenised(server: Any) -> None:
    body = {"model": "echo", "prompt": ["a" * 1000] * 2000, "bad_words": ["w" * 1000] * 256}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)
    assert reply.status_code == 400
    assert "2000 answers" in reply.json()["error"]["message"]


def test_a_text_that_is_far_too_long_is_refused_as_too_long(server: Any) -> None:
    reply = httpx.post(
        f"{server.url}/v1/completions", json={"model": "echo", "prompt": LONG}, timeout=PATIENCE
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "at least" in reply.json()["error"]["message"]
    chat = {"model": "echo", "messages": [{"role": "user", "content": LONG}]}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=PATIENCE)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages")


def test_a_place_that_turns_out_to_need_more_keeps_its_answers() -> None:
    slots = AdmissionSlots(Amount(answers=2, tokens=100))
    first, second = slots.acquire("a", 1, 1, "prompt"), slots.acquire("b", 1, 1, "prompt")
    slots.resize(first, 40)
    slots.resize(second, 60)
    assert slots.answers == 2
    with pytest.raises(ApiError) as caught:
        slots.resize(first, 90)
    assert caught.value.status == 429
    with pytest.raises(ApiError) as caught:
        slots.resize(second, 101)
    assert caught.value.status == 400
    for slot in (first, second):
        slots.release(slot, finished=False)
    assert slots.answers == 0
    slots.acquire("c", 2, 100, "prompt")


async def test_a_client_that_leaves_frees_its_slot_as_soon_as_the_work_hears_of_it() -> None:
    preparing, started = ThreadOffload(1), asyncio.Event()
    loop, left = asyncio.get_running_loop(), asyncio.Event()

    def work(is_wanted: Any) -> str:
        loop.call_soon_threadsafe(started.set)
        while is_wanted():
            threading.Event().wait(0.01)
        return "too late"

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    first = asyncio.create_task(run_until_disconnect(receive, preparing.run(work)))
    await started.wait()
    second = asyncio.create_task(preparing.run(lambda _: "done"))
    left.set()
    assert await first is None
    assert await asyncio.wait_for(second, 10) == "done"


def test_the_end_of_the_server_waits_for_no_tokenizer() -> None:
    program = """
import asyncio, sys, threading
from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.server import lifecycle
from turbo_runtime.server.service import ThreadOffload

async def serve(*_):
    started = threading.Event()
    def work(is_wanted):
        started.set()
        threading.Event().wait(300)
    asyncio.get_running_loop().create_task(ThreadOffload(1).run(work))
    while not started.is_set():
        await asyncio.sleep(0.01)
    return 7

lifecycle._serve = serve
sys.exit(lifecycle.run_server(RuntimeConfig("m", host="127.0.0.1", port=0)))
"""
    runtime = str(Path(__file__).resolve().parents[3] / "runtime")
    ended = subprocess.run(
        [sys.executable, "-c", program],
        timeout=PATIENCE,
        env={"PYTHONPATH": runtime},
        capture_output=True,
    )
    assert ended.returncode == 7
    (said,) = ended.stderr.splitlines()
    assert said.startswith(b"No --api-key-file: ")
