"""Drafts swapped by a file under a real server that answers all the while, as a mounted ConfigMap does it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from turbo_dev import tiny_engine
from turbo_dev.fitting import write
from turbo_dev.server_process import PATIENCE, ServerProcess
from turbo_runtime.contract import endpoints
from turbo_runtime.drafters.heads import Heads
from turbo_runtime.drafters.target import Target
from turbo_runtime.model_files.inspector import inspect_model
from turbo_runtime.server import metrics

SERVE = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
CLIENTS = 6
STEP_SECONDS = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, two heads for it, and the file that names the first."""
    found = tmp_path_factory.mktemp("drafts")
    tiny_engine.write(found / "model")
    network = tiny_engine.network("eager")
    rows = network.get_output_embeddings().weight.detach()
    target = Target(
        inspect_model(str(found / "model")).digest,
        network.get_input_embeddings().weight.detach(),
        lambda ids: rows[ids],
    )
    ids = torch.arange(tiny_engine.VOCABULARY)
    heads = Heads(target.embedding, rows, ids, heads=2, markov_rank=4)
    for version in ("v1", "v2"):
        write(found / version, heads, target, version)
    swap(found, heads="v1")
    return found


def swap(folder: Path, **selection: object) -> None:
    """Another file in place of the old one, never half of it."""
    scratch = folder / "drafts.new"
    scratch.write_text(json.dumps(selection))
    scratch.replace(folder / "drafts.json")


@pytest.fixture(scope="module")
def server(start_process: Callable[[list[str]], ServerProcess], folder: Path) -> ServerProcess:
    flags = ["--host=127.0.0.1", "--port=0", "--threads=1", "--dtype=float32", "--served-model-name=tiny"]
    drafts = f"--draft-config={folder / 'drafts.json'}"
    started = start_process([sys.executable, "-c", SERVE, str(folder / "model"), *flags, drafts])
    started.wait_for("Ready: ", 3 * PATIENCE)
    return started


@pytest.fixture
def url(server: ServerProcess) -> str:
    return server.url


def ask(url: str, number: int, *, speculation: bool, draft: str = "default") -> dict[str, Any]:
    """The same answer whenever it is asked for, of prompts that repeat themselves."""
    reply = post(url, number, speculation=speculation, draft=draft)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def post(url: str, number: int, *, speculation: bool, draft: str) -> httpx.Response:
    fields = {
        "model": "tiny",
        "prompt": [5 + number, 6, 7, 8, 9] * (4 + number),
        "max_tokens": 40,
        "temperature": 0.7 * (number % 2),
        "seed": number,
        "speculation": speculation,
    }
    headers = {"X-Turbo-Draft": draft}
    return httpx.post(f"{url}/v1/completions", json=fields, headers=headers, timeout=PATIENCE)


def text(reply: dict[str, Any]) -> str:
    found: str = reply["choices"][0]["text"]
    return found


def version(url: str) -> str:
    """Of the drafts in use, as metrics have it."""
    lines = httpx.get(url + endpoints.METRICS_PATH).text.splitlines()
    (line,) = [line for line in lines if line.startswith(metrics.DRAFT_INFO.name + "{")]
    return line.partition('version="')[2].partition('"')[0]


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(STEP_SECONDS)


def test_clients_notice_nothing_of_swapped_broken_and_missing_drafts(
    server: ServerProcess, folder: Path, url: str
) -> None:
    alone = [text(ask(url, number, speculation=False)) for number in range(CLIENTS)]
    ended = threading.Event()
    answered = [0] * CLIENTS
    accepted = [0] * CLIENTS

    def client(number: int) -> None:
        while not ended.is_set():
            reply = ask(url, number, speculation=True)
            assert text(reply) == alone[number]
            accepted[number] += reply["turbo"]["accepted_tokens"]
            answered[number] += 1

    def more() -> None:
        """Every client is answered twice more: once at least by what is in use now."""
        before = list(answered)

        def enough() -> bool:
            for each in running:
                if each.done():
                    each.result()  # it failed: say how
            return all(now >= then + 2 for now, then in zip(answered, before, strict=True))

        until(enough)

    with ThreadPoolExecutor(CLIENTS) as clients:
        running = [clients.submit(client, number) for number in range(CLIENTS)]
        try:
            more()
            assert version(url) == "v1"
            swap(folder, heads="v2")
            until(lambda: version(url) == "v2")
            more()
            swap(folder, heads="nowhere")
            server.wait_for(r"^drafts stay as they are: \S*nowhere/config.json cannot be read")
            more()
            (folder / "drafts.json").unlink()
            server.wait_for(r"^drafts stay as they are: \S*drafts.json cannot be read")
            more()
            assert version(url) == "v2"
            swap(folder, drafter="suffix", version="v3")
            until(lambda: version(url) == "v3")
            more()
        finally:
            ended.set()
        for each in running:
            each.result(PATIENCE)
    assert sum(accepted) > 0


def drafts(url: str) -> dict[str, str | None]:
    """Those that a request can choose, with their versions."""
    found: dict[str, str | None] = httpx.get(url + endpoints.VERSION_PATH).json()["drafts"]
    return found


def counted(url: str, draft: str) -> float:
    """Tokens drafted for requests that have it."""
    lines = httpx.get(url + endpoints.METRICS_PATH).text.splitlines()
    begin = f'{metrics.DRAFT_TOKENS_BY_DRAFT.name}_total{{draft="{draft}"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(begin))


def test_a_request_chooses_among_drafts_that_change_while_it_is_served(
    server: ServerProcess, folder: Path, url: str
) -> None:
    alone = [text(ask(url, number, speculation=False)) for number in range(CLIENTS)]

    def answer(draft: str) -> None:
        said = [text(ask(url, number, speculation=True, draft=draft)) for number in range(CLIENTS)]
        assert said == alone

    swap(folder, heads="v1", named={"latex": "v2", "json": "v1"})
    until(lambda: drafts(url) == {"default": "v1", "latex": "v2", "json": "v1"})
    for draft in ("default", "latex", "json"):
        before = counted(url, draft)

        def is_used(draft: str = draft, before: float = before) -> bool:
            answer(draft)
            return counted(url, draft) > before

        until(is_used)  # on a busy machine drafts may not pay at once
    refused = post(url, 0, speculation=True, draft="sql")
    assert refused.status_code == 400
    assert "one of 'default', 'latex', 'json', or" in refused.json()["error"]["message"]

    swap(folder, heads="v2", named={"latex": "nowhere", "sql": "v1"})
    until(lambda: drafts(url) == {"default": "v2", "latex": "v2", "sql": "v1"})
    server.wait_for(r"^drafts stay as they are: the draft latex: \S*nowhere/config.json cannot be read")
    assert "the draft latex: " in httpx.get(url + endpoints.VERSION_PATH).json()["draft_error"]
    for draft in ("default", "latex", "sql"):
        answer(draft)
    assert post(url, 0, speculation=True, draft="json").status_code == 400
    assert 'draft="json"' not in httpx.get(url + endpoints.METRICS_PATH).text

    swap(folder, heads="v2")
    until(lambda: drafts(url) == {"default": "v2"})
    assert httpx.get(url + endpoints.VERSION_PATH).json()["draft_error"] is None
    answer("default")
