"""Goodput control: when to draft, how many drafts to verify, and what became of them. Pure: no clock.

A step verifies the drafts that promise most tokens a second, by the measured time of steps and by the chances
that drafters claim, which are corrected by results. Asking takes time before anything is known of a draft: a
credit, which drafts earn, bounds that. Whatever was lost, drafters are asked again within 32 steps: the first
drafts do not decide. Heads have a credit of their own: where they take more than they add to drafts that cost
nothing, they alone are left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from turbo_runtime.contract.documents import StepTime
from turbo_runtime.speculation.step_cost import StepCost, StepShape

# A step without drafts keeps the prediction true: after so many with drafts, or more where it would cost more
# than a share of the time.
_PROBE_EVERY, _PROBE_SHARE = 64, 0.01
# Steps after which drafters are asked again, whatever they lost; and by which, with none of their tokens
# verified, the cost of those falls by a standard deviation.
_WAIT = 32
_DOUBT = 0.5  # standard deviations that the cost of drafted tokens is taken to be lower by, always
_ALLOWANCE = 0.003  # of the time, that drafting may lose
_FIRST, _MOST = 0.5, 3.0  # steps' time: that new drafters may lose; that gains let them lose later
_SUREST = 1 - 1e-9  # share of a drafter's claims that is believed: only what a grammar forces is certain
_PRIOR, _FORGET_AT = 8.0, 256.0  # drafted tokens: that a drafter's word counts for; at which to halve them
_READING, _READING_PROMPTS = 0.01, 0.02  # share of a step's time for reading; of one with a prompt's part
_MANY, _MANY_OF_ONE = 4, 8  # drafted tokens for each answer, at least, to estimate the cost of a row
_UNKNOWN = 0.01  # assumed seconds of a step before the first measurement
_LATELY = 0.995  # share of the past that a step leaves in the live speedup: about 200 steps count
_NEW, _NEW_OF_ALL = 0.3, 0.02  # weight of the newest step for one answer's use, and for the usual one
_MAX_COSTLY = 64  # sets of costly drafters whose credit is kept: one for each method, named draft and reload
_MIN_DEMAND = 0.25  # tokens a step, below which nothing is promised


@dataclass(slots=True)
class Credit:
    """What drafts won less what they cost lately, in steps' time; drafters are asked unless it is negative.
    A debt is paid in `_WAIT` steps at most: what the first drafts lost says little of the next.
    """

    value: float = _FIRST

    @property
    def open(self) -> bool:
        """Whether to ask for drafts."""
        return self.value >= 0.0

    def book(self, net: float) -> None:
        """Book what a step's drafts won less what they cost, as a share of its time without them."""
        self.value = min(max(self.value + net, -_WAIT * _ALLOWANCE) + _ALLOWANCE, _MOST)


@dataclass(slots=True)
class Trust:
    """The share of the tokens that drafters claim to get right which they do."""

    claimed: float = _PRIOR
    right: float = _PRIOR

    def book(self, claimed: float, right: float) -> None:
        """Book the chances that drafters claimed, in total, and how many of the tokens were right."""
        scale = 0.5 if self.claimed >= _FORGET_AT else 1.0
        self.claimed = self.claimed * scale + claimed
        self.right = self.right * scale + right

    def apply(self, acceptance: Sequence[float]) -> list[float]:
        """Correct the chance of each of a draft's tokens that it and all before it are accepted."""
        share = min(_SUREST, self.right / self.claimed)
        return [chance * share ** (place + 1) for place, chance in enumerate(acceptance)]


@dataclass(slots=True)
class Meter:
    """Measured seconds and those predicted without drafts, the older the less they count. Steps without
    drafts keep the prediction true: the controller runs one from time to time if there are no others.
    """

    keep: float = 1.0  # share of the past that a step leaves; 1: all
    without: float = 0.0
    measured: float = 0.0
    tokens: float = 0.0
    passes: float = 0.0

    def book(self, without: float, measured: float, tokens: float) -> None:
        """Book a step that gave an answer `tokens` in `measured` seconds; they would have taken `without`."""
        self.without = self.without * self.keep + without
        self.measured = self.measured * self.keep + measured
        self.tokens = self.tokens * self.keep + tokens
        self.passes = self.passes * self.keep + 1.0

    @property
    def speedup(self) -> float | None:
        """Above 1: drafts pay. At most the tokens of a pass: more is the noise of a few steps."""
        return min(self.without / self.measured, self.tokens / self.passes) if self.measured > 0 else None


class Demand:
    """Draft slots of a step that each answer is likely to use, by what was verified for it lately. Prompts
    lose the slots that are promised to drafts, and an unused promise slows down all prompts.
    """

    def __init__(self) -> None:
        self._usual = 0.0  # where a new answer begins
        self._lately: defaultdict[str, float] = defaultdict(lambda: self._usual)

    def predict(self, request_id: str) -> int:
        """Slots that the answer is likely to use; 0 where it drafts next to nothing."""
        lately = self._lately.get(request_id, self._usual)
        return -int(-lately // 1) if lately >= _MIN_DEMAND else 0

    def book(self, request_id: str, verified: int, slots: int) -> None:
        """Book a step that verified drafts of an answer. A full use of the slots might have been more; no
        slots are no sign.
        """
        if not slots:
            return
        seen = verified if verified < slots else 2 * slots
        self._usual += _NEW_OF_ALL * (seen - self._usual)
        self._lately[request_id] += _NEW * (seen - self._lately[request_id])

    def forget(self, request_id: str) -> None:
        """Forget an ended request."""
        self._lately.pop(request_id, None)


class DraftOutcome(NamedTuple):
    """The result of a step for one answer's draft."""

    request_id: str
    proposed: bool  # whether drafters were asked
    drafted: int  # tokens verified
    won: int  # tokens gained, besides the one that comes anyway
    claimed: float = 0.0  # sum of the chances of tokens whose predecessors were right, verified or not
    right: int = 0  # of those
    costly_key: Hashable | None = None  # of the costly drafters that may draft for it
    more_by_costly: int = 0  # of those verified, where there would have been none without them
    won_by_costly: int = 0  # net accepted tokens due to them: won with them, less those won only without


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step."""

    drafting: float
    rest: float  # the pass, the verification and the bookkeeping
    reading: float = 0.0  # of texts, by drafters: for later steps, so that no request pays for it
    costly: Mapping[Hashable, float] = field(default_factory=dict)  # of drafting, by costly drafters


class GoodputController:
    """Chooses, and learns from every step."""

    def __init__(self, seeds: Sequence[StepTime] | None, padded: Callable[[int], int]) -> None:
        self.cost = StepCost(seeds, padded)
        self.trust = Trust()
        self._credit = Credit()
        self._costly: dict[Hashable, Credit] = {}  # the last in use; each reload of drafts has new keys
        self._meters: defaultdict[str, Meter] = defaultdict(Meter)  # by request
        self._lately, self._ever = Meter(_LATELY), Meter()
        self._since_plain = 0  # steps with drafts since one without
        self._since_drafts = 0  # steps without, since one with

    @property
    def speedup(self) -> float | None:
        """Recent tokens per second over those without drafts; None before any measurement."""
        return self._lately.speedup

    @property
    def generation_seconds(self) -> tuple[float, float]:
        """Time of all steps that generated tokens, and the same without drafts for as many tokens."""
        return self._ever.measured, self._ever.without

    def speedup_of(self, request_id: str) -> float | None:
        """The same as `speedup` for one live request, since its first token."""
        meter = self._meters.get(request_id)
        return meter.speedup if meter else None

    @property
    def _plain_is_due(self) -> bool:
        gain = (self.speedup or 1.0) - 1.0
        return self._since_plain >= max(_PROBE_EVERY, gain / _PROBE_SHARE)

    @property
    def asks(self) -> bool:
        """Whether to ask the drafters in this step; not where one without drafts is due."""
        return self.cost.known and not self._plain_is_due and self._credit.open

    def costly_pay(self, key: Hashable) -> bool:
        """Whether to use these costly drafters in addition to those that cost next to nothing."""
        credit = self._costly.get(key)
        return credit is None or credit.open

    def min_acceptance(self, shape: StepShape, answers: int) -> float:
        """The chance below which a token is hardly worth drafting: a row's cost over that of a token."""
        if not self.cost.known or not answers:
            return 0.0
        more = max(_MANY * answers, _MANY_OF_ONE)
        alone = StepShape(answers, shape.row_reads)
        plain, full = self.cost.seconds(alone), self.cost.seconds(alone.drafting(more, answers))
        return (full - plain) / more / (plain / answers)

    def token_seconds(self, shape: StepShape, answers: int) -> float:
        """Seconds for which a token comes in such a step at the speed of late."""
        if not self.cost.known or not answers:
            return math.inf
        decoding = self.cost.seconds(StepShape(answers, shape.row_reads))
        return decoding / answers / max(self.speedup or 1.0, 1.0)

    def spare(self, shape: StepShape) -> float:
        """Seconds of such a step for reading texts for later steps."""
        seconds = self.cost.seconds(shape) if self.cost.known else _UNKNOWN
        return seconds * (_READING_PROMPTS if shape.tile_reads else _READING)

    def select_draft_lengths(
        self, acceptances: Sequence[Sequence[float]], shape: StepShape, answers: int, drafting: float
    ) -> list[int]:
        """The number of tokens of each draft to verify in a step that is `shape` without them and gives
        `answers` a token each, after `drafting` seconds. None where a step without drafts is due: what a
        grammar forces bypasses `asks`, and would put that step off for ever.
        """
        more = sum(map(len, acceptances))
        if not more or not self.cost.known or self._plain_is_due:
            return [0] * len(acceptances)
        # Against a step of the answers alone, as for the credit and the meter: against one with a prompt's
        # part, drafts would look almost free.
        plain = self.cost.seconds(StepShape(answers, shape.row_reads))
        # What they add is that of this step, and so is its uncertainty.
        likely, deviation = self.cost.added(shape, more, answers)
        # A long draft may be all wrong: that costs no more than drafts have earned, and stops no others.
        certain = sum(each.count(1.0) for each in acceptances)
        most = likely[certain] + max(self._credit.value, _FIRST) * plain
        # What is taken for dear is never measured otherwise.
        doubt = (_DOUBT + self._since_drafts / _WAIT) * deviation
        hoped = np.maximum.accumulate(np.maximum(likely - doubt, 0.0))
        seconds = np.where(likely <= most, plain + hoped, np.inf).tolist()
        return select_draft_lengths(acceptances, answers, seconds, drafting)

    def learn(self, shape: StepShape, outcomes: Sequence[DraftOutcome], times: StepTimes) -> None:
        """Learn from a step, `shape` without its drafts; one outcome for each answer that got tokens."""
        answers, drafted = len(outcomes), sum(outcome.drafted for outcome in outcomes)
        self.cost.learn(shape.drafting(drafted, answers), times.rest)
        if not answers:
            return
        self._since_plain = self._since_plain + 1 if drafted else 0
        self._since_drafts = 0 if drafted else self._since_drafts + 1
        plain, extra = times.rest, 0.0  # no prediction needed where nothing was drafted
        if drafted:
            plain = self.cost.seconds(shape)
            extra = self.cost.seconds(shape.drafting(drafted, answers)) - plain
        decoding = self.cost.seconds(StepShape(answers, shape.row_reads))
        total = times.drafting + times.rest + times.reading
        won = sum(outcome.won for outcome in outcomes)
        for outcome in outcomes:
            self._meters[outcome.request_id].book(plain + outcome.won * decoding, total, 1 + outcome.won)
        for meter in (self._lately, self._ever):
            meter.book(plain + won / answers * decoding, total, 1 + won / answers)
        self._book(outcomes, extra / drafted if drafted else 0.0, decoding, times)

    def _book(
        self, outcomes: Sequence[DraftOutcome], row_cost: float, decoding: float, times: StepTimes
    ) -> None:
        """Book what drafters won and cost in a step, `row_cost` for each token drafted."""
        proposed = [outcome for outcome in outcomes if outcome.proposed]  # a grammar's tokens are no guess
        self.trust.book(sum(one.claimed for one in proposed), sum(one.right for one in proposed))
        lost = sum(one.drafted for one in proposed) * row_cost + (times.drafting if proposed else 0.0)
        self._credit.book(sum(one.won for one in proposed) / len(outcomes) - lost / decoding)
        speed = max(self.speedup or 1.0, 1.0)  # what time is worth to costly drafters, which come on top
        for key in {one.costly_key for one in proposed} - {None}:
            own = [one for one in proposed if one.costly_key == key]
            spent = sum(one.more_by_costly for one in own) * row_cost + times.costly.get(key, 0.0)
            won = sum(one.won_by_costly for one in own) / len(outcomes)
            credit = self._costly.pop(key, None) or Credit()
            credit.book(won - spent * speed / decoding)
            self._costly[key] = credit
        while len(self._costly) > _MAX_COSTLY:
            del self._costly[next(iter(self._costly))]

    def forget(self, request_id: str) -> None:
        """Forget an ended request."""
        self._meters.pop(request_id, None)


def select_draft_lengths(
    acceptances: Sequence[Sequence[float]], answers: int, seconds: Sequence[float], spent: float = 0.0
) -> list[int]:
    """The number of tokens of each draft to verify for most tokens a second: the n tokens with the greatest
    (answers + sum of their acceptances) / (spent + seconds[n]); of equal ones the fewest.

    `acceptances`: for each draft the chance of each token that it and all before it are accepted, never
    rising. `answers` get a token anyway. `seconds[n]`: of a step with n drafted tokens, which depend on n
    alone; so the best n tokens are those of the greatest acceptances, which are prefixes. `spent`: already.
    """
    candidates = ((chance, draft) for draft, chances in enumerate(acceptances) for chance in chances)
    order = sorted(candidates, key=lambda candidate: -candidate[0])
    gains = accumulate((chance for chance, _ in order), initial=float(answers))
    rates = [gain / (spent + time) for gain, time in zip(gains, seconds, strict=False)]
    counts = [0] * len(acceptances)
    for _, draft in order[: rates.index(max(rates))]:
        counts[draft] += 1
    return counts
