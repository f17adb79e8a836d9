"""Random histories of one TurboDeployment's rollouts, and the laws that every step of them must keep.

A world of Deployments, pods and accelerators that fail, hang, flap and are evicted, with a controller and a
scheduler that lag. What the planner says is written into it, and judged by what there is at that instant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from turbo_dev.rollout_laws import Laws, law
from turbo_dev.simulated_variants import PRICES, SIZES, Deployment, Pod, footprint, states_after
from turbo_operator.api import Canary, RolloutReason, RolloutStatus
from turbo_operator.budget import Footprint
from turbo_operator.rollout import (
    Bounds,
    Progress,
    Step,
    VariantState,
    Wanted,
    follow,
    next_step,
    pass_gates,
    serving_variant,
    step_replicas,
)
from turbo_operator.rollout.variants import SILENT_SECONDS

Planner = Callable[[Sequence[VariantState], Wanted, Footprint | None, Bounds, float], Step]

TICK = 5.0  # seconds
DEADLINE = 60.0


@dataclass(slots=True)
class World(Laws):
    """One TurboDeployment and its cluster; everything random comes from `dice`."""

    dice: random.Random
    planner: Planner = next_step
    variants: dict[str, Deployment] = field(default_factory=dict)
    wanted: str = ""
    canary: str | None = None  # a variant of one pod that tests a draft
    training: str | None = None  # the accelerator that a training holds one of
    serving: str | None = None
    rollout: RolloutStatus | None = None
    steps: Canary = field(default_factory=Canary)
    generation: int = 0
    last: Step | None = None
    met: set[str] = field(default_factory=set)  # what has happened, in words

    # What may happen

    def begin(self) -> None:
        """Accelerators, limits and a first plan."""
        dice = self.dice
        self.replicas = dice.randint(1, 4)
        tight = dice.random() < 0.5
        self.nodes = {name: dice.randint(2, 6) if tight else 40 for name in PRICES}
        surge = dice.choice((None, None, None, 0, 1, 2))
        self.bounds = Bounds(
            max_surge=surge,
            max_unavailable=dice.choice((None, None, 1, 2) if surge == 0 else (None, None, 0, 1, 2)),
            max_total=dice.choice((None, None, 2, 4, 8)),
            max_per_hour=dice.choice((None, None, Decimal(4), Decimal(9))),
            stock=dict(self.nodes),
        )
        if dice.random() < 0.3:
            fractions = [{"replicasFraction": part, "minDuration": "10s"} for part in ("0.25", "0.5")]
            self.steps = Canary.model_validate({"steps": fractions[: dice.randint(1, 2)]})
        self.change_plan(works=dice.random() < 0.8)
        if dice.random() < 0.1:
            self.begin_amid_repairs()

    def begin_amid_repairs(self) -> None:
        """What served is dead, its first fix answers in part, and the spec has changed again."""
        for silent_since in (self.now - 10 * SILENT_SECONDS, None):
            accelerator, starts_in = self.qualities[self.wanted][0], None if silent_since else 1
            number = self.dice.randint(1, self.replicas)
            one, held = footprint(accelerator), [(each.footprint, each.held) for each in self.states()]
            if self.bounds.exceeded([*held, (one, number)]) is None:
                pods = [Pod(True, 9, ready=silent_since is None) for _ in range(number)]
                self.qualities[self.wanted] = accelerator, starts_in
                self.variants[self.wanted] = Deployment(
                    accelerator, starts_in, number, pods=pods, silent_since=silent_since
                )
                self.serving = self.serving or self.wanted
            self.change_plan(works=self.dice.random() < 0.8)

    def change_plan(self, works: bool) -> None:
        """Another plan hash, which works or not."""
        self.generation += 1
        self.canary = None
        self.wanted = f"v1{self.generation:03}"
        name = self.dice.choice(sorted(PRICES)) if self.dice.random() < 0.5 else sorted(PRICES)[0]
        self.qualities[self.wanted] = (name, self.dice.randint(1, 3) if works else None)

    def go_back(self) -> None:
        """A plan of before is wanted again."""
        plans = sorted(self.qualities.keys() - self.canaries - {self.wanted})
        if plans:
            self.generation += 1
            self.canary, self.wanted = None, self.dice.choice(plans[-3:])
            self.met.add("went back")

    def change_in_a_bad_moment(self) -> None:
        """The spec changes as its plan gets all its replicas, or as nobody answers of some plan."""
        if self.dice.random() < 0.05:
            if self.variants:
                silent = self.variants[self.dice.choice(sorted(self.variants))]
                silent.counted = 0
                for pod in silent.alive:
                    pod.ready, pod.age = False, 0
            self.change_plan(works=self.dice.random() < 0.6)
        new = self.variants.get(self.wanted)
        has_all = new is not None and new.exists and new.counted >= self.replicas > 0
        if has_all and self.serving != self.wanted and self.dice.random() < 0.3:
            self.dice.choice((self.go_back, lambda: self.change_plan(works=False)))()

    def lower_a_limit(self) -> None:
        """A limit that some replicas of another plan keep, whatever serves."""
        self.change_plan(works=self.dice.random() < 0.8)
        one, count = footprint(self.qualities[self.wanted][0]), self.dice.randint(1, max(1, self.replicas))
        if self.dice.random() < 0.5:
            self.bounds = replace(self.bounds, max_per_hour=one.cost_per_hour(count))
        else:
            self.bounds = replace(self.bounds, max_total=one.accelerators(count))

    def break_for_good(self, plan: str) -> None:
        """Its pods start no more: a volume or a driver has gone."""
        variant = self.variants[plan]
        variant.starts_in, self.qualities[plan] = None, (variant.accelerator, None)
        variant.counted = 0 if variant.seen else variant.counted
        for pod in variant.alive:
            pod.ready = False
        self.met.add("broke for good")

    def try_a_draft(self) -> None:
        """A canary of the plan that serves begins, or the one that runs ends."""
        if self.canary is not None or self.serving != self.wanted:
            self.canary = None
            return
        self.generation += 1
        self.canary = f"v1{self.generation:03}"
        self.canaries.add(self.canary)
        starts_in = self.dice.choice((1, 2, None))
        self.qualities[self.canary] = (self.qualities[self.wanted][0], starts_in)

    def train(self) -> None:
        """A training begins where replicas and it are within all limits, or the one that runs ends."""
        if self.training is not None:
            self.training = None
            self.bounds = replace(self.bounds, reserved=(), stock=dict(self.nodes))
            return
        name = self.dice.choice(sorted(PRICES))
        one, mine = footprint(name), footprint(self.qualities[self.wanted][0])
        held = [(state.footprint, state.held) for state in self.states()]
        more = max(0, self.replicas - sum(number for _, number in held))
        if self.bounds.exceeded([*held, (mine, more), (one, 1)]) is not None:
            return
        self.training = name
        stock = {**self.nodes, name: self.nodes[name] - SIZES[name]}
        self.bounds = replace(self.bounds, reserved=((one, 1),), stock=stock)

    def something_happens(self) -> None:
        """One random event, or none."""
        dice = self.dice
        pods, what = [pod for each in self.variants.values() for pod in each.alive], dice.random()
        if what < 0.06:
            self.change_plan(works=dice.random() < 0.6)
        elif what < 0.09:
            self.replicas = dice.randint(0, 4)
        elif what < 0.10:
            self.lower_a_limit()
        elif what < 0.11:
            self.try_a_draft()
        elif what < 0.12:
            self.train()
        elif what < 0.13:
            self.generation += 1  # the spec changes and the plan does not: what failed is tried again
        elif what < 0.14:
            self.go_back()
        elif what < 0.16 and self.variants:
            victim = self.variants[dice.choice(sorted(self.variants))]
            victim.replicas, victim.seen = 0, False  # somebody scales a child
        elif what < 0.17 and self.variants:
            victim = self.variants[dice.choice(sorted(self.variants))]
            victim.exists, victim.replicas, victim.counted = False, 0, 0  # or deletes it
            for pod in victim.alive:
                pod.ending = 1
        elif what < 0.18 and self.variants:
            self.break_for_good(dice.choice(sorted(self.variants)))
        elif what < 0.32 and pods:
            pod = dice.choice(pods)
            kind = dice.randrange(4)
            if kind == 0:
                pod.ready, pod.hung = False, True
            elif kind == 1:
                pod.ready, pod.age = False, 0  # its container starts again
            elif kind == 2:
                pod.ending = 0  # evicted
            else:
                pod.hung = False

    def controllers_act(self, lag: bool) -> None:
        """Deployments make and end pods, the scheduler places them, kubelets run them."""
        for each in self.variants.values():
            if lag and self.dice.random() < 0.3:
                continue
            each.seen = True
            surplus = len(each.alive) - (each.replicas if each.exists else 0)
            order = sorted(each.alive, key=lambda pod: (pod.placed, pod.ready, pod.age))
            for pod in order[: max(0, surplus)]:
                pod.ending = self.dice.randint(0, 3) if pod.placed else 0
            each.pods += [Pod() for _ in range(-surplus)]
            each.counted = sum(pod.ready for pod in each.alive)
            self._note_silence(each)
        for each in self.variants.values():
            for pod in each.alive:
                if not pod.placed:
                    pod.placed = (
                        self.held(each.accelerator) + SIZES[each.accelerator] <= self.nodes[each.accelerator]
                    )
                else:
                    pod.age += 1
                    pod.ready = not pod.hung and each.starts_in is not None and pod.age >= each.starts_in
            each.pods = [pod for pod in each.pods if pod.ending != 0]
            for pod in each.pods:
                if pod.ending is not None:
                    pod.ending -= 1
                    pod.ready = False

    def _note_silence(self, each: Deployment) -> None:
        if each.replicas and each.counted < each.replicas:
            each.silent_since = each.silent_since or self.now
        else:
            each.silent_since = None

    def held(self, accelerator: str) -> int:
        """Accelerators that pods on nodes hold."""
        trainer = SIZES[accelerator] if accelerator == self.training else 0
        return trainer + sum(
            SIZES[accelerator] * sum(pod.placed for pod in each.pods)
            for each in self.variants.values()
            if each.accelerator == accelerator
        )

    # What the operator sees and does

    def states(self) -> tuple[VariantState, ...]:
        """The variants as an operator sees them."""
        return tuple(
            VariantState(
                name,
                each.replicas if each.exists else 0,
                min(each.counted, each.replicas) if each.exists and each.seen else 0,
                sum(pod.ending is not None for pod in each.pods),
                each.exists,
                footprint(each.accelerator),
                each.silent_since,
                any(not pod.placed for pod in each.alive),
                len(each.pods),
                each.seen or not each.exists,
                sum(pod.ready for pod in each.alive),
            )
            for name, each in sorted(self.variants.items())
        )

    def look(self) -> Step:
        """One look of the operator; raises BrokenLawError where its step breaks a law."""
        states = self.states()
        by_hash = {state.plan_hash: state for state in states}
        others = [state for state in states if state.plan_hash not in self.canaries]
        self.serving = serving_variant(others, self.wanted, self.serving, self.replicas, self.bounds)
        new = by_hash.get(self.wanted, VariantState(self.wanted, exists=False))
        rolled_back = self.rollout is not None and self.rollout.reason == RolloutReason.ROLLED_BACK
        limit = None
        if self.replicas:
            pods = self.variants[self.wanted].alive if self.wanted in self.variants else []
            progress = Progress(
                self.wanted,
                str(self.generation),
                new.replicas,
                new.available,
                ready=sum(pod.ready for pod in pods),
                has_placed=any(pod.placed and not pod.ready for pod in pods),
                is_waiting=any(not pod.placed for pod in pods),
                over_limits=self.bounds.is_overspent((each.footprint, each.replicas) for each in states),
            )
            self.rollout = follow(self.rollout, progress, self.serving, self.now, DEADLINE)
            limit = self._pass_gates(new.available)
            rolled_back = self.rollout is not None and self.rollout.reason == RolloutReason.ROLLED_BACK
        self.over_limits = self.rollout is not None and bool(self.rollout.over_limits)
        wanted = Wanted(
            self.wanted,
            self.replicas,
            self.serving,
            rolled_back,
            self.canary,
            over_limits=self.over_limits,
            step=limit,
        )
        mine = footprint(self.qualities[self.wanted][0])
        step = self.planner(states, wanted, mine, self.bounds, self.now)
        self.judge(states, step)
        if limit is not None and self.serving not in (None, self.wanted) and not rolled_back:
            asked, most = step.replicas.get(self.wanted, 0), max(limit, new.replicas, new.answering)
            law(asked <= most, f"{asked} replicas of a plan that is on a step of {limit}")
            self.met.add("on a step")
        again = self.planner(states_after(states, step), wanted, mine, self.bounds, self.now)
        law(again.replicas == step.replicas, f"a second call changes {step.replicas} to {again.replicas}")
        if step.target == self.wanted and step.is_over:
            self.serving = self.wanted
        self.note(by_hash, step, rolled_back)
        self.write(step)
        self.last = step
        return step

    def _pass_gates(self, available: int) -> int | None:
        """Go on to the next step where one has passed; how many replicas the step has."""
        if self.rollout is None or self.serving is None:
            return None
        seen = (), self.serving, self.replicas, available, self.now
        self.rollout = pass_gates(self.rollout, self.steps, *seen)
        return step_replicas(self.steps, self.rollout.passed_steps or 0, self.replicas)

    def note(self, before: Mapping[str, VariantState], step: Step, rolled_back: bool) -> None:
        """What the step is an instance of."""
        lowered = any(
            name != step.target and before[name].available > count
            for name, count in step.replicas.items()
            if name in before
        )
        answering = sum(state.available for state in before.values())
        self.met |= {
            word
            for word, holds in (
                ("rolled back", rolled_back),
                ("waited", step.waits is not None),
                ("went first", lowered and answering <= self.replicas),
                ("surged", sum(step.replicas.values()) > self.replicas > 0),
                ("above a lowered limit", self.over_limits),
                ("tried a draft", (step.replicas.get(self.canary or "", 0)) > 0),
                ("trained", self.training is not None),
                ("took over", self.generation > 1 and self.serving == self.wanted),
            )
            if holds
        }

    def write(self, step: Step) -> None:
        """Apply a step: what it does not name is removed."""
        for name in [name for name in self.variants if name not in step.replicas]:
            for pod in self.variants[name].alive:
                pod.ending = 1
            self.variants[name].exists = False
            if not self.variants[name].pods:
                del self.variants[name]
        for variant in step.variants:
            each = self.variants.get(variant.plan_hash)
            if each is None:
                each = self.variants[variant.plan_hash] = Deployment(*self.qualities[variant.plan_hash])
                each.seen = False
            if not each.exists or each.replicas != variant.replicas:
                each.exists, each.seen, each.replicas = True, False, variant.replicas

    def rests(self) -> bool:
        """Whether all is as wanted, or the step says what it waits for."""
        step = self.last
        if step is None or "until the replicas before it" in (step.waits or ""):
            return False
        alone = {name for name, each in self.variants.items() if each.pods or each.replicas}
        rolled_back = self.rollout is not None and self.rollout.reason is not None
        if self.replicas == 0:
            return not alone
        target = self.variants.get(step.target or "")
        if target is not None and target.starts_in is None and (rolled_back or step.target == self.serving):
            return True  # what served has ceased to, and so says the status
        complete = target is not None and sum(pod.ready for pod in target.alive) == step.fitting > 0
        if complete and alone == {step.target}:
            return step.fitting == self.replicas or step.waits is not None
        return (rolled_back and self.serving is None) or step.waits is not None
