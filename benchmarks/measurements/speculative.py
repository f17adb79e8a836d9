"""Speed-up by speculation, given how many tokens a step commits (the acceptance length)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

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
from measurements.served import SIXTEEN_BITS, family
from turbo_operator.api import Method
from turbo_operator.planner.performance import speculation, step_time
from turbo_operator.planner.performance.step_time import Coefficients, ForwardCost, Machine
from turbo_operator.snapshot import Accelerator
from turbo_runtime.contract.documents import ModelShape

# A method's own code captures no graphs: Python launches some thirty kernels of a layer, one after the other,
# which takes half a millisecond.
EAGER_ENGINES = ("PyTorch reference code",)
EAGER_LAYER_SECONDS = 500e-6
CONTEXT = 1000.0  # cached tokens of a request in the middle of its answer; the tables do not say


@dataclass(frozen=True)
class Drafting:
    """How a published method drafts, in the planner's words: what makes drafts, how many a step verifies."""

    method: Method
    verified: float  # drafts of one step; of a tree, all its nodes
    passes: int  # one after the other, to make them; 0: from text alone


# The defaults of each method's code as Spec-Bench runs it.
METHODS = {
    "PLD": Drafting(Method.SUFFIX, 10, 0),
    "Lookahead": Drafting(Method.SUFFIX, 56, 0),
    "REST": Drafting(Method.SUFFIX, 64, 0),
    "Recycling": Drafting(Method.SUFFIX, 80, 0),
    "Medusa": Drafting(Method.TURBO_HEADS, 63, 1),
    "Hydra": Drafting(Method.MTP, 63, 4),
    "EAGLE": Drafting(Method.MTP, 25, 5),
    "EAGLE2": Drafting(Method.MTP, 59, 6),
    "EAGLE3": Drafting(Method.EAGLE3, 59, 6),
    "SAMD[EAGLE2]": Drafting(Method.MTP, 59, 6),
    "SpS": Drafting(Method.DRAFT_MODEL, 5, 5),
}
SMALL = ModelShape(  # Vicuna-68M, the draft model of SpS
    architecture="LlamaForCausalLM",
    parameters=68_030_208,
    layers=2,
    hidden_size=768,
    heads=12,
    kv_heads=12,
    head_dim=64,
    vocab_size=32_000,
    max_position=2048,
    dtype="float16",
    embedding_parameters=24_576_000,
)


@dataclass(frozen=True)
class Speculative:
    """n measured rows; every array has n elements."""

    machine: Machine
    work: ForwardCost
    small: ForwardCost  # of a pass of the draft model, were there one
    requests: Numbers
    accepted: Numbers  # tokens committed per step
    measured: Numbers  # speed-up
    shapes: tuple[ModelShape, ...]
    drafting: tuple[Drafting, ...]
    words: Mapping[str, Words]  # accelerator, family, engine, model, kind, configuration

    def __len__(self) -> int:
        return len(self.measured)

    def take(self, which: Mask) -> Speculative:
        """Some of the rows."""
        places = np.flatnonzero(which)
        return Speculative(
            taken(self.machine, which),
            taken(self.work, which),
            taken(self.small, which),
            self.requests[which],
            self.accepted[which],
            self.measured[which],
            tuple(self.shapes[place] for place in places),
            tuple(self.drafting[place] for place in places),
            {name: column[which] for name, column in self.words.items()},
        )

    def predicted(self, coefficients: Coefficients) -> Numbers:
        """The speed-up: tokens of a step times a plain step's time, over the step's and its drafts' time."""
        eager = np.where(np.isin(self.words["engine"], EAGER_ENGINES), EAGER_LAYER_SECONDS, 0.0)
        layer: Any = coefficients.layer_seconds + eager
        machine = replace(self.machine, coefficients=replace(coefficients, layer_seconds=layer))
        plain = np.asarray(step_time.decode_seconds(machine, self.work, self.requests, 0.0, CONTEXT))
        verified = np.array([how.verified for how in self.drafting])
        step = step_time.decode_seconds(machine, self.work, self.requests, verified, CONTEXT)
        small = np.asarray(step_time.decode_seconds(machine, self.small, self.requests, 0.0, CONTEXT))
        drafts = np.array(
            [
                float(speculation.draft_seconds(how.method, how.passes, shape, one, other))
                if how.passes
                else 0.0
                for how, shape, one, other in zip(self.drafting, self.shapes, plain, small, strict=True)
            ]
        )
        return np.asarray(self.accepted * plain / (step + drafts))

    def errors(self, coefficients: Coefficients) -> Numbers:
        """[n, 1] of predicted over measured."""
        return (self.predicted(coefficients) / self.measured - 1.0)[:, None]


def speculative(path: Path, catalog: Mapping[str, Accelerator]) -> tuple[Speculative | None, Counter[str]]:
    """The rows of a table like specdec_measured.csv that can be told, and those left out, by reason.

    They must state acceptance length and speed-up.
    """
    kept, out = [], Counter[str]()
    for line in table(path):
        if not line.get("acceptance_length") or not line.get("speedup"):
            out["no acceptance length or speed-up"] += 1
            continue
        try:
            method, model, gpu = word(line, "method"), word(line, "target_model"), word(line, "gpu")
            precision, engine, dataset = (
                word(line, "target_precision"),
                word(line, "engine"),
                word(line, "dataset"),
            )
            found: Deployment | str = f"method {method}"
            if method in METHODS:
                precision = "" if precision in SIXTEEN_BITS else precision
                found = deployment(catalog, model, precision, gpu, max(1, count(line, "num_gpus")))
            numbers = (
                []
                if isinstance(found, str)
                else [number(line, column) for column in ("concurrency", "acceptance_length", "speedup")]
            )
        except UnreadableError as reason:
            found = str(reason)
        if isinstance(found, str):
            out[found] += 1
            continue
        name = found.accelerator.name
        words = {
            "accelerator": name,
            "family": family(name),
            "engine": engine,
            "model": model,
            "kind": "MoE" if found.shape.experts else "dense",
            "configuration": f"{gpu}/{model}/{method}/{dataset}",
        }
        kept.append((found, numbers, METHODS[method], words))
    if not kept:
        return None, out
    deployments, columns, drafting, labels = zip(*kept, strict=True)
    requests, accepted, measured = np.array(columns, float).T
    return Speculative(
        Machine(coefficients=GENERAL, **stacked([each.machine() for each in deployments])),
        ForwardCost(**stacked([each.work(CONTEXT) for each in deployments])),
        ForwardCost(**stacked([replace(each, shape=SMALL).work(CONTEXT) for each in deployments])),
        requests,
        accepted,
        measured,
        tuple(each.shape for each in deployments),
        drafting,
        {name: np.array([row[name] for row in labels]) for name in labels[0]},
    ), out
