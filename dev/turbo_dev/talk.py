"""Questions to the deployed model through its Service, with the official OpenAI client."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from . import binaries
from .access import Access
from .release import DEPLOYMENT
from .shell import CommandError

MAX_TOKENS = 96
_PEOPLE = ("Ann", "Bob", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo")


@dataclass(frozen=True)
class Question:
    """What is asked, and how the answer is drawn."""

    title: str
    text: str
    how: dict[str, Any]


def questions() -> list[Question]:
    """One greedy, whose answer repeats much of its question, and one sampled and free.

    With other names and another seed at every run: a pod drafts from its recent answers, so that the same
    question asked again would flatter it.
    """
    chance = random.SystemRandom()
    one, two, three, four = chance.sample(_PEOPLE, 4)
    seed = chance.randrange(10_000)
    mend = (
        f"Correct the spelling and give the whole text back: {one} and {two} went to the libary to read a "
        f"bok. The libary was closed, so {one} and {two} went home. They will come back to the libary "
        f"tomorow with {three}."
    )
    pack = f"Write a short packing list for {four}'s trip to the mountains."
    return [
        Question("greedy, much of it is in the question", mend, {"temperature": 0}),
        Question(f"sampled with seed {seed}, free text", pack, {"temperature": 0.5, "seed": seed}),
    ]


@dataclass(frozen=True)
class Answer:
    """One reply: its text, how long it took (seconds, at the client), what the server says of its drafts."""

    text: str
    tokens: int
    seconds: float
    acceptance_length: float | None


@dataclass(frozen=True)
class Pair:
    """The same question with speculation and without."""

    question: Question
    on: Answer
    off: Answer

    @property
    def equal(self) -> bool:
        """Both texts are the same bytes."""
        return self.on.text.encode() == self.off.text.encode()

    @property
    def speed_up(self) -> float:
        """How many times sooner the answer with speculation came."""
        return self.off.seconds / self.on.seconds


def ask(base_url: str) -> list[Pair]:
    """One greedy and one sampled, seeded answer, each with speculation and without."""
    # No proxy of the user's lies between this machine and the cluster's address.
    with openai.DefaultHttpxClient(trust_env=False, timeout=300) as http:
        client = openai.OpenAI(base_url=base_url, api_key="none", http_client=http, max_retries=0)
        _answer(
            client, "Hello", {"max_tokens": 1, "temperature": 0}
        )  # a connection's first request pays for it
        return [
            Pair(
                question,
                on=_answer(client, question.text, question.how),
                off=_answer(client, question.text, {**question.how, "extra_body": {"speculation": False}}),
            )
            for question in questions()
        ]


@contextmanager
def service(access: Access, embedded: bool) -> Iterator[str]:
    """The base URL of the model's OpenAI API: the Service's own address, or a forwarded port elsewhere."""
    if embedded:
        spec = access.get("service", DEPLOYMENT)["spec"]
        yield f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}/v1"
        return
    kubectl = binaries.ensure(("kubectl",))["kubectl"]
    command: list[str | Path] = [
        kubectl,
        f"--kubeconfig={access.kubeconfig}",
        "port-forward",
        f"service/{DEPLOYMENT}",
        ":80",
    ]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert forward.stdout is not None
        said = forward.stdout.readline()  # Forwarding from 127.0.0.1:PORT -> 8000
        if not said.startswith("Forwarding from 127.0.0.1:"):
            raise CommandError(f"kubectl port-forward: {said}{forward.stdout.read()}")
        yield f"http://127.0.0.1:{said.split(':', 1)[1].split(' ', 1)[0]}/v1"
    finally:
        forward.terminate()
        forward.communicate()


def _answer(client: openai.OpenAI, text: str, how: dict[str, Any]) -> Answer:
    began = time.monotonic()
    reply = client.chat.completions.create(
        model=DEPLOYMENT,
        messages=[{"role": "user", "content": text}],
        **{"max_tokens": MAX_TOKENS, **how},
    )
    seconds = time.monotonic() - began
    assert reply.usage is not None
    told = (reply.model_extra or {}).get("turbo", {})
    return Answer(
        text=reply.choices[0].message.content or "",
        tokens=reply.usage.completion_tokens,
        seconds=seconds,
        acceptance_length=told.get("acceptance_length"),
    )
