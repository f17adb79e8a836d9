"""What the loop holds: before the drafts whom to draft for, after them how many to verify, in the end what
became of it. Pure: seconds are told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from turbo_runtime.contract.model import StepTime
from turbo_runtime.speculation.draft_length import select_draft_lengths
from turbo_runtime.speculation.gate import Gate, SharedGate
from turbo_runtime.speculation.meter import Meter
from turbo_runtime.speculation.step_cost import StepCost, StepShape, Vector

_PROBE_EVERY = 64  # steps with drafts, after which one without keeps the prediction true
_EXPLORE_EVERY = 64  # steps without any, after which drafts are verified that would pay if they were cheaper
_CHEAPER = (
    1.0  # by so many standard deviations of their cost for each such span: the longer, the less is believed
)
_EXPLORING = 0.005  # of the time without drafts, that this may lose by what is believed
_READING, _READING_PROMPTS = 0.01, 0.02  # of a step's time, that drafters may read in; beside a prompt's part
_MANY, _MANY_OF_ONE = 4, 8  # drafted tokens for each answer, at least, by which the cost of a row is told
_UNKNOWN = 0.01  # seconds that a step is taken for while none was measured
_LATELY = 0.995  # share that a step leaves of the past in the live speed-up: about 200 steps count


class DraftOutcome(NamedTuple):
    """What a step did with one answer's draft."""

    request_id: str
    proposed: bool  # whether the drafters were asked
    drafted: int  # tokens verified
    won: int  # tokens that it got by them, besides the one that comes anyway
    heads: Hashable | None = None  # which may be asked for it
    more_by_heads: int = 0  # of those verified, where there would have been none without them
    won_by_heads: int = 0  # of those won, the ones not won without them, less those won only without them


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step."""

    drafting: float
    rest: float  # the pass, the verification and the books
    reading: float = 0.0  # of texts, by drafters: for later steps, so that no request is charged for it
    heads: Mapping[Hashable, float] = field(default_factory=dict)  # of drafting, by heads that were asked


@dataclass(slots=True)
class _Request:
    gate: Gate = field(default_factory=Gate)
    meter: Meter = field(default_factory=Meter)


class GoodputController:
    """Chooses, and learns from every step."""

    def __init__(self, seeds: Sequence[StepTime] | None, padded: Callable[[int], int]) -> None:
        """See `StepCost`."""
        self.cost = StepCost(seeds, padded)
        self._requests: defaultdict[str, _Request] = defaultdict(_Request)
        self._together = SharedGate()
        self._heads: defaultdict[Hashable, SharedGate] = defaultdict(SharedGate)
        self._lately, self._ever = Meter(_LATELY), Meter()
        self._since_plain = 0  # steps with drafts since one without
        self._since_drafts = 0  # steps without, since one with
        self._explore_at = _EXPLORE_EVERY  # of those

    def __len__(self) -> int:
        """Requests that something is known of."""
        return len(self._requests)

    @property
    def speedup(self) -> float | None:
        """Tokens per second lately over those without drafts; None while nothing was measured."""
        return self._lately.speedup

    @property
    def answering_seconds(self) -> tuple[float, float]:
        """All steps so far that brought answers tokens: their time, and what they would have taken without
        drafts for as many.
        """
        return self._ever.measured, self._ever.without

    def speedup_of(self, request_id: str) -> float | None:
        """The same for one live request, since its first token."""
        return self._requests[request_id].meter.speedup if request_id in self._requests else None

    @property
    def _plain_is_due(self) -> bool:
        return self._since_plain >= _PROBE_EVERY

    def to_draft(self, request_ids: Iterable[str]) -> set[str]:
        """For which of these drafts are worth asking; for none where a step without is due."""
        if not self.cost.known or self._plain_is_due:
            return set()
        return {name for name in request_ids if self._together.admits(self._requests[name].gate)}

    def heads_pay(self, heads: Hashable) -> bool:
        """Whether to ask these beside what costs next to nothing."""
        return self._heads[heads].open

    def least_survival(self, shape: StepShape, answers: int) -> float:
        """The chance of acceptance below which a token of such a step is hardly worth drafting: what a row
        costs among many, in the time of an answer's token without drafts.
        """
        if not self.cost.known or not answers:
            return 0.0
        more = max(_MANY * answers, _MANY_OF_ONE)
        reads = shape.row_reads // answers
        plain = self.cost.seconds(StepShape(answers, shape.row_reads))
        full = self.cost.seconds(StepShape(answers + more, shape.row_reads + more * reads))
        return max(0.0, full - plain) / more / (plain / answers)

    def spare(self, shape: StepShape) -> float:
        """Seconds of such a step that may go into reading what serves later steps."""
        seconds = self.cost.seconds(shape) if self.cost.known else _UNKNOWN
        return seconds * (_READING_PROMPTS if shape.tile_reads else _READING)

    def choose(
        self, survivals: Sequence[Sequence[float]], shape: StepShape, answers: int, drafting: float
    ) -> list[int]:
        """How many tokens of each draft to verify in a step that is `shape` without them and gives `answers`
        a token each; `drafting` seconds are spent. None where a step without is due: what a grammar forces
        was not asked for by `to_draft`, and would put that step off for ever.
        """
        more = sum(map(len, survivals))
        if not more or not self.cost.known or self._plain_is_due:
            return [0] * len(survivals)
        reads, decoding = shape.row_reads / max(answers, 1), self._decoding(shape, answers)
        growing = self.cost.growing(shape, more, reads)
        # By a step of the answers alone, as the gate and the meter judge: over the time of a step with a
        # prompt's part in it, drafts would look almost free.
        extra = growing - growing[0]
        counts = select_draft_lengths(survivals, answers, extra + decoding, drafting)
        if any(counts) or self._since_drafts < self._explore_at:
            return counts
        self._explore_at = self._since_drafts + _EXPLORE_EVERY
        return self._explored(survivals, answers, extra, self.cost.doubt(shape, more, reads), decoding)

    def _explored(
        self,
        survivals: Sequence[Sequence[float]],
        answers: int,
        extra: Vector,
        doubt: Vector,
        decoding: float,
    ) -> list[int]:
        """Drafts that would pay if they cost as little as can be: a cost that is believed too high
        would never be measured otherwise. None while they may lose more than the steps without have saved up.
        """
        far = _CHEAPER * self._since_drafts / _EXPLORE_EVERY
        cheaper = np.maximum.accumulate(np.maximum(extra - far * doubt, 0.0))
        counts = select_draft_lengths(survivals, answers, cheaper + decoding)
        gained = sum(sum(chances[:count]) for chances, count in zip(survivals, counts, strict=True)) / answers
        lost = float(extra[sum(counts)]) / decoding - gained
        return counts if lost <= _EXPLORING * self._since_drafts else [0] * len(counts)

    def learn(self, shape: StepShape, outcomes: Sequence[DraftOutcome], times: StepTimes) -> None:
        """A step that was `shape` without its drafts brought these outcomes, one for each answer that got
        tokens, in these times.
        """
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
            plain = times.rest  # it is the very step that a prediction would be about
        asked = sum(outcome.proposed for outcome in outcomes)
        total = times.drafting + times.rest + times.reading
        have = Counter(outcome.heads for outcome in outcomes if outcome.proposed)
        for_all = times.drafting - sum(spent for heads, spent in times.heads.items() if heads in have)
        each = extra / drafted if drafted else 0.0
        speed = max(self.speedup or 1.0, 1.0)  # what time is worth to heads, which are asked beside others
        won_in_all = 0
        for name, proposed, verified, won, heads, more_by_heads, won_by_heads in outcomes:
            lost = each * verified
            if proposed:
                drafting = times.heads.get(heads, 0.0) / have[heads]
                lost += for_all / asked + drafting
                # Not where nobody was asked: a debt of all is paid first, and memory tries alone.
                if heads is not None:
                    spent = each * more_by_heads + drafting
                    self._heads[heads].book(won_by_heads, spent * answers / decoding * speed)
            request = self._requests[name]
            # what a grammar forces is no guess, and says nothing of guesses
            gained, tokens_lost = (won, lost * answers / decoding) if proposed else (0, 0.0)
            request.gate.book(gained, tokens_lost)
            self._together.book(gained, tokens_lost)
            request.meter.book(plain + won * decoding, total, 1 + won)
            won_in_all += won
        for meter in (self._lately, self._ever):
            meter.book(plain + won_in_all / answers * decoding, total, 1 + won_in_all / answers)

    def _decoding(self, shape: StepShape, answers: int) -> float:
        """Seconds of the step without its drafts and without the prompts' share."""
        return self.cost.seconds(StepShape(answers, shape.row_reads))

    def forget(self, request_id: str) -> None:
        """The request ended."""
        self._requests.pop(request_id, None)
