"""The server's page says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from turbo_runtime.cli.bench import bench
from turbo_runtime.cli.chat import HELP, chat
from turbo_runtime.client.client import KEY_VARIABLE
from turbo_runtime.contract import documents, endpoints
from turbo_runtime.contract.config import CPU_LIMITS, GPU_LIMITS, RuntimeConfig
from turbo_runtime.contract.endpoints import MAX_BODY_BYTES
from turbo_runtime.protocol import UNSUPPORTED, ChatRequest, CompletionRequest
from turbo_runtime.protocol.sampling import MAX_CHOICES, MAX_DRAFT_TOKENS, MAX_LOGPROBS, MAX_STOPS
from turbo_runtime.server.admission import MIN_KEY_LENGTH
from turbo_runtime.server.app import OPENAPI_PATH, build_openapi_document
from turbo_runtime.server.connections import HEADER_SECONDS, IDLE_SECONDS, STALL_SECONDS
from turbo_runtime.server.generation import BODY_SECONDS, READ_BYTES

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("name", sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields}))
def test_every_field_that_is_taken_is_documented(name: str) -> None:
    assert f"`{name}`" in SECTIONS["What a request may say"]


def test_the_refused_parameters_are_listed_in_full_and_no_other() -> None:
    refused = SECTIONS["What a request may say"].partition("null): ")[2].partition(". An unknown")[0]
    assert re.findall(r"`(\w+)`", refused) == sorted(set().union(*UNSUPPORTED.values()))


def test_bounds_are_the_codes() -> None:
    assert f"`top_logprobs` (up to {MAX_LOGPROBS})" in PAGE
    assert f"(0 to {MAX_DRAFT_TOKENS})" in PAGE
    assert f"| headers of a request | {HEADER_SECONDS:g} s; {IDLE_SECONDS} s between" in PAGE
    assert f"| a client that reads nothing | {STALL_SECONDS:g} s" in PAGE
    assert f"| body | {MAX_BODY_BYTES >> 20} MiB, within {BODY_SECONDS:g} s |" in PAGE
    assert f"at least {MIN_KEY_LENGTH} characters" in PAGE
    assert f"`stop` (up to {MAX_STOPS} strings)" in PAGE
    assert f"`n` (up to {MAX_CHOICES})" in PAGE
    assert f"larger than {MAX_BODY_BYTES >> 20} MiB; up to {READ_BYTES >> 20} MiB are read" in PAGE


def test_every_path_of_the_contract_is_documented() -> None:
    for path in (
        endpoints.HEALTH_PATH,
        endpoints.READY_PATH,
        endpoints.LOAD_PATH,
        endpoints.METRICS_PATH,
        endpoints.VERSION_PATH,
        OPENAPI_PATH,
    ):
        assert f"| `GET {path}` |" in PAGE


def test_the_fields_of_a_load_are_documented_and_no_others() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", SECTIONS["What `/load` says"], re.M)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(documents.Load.__dataclass_fields__)


def test_every_flag_of_a_limit_has_its_default_on_the_page() -> None:
    config = RuntimeConfig("m")
    assert (
        f"`--request-timeout-seconds`, queueing included (default {config.request_timeout_seconds:g})" in PAGE
    )
    assert f"`--step-timeout-seconds` (default {config.step_timeout_seconds:g})" in PAGE
    cpu, gpu = CPU_LIMITS, GPU_LIMITS
    tokens = f"(default {cpu.max_num_batched_tokens}, on a GPU {gpu.max_num_batched_tokens})"
    assert f"`--max-num-batched-tokens` tokens {tokens}" in PAGE
    assert f"`--max-connections` (default {config.max_connections})" in PAGE
    assert f"`--connection-seconds` (default {config.connection_seconds:g}," in PAGE
    assert f"`--max-num-seqs` (default {cpu.max_num_seqs}, on a GPU {gpu.max_num_seqs})" in PAGE
    assert f"`--max-queued-requests` (default {config.max_queued_requests})" in PAGE
    assert f"`--max-queued-prompt-tokens` (default {config.max_queued_prompt_tokens})" in PAGE


def test_what_a_reply_tells_beside_openais_fields_is_documented_in_full(server: Any) -> None:
    body = {"model": "echo", "prompt": "abc"}
    told = httpx.post(f"{server.url}/v1/completions", json=body).json()["turbo"]
    rows = re.findall(r"^\| (`.+?`) \|", SECTIONS["What a reply says"], re.M)
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(told)


def test_the_statuses_of_errors_are_those_of_the_build_openapi_document() -> None:
    told = set(re.findall(r"^\| (\d{3}) \|", SECTIONS["Errors"], re.M))
    answers = build_openapi_document()["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert told == set(answers) - {"200"}


def test_the_flags_that_the_page_names_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (bench, chat):
        with pytest.raises(SystemExit):
            command(["--help"])
    told = capsys.readouterr().out
    flags = re.findall(r"`(--[a-z-]+)", SECTIONS["At a terminal"])
    assert len(flags) == 4
    assert [flag for flag in flags if flag not in told] == []


def test_every_command_of_a_chat_that_the_page_names_is_in_its_help() -> None:
    named = re.findall(r"`(/[a-z]+)", SECTIONS["At a terminal"])
    assert [name for name in named if name != "/help" and name not in HELP] == []
    assert KEY_VARIABLE in SECTIONS["At a terminal"]
