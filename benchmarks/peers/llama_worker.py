"""llama.cpp's own server, in this process, asked over its port: what is timed has HTTP on loopback in it."""

from __future__ import annotations

import json
import re
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import xllamacpp

from peers.worker import Answerer, Job, Setup, serve, timed

PATIENCE_SECONDS = 600.0


def load(setup: Setup) -> Answerer:
    """A server with a slot for each of `at_a_time` requests, continuous batching on."""
    params = xllamacpp.CommonParams()
    params.model.path = setup.model
    params.n_ctx = setup.max_length * setup.at_a_time
    params.n_parallel = setup.at_a_time
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setup.threads
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cache_ram_mib = 0  # what slots forget comes back from nowhere
    params.slot_save_path = f"{tempfile.gettempdir()}/"  # without it slots cannot be erased; nothing is saved
    server = xllamacpp.Server(params)
    named = re.findall(r"(\w+) = 1", xllamacpp.get_system_info())

    def answer(job: Job, prompts: list[list[int]]) -> list[list[int]]:
        with ThreadPoolExecutor(job.at_a_time) as clients:
            return list(clients.map(partial(_complete, server.listening_address, job), prompts))

    def forget() -> None:
        for slot in range(setup.at_a_time):
            _post(f"{server.listening_address}/slots/{slot}?action=erase", {})

    instructions = " ".join(named)
    return lambda job: timed(job, lambda prompts: answer(job, prompts), forget, instructions)


def _complete(url: str, job: Job, prompt: list[int]) -> list[int]:
    body = {
        "prompt": prompt,
        "n_predict": job.max_tokens,
        "temperature": 0.0,
        "return_tokens": True,
        "cache_prompt": True,
    }
    tokens: list[int] = _post(f"{url}/completion", body)["tokens"]
    return tokens


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
        document: dict[str, Any] = json.load(reply)
    return document


if __name__ == "__main__":
    serve(load)
