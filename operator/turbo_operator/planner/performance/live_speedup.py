"""What drafts gain on pods of vLLM, from their counters and the step-time model. Pure.

vLLM reports how many tokens it has drafted and how many of them were right, and not how long its steps take.
A step that verifies k drafts of each of B requests takes T(B, k), and one without drafts T(B, 0); a factor on
both, such as that of a calibration, is no part of the quotient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from turbo_operator.api import EngineName, Method, TurboDeployment
from turbo_operator.planner.inputs import identify_running
from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.calibration import describe_replica
from turbo_operator.planner.performance.speculation import PRIORS, draft_seconds
from turbo_operator.snapshot import Accelerator, LoadSample, PodView
from turbo_runtime.contract.documents import Load, ModelShape


def add_generation_seconds(
    td: TurboDeployment, shape: ModelShape, accelerators: Mapping[str, Accelerator], pods: Sequence[PodView]
) -> tuple[PodView, ...]:
    """Return the pods, those of vLLM with the seconds that their tokens took, and would take without drafts.

    Left out where the accelerator has no profile, and of a draft model, whose own passes are not known.
    """
    plans = {plan.hash: plan for plan in (td.status.plan, td.status.serving_plan) if plan is not None}
    estimated = []
    for pod in pods:
        plan = plans.get(pod.plan_hash) if pod.engine == EngineName.VLLM and pod.load is not None else None
        running = identify_running(plan)
        accelerator = accelerators.get(running.accelerator) if running is not None else None
        if pod.load is None or running is None or accelerator is None or running.method == Method.DRAFT_MODEL:
            estimated.append(pod)
            continue
        replica = describe_replica(td.spec, shape, accelerator, running)
        load = pod.load.load if replica is None else _estimate(pod.load, running.method, shape, *replica)
        estimated.append(replace(pod, load=replace(pod.load, load=load)))
    return tuple(estimated)


def _estimate(
    sample: LoadSample,
    method: str,
    shape: ModelShape,
    machine: step_time.Machine,
    work: step_time.ForwardCost,
) -> Load:
    """Return the load with those seconds, of all requests together."""
    load, occupancy = sample.load, sample.occupancy
    requests = max(occupancy.request_seconds, 1e-9)
    among = max(1.0, occupancy.squared_seconds / requests)  # that a request runs among
    context = occupancy.token_seconds / requests
    plain = float(step_time.decode_seconds(machine, work, among, 0.0, context))
    # Of what was observed: a mean over it says nothing of what a pod did before.
    first = sample.first or load
    drafts, accepted = load.drafts - first.drafts, load.accepted_tokens - first.accepted_tokens
    generated = load.generated_tokens - first.generated_tokens
    verifying = 0.0
    if drafts > 0:
        each = (load.draft_tokens - first.draft_tokens) / drafts
        verifying = float(step_time.decode_seconds(machine, work, among, each, context))
        if method in PRIORS:  # guesses from the text take no pass
            making = draft_seconds(method, round(each), shape, np.asarray(plain), np.zeros(()))
            verifying += float(making)
    others = max(0, generated - accepted - drafts)
    return replace(
        load,
        generation_seconds=drafts * verifying + others * plain,
        baseline_generation_seconds=generated * plain,
    )
