"""llama.cpp's own server, in this process and on its own port."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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
    server = xllamacpp.Server(params)

    def answer(job: Job, prompts: list[list[int]]) -> list[list[int]]:
        with ThreadPoolExecutor(job.at_a_time) as clients:
            return list(clients.map(partial(_complete, server.listening_address, job), prompts))

    return lambda job: timed(job, lambda prompts: answer(job, prompts))


def _complete(url: str, job: Job, prompt: list[int]) -> list[int]:
    body = {
        "prompt": prompt,
        "n_predict": job.max_tokens,
        "temperature": 0.0,
        "return_tokens": True,
        "cache_prompt": True,
    }
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
        tokens: list[int] = json.load(reply)["tokens"]
    return tokens


if __name__ == "__main__":
    serve(load)
