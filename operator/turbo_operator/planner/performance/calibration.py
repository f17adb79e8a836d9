"""Factors on the step-time model: from a start-up microbenchmark, then from the loads of pods. Pure.

A few measured points beat any further physics in the model: what it misses is mostly one factor on decoding
and one on reading prompts (software versions, clocks, kernels), and those are what they tell. Passes that
decode a row, that verify drafts and that decode several rows count alike, however many points each has.

A serving pod does not report how long its steps take, but how many requests run and how many tokens it has
generated. Over any stretch the requests' time together is the sum over their steps of the step's time
(Little's law), idle time adding nothing; so measured over predicted request-seconds is the factor.

The status keeps the factors, by engine and accelerator, and the planner reads them there alone: so they are
known after a restart, before any pod has reported its load, and to whoever computes the same plan.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from turbo_operator.api import Calibrated, TurboDeployment, TurboDeploymentSpec, epoch, rfc3339
from turbo_operator.plan import Running
from turbo_operator.planner.arrays import take
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.capabilities import ENGINES
from turbo_operator.planner.inputs import PlannerInputs, find_plan_in_place, identify_running
from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.candidate_curves import (
    build_rates,
    describe_replicas,
    has_known_speed,
)
from turbo_operator.planner.performance.step_time import Calibration, ForwardCost, Machine
from turbo_operator.planner.requirements import build_requirements
from turbo_operator.snapshot import Accelerator, LoadSample, PodView, Snapshot
from turbo_runtime.contract.documents import ModelShape, StepTime

PROMPT_TOKENS = 32  # new tokens of one request from which on a pass reads a prompt rather than decodes


def calibrate(step_times: Sequence[StepTime], machine: Machine, work: ForwardCost) -> Calibration | None:
    """Derive the factors from a replica's measured passes; None where they tell nothing."""
    decode, prefill = dict[tuple[bool, bool], list[float]](), []
    for point in step_times:
        if point.seconds <= 0.0 or point.rows < 1 or point.tokens < 1:
            continue
        if point.tokens < PROMPT_TOKENS:
            drafts, rows, context = point.tokens - 1.0, float(point.rows), float(point.context)
            predicted = step_time.decode_seconds(machine, work, rows, drafts, context)
            kind = point.rows > 1, point.tokens > 1
            decode.setdefault(kind, []).append(point.seconds / float(predicted))
        else:
            predicted = step_time.prefill_seconds(machine, work, float(point.rows * point.tokens))
            prefill.append(point.seconds / float(predicted))
    if not decode and not prefill:
        return None
    decoding = [mean_ratio(ratios) for ratios in decode.values()]
    # Where one kind of pass was not measured, the other's factor is the best guess.
    return Calibration(mean_ratio(decoding or prefill), mean_ratio(prefill or decoding))


def mean_ratio(ratios: Iterable[float]) -> float:
    """Return the geometric mean of measured over predicted, each above 0: half and double cancel."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


DRIFT = 1e-6  # variance per second that a factor's logarithm wanders by: 6 % in an hour
NOISE = 0.15**2  # variance of one measurement's logarithm
GATE = 9.0  # squared deviations, three of them, beyond which a measurement is an outlier
PATIENCE = 5  # outliers in a row after which they are believed: the machine has changed


@dataclass(frozen=True, slots=True)
class Filter:
    """A factor as it is known from measurements over time: a scalar Kalman filter on its logarithm.

    A measurement that lies too far from what is known (the innovation gate) changes nothing, until so many
    follow each other that it is the machine that has changed. Callers leave out a pod's first minute.
    """

    logarithm: float = 0.0
    variance: float = 0.25
    at: float = 0.0  # seconds since the epoch of the last measurement that was believed
    outliers: int = 0  # in a row

    def update(self, measured: float, predicted: float, at: float) -> Filter:
        """Add a measurement at time `at`; both values are in the same unit and above 0."""
        variance = self.variance + DRIFT * max(0.0, at - self.at) if self.at else self.variance
        logarithm = math.log(measured / predicted)
        innovation = logarithm - self.logarithm
        if innovation**2 > GATE * (variance + NOISE):
            if self.outliers + 1 < PATIENCE:
                return Filter(self.logarithm, self.variance, self.at, self.outliers + 1)
            return Filter(logarithm, NOISE, at)
        gain = variance / (variance + NOISE)
        return Filter(self.logarithm + gain * innovation, (1.0 - gain) * variance, at)


WARM_UP_SECONDS = 60.0  # of a new pod: its first passes are slower than any later one
# Predicted request-seconds of one measurement. Those that were measured are a sum over samples 15 seconds
# apart; with fifty requests in the sum it is right to about a seventh, which is the filter's noise.
STRETCH = 750.0
STEP = 0.10  # of the logarithm that is told: a plan is not made anew for less


@dataclass(frozen=True, slots=True)
class OnlineCorrection:
    """What is known of the pods of one engine on one accelerator; empty at first."""

    filter: Filter = field(default_factory=Filter)
    marks: Mapping[str, LoadSample] = field(default_factory=dict)  # where each pod's stretch began
    reported: float = 0.0  # logarithm of the factor, in steps
    key: tuple[str, str] | None = None  # engine and accelerator

    @property
    def factor(self) -> float:
        """On the times that the start-up points, or else the model, predict."""
        return math.exp(self.reported)

    def update(
        self, pods: Sequence[PodView], machine: Machine, work: ForwardCost, start: Calibration | None
    ) -> OnlineCorrection:
        """Add the pods' present loads; `start` is what their start-up points have told."""
        known, marks = self.filter, {}
        for pod in pods:
            sample = pod.load
            if sample is None or pod.ready_since is None or sample.at < pod.ready_since + WARM_UP_SECONDS:
                continue
            mark = self.marks.get(pod.name)
            if mark is None or sample.occupancy.request_seconds < mark.occupancy.request_seconds:
                marks[pod.name] = sample  # the stretch begins; or the process was started again
                continue
            expected = predict_request_seconds(mark, sample, machine, work, start)
            if expected < STRETCH:
                marks[pod.name] = mark
                continue
            marks[pod.name] = sample
            measured = sample.occupancy.request_seconds - mark.occupancy.request_seconds
            known = known.update(measured, expected, sample.at)
        moved = abs(known.logarithm - self.reported) >= STEP
        reported = STEP * round(known.logarithm / STEP) if moved else self.reported
        return replace(self, filter=known, marks=marks, reported=reported)


def predict_request_seconds(
    before: LoadSample, after: LoadSample, machine: Machine, work: ForwardCost, start: Calibration | None
) -> float:
    """Predict the request-seconds of the steps between two samples of a pod."""
    one, two = before.occupancy, after.occupancy
    requests = two.request_seconds - one.request_seconds
    if requests <= 0.0:
        return 0.0
    among = max(1.0, (two.squared_seconds - one.squared_seconds) / requests)  # that a request runs among
    context = (two.token_seconds - one.token_seconds) / requests
    prompts = (after.load.prompts or 0) - (before.load.prompts or 0)
    tokens = (after.load.prompt_tokens or 0) - (before.load.prompt_tokens or 0)
    generated = after.load.generated_tokens - before.load.generated_tokens
    accepted = after.load.accepted_tokens - before.load.accepted_tokens
    steps = max(1, generated - accepted - prompts)  # of all requests: reading a prompt makes the first token
    drafts = (after.load.draft_tokens - before.load.draft_tokens) / steps
    decode = float(step_time.decode_seconds(machine, work, among, drafts, context))
    read = float(step_time.prefill_seconds(machine, work, tokens / prompts)) if prompts > 0 else 0.0
    scale = start or NEUTRAL
    # Every running request waits while a step runs, and while another's prompt is read.
    return steps * decode * scale.decode + prompts * among * read * scale.prefill


MIN_CHANGE = 0.05  # of a factor: a change at a new pod's start that is smaller changes no plan
MAX_KEPT = 16  # engines and accelerators
# Of a factor: what lies beyond is a slip in the catalog, or the word of another program.
MIN_FACTOR, MAX_FACTOR = 0.01, 100.0
UNCHANGED = "1.000"
NEUTRAL = Calibration(1.0, 1.0)
# A plan that has left an accelerator measures it no more. What was measured under load counts until it may
# have wandered as far as was thought possible before any measurement: for three days.
BELIEVED_SECONDS = Filter().variance / DRIFT


def update_calibrations(
    td: TurboDeployment, observed: Snapshot, online: OnlineCorrection | None, now: float
) -> tuple[tuple[Calibrated, ...], OnlineCorrection | None]:
    """Return the factors at `now`, those of what runs first, and `online` with what its loads tell."""
    existing = tuple(_fade(row, now) for row in td.status.calibrations)
    plan = find_plan_in_place(td, observed)
    running = identify_running(plan)
    accelerator = observed.accelerators.get(running.accelerator) if running is not None else None
    if plan is None or running is None or accelerator is None or observed.model is None:
        return existing, None
    replica = describe_replica(td.spec, observed.model.shape, accelerator, running)
    if replica is None:
        return existing, None
    key = (str(running.engine), running.accelerator)
    mine = next((row for row in existing if (row.engine, row.accelerator) == key), None)
    pods = [pod for pod in observed.pods if pod.plan_hash == plan.hash]
    points = [point for pod in pods if pod.load is not None for point in pod.load.load.step_times or ()]
    start = _start(mine, calibrate(points, *replica))
    is_faded = mine is not None and mine not in td.status.calibrations
    if online is None or online.key != key or is_faded:
        logarithm = math.log(max(float(mine.online), MIN_FACTOR)) if mine is not None else 0.0
        online = OnlineCorrection(filter=Filter(logarithm=logarithm), reported=logarithm, key=key)
    online = online.update(pods, *replica, start)
    if start is None and online.reported == 0.0:
        return existing, online
    factors = (*(start or NEUTRAL), online.factor)
    decode, prefill, factor = (f"{min(max(value, MIN_FACTOR), MAX_FACTOR):.3f}" for value in factors)
    # Writes the end anew once half of the time has passed, so that a status under load is rarely written.
    end_time = online.filter.at + BELIEVED_SECONDS
    expiration = mine.until if mine is not None else None
    if expiration is None or end_time - epoch(expiration) > BELIEVED_SECONDS / 2:
        expiration = rfc3339(end_time)
    calibrated = Calibrated(
        engine=running.engine,
        accelerator=running.accelerator,
        decode=decode,
        prefill=prefill,
        online=factor,
        until=expiration if online.reported else None,
    )
    return (calibrated, *(row for row in existing if row is not mine))[:MAX_KEPT], online


def describe_replica(
    spec: TurboDeploymentSpec, shape: ModelShape, accelerator: Accelerator, running: Running
) -> tuple[Machine, ForwardCost] | None:
    """Describe one replica in plain numbers; None where the speed of the accelerator is not stated."""
    alone = {accelerator.name: accelerator}
    spec = spec.model_copy(update={"accelerators": None})  # what runs need not be allowed any more
    requirements = build_requirements(PlannerInputs(spec, shape, alone, None, None, {}, None), 0.0)
    rates = build_rates(requirements)
    engine = next(place for place, engine in enumerate(ENGINES) if engine.name == running.engine)
    place, tensor, nodes = np.zeros(1, np.int64), np.full(1, float(running.tensor)), np.ones(1)
    candidates = Candidates((accelerator,), (), place + engine, place, tensor, nodes, place)
    # Of several nodes the passes overlap, and data-parallel groups wait: no measured step is one of theirs.
    if running.nodes * running.data > 1 or not has_known_speed(candidates, rates)[0]:
        return None
    element = np.full(1, float(requirements.element_bytes(accelerator)))
    machine, work = describe_replicas(candidates, element, rates, shape, requirements.demand.mean_context)
    return take(machine, (0, 0)), take(work, (0, 0))


def _fade(row: Calibrated, now: float) -> Calibrated:
    """Keep of an old one only what was measured at a start, which is the machine's and not its load's."""
    is_over = row.online != UNCHANGED and (row.until is None or epoch(row.until) <= now)
    return row.model_copy(update={"online": UNCHANGED, "until": None}) if is_over else row


def _start(row: Calibrated | None, measured: Calibration | None) -> Calibration | None:
    """Return what the start-up points tell; what is kept where they tell nothing, or hardly anything new."""
    if row is None:
        return measured
    known = Calibration(float(row.decode), float(row.prefill))
    changes = zip(measured or known, known, strict=True)
    return known if all(abs(new - old) <= MIN_CHANGE * old for new, old in changes) else measured
