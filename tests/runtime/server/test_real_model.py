"""SmolLM2-135M through the whole path: `turbo serve`, the engine, HTTP, the official client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turbo_dev import model
from turbo_runtime.contract import endpoints
from turbo_runtime.server import metrics
from turbo_runtime.tokenization.tokenizer import REPLACEMENT, Detokenizer, ServedTokenizer

pytestmark = pytest.mark.model

SERVE = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
BUSY_MACHINE_SECONDS = 300  # loading and checking take half a minute of two idle cores
EXPORT = (
    "import sys; from pathlib import Path; from turbo_runtime.models.loader import export_tokenizer; "
    "export_tokenizer(sys.argv[1], None, Path(sys.argv[2]))"
)
COPY = (
    "Write this list again, exactly as it is:\n"
    "apples: 3, pears: 7, plums: 12, cherries: 40, quinces: 2, grapes: 95, figs: 8, dates: 11"
)
CASES = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": 20240715},
    "top-p and top-k": {"temperature": 1.0, "top_p": 0.9, "extra_body": {"top_k": 40}, "seed": 7},
    "penalties and bias": {
        "temperature": 0.7,
        "seed": 5,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.2,
        "logit_bias": {"28": -5, "253": 1.5},
        "extra_body": {"min_p": 0.02, "repetition_penalty": 1.1, "min_tokens": 40, "bad_words": ["pears"]},
    },
    "a schema": {"temperature": 0.8, "seed": 3, "response_format": {"type": "json_object"}},
}


@pytest.fixture(scope="module")
def real(start_process: Callable[..., Any]) -> Any:
    command = [sys.executable, "-c", SERVE, str(model.ensure()), "--host=127.0.0.1", "--port=0"]
    limits = ("--max-model-len=1024", "--kv-cache-gib=1", "--threads=1")
    flags = (*limits, "--dtype=float32", "--audit-fraction=1")
    server = start_process([*command, "--served-model-name=smollm2", *flags])
    server.wait_for("Ready: ", BUSY_MACHINE_SECONDS)
    return server


@pytest.fixture
def smollm2(real: Any, connect_to: Callable[..., openai.OpenAI]) -> Iterator[openai.OpenAI]:
    with connect_to(real) as client:
        yield client.with_options(timeout=BUSY_MACHINE_SECONDS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ServedTokenizer:
    directory = tmp_path_factory.mktemp("smollm2-tokenizer")
    subprocess.run([sys.executable, "-c", EXPORT, str(model.ensure()), str(directory)], check=True)
    return ServedTokenizer(directory)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {**fields.pop("extra_body", {}), "speculation": fields.pop("speculation", True)}
    return client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": COPY}],
        max_tokens=48,
        extra_body=extra,
        **fields,
    )


@pytest.mark.parametrize("name", CASES)
def test_speculation_changes_no_byte(smollm2: openai.OpenAI, name: str) -> None:
    on = ask(smollm2, **CASES[name])
    off = ask(smollm2, **CASES[name], speculation=False)
    assert on.choices[0].message.content.encode() == off.choices[0].message.content.encode()
    assert on.usage.completion_tokens == off.usage.completion_tokens
    assert on.choices[0].finish_reason == off.choices[0].finish_reason
    assert off.turbo["drafted_tokens"] == 0
    if name == "greedy":
        assert on.turbo["accepted_tokens"] > 0


def test_an_answer_follows_its_schema(smollm2: openai.OpenAI) -> None:
    fruit = {"type": "object", "properties": {"apples": {"type": "integer"}, "ripe": {"type": "boolean"}}}
    schema = {**fruit, "required": ["apples", "ripe"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": schema}}
    reply = ask(smollm2, temperature=1, seed=1, response_format=wanted)
    if reply.choices[0].finish_reason == "stop":  # else it was cut
        assert set(json.loads(reply.choices[0].message.content)) == {"apples", "ripe"}
    chosen = ask(smollm2, temperature=1, extra_body={"structured_outputs": {"choice": ["plum", "fig"]}})
    assert chosen.choices[0].message.content in ("plum", "fig")
    with pytest.raises(openai.BadRequestError):
        ask(smollm2, extra_body={"structured_outputs": {"regex": "("}})


def test_logprobs_of_a_prompt_are_those_of_the_same_text_as_an_answer(smollm2: openai.OpenAI) -> None:
    request = {"model": "smollm2", "temperature": 0, "logprobs": 2}
    answer = smollm2.completions.create(prompt="The capital of France is", max_tokens=6, **request)
    told = answer.choices[0].logprobs
    prompt = "The capital of France is" + answer.choices[0].text
    again = smollm2.completions.create(prompt=prompt, max_tokens=1, echo=True, **request).choices[0].logprobs
    assert again.token_logprobs[0] is None
    assert again.tokens[-7:-1] == told.tokens
    assert again.token_logprobs[-7:-1] == pytest.approx(told.token_logprobs, abs=1e-3)
    likeliest = [max(top.values()) for top in told.top_logprobs]
    assert likeliest == told.token_logprobs  # of a greedy answer


def test_a_template_without_tools_says_so(smollm2: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        ask(smollm2, tools=[{"type": "function", "function": {"name": "f"}}])


def test_a_stream_is_the_whole_answer_in_pieces(smollm2: openai.OpenAI) -> None:
    whole = ask(smollm2, temperature=0)
    events = list(ask(smollm2, temperature=0, stream=True))
    text = "".join(event.choices[0].delta.content or "" for event in events)
    assert text == whole.choices[0].message.content
    assert len(events) > 2


def test_each_reply_tells_its_own_speedup_as_it_comes(smollm2: openai.OpenAI) -> None:
    request = {"model": "smollm2", "messages": [{"role": "user", "content": COPY}], "temperature": 0}
    stream = smollm2.chat.completions.create(
        **request, max_tokens=40, stream=True, stream_options={"continuous_usage_stats": True}
    )
    assert all(event.turbo["speedup"] > 0 for event in stream)  # of the steps so far, the last one too
    whole = smollm2.chat.completions.create(**request, max_tokens=40, stop="pears")
    assert whole.turbo["speedup"] > 0  # also where the server ends the answer, not the engine


def test_several_answers_of_one_seed_differ_and_can_be_asked_again(smollm2: openai.OpenAI) -> None:
    request = {"model": "smollm2", "prompt": "Once upon a time", "n": 3, "seed": 11, "max_tokens": 16}
    first, again = smollm2.completions.create(**request), smollm2.completions.create(**request)
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 3
    assert [choice.text for choice in again.choices] == texts


def test_log_version_metrics_and_replies_agree_on_the_guarantee(real: Any, smollm2: openai.OpenAI) -> None:
    guarantee = real.wait_for(r"guarantee on this machine: (\w+)")
    assert httpx.get(real.url + endpoints.VERSION_PATH).json()["guarantee"] == guarantee
    page = httpx.get(real.url + endpoints.METRICS_PATH).text
    assert f'{metrics.GUARANTEE_INFO.name}{{guarantee="{guarantee}"}} 1.0' in page
    reply = smollm2.completions.create(model="smollm2", prompt="Hi", max_tokens=1)
    assert reply.turbo["guarantee"] == guarantee
    assert reply.system_fingerprint.endswith(f"-{guarantee}")


def test_while_idle_answers_are_replayed_and_none_comes_out_otherwise(
    real: Any, smollm2: openai.OpenAI
) -> None:
    def count(name: str) -> float:
        page = httpx.get(real.url + endpoints.METRICS_PATH).text
        (value,) = re.findall(rf"^{name}_total\{{.*\}} (\S+)$", page, re.MULTILINE)
        return float(value)

    before = count(metrics.AUDITS.name), count(metrics.GENERATION_TOKENS.name)
    smollm2.completions.create(model="smollm2", prompt="The sea", seed=1, max_tokens=8)
    deadline = time.monotonic() + BUSY_MACHINE_SECONDS
    while count(metrics.AUDITS.name) == before[0]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert count(metrics.AUDIT_MISMATCHES.name) == 0
    assert count(metrics.GENERATION_TOKENS.name) <= before[1] + 8  # a replay is no traffic


@settings(deadline=None)
@given(text=st.text())
def test_no_piece_of_a_text_holds_half_a_character(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(
        ids
    )  # this vocabulary lacks the first bytes of rare scripts, which are then lost
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [*map(detokenizer.push, ids), detokenizer.flush()]
    assert "".join(pieces) == whole
    assert REPLACEMENT in whole or not any(REPLACEMENT in piece for piece in pieces)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=60))
def test_any_tokens_give_the_text_of_their_decoding_at_once(tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer.decode)
    assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == tokenizer.decode(ids)


def test_a_chat_starts_with_the_models_own_words(tokenizer: ServedTokenizer) -> None:
    assert tokenizer.template
    prompt = tokenizer.encode_written(tokenizer.template.render([{"role": "user", "content": "Hi"}]))
    special = tokenizer.encode("<|im_start|>")
    assert len(special) == 1
    assert prompt.count(special[0]) == 3  # the default system message, the user, the assistant
    assert tokenizer.decode(prompt).endswith("user\nHi\nassistant\n")


def test_while_it_loads_only_the_servers_own_sentences_are_told(real: Any) -> None:
    told = real.lines[: [line.startswith("Ready:") for line in real.lines].index(True) + 1]
    others = [line.split()[0] for line in told if not line.startswith("Micro-benchmark")]
    assert others == ["No", "turbo", "Model", "Start-up", "Ready:"]  # the first: there are no keys
    # One line of what it measured, one before the others of what a busy machine left out, or both.
    assert 1 <= len(told) - len(others) <= 2
