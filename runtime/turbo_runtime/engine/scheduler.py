"""The work of the next step, within a budget of tokens and one of blocks.

The scheduler knows computed tokens (their keys and values are in the cache) and committed tokens. A prompt, a
recomputation after preemption and plain decoding are the same thing, a gap between the two; drafts are extra
tokens after a closed gap; a cached prefix makes the gap smaller. So chunked prefill, speculation and prefix
caching are no branches here.

The budget of a step, in this order:
1. one token for every decoding sequence: none waits longer than one step, since no sequence starts unless the
   budget has a token for it in addition to all running ones;
2. prompts, oldest first, then those of waiting sequences: all but the drafts' promise, which is their likely
   use and at most half;
3. drafts: each its promise, then what the prompts leave, both shared evenly. A prompt that ends in this step
   has no promise.

Preemption happens between steps: the youngest sequence loses its blocks, resumes first, and is recomputed but
for what the prefix cache still has. The oldest is never preempted, so every answer ends. Knows no torch, no
model and no clock.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice

from turbo_runtime.engine.even_shares import share_evenly
from turbo_runtime.engine.fair_queue import ANSWER_WEIGHT, FairQueue
from turbo_runtime.kv_cache.block_pool import (
    PROMPT_TILE,
    BlockPool,
    CorruptBlockPoolError,
    block_keys,
    scope_key,
)
from turbo_runtime.messages import GenerationRequest

MAX_PROMPT_LOGPROBS = 64  # in a step: each reads the vocabulary
_COPIED_PART = 16  # of a block's tokens, one in so many is worth a copy of the block in all layers


@dataclass(slots=True, eq=False)
class Sequence:
    """A live answer, changed only by the scheduler, or by the audit that replays it."""

    request: GenerationRequest
    tokens: list[int]  # prompt and committed answer
    keys: tuple[bytes, ...]  # of the prompt's shareable blocks (`block_keys`)
    computed: int = 0  # leading tokens with keys and values in the cache
    table: list[int] = field(default_factory=list)  # blocks, in order of position
    shared: int = 0  # leading blocks in the prefix cache, which are only read
    cached: int | None = None  # prompt tokens found in the prefix cache; None before the first admission

    @property
    def request_id(self) -> str:
        """Id of its request."""
        return self.request.request_id

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        """Committed tokens of the answer."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def missing(self) -> int:
        """Committed tokens still to compute; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def is_scored(self) -> bool:
        """Whether its prompt is still read for log probabilities, which are those of every position."""
        return self.request.params.prompt_logprobs is not None and not self.generated


@dataclass(slots=True)  # frozen, it would take twice as long to make, for each request in each step
class ScheduledTokens:
    """One sequence's part of a step: `count` committed tokens from `start`, then `draft_limit` drafts."""

    sequence: Sequence
    start: int
    count: int
    draft_limit: int
    yields: bool  # whether the last committed token is among them, so that they give new tokens


@dataclass(slots=True)
class _StepBudget:
    """The remaining budget of a step, and the work assigned so far."""

    tokens: int
    prompt_logprobs: int = MAX_PROMPT_LOGPROBS
    counts: dict[Sequence, int] = field(default_factory=dict)  # committed tokens to compute
    blocks: set[bytes] = field(default_factory=set)  # of prompts that this step computes


@dataclass(eq=False)
class Scheduler:
    """Owner of all sequences, their block tables, the prefix cache and the queue."""

    block_pool: BlockPool  # must hold one sequence of `max_length`, so that each can end
    _: KW_ONLY
    max_num_seqs: int
    max_num_batched_tokens: int
    max_draft_tokens: int
    max_length: int  # of prompt plus answer
    shared_tile: int = PROMPT_TILE  # tokens of prompts, whole tiles of which are shared
    copies: bool = True  # of beginnings of blocks, whose positions no step computes for the sequence

    def __post_init__(self) -> None:
        if self.block_pool.blocks_for(self.max_length) > self.block_pool.num_blocks:
            raise ValueError(
                f"{self.block_pool.num_blocks} blocks hold no sequence of {self.max_length} tokens"
            )
        self.running: list[Sequence] = []  # oldest first
        self._resuming: deque[Sequence] = deque()  # preempted, oldest first
        self._queue: FairQueue[Sequence] = FairQueue()
        self._live: dict[str, Sequence] = {}
        self._before_shrinking: list[tuple[int, int]] = []  # limits of steps, the first ones first
        self._copies: dict[int, int] = {}  # blocks to copy before the step, by where to
        self.preemptions = 0
        self.cache_queries = 0  # prompt tokens looked up, at the first admission of a sequence
        self.cache_hits = 0  # of them, found

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences without blocks: preempted ones first, the others tenant by tenant."""
        return [*self._resuming, *self._queue]

    def add(self, request: GenerationRequest) -> Sequence:
        """Queue a new answer. Raises ValueError if its prompt leaves no room for a token."""
        if not 1 <= len(request.prompt) < self.max_length:
            raise ValueError(
                f"the prompt has {len(request.prompt)} tokens; from 1 to {self.max_length - 1} are possible"
            )
        if request.request_id in self._live:
            raise ValueError(f"request {request.request_id} is running or waiting already; use another id")
        keys = block_keys(request.scope, request.prompt, self.shared_tile, self.block_pool.block_size)
        sequence = Sequence(request, list(request.prompt), keys)
        self._queue.enter(request.tenant, sequence)
        self._live[request.request_id] = sequence
        return sequence

    def find(self, request_id: str) -> Sequence | None:
        """Return the live sequence of that request."""
        return self._live.get(request_id)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence in any state, and free its blocks."""
        tenant = sequence.request.tenant
        del self._live[sequence.request_id]
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self._resuming:
            self._resuming.remove(sequence)
        else:
            self._queue.remove(tenant, sequence)
        self.block_pool.trim(sequence.table, 0)
        self._queue.leave(tenant)

    def room(self, sequence: Sequence) -> int:
        """Return how many tokens the answer may still get."""
        by_length = self.max_length - len(sequence.tokens)
        return min(by_length, sequence.request.params.max_tokens - sequence.generated)

    def schedule(
        self,
        likely: Callable[[str], int] = lambda _: sys.maxsize,
        is_ready: Callable[[str], bool] = lambda _: True,
    ) -> tuple[ScheduledTokens, ...]:
        """Reserve budget and blocks for the next step. Empty only when no request that `is_ready` is queued
        or running. `likely`: drafts that one will probably use, for which prompts leave room.
        """
        step = _StepBudget(self.max_num_batched_tokens)
        ready = [sequence for sequence in self.running if is_ready(sequence.request_id)]
        for sequence in ready:
            if sequence.missing == 1 and self._find_block(sequence):
                self._compute(sequence, 1, step)
        decoding = len(step.counts)
        wanted = {sequence: most for sequence in step.counts if (most := self._max_drafts(sequence)) > 0}
        promised = {s: min(limit, likely(s.request_id)) for s, limit in wanted.items()}
        promise = min(sum(promised.values()), step.tokens // 2)
        step.tokens -= promise
        for sequence in ready:
            if sequence.missing > 1 and sequence.table:  # else it was preempted for an older one
                self._compute(sequence, _chunk(sequence, step), step)
        self._admit(step, is_ready)
        for sequence, count in islice(step.counts.items(), decoding, None):
            if count == sequence.missing and (most := self._max_drafts(sequence)) > 0:
                wanted[sequence], promised[sequence] = most, 0
        counts, limits = step.counts, self._grant_drafts(wanted, promised, step.tokens + promise)
        return tuple(
            ScheduledTokens(s, s.computed, counts[s], limits.get(s, 0), counts[s] == s.missing)
            for s in self.running
            if s in counts
        )

    def take_copies(self) -> dict[int, int]:
        """Return the blocks to copy before the scheduled step, by where to, once."""
        copies, self._copies = self._copies, {}
        return copies

    def shrink_step(self) -> bool:
        """Halve the tokens of a step, and let no more sequences run than have one each; False where it has a
        single one.
        """
        smaller = self.max_num_batched_tokens // 2
        if not smaller:
            return False
        self._before_shrinking.append((self.max_num_batched_tokens, self.max_num_seqs))
        self.max_num_batched_tokens, self.max_num_seqs = smaller, min(self.max_num_seqs, smaller)
        while len(self.running) > smaller:
            self._preempt_youngest()
        return True

    def grow_step(self) -> bool:
        """Undo the last `shrink_step`; False where there is none left."""
        if not self._before_shrinking:
            return False
        self.max_num_batched_tokens, self.max_num_seqs = self._before_shrinking.pop()
        return True

    def update_from_output(self, work: ScheduledTokens, committed: list[int]) -> None:
        """Append a step's committed tokens, none within a prompt; all but the last were drafts. Unused slots
        go back, and full blocks of the prompt become shareable.
        """
        sequence = work.sequence
        sequence.computed = work.start + work.count + max(0, len(committed) - 1)
        sequence.tokens.extend(committed)
        self.block_pool.trim(sequence.table, len(sequence.tokens))
        self._queue.charge(sequence.request.tenant, ANSWER_WEIGHT * len(committed))
        full = min(sequence.computed // self.block_pool.block_size, len(sequence.keys))
        if full > sequence.shared:
            self.block_pool.publish(sequence.keys[:full], sequence.table, sequence.shared)
            if self.shared_tile == self.block_pool.block_size:
                keys = (scope_key(sequence.request.scope), *sequence.keys[:full])
                self.block_pool.note(keys, sequence.table, sequence.request.prompt, sequence.shared)
            sequence.shared = full

    @property
    def max_demand(self) -> int:
        """The most additional blocks that the next step can need, with one for each sequence to grow into."""
        reach = self.max_draft_tokens + 1
        sequences = (*self.running, *self.waiting)
        return sum(self.block_pool.blocks_for(len(s.tokens) + reach) + 1 - len(s.table) for s in sequences)

    def check(self, held: Iterable[int] = ()) -> None:
        """Raise CorruptBlockPoolError if a block leaks, has a wrong holder or a wrong state. `held`: blocks
        of no sequence here. Reads every block: after every step in tests, and whenever the engine is idle.
        """
        self.block_pool.check([tuple(held), *(sequence.table for sequence in self._live.values())])
        running = set(self.running)
        for sequence in self._live.values():
            known, name = sequence.shared, sequence.request_id
            if sequence.table and sequence not in running:
                raise CorruptBlockPoolError(f"request {name} waits and holds blocks {sequence.table}")
            if sequence.table[:known] != self.block_pool.find(sequence.keys[:known]):
                raise CorruptBlockPoolError(f"the first {known} blocks of {name} are not those of the cache")
            for block in sequence.table[known:]:
                if self.block_pool.references[block] != 1 or self.block_pool.is_cached(block):
                    raise CorruptBlockPoolError(f"block {block} of request {name} is written and shared")

    def _find_block(self, sequence: Sequence) -> bool:
        """Find the block for a decoding sequence's next token; False if the sequence was preempted for it."""
        if not sequence.table:  # it was preempted for an older one
            return False
        tokens = len(sequence.tokens)
        if tokens <= len(sequence.table) * self.block_pool.block_size:
            return True
        while self.block_pool.blocks_for(tokens) - len(sequence.table) > self.block_pool.num_available:
            if self._preempt_youngest() is sequence:
                return False
        self.block_pool.extend(sequence.table, tokens)
        return True

    def _preempt_youngest(self) -> Sequence:
        """Take its blocks; it resumes first."""
        youngest = self.running.pop()
        self.block_pool.trim(youngest.table, 0)
        youngest.computed = youngest.shared = 0
        self._resuming.appendleft(youngest)
        self.preemptions += 1
        return youngest

    def _compute(self, sequence: Sequence, count: int, step: _StepBudget) -> None:
        """Assign tokens of a running sequence that has their blocks."""
        if count:
            step.counts[sequence] = count
            step.tokens -= count
            if sequence.is_scored:
                step.prompt_logprobs -= count  # few at a time: nobody waits for its blocks
                return
            if sequence.shared < len(sequence.keys):  # not while it decodes
                end = self.block_pool.blocks_for(sequence.computed + count)
                step.blocks.update(sequence.keys[sequence.shared : end])

    def _admit(self, step: _StepBudget, is_ready: Callable[[str], bool]) -> None:
        """Start waiting sequences while there are budget, a place, and blocks: for all their tokens and the
        next one, and one for each running sequence to grow into, which would else soon be preempted.

        The first one blocks the others: large prompts do not starve behind small ones. Only one that reads
        its prompt for log probabilities, when the step can read no more of those, blocks nobody: it would
        take a place and do nothing there, and those of one tenant would soon have all. A sequence whose next
        block this step computes also waits: it finds the block in the next step, so that equal prompts, or n
        answers to one, are computed once.
        """
        while step.tokens and len(self.running) < self.max_num_seqs:
            sequence = self._first(step, is_ready)
            if sequence is None:
                return
            before_last = (len(sequence.tokens) - 1) // self.block_pool.block_size
            keys = () if sequence.is_scored else sequence.keys[:before_last]
            cached = self.block_pool.find(keys)
            if not step.blocks.isdisjoint(keys[len(cached) :][:1]):
                return
            revived = sum(self.block_pool.references[block] == 0 for block in cached)
            lacking = self.block_pool.blocks_for(len(sequence.tokens) + 1) - len(cached) + len(self.running)
            if lacking > self.block_pool.num_available - revived:
                return
            self._start(sequence, cached)
            self._compute(sequence, _chunk(sequence, step), step)

    def _first(self, step: _StepBudget, is_ready: Callable[[str], bool]) -> Sequence | None:
        """The next sequence to start, of those that get something to do."""

        def may_start(sequence: Sequence) -> bool:
            return is_ready(sequence.request_id) and (not sequence.is_scored or step.prompt_logprobs > 0)

        return next(filter(may_start, self._resuming), None) or self._queue.first(may_start)

    def _start(self, sequence: Sequence, cached: list[int]) -> None:
        """Run a waiting sequence with the `cached` blocks and those for all its tokens, lest it run out."""
        if sequence in self._resuming:
            self._resuming.remove(sequence)
        else:
            self._queue.remove(sequence.request.tenant, sequence)
        self.running.append(sequence)
        self.block_pool.share(cached)
        sequence.table.extend(cached)
        sequence.shared, sequence.computed = len(cached), len(cached) * self.block_pool.block_size
        self.block_pool.extend(sequence.table, len(sequence.tokens))
        self._take_beginning(sequence)
        if sequence.cached is None:  # a resumption is no service and no query
            sequence.cached = sequence.computed
            self._queue.charge(sequence.request.tenant, sequence.prompt_length - sequence.cached)
            if not sequence.is_scored:
                self.cache_queries += sequence.prompt_length
                self.cache_hits += sequence.cached

    def _take_beginning(self, sequence: Sequence) -> None:
        """Copy the block that has enough of a starting sequence's next tokens, but never its last."""
        size, known = self.block_pool.block_size, sequence.shared
        if not self.copies or sequence.is_scored:
            return
        before = sequence.keys[known - 1] if known else scope_key(sequence.request.scope)
        block, count = self.block_pool.find_beginning(before, sequence.request.prompt[known * size :])
        if _COPIED_PART * (count := min(count, sequence.missing - 1)) >= size:
            sequence.computed += count
            self._copies[sequence.table[known]] = block

    def _max_drafts(self, sequence: Sequence) -> int:
        """Drafts that a decoding sequence could use in one step."""
        params = sequence.request.params
        if params.draft_method == "off":
            return 0
        own = self.max_draft_tokens if params.max_draft_tokens is None else params.max_draft_tokens
        # one token of the room is the correction or bonus
        return min(own, self.max_draft_tokens, self.room(sequence) - 1)

    def _grant_drafts(
        self, wanted: dict[Sequence, int], promised: dict[Sequence, int], budget: int
    ) -> dict[Sequence, int]:
        """Grant draft slots with blocks, without preemption: at most what each wants, its promise first."""
        first = share_evenly(promised, budget)
        more = share_evenly({s: wanted[s] - first[s] for s in wanted}, budget - sum(first.values()))
        limits: dict[Sequence, int] = {}
        for sequence in first:
            blocks = self.block_pool.num_available + len(sequence.table)
            spare = blocks * self.block_pool.block_size - len(sequence.tokens)
            limit = min(first[sequence] + more[sequence], spare)
            if limit > 0:
                self.block_pool.extend(sequence.table, len(sequence.tokens) + limit)
                limits[sequence] = limit
        return limits


def _chunk(sequence: Sequence, step: _StepBudget) -> int:
    """Count missing tokens within the budget; a cut prompt ends with a tile, half of which costs as much."""
    count = min(sequence.missing, step.tokens)
    if sequence.is_scored:
        count = min(count, max(0, step.prompt_logprobs))
    end = sequence.computed + count
    whole = end - end % PROMPT_TILE
    return whole - sequence.computed if sequence.computed < whole and end < sequence.prompt_length else count
