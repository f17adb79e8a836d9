"""Times of requests that were kept running, first tokens and later ones, against the planner's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from measurements.deployed import GENERAL, Mask, Numbers, Words, deployment, stacked, table, taken
from measurements.served import family, served_shape
from turbo_operator.observed import Accelerator
from turbo_operator.planner import steptime
from turbo_operator.planner.coefficients import Coefficients
from turbo_operator.planner.steptime import Machine, Work

# In a fit, of a first token's error against that of a later one: it scatters twice as much.
FIRST_WEIGHT = 0.5


@dataclass(frozen=True)
class Rows:
    """n measured rows; every array has n elements. Times in seconds."""

    machine: Machine
    work: Work
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
    decode = steptime.decode_seconds(machine, work, each, 0.0, rows.prompt + rows.answer / 2.0)
    prefill = steptime.prefill_seconds(machine, work, rows.prompt)
    return Times(
        first=np.asarray(steptime.time_to_first_token(machine, work, decode, prefill, rows.requests)),
        token=np.asarray(steptime.time_per_output_token(decode, prefill, rows.requests, rows.answer)),
    )


def throughput(rows: Rows, times: Times) -> Numbers:
    """Output tokens per second of the requests kept running: each takes its first token and the others."""
    return rows.requests * rows.answer / (times.first + rows.answer * times.token)


def end_to_end(path: Path, catalogue: Mapping[str, Accelerator]) -> tuple[Rows | None, Counter[str]]:
    """The rows of a table like silicon_e2e.csv that can be told, and how many were left out, by reason.

    Left out are: rows that read prompts and decode on different accelerators; models with heads for several
    tokens, of which the table does not say whether they were used; rows whose two statements of the load,
    concurrency and batch size, do not agree; and rows of which a request waited longer for its first token
    than its answer took, so that fewer requests were decoded together than were kept running: the server's
    own limit on them is not in the table.

    `batch_size` counts the requests of one group; where the number of groups is not stated, it is what the
    experts' accelerators leave of the attention's. Quantised checkpoints of TensorRT-LLM cache keys and
    values in 8 bits; vLLM and SGLang cache them in the model's own type unless they are told otherwise.
    """
    kept, out = [], Counter[str]()
    for line in table(path):
        found = _end_to_end(line, catalogue)
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
        Work(**stacked(works)),
        requests,
        prompt,
        answer,
        first,
        token,
        {name: np.array([row[name] for row in words]) for name in words[0]},
    ), out


def _end_to_end(
    line: Mapping[str, str], catalogue: Mapping[str, Accelerator]
) -> str | tuple[Machine, Work, tuple[float, ...], dict[str, str]]:
    if line["mode"] != "agg":
        return "disaggregated"
    if line["model_has_mtp_head"] != "0":
        return "may speculate"
    tensor, groups = int(line["tp_size"]), max(1, _count(line["attention_dp_size"]))
    experts_on = max(1, _count(line["moe_tp_size"])) * max(1, _count(line["moe_ep_size"]))
    precision, engine = line["precision"], line["backend"]
    cache = 1 if engine == "trtllm" and precision not in ("", "bf16") else 2
    shape = served_shape(line["model_path"], precision)
    if shape is not None and shape.experts:
        groups = max(groups, experts_on // tensor)
    found = deployment(catalogue, line["model_path"], precision, line["system"], tensor, groups, 1, cache)
    if isinstance(found, str):
        return found
    prompt, answer = float(line["isl"]), float(line["osl"])
    first, token = float(line["silicon_ttft_ms"]) / 1e3, float(line["silicon_tpot_ms"]) / 1e3
    if first > answer * token:
        return "waits longer than it answers"
    requests = float(line["batch_size"]) * groups
    if line["concurrency_from_source"] != f"{requests:g}":
        return "load not clear"
    name = found.accelerator.name
    served = "/".join((line["model_path"], precision, name, engine, f"t{tensor}d{groups}e{experts_on}"))
    return (
        found.machine(),
        found.work(prompt + answer / 2.0),
        (requests, prompt, answer, first, token),
        {
            "accelerator": name,
            "family": family(name),
            "engine": engine,
            "model": line["model_path"],
            "kind": "MoE" if found.shape.experts else "dense",
            "deployment": served,
            "configuration": f"{served}/{line['isl']}x{line['osl']}/{line['batch_size']}",
        },
    )


def _count(text: str) -> int:
    return int(float(text)) if text else 0
