"""A replay of one replica's queue, step by step: the referee of the planner's capacity.

It knows nothing of the planner's formulas. Requests come at given times, or each as one before it ends, wait
for a slot, have their prompts read a chunk a step, first come, first served, and get one token a step until
their answer is whole. The same input gives the same times.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Replica:
    """How fast it is. Seconds and tokens."""

    decode: Callable[[int, int], float]  # one step of so many requests that hold so many tokens together
    prefill: float  # to read one token of a prompt
    chunk: int  # tokens of prompts that one step reads at most
    first: float  # before a first token, beside all that the replay counts
    slots: int  # requests under way at most


@dataclass(frozen=True)
class Times:
    """What each request saw, in order of arrival, in seconds."""

    to_first_token: Numbers
    per_output_token: Numbers  # mean after the first; NaN for an answer of one token


def replay(
    replica: Replica, arrivals: Sequence[float], prompts: Sequence[int], answers: Sequence[int]
) -> Times:
    """The times of requests that arrive in this order; all of at least one token."""
    return _replay(replica, list(arrivals), prompts, answers)


def replay_closed(replica: Replica, running: int, prompts: Sequence[int], answers: Sequence[int]) -> Times:
    """The times with so many requests always under way: each that ends is followed by the next at once."""
    return _replay(replica, [0.0] * min(running, len(prompts)), prompts, answers)


def _replay(replica: Replica, arrivals: list[float], prompts: Sequence[int], answers: Sequence[int]) -> Times:
    """Those without an arrival arrive in turn, each as one before it ends."""
    count = len(prompts)
    first, last = [0.0] * count, [0.0] * count
    waiting: deque[list[int]] = deque()  # of [request, tokens of its prompt not read]
    ends: list[tuple[int, int]] = []  # of decoding ones: (step of the last token, request), a heap
    now, step, arrived, held = 0.0, 0, 0, 0
    while arrived < len(arrivals) or waiting or ends:
        if not waiting and not ends:
            now = max(now, arrivals[arrived])
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            waiting.append([arrived, prompts[arrived]])
            arrived += 1
        read: list[int] = []
        budget, decoding = replica.chunk, len(ends)
        while waiting and budget and decoding + len(read) < replica.slots:
            request = waiting[0]
            part = min(budget, request[1])
            request[1] -= part
            budget -= part
            if request[1]:
                break
            read.append(request[0])
            waiting.popleft()
        tokens = replica.chunk - budget
        step += 1
        now += (replica.decode(decoding, held) if decoding else 0.0) + replica.prefill * tokens
        held += decoding
        ended = sum(answers[request_id] == 1 for request_id in read)
        while ends and ends[0][0] == step:
            request_id = heapq.heappop(ends)[1]
            last[request_id] = now
            held -= prompts[request_id] + answers[request_id]
            ended += 1
        for request_id in read:
            first[request_id] = last[request_id] = now
            if answers[request_id] > 1:
                heapq.heappush(ends, (step + answers[request_id] - 1, request_id))
                held += prompts[request_id] + 1
        arrivals += [now] * min(ended, count - len(arrivals))
    starts, ends_at = np.array(first), np.array(last)
    gaps = np.array(answers, dtype=np.float64) - 1.0
    per_token = np.divide(ends_at - starts, gaps, out=np.full(count, np.nan), where=gaps > 0.0)
    return Times(starts - np.array(arrivals) + replica.first, per_token)
