"""Goodput control: whom to draft for, how many drafts to verify, and what became of them. Pure: no clock.

Drafters choose drafts by their own estimates; the gates rest on results: one for each request, and one for
all together. Without the latter, every request would pay to find out anew that drafts do not help traffic
like it: where answers are short, that adds up. Heads have a gate of their own: where they take more than they
add to drafts that cost nothing, they alone are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from turbo_runtime.contract.documents import StepTime
from turbo_runtime.speculation.step_cost import StepCost, StepShape

_PROBE_EVERY = 64  # steps with drafts, after which one without keeps the prediction true
_EXPLORE_EVERY = 64  # steps without any, after which to verify drafts that would pay if they were cheaper
_CHEAPER = 1.0  # standard deviations of the cost to subtract, per exploration interval
_EXPLORING = 0.005  # of the time without drafts, that this may lose by the estimate
_READING, _READING_PROMPTS = 0.01, 0.02  # share of a step's time for reading; of one with a prompt's part
_MANY, _MANY_OF_ONE = 4, 8  # drafted tokens for each answer, at least, to estimate the cost of a row
_UNKNOWN = 0.01  # assumed seconds of a step before the first measurement
_LATELY = 0.995  # share of the past that a step leaves in the live speedup: about 200 steps count
_ALLOWANCE = 0.005  # of the time, that drafting may lose
_RICH, _OVERDRAFT = 4.0, -1.5  # credit of all from which one request may lose this much
_NEW, _NEW_OF_ALL = 0.3, 0.02  # weight of the newest step for one answer's use, and for the usual one
_MIN_DEMAND = 0.25  # tokens a step, below which nothing is promised


@dataclass(slots=True)
class Gate:
    """The credit of a request, or of all, in the time that one of its tokens takes without drafts."""

    credit: float = 0.25  # a new request may lose that before its allowance counts
    low: float = -2.0  # neither good nor bad times count for ever
    high: float = 4.0
    won: float = 0.0  # by drafts so far, without the allowance

    @property
    def open(self) -> bool:
        """Whether to ask for drafts."""
        return self.credit >= 0

    def book(self, gained: float, lost: float) -> None:
        """Book a step of an answer."""
        self.credit = min(max(self.credit + gained - lost + _ALLOWANCE, self.low), self.high)
        self.won = min(max(self.won + gained - lost, self.low), self.high)

    def admits(self, gate: Gate) -> bool:
        """Whether to draft for a request: without credit of all only where its drafts have paid; with much of
        it always, since tokens that share a block of rows share its cost.
        """
        if self.credit >= _RICH:
            return gate.credit >= _OVERDRAFT
        return gate.open and (self.open or gate.won > 0)


# all requests together: one step of many may lose dozens of tokens
_shared_gate = partial(Gate, 2.0, -64.0, 16.0)


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
        self._gates: defaultdict[str, Gate] = defaultdict(Gate)  # by request
        self._meters: defaultdict[str, Meter] = defaultdict(Meter)
        self._together = _shared_gate()
        self._costly: defaultdict[Hashable, Gate] = defaultdict(_shared_gate)
        self._lately, self._ever = Meter(_LATELY), Meter()
        self._since_plain = 0  # steps with drafts since one without
        self._since_drafts = 0  # steps without, since one with
        self._explore_at = _EXPLORE_EVERY  # of those

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
        return self._meters[request_id].speedup if request_id in self._meters else None

    @property
    def _plain_is_due(self) -> bool:
        return self._since_plain >= _PROBE_EVERY

    def to_draft(self, request_ids: Iterable[str]) -> set[str]:
        """Select the requests to draft for; none where a step without drafts is due."""
        if not self.cost.known or self._plain_is_due:
            return set()
        return {name for name in request_ids if self._together.admits(self._gates[name])}

    def costly_pay(self, key: Hashable) -> bool:
        """Whether to use these costly drafters in addition to those that cost next to nothing."""
        return self._costly[key].open

    def min_acceptance(self, shape: StepShape, answers: int) -> float:
        """The chance below which a token is hardly worth drafting: a row's cost over that of a token."""
        if not self.cost.known or not answers:
            return 0.0
        more = max(_MANY * answers, _MANY_OF_ONE)
        reads = shape.row_reads // answers
        plain = self.cost.seconds(StepShape(answers, shape.row_reads))
        full = self.cost.seconds(StepShape(answers + more, shape.row_reads + more * reads))
        return max(0.0, full - plain) / more / (plain / answers)

    def spare(self, shape: StepShape) -> float:
        """Seconds of such a step for reading texts for later steps."""
        seconds = self.cost.seconds(shape) if self.cost.known else _UNKNOWN
        return seconds * (_READING_PROMPTS if shape.tile_reads else _READING)

    def select_draft_lengths(
        self, acceptances: Sequence[Sequence[float]], shape: StepShape, answers: int, drafting: float
    ) -> list[int]:
        """The number of tokens of each draft to verify in a step that is `shape` without them and gives
        `answers` a token each, after `drafting` seconds. None where a step without drafts is due: what a
        grammar forces bypasses `to_draft`, and would put that step off for ever.
        """
        more = sum(map(len, acceptances))
        if not more or not self.cost.known or self._plain_is_due:
            return [0] * len(acceptances)
        reads, decoding = shape.row_reads / max(answers, 1), self._decoding(shape, answers)
        growing = self.cost.growing(shape, more, reads)
        # Against a step of the answers alone, as for the gate and the meter: against one with a prompt's
        # part, drafts would look almost free.
        extra = growing - growing[0]
        counts = select_draft_lengths(acceptances, answers, extra + decoding, drafting)
        if any(counts) or self._since_drafts < self._explore_at:
            return counts
        self._explore_at = self._since_drafts + _EXPLORE_EVERY
        # Drafts that would pay if they cost as little as can be: an overestimated cost would never be
        # measured otherwise. None while they may lose more than the steps without drafts have saved up.
        far = _CHEAPER * self._since_drafts / _EXPLORE_EVERY
        doubt = self.cost.doubt(shape, more, reads)
        cheaper = np.maximum.accumulate(np.maximum(extra - far * doubt, 0.0))
        counts = select_draft_lengths(acceptances, answers, cheaper + decoding)
        gained = sum(sum(each[:count]) for each, count in zip(acceptances, counts, strict=True)) / answers
        lost = float(extra[sum(counts)]) / decoding - gained
        return counts if lost <= _EXPLORING * self._since_drafts else [0] * len(counts)

    def learn(self, shape: StepShape, outcomes: Sequence[DraftOutcome], times: StepTimes) -> None:
        """Learn from a step, `shape` without its drafts; one outcome for each answer that got tokens."""
        answers, drafted = len(outcomes), sum(outcome.drafted for outcome in outcomes)
        reads = shape.row_reads // max(answers, 1)
        self.cost.learn(
            StepShape(shape.tokens + drafted, shape.row_reads + drafted * reads, shape.tile_reads), times.rest
        )
        if not answers:
            return
        self._since_plain = self._since_plain + 1 if drafted else 0
        self._since_drafts = 0 if drafted else self._since_drafts + 1
        if drafted:
            self._explore_at = _EXPLORE_EVERY
        growing = self.cost.growing(shape, drafted, reads)
        plain, extra = float(growing[0]), float(growing[-1] - growing[0])
        decoding = self._decoding(shape, answers)
        if not drafted:
            plain = times.rest  # no prediction needed
        num_proposed = sum(outcome.proposed for outcome in outcomes)
        total = times.drafting + times.rest + times.reading
        have = Counter(outcome.costly_key for outcome in outcomes if outcome.proposed)
        for_all = times.drafting - sum(spent for key, spent in times.costly.items() if key in have)
        row_cost = extra / drafted if drafted else 0.0
        speed = max(self.speedup or 1.0, 1.0)  # what time is worth to costly drafters, which come on top
        total_won = 0
        for name, proposed, verified, won, key, more_by_costly, won_by_costly in outcomes:
            lost = row_cost * verified
            if proposed:
                drafting = times.costly.get(key, 0.0) / have[key]
                lost += for_all / num_proposed + drafting
                # Not where nobody was asked: a common debt is paid first, and suffixes try alone.
                if key is not None:
                    spent = row_cost * more_by_costly + drafting
                    self._costly[key].book(won_by_costly, spent * answers / decoding * speed)
            # a grammar's forced tokens are no guess
            gained, tokens_lost = (won, lost * answers / decoding) if proposed else (0, 0.0)
            self._gates[name].book(gained, tokens_lost)
            self._together.book(gained, tokens_lost)
            self._meters[name].book(plain + won * decoding, total, 1 + won)
            total_won += won
        for meter in (self._lately, self._ever):
            meter.book(plain + total_won / answers * decoding, total, 1 + total_won / answers)

    def _decoding(self, shape: StepShape, answers: int) -> float:
        """Seconds of the step without its drafts and its prompts."""
        return self.cost.seconds(StepShape(answers, shape.row_reads))

    def forget(self, request_id: str) -> None:
        """Forget an ended request."""
        self._gates.pop(request_id, None)
        self._meters.pop(request_id, None)


def select_draft_lengths(
    acceptances: Sequence[Sequence[float]], answers: int, seconds: ArrayLike, spent: float = 0.0
) -> list[int]:
    """The number of tokens of each draft to verify for most tokens a second: the n tokens with the greatest
    (answers + sum of their acceptances) / (spent + seconds[n]); of equal ones the fewest.

    `acceptances`: for each draft the chance of each token that it and all before it are accepted, never
    rising. `answers` get a token anyway. `seconds[n]`: of a step with n drafted tokens, which depend on n
    alone; so the best n tokens are those of the greatest acceptances, which are prefixes. `spent`: already.
    """
    candidates = ((chance, draft) for draft, chances in enumerate(acceptances) for chance in chances)
    order = sorted(candidates, key=lambda candidate: -candidate[0])
    gains = np.concatenate([[0.0], np.cumsum([chance for chance, _ in order])])
    rates = (answers + gains) / (spent + np.asarray(seconds)[: len(order) + 1])
    counts = [0] * len(acceptances)
    for _, draft in order[: int(rates.argmax())]:
        counts[draft] += 1
    return counts
