"""A server of a model and two adapters of it: each answers under its own name, also side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from turbo_dev import lora, tiny_engine
from turbo_dev.server_process import PATIENCE, ServerProcess
from turbo_runtime.contract import endpoints

SERVE = "import sys; from turbo_runtime.cli.serve import serve; sys.exit(serve(sys.argv[1:]))"
FLAGS = ["--host=127.0.0.1", "--port=0", "--threads=1", "--dtype=float32", "--served-model-name=tiny"]
NAMES = ("tiny", "sql", "chat/v2")
PROMPTS = [[5, 6, 7 + number] for number in range(4)] + [[(3 * place) % 250 + 1 for place in range(70)]]
TOKENS = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    tiny_engine.write(folder / "tiny")
    modules = lora.modules_of(tiny_engine.network("eager"))
    sql = lora.write(folder / "sql", modules, scale=0.02)
    chat = lora.write(folder / "chat", modules, scale=0.03, seed=8, rank=3)
    return {"tiny": folder / "tiny", "sql": sql, "chat/v2": chat}


Start = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def start(start_process: Callable[[list[str]], ServerProcess], folders: dict[str, Path]) -> Start:
    def started(*flags: str, adapters: dict[str, Path] | None = None) -> ServerProcess:
        found = {name: folders[name] for name in NAMES[1:]} if adapters is None else adapters
        modules = [f"{name}={place}" for name, place in found.items()]
        command = [
            sys.executable,
            "-c",
            SERVE,
            str(folders["tiny"]),
            *FLAGS,
            *flags,
            "--lora-modules",
            *modules,
        ]
        return start_process(command)

    return started


@pytest.fixture(scope="module")
def server(start: Start) -> ServerProcess:
    server = start()
    server.wait_for("Ready: ", 3 * PATIENCE)
    return server


def complete(server: ServerProcess, model: str, prompt: list[int], **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body | fields, timeout=PATIENCE)


def merged(folders: dict[str, Path], name: str, prompt: list[int]) -> list[int]:
    """The greedy tokens of the model with the adapter's weights added to its own."""
    model = tiny_engine.network("eager")
    if name != "tiny":
        lora.merge(model, folders[name])
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, **options)
    tokens: list[int] = said[0, len(prompt) :].tolist()
    return tokens


def test_the_model_and_its_adapters_answer_side_by_side_as_merged_weights_do(
    server: ServerProcess, folders: dict[str, Path]
) -> None:
    asked = [(name, prompt) for prompt in PROMPTS for name in NAMES]
    with ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda each: complete(server, *each).json(), asked))
    decode = tiny_engine.tokenizer().decode
    for (name, prompt), reply in zip(asked, replies, strict=True):
        assert reply["model"] == name
        assert reply["choices"][0]["text"] == decode(merged(folders, name, prompt))
    texts = [reply["choices"][0]["text"] for reply in replies]
    assert len({tuple(texts[place::3]) for place in range(3)}) == 3


def test_models_are_listed_with_the_model_that_they_change(server: ServerProcess) -> None:
    cards = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [(card["id"], card.get("parent")) for card in cards] == [
        ("tiny", None),
        ("sql", "tiny"),
        ("chat/v2", "tiny"),
    ]
    assert httpx.get(f"{server.url}/v1/models/chat/v2").json() == cards[2]
    assert httpx.get(server.url + endpoints.VERSION_PATH).json()["adapters"] == ["sql", "chat/v2"]
    server.wait_for("the model's name is tiny, sql an adapter's, chat/v2 an adapter's.")


def test_an_unknown_name_is_a_404_that_lists_those_that_are_there(server: ServerProcess) -> None:
    reply = complete(server, "law", [1])
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == ("The model 'law' does not exist; this server has 'tiny', 'sql', 'chat/v2'.")


def test_a_stream_carries_the_adapters_name_and_its_text(server: ServerProcess) -> None:
    whole = complete(server, "sql", PROMPTS[0]).json()["choices"][0]["text"]
    reply = complete(server, "sql", PROMPTS[0], stream=True)
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    assert {event["model"] for event in map(json.loads, events)} == {"sql"}
    parts = [event["choices"] for event in map(json.loads, events)]
    assert "".join(choice["text"] for part in parts for choice in part) == whole


def test_an_adapter_that_does_not_fit_ends_the_server_with_a_sentence_that_names_it(
    start: Start, tmp_path: Path
) -> None:
    place = lora.write(tmp_path / "other", {"model.layers.1.self_attn.q_proj": (48, 32)})
    server = start(adapters={"law": place})
    assert server.exit_status() == 1
    server.wait_for("adapter law: layers.1.self_attn.q_proj has 48 outputs and the model 32 there")
