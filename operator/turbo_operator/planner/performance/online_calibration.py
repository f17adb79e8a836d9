"""What the step times of serving pods are to the model's, from their loads alone. Pure.

A pod does not tell how long its steps take, but how many requests run and how many tokens it has made. Over
any stretch the requests' time together is the sum over their steps of the step's time (Little's law), idle
time adding nothing; so measured over predicted request-seconds is the factor on the step-time model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.calibration import Calibration, Filter
from turbo_operator.planner.performance.step_time import ForwardCost, Machine
from turbo_operator.snapshot import LoadSample, PodView

WARM_UP_SECONDS = 60.0  # of a new pod: its first passes are slower than any later one
# Predicted request-seconds of one measurement. Those that were measured are a sum over samples 15 seconds
# apart; with fifty requests in the sum it is right to about a seventh, which is the filter's noise.
STRETCH = 750.0
STEP = 0.10  # of the logarithm that is told: a plan is not made anew for less


@dataclass(frozen=True, slots=True)
class Online:
    """What is known of the pods of one engine on one accelerator; empty at first."""

    filter: Filter = field(default_factory=Filter)
    marks: Mapping[str, LoadSample] = field(default_factory=dict)  # where each pod's stretch began
    told: float = 0.0  # logarithm of the factor, in steps
    of: tuple[str, str] | None = None  # engine and accelerator

    @property
    def factor(self) -> float:
        """On the times that the start-up points, or else the model, predict."""
        return math.exp(self.told)

    def heard(
        self, pods: Sequence[PodView], machine: Machine, work: ForwardCost, start: Calibration | None
    ) -> Online:
        """With the pods' present loads; `start` is what their start-up points have told."""
        known, marks = self.filter, {}
        for pod in pods:
            sample = pod.load
            if sample is None or pod.ready_since is None or sample.at < pod.ready_since + WARM_UP_SECONDS:
                continue
            mark = self.marks.get(pod.name)
            if mark is None or sample.occupancy.request_seconds < mark.occupancy.request_seconds:
                marks[pod.name] = sample  # the stretch begins; or the process was started again
                continue
            expected = predicted(mark, sample, machine, work, start)
            if expected < STRETCH:
                marks[pod.name] = mark
                continue
            marks[pod.name] = sample
            measured = sample.occupancy.request_seconds - mark.occupancy.request_seconds
            known = known.told(measured, expected, sample.at)
        moved = abs(known.logarithm - self.told) >= STEP
        told = STEP * round(known.logarithm / STEP) if moved else self.told
        return replace(self, filter=known, marks=marks, told=told)


def predicted(
    before: LoadSample, after: LoadSample, machine: Machine, work: ForwardCost, start: Calibration | None
) -> float:
    """Request-seconds that the steps between two samples of a pod should have taken.

    Every running request waits while a step runs, and while another's prompt is read.
    """
    one, two = before.occupancy, after.occupancy
    requests = two.request_seconds - one.request_seconds
    if requests <= 0.0:
        return 0.0
    among = max(1.0, (two.squared_seconds - one.squared_seconds) / requests)  # that a request runs among
    context = (two.token_seconds - one.token_seconds) / requests
    prompts = (after.load.prompts or 0) - (before.load.prompts or 0)
    tokens = (after.load.prompt_tokens or 0) - (before.load.prompt_tokens or 0)
    made = after.load.generated_tokens - before.load.generated_tokens
    accepted = after.load.accepted_tokens - before.load.accepted_tokens
    steps = max(1, made - accepted - prompts)  # of all requests: reading a prompt makes the first token
    drafts = (after.load.draft_tokens - before.load.draft_tokens) / steps
    decode = float(step_time.decode_seconds(machine, work, among, drafts, context))
    read = float(step_time.prefill_seconds(machine, work, tokens / prompts)) if prompts > 0 else 0.0
    scale = start or Calibration(1.0, 1.0)
    return steps * decode * scale.decode + prompts * among * read * scale.prefill
