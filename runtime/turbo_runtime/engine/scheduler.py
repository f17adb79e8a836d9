"""Who computes what in the next step, within a budget of tokens and one of blocks.

The scheduler knows tokens computed (their keys and values are in the cache) and tokens wanted (committed so
far). A prompt, a recomputation after preemption and plain decoding are the same thing, a gap between the two;
drafts are extra tokens behind a closed gap. So chunked prefill and speculation are no branches here.
Preemption happens while planning, never inside a step: the youngest sequence gives its blocks up and is
computed again later. Knows no torch, no model and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from turbo_runtime.engine.blocks import BLOCK_SIZE, BlockLedger, blocks_for
from turbo_runtime.engine.request import Submit


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer being computed."""

    submit: Submit
    tokens: list[int]  # prompt and committed answer
    computed: int = 0  # leading tokens whose keys and values are in the cache
    table: list[int] = field(default_factory=list)  # blocks, in order of position

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.submit.prompt)

    @property
    def generated(self) -> int:
        """Committed tokens of the answer."""
        return len(self.tokens) - len(self.submit.prompt)

    @property
    def missing(self) -> int:
        """Committed tokens not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's part of a step: `count` committed tokens from position `start`, then up to `draft_limit`
    drafted ones.
    """

    sequence: Sequence
    start: int
    count: int
    draft_limit: int

    @property
    def yields(self) -> bool:
        """Whether the last committed token is among them, so that new tokens come of it."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The work of one step and who had to give its blocks up for it. Blocks for every token of it are
    reserved.
    """

    work: tuple[Work, ...]
    preempted: tuple[Sequence, ...] = ()


class Scheduler:
    """First come, first served; running sequences before waiting ones, base tokens before drafts before
    prompts.
    """

    def __init__(
        self,
        ledger: BlockLedger,
        *,
        max_running: int,
        max_step_tokens: int,
        max_draft_tokens: int,
        max_length: int,
    ) -> None:
        """`max_length` bounds prompt plus answer; the ledger must hold one such sequence, else nothing
        guarantees an end.
        """
        if blocks_for(max_length) > ledger.num_blocks:
            raise ValueError(f"{ledger.num_blocks} blocks cannot hold one sequence of {max_length} tokens")
        self.ledger = ledger
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.max_draft_tokens = max_draft_tokens
        self.max_length = max_length
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.preemptions = 0

    def add(self, submit: Submit) -> Sequence:
        """Queue a new answer; its prompt must leave room for one token within `max_length`."""
        if not 1 <= len(submit.prompt) < self.max_length:
            raise ValueError(
                f"the prompt has {len(submit.prompt)} tokens; from 1 to {self.max_length - 1} are possible"
            )
        sequence = Sequence(submit, list(submit.prompt))
        self.waiting.append(sequence)
        return sequence

    def find(self, request_id: str) -> Sequence | None:
        """The live sequence of that request."""
        return next((s for s in self._live() if s.submit.request_id == request_id), None)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, whatever its state, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.ledger.trim(sequence.table, 0)

    def room(self, sequence: Sequence) -> int:
        """Tokens that the answer may still get."""
        by_length = self.max_length - len(sequence.tokens)
        return min(by_length, sequence.submit.params.max_tokens - sequence.generated)

    def plan(self) -> StepPlan:
        """Reserve budget and blocks for the next step. Empty only when nothing is queued or running."""
        budget = self.max_step_tokens
        preempted: list[Sequence] = []
        base: dict[Sequence, int] = {}
        for sequence in list(
            self.running
        ):  # decoding ones first: each needs one token and should not stall behind a prompt
            if sequence.missing == 1 and budget and self._reserve(sequence, 1, preempted):
                base[sequence] = 1
                budget -= 1
        limits = self._grant_drafts([s for s in base if s in self.running], budget)
        budget -= sum(limits.values())
        for sequence in list(self.running):
            count = min(sequence.missing, budget)
            if sequence.missing > 1 and count and self._reserve(sequence, count, preempted):
                base[sequence] = count
                budget -= count
        if not preempted:  # whoever just gave way must not come back in the same breath
            budget = self._admit(base, budget)
        work = (Work(s, s.computed, base[s], limits.get(s, 0)) for s in self.running if s in base)
        return StepPlan(tuple(work), tuple(preempted))

    def fold(self, work: Work, committed: list[int]) -> None:
        """Book what a step brought: none for a prompt that is not through yet, else the tokens that
        verification committed.

        All but the last committed token were drafts whose keys and values are in the cache.
        """
        sequence = work.sequence
        sequence.computed = work.start + work.count + max(0, len(committed) - 1)
        sequence.tokens.extend(committed)
        self.ledger.trim(sequence.table, len(sequence.tokens))  # look-ahead slots that no token took

    def _live(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def _grant_drafts(self, decoding: list[Sequence], budget: int) -> dict[Sequence, int]:
        """Draft slots, with blocks, for the decoding sequences: at most half the budget, so that prompts
        always move on.
        """
        limits: dict[Sequence, int] = {}
        left = budget // 2
        for sequence in decoding:
            # one token of the room is the correction or bonus
            limit = min(self.max_draft_tokens, left, self.room(sequence) - 1)
            if sequence.submit.params.drafting == "off":
                limit = 0
            spare = (self.ledger.num_free + len(sequence.table)) * BLOCK_SIZE - len(sequence.tokens)
            limit = max(0, min(limit, spare))
            self.ledger.extend(sequence.table, len(sequence.tokens) + limit)
            limits[sequence] = limit
            left -= limit
        return limits

    def _reserve(self, sequence: Sequence, count: int, preempted: list[Sequence]) -> bool:
        """Blocks for `count` more tokens, taken from the youngest if need be; False if that is the sequence
        itself.
        """
        if sequence not in self.running:
            return False
        wanted = blocks_for(sequence.computed + count) - len(sequence.table)
        while wanted > self.ledger.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            preempted.append(youngest)
            if youngest is sequence:
                return False
        self.ledger.extend(sequence.table, sequence.computed + count)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.ledger.trim(sequence.table, 0)
        sequence.computed = 0
        self.waiting.appendleft(sequence)  # it is older than all that wait
        self.preemptions += 1

    def _admit(self, base: dict[Sequence, int], budget: int) -> int:
        """Start waiting sequences while there are budget, a place, and blocks for all their tokens and the
        next one.
        """
        while self.waiting and budget and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            if blocks_for(len(sequence.tokens) + 1) > self.ledger.num_free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            count = min(sequence.missing, budget)
            # all blocks at once: a prompt that has begun should not be the one that runs out
            self.ledger.extend(sequence.table, len(sequence.tokens))
            base[sequence] = count
            budget -= count
        return budget
