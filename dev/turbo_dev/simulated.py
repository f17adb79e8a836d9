"""An engine without a model: the real scheduler, and slots that remember what was computed into them.

The next token of an answer is a function of all tokens before it, as a model's is, and every step reads back
all that it attends to. So a block that is lost, given twice, written while shared, or shared between tenants
shows as a wrong content, and not only as a wrong count.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from turbo_runtime.engine.scheduler import ScheduledTokens, Scheduler, Sequence
from turbo_runtime.kv_cache.block_pool import BLOCK_SIZE, PROMPT_TILE
from turbo_runtime.messages import GenerationRequest

VOCABULARY = 50
WRONG = VOCABULARY  # a drafted token that no answer has


@dataclass(frozen=True, slots=True)
class Content:
    """What a slot holds: for whom it was computed, by which rule, after and of which tokens."""

    tenant: str
    tile: bool  # by the rule of whole prompt tiles
    history: int


def extended(history: int, token: int) -> int:
    """The history with one token more; equal tokens give equal histories."""
    return hash((history, token))


def answer_to(request: GenerationRequest, max_length: int) -> list[int]:
    """The answer that any engine must give."""
    history = 0
    for token in request.prompt:
        history = extended(history, token)
    answer: list[int] = []
    for _ in range(min(request.params.max_tokens, max_length - len(request.prompt))):
        answer.append(history % VOCABULARY)
        history = extended(history, answer[-1])
    return answer


@dataclass
class Simulation:
    """Steps of a scheduler; `luck` says how many of the granted drafts are verified and accepted."""

    scheduler: Scheduler
    luck: random.Random
    answers: dict[str, list[int]] = field(default_factory=dict)  # of what has ended
    steps: int = 0
    _slots: dict[int, Content] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self.scheduler.running or self.scheduler.waiting)

    def step(self) -> tuple[ScheduledTokens, ...]:
        """Plan, compute, commit; end what is through. AssertionError where a slot holds something else than
        what its reader computed or may share.
        """
        plan = self.scheduler.schedule()
        self._copy(self.scheduler.take_copies())
        drafts = [self._drafts(work) for work in plan]
        for work, drafted in zip(plan, drafts, strict=True):
            self._compute(work, drafted)
        for work, drafted in zip(plan, drafts, strict=True):
            self._commit(work, drafted)
        self.steps += 1
        return plan

    def run(self) -> None:
        """Steps until all is done."""
        while not self.idle:
            self.step()

    def _copy(self, copies: Mapping[int, int]) -> None:
        """Copy blocks, by where to."""
        before = dict(self._slots)
        for target, source in copies.items():
            for within in range(BLOCK_SIZE):
                self._slots[target * BLOCK_SIZE + within] = before[source * BLOCK_SIZE + within]

    def _drafts(self, work: ScheduledTokens) -> list[int]:
        """Right tokens, then wrong ones, no more than granted."""
        verified = self.luck.randint(0, work.draft_limit)
        right = self.luck.randint(0, verified)
        return _next_tokens(work.sequence, right) + [WRONG] * (verified - right)

    def _compute(self, work: ScheduledTokens, drafted: list[int]) -> None:
        sequence = work.sequence
        tenant, tiles = sequence.request.tenant, sequence.prompt_length // PROMPT_TILE * PROMPT_TILE
        if self.scheduler.shared_tile == BLOCK_SIZE:
            tiles = 0  # one rule for all
        history = 0
        for position, token in enumerate([*sequence.tokens[: work.start + work.count], *drafted]):
            history = extended(history, token)
            block, within = divmod(position, BLOCK_SIZE)
            slot = sequence.table[block] * BLOCK_SIZE + within
            content = Content(tenant, position < tiles, history)
            if position >= work.start:
                assert self.scheduler.block_pool.references[sequence.table[block]] == 1, (
                    "a shared block is written"
                )
                assert not self.scheduler.block_pool.is_cached(sequence.table[block]), (
                    "a cached block is written"
                )
                self._slots[slot] = content
            assert self._slots[slot] == content, (
                f"position {position} of {sequence.request.request_id} is lost"
            )

    def _commit(self, work: ScheduledTokens, drafted: list[int]) -> None:
        sequence, room = work.sequence, self.scheduler.room(work.sequence)
        committed: list[int] = []
        if work.yields:
            right = sum(token != WRONG for token in drafted)
            committed = _next_tokens(sequence, min(right + 1, room))
        self.scheduler.update_from_output(work, committed)
        if self.scheduler.room(sequence) == 0:
            self.answers[sequence.request.request_id] = sequence.tokens[sequence.prompt_length :]
            self.scheduler.finish(sequence)


def _next_tokens(sequence: Sequence, count: int) -> list[int]:
    history = 0
    for token in sequence.tokens:
        history = extended(history, token)
    tokens = []
    for _ in range(count):
        tokens.append(history % VOCABULARY)
        history = extended(history, tokens[-1])
    return tokens
