"""A worker's side of the contest: one line says what to load, every further one what to answer.

Runs under interpreters that have none of this repository's dependencies: the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setup:
    """What to load."""

    model: str  # a folder or a file, as the worker reads it
    threads: int
    at_a_time: int  # most requests answered together
    max_length: int  # of prompt and answer, in tokens
    settings: dict[str, Any] = field(default_factory=dict)  # the worker's own


@dataclass(frozen=True)
class Job:
    """What to answer, greedily and under the clock. A job that begins a run forgets what was answered before,
    and learns and warms up, untimed.
    """

    who: str  # the competitor; each has a memory of its own
    variant: str
    prompts: list[list[int]]
    at_a_time: int
    max_tokens: int
    stop: list[int]  # token ids that end an answer
    begins: bool = True
    warm: list[list[int]] = field(default_factory=list)  # prompts that are answered first
    learn: list[list[int]] = field(default_factory=list)  # prompts whose answers drafts are fitted to
    bring: list[list[int]] = field(default_factory=list)  # prompts whose answers a draft brings


@dataclass(frozen=True)
class Result:
    """Answers in the order of the prompts; a final stop token may be there or not."""

    answers: list[list[int]]
    seconds: float = 0.0
    drafts: int = 0  # verifications with at least one draft
    accepted: int = 0  # drafted tokens
    computed_with: str = ""  # instruction sets, as the competitor names them


Answerer = Callable[[Job], Result]


def timed(
    job: Job,
    answer: Callable[[list[list[int]]], list[list[int]]],
    forget: Callable[[], None] = lambda: None,
    computed_with: str = "",
) -> Result:
    """Begin a run where the job says so, then answer under the clock."""
    if job.begins:
        forget()
        if job.warm:
            answer(job.warm)
    began = time.perf_counter()
    answers = answer(job.prompts)
    return Result(answers, time.perf_counter() - began, computed_with=computed_with)


def serve(load: Callable[[Setup], Answerer]) -> None:
    """Load, then answer until the input ends. What libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer = load(Setup(**json.loads(sys.stdin.readline())))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(answer(Job(**json.loads(line))))), file=replies, flush=True)
