"""Saturated throughput: as many requests as the memory holds, replaced as they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from measurements import closed_loop
from measurements.deployed import (
    GENERAL,
    Mask,
    Numbers,
    UnreadableError,
    Words,
    deployment,
    number,
    stacked,
    table,
    taken,
    word,
)
from measurements.served import SIXTEEN_BITS, family
from turbo_operator.planner.performance import memory, step_time
from turbo_operator.planner.performance.step_time import Coefficients, ForwardCost, Machine
from turbo_operator.snapshot import Accelerator

# TensorRT-LLM's defaults.
MOST_ROWS = 2048  # max_batch_size
STEP_TOKENS = 8192.0  # max_num_tokens: of one pass
# Of these models its versions in the table look at all tokens, whatever window the configuration states
# (NVIDIA/TensorRT-LLM, pull request 12597).
NO_WINDOW = ("MistralForCausalLM", "MixtralForCausalLM")


@dataclass(frozen=True)
class Saturated:
    """n measured rows; every array has n elements."""

    machine: Machine
    work: ForwardCost
    requests: Numbers  # decoded together: what the memory holds
    stages: Numbers  # groups of layers, each with a share of the requests under way
    prompt: Numbers
    answer: Numbers
    measured: Numbers  # output tokens per second of all accelerators
    words: Mapping[str, Words]  # accelerator, family, engine, model, kind, configuration

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, which: Mask) -> Saturated:
        """Some of the rows."""
        return Saturated(
            taken(self.machine, which),
            taken(self.work, which),
            self.requests[which],
            self.stages[which],
            self.prompt[which],
            self.answer[which],
            self.measured[which],
            {name: column[which] for name, column in self.words.items()},
        )

    def predicted(self, coefficients: Coefficients) -> Numbers:
        """Output tokens per second."""
        machine = replace(self.machine, coefficients=coefficients)
        context = self.prompt + self.answer / 2.0
        decode = step_time.decode_seconds(machine, self.work, self.requests / self.stages, 0.0, context)
        together = np.clip(STEP_TOKENS / self.prompt, 1.0, self.requests / self.stages)
        prefill = (
            step_time.prefill_seconds(machine, self.work, self.prompt, together) / together / self.stages
        )
        return np.asarray(
            closed_loop.saturated_tokens_per_second(decode, prefill, self.requests, self.answer)
        )

    def errors(self, coefficients: Coefficients) -> Numbers:
        """[n, 1] of predicted over measured."""
        return (self.predicted(coefficients) / self.measured - 1.0)[:, None]


def saturated(path: Path, catalog: Mapping[str, Accelerator]) -> tuple[Saturated | None, Counter[str]]:
    """The rows of a table like trtllm_max_throughput.csv that can be told, and those left out, by reason.

    Requests reserve their whole length. Quantised checkpoints cache keys and values in 8 bits.
    """
    kept, out = [], Counter[str]()
    for line in table(path):
        try:
            model, gpu, precision = word(line, "model"), word(line, "gpu"), word(line, "precision").lower()
            tensor, stages = int(number(line, "tp")), int(number(line, "pp"))
            prompt, answer = number(line, "isl"), number(line, "osl")
            measured = number(line, "output_tok_s_total")
        except UnreadableError as reason:
            out[str(reason)] += 1
            continue
        cache = 2 if precision in SIXTEEN_BITS else 1
        found = deployment(catalog, model, precision, gpu, tensor, 1, stages, cache)
        if isinstance(found, str):
            out[found] += 1
            continue
        if found.shape.architecture in NO_WINDOW:
            found = replace(found, shape=replace(found.shape, sliding_window=0, sliding_layers=0))
        whole = float(memory.request_tokens(int(prompt + answer), 0))
        fit = min(np.floor(found.most_rows(whole, float(MOST_ROWS), STEP_TOKENS)), float(MOST_ROWS))
        if fit < 1.0:
            out["does not fit"] += 1
            continue
        name = found.accelerator.name
        words = {
            "accelerator": name,
            "family": family(name),
            "engine": "trtllm",
            "model": model,
            "kind": "MoE" if found.shape.experts else "dense",
            "configuration": f"{model}/{gpu}/{precision}/t{tensor}s{stages}/{prompt:g}x{answer:g}",
            "accelerators": str(found.accelerators),
        }
        numbers = [fit, float(stages), prompt, answer, measured]
        kept.append((found.machine(), found.work(prompt + answer / 2.0), numbers, words))
    if not kept:
        return None, out
    machines, works, columns, labels = zip(*kept, strict=True)
    requests, stages_of, prompts, answers, throughputs = np.array(columns, float).T
    return Saturated(
        Machine(coefficients=GENERAL, **stacked(machines)),
        ForwardCost(**stacked(works)),
        requests,
        stages_of,
        prompts,
        answers,
        throughputs,
        {name: np.array([row[name] for row in labels]) for name in labels[0]},
    ), out
