"""Times of requests that were kept running, first tokens and later ones, against the planner's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from measurements import closed_loop
from measurements.deployed import (
    GENERAL,
    Deployment,
    Mask,
    Numbers,
    UnreadableError,
    Words,
    count,
    deployment,
    number,
    stacked,
    table,
    taken,
    word,
)
from measurements.served import family, served_shape
from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.step_time import Coefficients, ForwardCost, Machine
from turbo_operator.snapshot import Accelerator

# In a fit, of a first token's error against that of a later one: it scatters twice as much.
FIRST_WEIGHT = 0.5


@dataclass(frozen=True)
class Rows:
    """n measured rows; every array has n elements. Times in seconds."""

    machine: Machine
    work: ForwardCost
    requests: Numbers  # kept running, of all groups
    prompt: Numbers
    answer: Numbers
    first: Numbers  # measured mean time to first token
    token: Numbers  # measured mean time per output token
    words: Mapping[str, Words]  # accelerator, family, engine, model, kind, deployment, configuration

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, which: Mask) -> Rows:
        """Some of the rows."""
        return Rows(
            taken(self.machine, which),
            taken(self.work, which),
            self.requests[which],
            self.prompt[which],
            self.answer[which],
            self.first[which],
            self.token[which],
            {name: column[which] for name, column in self.words.items()},
        )

    def errors(self, coefficients: Coefficients) -> Numbers:
        """[n, 2] logarithms of predicted over measured, of later tokens and of first ones, weighed."""
        times = predicted(self, coefficients)
        later, first = np.log(times.token / self.token), np.log(times.first / self.first)
        return np.stack((later, FIRST_WEIGHT * first), axis=1)


@dataclass(frozen=True)
class Times:
    """What rows are predicted to take, or took: mean seconds."""

    first: Numbers
    token: Numbers


def predicted(rows: Rows, coefficients: Coefficients) -> Times:
    """The planner's times for each row."""
    machine, work = replace(rows.machine, coefficients=coefficients), rows.work
    each = rows.requests / machine.data
    decode = step_time.decode_seconds(machine, work, each, 0.0, rows.prompt + rows.answer / 2.0)
    prefill = step_time.prefill_seconds(machine, work, rows.prompt)
    return Times(
        first=np.asarray(closed_loop.time_to_first_token(machine, work, decode, prefill, rows.requests)),
        token=np.asarray(closed_loop.time_per_output_token(decode, prefill, rows.requests, rows.answer)),
    )


def throughput(rows: Rows, times: Times) -> Numbers:
    """Output tokens per second of the requests kept running: each takes its first token and the others."""
    return rows.requests * rows.answer / (times.first + rows.answer * times.token)


def end_to_end(path: Path, catalog: Mapping[str, Accelerator]) -> tuple[Rows | None, Counter[str]]:
    """The rows of a table like silicon_e2e.csv that can be told, and how many were left out, by reason.

    Left out are: rows that read prompts and decode on different accelerators; models with heads for several
    tokens, of which the table does not say whether they were used; rows that do not state the load twice,
    as concurrency and as batch size, or not the same; and rows of which fewer requests were decoded together
    than were kept running: those that the memory does not hold, and those whose measured token takes less
    than reading the weights and the cache once, at the memory's full bandwidth. No other row is judged by
    what was measured.

    `batch_size` counts the requests of one group; where the number of groups is not stated, it is what the
    experts' accelerators leave of the attention's. Quantised checkpoints of TensorRT-LLM cache keys and
    values in 8 bits; vLLM and SGLang cache them in the model's own type unless they are told otherwise.
    """
    kept, out = [], Counter[str]()
    for line in table(path):
        try:
            found = _end_to_end(line, catalog)
        except UnreadableError as reason:
            found = str(reason)
        if isinstance(found, str):
            out[found] += 1
        else:
            kept.append(found)
    if not kept:
        return None, out
    machines, works, numbers, words = zip(*kept, strict=True)
    requests, prompt, answer, first, token = np.array(numbers, float).T
    return Rows(
        Machine(coefficients=GENERAL, **stacked(machines)),
        ForwardCost(**stacked(works)),
        requests,
        prompt,
        answer,
        first,
        token,
        {name: np.array([row[name] for row in words]) for name in words[0]},
    ), out


def _end_to_end(
    line: Mapping[str, str | None], catalog: Mapping[str, Accelerator]
) -> str | tuple[Machine, ForwardCost, tuple[float, ...], dict[str, str]]:
    if word(line, "mode") != "agg":
        return "disaggregated"
    if word(line, "model_has_mtp_head") not in ("0", "0.0"):
        return "may speculate"
    model, system = word(line, "model_path"), word(line, "system")
    precision, engine = word(line, "precision"), word(line, "backend")
    tensor, groups = int(number(line, "tp_size")), max(1, count(line, "attention_dp_size"))
    experts_on = max(1, count(line, "moe_tp_size")) * max(1, count(line, "moe_ep_size"))
    cache = 1 if engine == "trtllm" and precision not in ("", "bf16") else 2
    shape = served_shape(model, precision)
    if shape is not None and shape.experts:
        groups = max(groups, experts_on // tensor)
    found = deployment(catalog, model, precision, system, tensor, groups, 1, cache)
    if isinstance(found, str):
        return found
    prompt, answer, each = (number(line, column) for column in ("isl", "osl", "batch_size"))
    first, token = number(line, "silicon_ttft_ms") / 1e3, number(line, "silicon_tpot_ms") / 1e3
    requests = each * groups
    if not word(line, "concurrency_from_source") or number(line, "concurrency_from_source") != requests:
        return "load not clear"
    length = prompt + answer / 2.0
    if each > found.most_rows(length, 1.0, 1.0):
        return "more than memory holds"
    if token < _least_seconds(found, each, length):
        return "faster than memory is read"
    name = found.accelerator.name
    served = "/".join((model, precision, name, engine, f"t{tensor}d{groups}e{experts_on}"))
    return (
        found.machine(),
        found.work(length),
        (requests, prompt, answer, first, token),
        {
            "accelerator": name,
            "family": family(name),
            "engine": engine,
            "model": model,
            "kind": "MoE" if found.shape.experts else "dense",
            "deployment": served,
            "configuration": f"{served}/{prompt:g}x{answer:g}/{each:g}",
        },
    )


def _least_seconds(found: Deployment, rows: float, length: float) -> float:
    """What reading weights and cache once takes at the memory's full bandwidth: no step is shorter."""
    machine, work = found.machine(), found.work(length)
    experts = work.expert_bytes / machine.data * step_time.distinct(work, rows * machine.data)
    weights = (work.dense_bytes + experts) / machine.tensor
    return float((weights + rows * length * work.kv_bytes) / machine.bandwidth)
