"""Who computes what in the next step, within a budget of tokens and one of blocks.

The scheduler knows tokens computed (their keys and values are in the cache) and tokens wanted (committed so
far). A prompt, a recomputation after preemption and plain decoding are the same thing, a gap between the two;
drafts are extra tokens behind a closed gap; a prefix found in the cache is a gap that is smaller from the
start. So chunked prefill, speculation and prefix caching are no branches here.

The budget of a step, in this order:
1. one token for every sequence that decodes: none ever waits longer than one step, since no sequence starts
   unless the budget has a token for it beside all that run;
2. prompts, oldest first, then those of waiting sequences, as many as fit: what is left but for the drafts'
   promise, which is what they are likely to use and at most half;
3. drafts: each its promise, then what the prompts leave, both shared evenly.

Preemption happens while planning, never inside a step: the youngest sequence gives its blocks up, is first to
come back, and is computed again but for what the prefix cache still has of its prompt. The oldest
is never preempted, so every answer ends. Knows no torch, no model and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from turbo_runtime.engine.fair_queue import ANSWER_WEIGHT, FairQueue
from turbo_runtime.engine.sequence import ScheduledTokens, SchedulerOutput, Sequence
from turbo_runtime.kv_cache.block_pool import (
    BLOCK_SIZE,
    PROMPT_TILE,
    BlockPool,
    CorruptBlockPoolError,
    blocks_for,
)
from turbo_runtime.kv_cache.prefix_cache import PrefixCache, block_keys
from turbo_runtime.messages import GenerationRequest

MOST_TOLD = 64  # tokens of prompts in a step whose log probabilities are told: each a look at the vocabulary


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int  # tokens left
    told: int = MOST_TOLD  # of them, such as are told with their log probabilities
    counts: dict[Sequence, int] = field(default_factory=dict)  # committed tokens to compute
    blocks: set[bytes] = field(default_factory=set)  # of prompts, that this step works on
    preempted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Owns all sequences, the tables of their blocks, the prefix cache and the queue."""

    def __init__(
        self,
        ledger: BlockPool,
        *,
        max_running: int,
        max_step_tokens: int,
        max_draft_tokens: int,
        max_length: int,
        shared_tile: int = PROMPT_TILE,
    ) -> None:
        """`max_length` bounds prompt plus answer; the ledger must hold one such sequence, else nothing
        guarantees an end. Of prompts the whole tiles of `shared_tile` tokens are shared.
        """
        if blocks_for(max_length) > ledger.num_blocks:
            raise ValueError(f"{ledger.num_blocks} blocks cannot hold one sequence of {max_length} tokens")
        self.ledger = ledger
        self.prefixes = PrefixCache(ledger)
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.max_draft_tokens = max_draft_tokens
        self.max_length = max_length
        self.shared_tile = shared_tile
        self.running: list[Sequence] = []  # oldest first
        self._resuming: deque[Sequence] = deque()  # preempted, oldest first
        self._queue: FairQueue[Sequence] = FairQueue()
        self._live: dict[str, Sequence] = {}
        self.preemptions = 0

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that hold no blocks: preempted ones first, the others tenant by tenant."""
        return [*self._resuming, *self._queue]

    def service(self, tenant: str) -> int:
        """What a tenant got since it last had nothing here, in tokens of a prompt (`FairQueue`)."""
        return self._queue.service(tenant)

    def add(self, submit: GenerationRequest) -> Sequence:
        """Queue a new answer. Raises ValueError if its prompt leaves no room for one token within
        `max_length`. How many may wait is the server's to say.
        """
        if not 1 <= len(submit.prompt) < self.max_length:
            raise ValueError(
                f"the prompt has {len(submit.prompt)} tokens; from 1 to {self.max_length - 1} are possible"
            )
        if submit.request_id in self._live:
            raise ValueError(f"request {submit.request_id} is running or waiting already; use another id")
        keys = block_keys(submit.scope, submit.prompt, self.shared_tile)
        sequence = Sequence(submit, list(submit.prompt), keys)
        self._queue.enter(submit.tenant, sequence)
        self._live[submit.request_id] = sequence
        return sequence

    def find(self, request_id: str) -> Sequence | None:
        """The live sequence of that request."""
        return self._live.get(request_id)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, whatever its state, and free its blocks."""
        tenant = sequence.submit.tenant
        del self._live[sequence.submit.request_id]
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self._resuming:
            self._resuming.remove(sequence)
        else:
            self._queue.remove(tenant, sequence)
        self.ledger.trim(sequence.table, 0)
        self._queue.leave(tenant)

    def room(self, sequence: Sequence) -> int:
        """Tokens that the answer may still get."""
        by_length = self.max_length - len(sequence.tokens)
        return min(by_length, sequence.submit.params.max_tokens - sequence.generated)

    def plan(self, likely: Callable[[str], int] | None = None) -> SchedulerOutput:
        """Reserve budget and blocks for the next step. Empty only when nothing is queued or running.

        `likely`: drafts that a request will use, of which the prompts leave room; by default all that it
        could.
        """
        draft = _Draft(self.max_step_tokens)
        for sequence in [each for each in self.running if each.missing == 1]:
            if self._find_block(sequence, draft):
                self._compute(sequence, 1, draft)
        wanted = {each: self._draft_ceiling(each) for each in draft.counts}
        promised = wanted
        if likely is not None:
            promised = {each: min(most, likely(each.submit.request_id)) for each, most in wanted.items()}
        promise = min(sum(promised.values()), draft.budget // 2)
        draft.budget -= promise
        for sequence in [each for each in self.running if each.missing > 1]:
            self._compute(sequence, _chunk(sequence, draft), draft)
        self._admit(draft)
        counts, limits = draft.counts, self._grant_drafts(wanted, promised, draft.budget + promise)
        work = (
            ScheduledTokens(s, s.computed, counts[s], limits.get(s, 0)) for s in self.running if s in counts
        )
        return SchedulerOutput(tuple(work), tuple(draft.preempted))

    def fold(self, work: ScheduledTokens, committed: list[int]) -> None:
        """Book what a step brought: none for a prompt that is not through yet, else the tokens that
        verification committed, of however many of the granted drafts were verified.

        All but the last committed token were drafts whose keys and values are in the cache. Look-ahead slots
        that no token took go back, and blocks of the prompt that are full now can be shared.
        """
        sequence = work.sequence
        sequence.computed = work.start + work.count + max(0, len(committed) - 1)
        sequence.tokens.extend(committed)
        self.ledger.trim(sequence.table, len(sequence.tokens))
        self._queue.charge(sequence.submit.tenant, ANSWER_WEIGHT * len(committed))
        full = min(sequence.computed // BLOCK_SIZE, len(sequence.keys))
        if full > sequence.shared:
            self.prefixes.publish(sequence.keys[:full], sequence.table, sequence.shared)
            sequence.shared = full

    @property
    def most_wanted(self) -> int:
        """Blocks of which the next plan wants no more whatever it is: for all that runs and waits, beside
        what it holds, and one for each to grow into.
        """
        reach = self.max_draft_tokens + 1
        sequences = (*self.running, *self.waiting)
        return sum(blocks_for(len(each.tokens) + reach) + 1 - len(each.table) for each in sequences)

    def check(self, held: Iterable[int] = ()) -> None:
        """Raise BrokenLedger if a block leaks, is held by the wrong one or is not in the state it should be;
        `held` are those of no sequence here.

        Costs one look at every block: after every step in tests, and whenever the engine has nothing to do.
        """
        self.ledger.check([tuple(held), *(sequence.table for sequence in self._live.values())])
        self.prefixes.check()
        running = set(self.running)
        for sequence in self._live.values():
            known = sequence.shared
            name = sequence.submit.request_id
            if sequence.table and sequence not in running:
                raise CorruptBlockPoolError(f"request {name} waits and holds blocks {sequence.table}")
            if sequence.table[:known] != self.prefixes.find(sequence.keys[:known]):
                raise CorruptBlockPoolError(
                    f"the first {known} blocks of request {name} are not those of the cache"
                )
            for block in sequence.table[known:]:
                if self.ledger.references(block) != 1 or self.ledger.is_kept(block):
                    raise CorruptBlockPoolError(f"block {block} of request {name} is written and shared")

    def _find_block(self, sequence: Sequence, draft: _Draft) -> bool:
        """The block that the next token of a decoding sequence needs, taken from the youngest if need be;
        False if that is the sequence itself. (A prompt has all its blocks from the start.)
        """
        if sequence in draft.preempted:
            return False
        tokens = len(sequence.tokens)
        while blocks_for(tokens) - len(sequence.table) > self.ledger.num_available:
            youngest = self.running[-1]
            self._preempt(youngest)
            draft.preempted.append(youngest)
            if youngest is sequence:
                return False
        self.prefixes.extend(sequence.table, tokens)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.ledger.trim(sequence.table, 0)
        sequence.computed = sequence.shared = 0
        self._resuming.appendleft(sequence)
        self.preemptions += 1

    def _compute(self, sequence: Sequence, count: int, draft: _Draft) -> None:
        """Plan so many more tokens of a running sequence, whose blocks it has."""
        if count:
            draft.counts[sequence] = count
            draft.budget -= count
            if sequence.submit.params.prompt_logprobs is not None:
                draft.told -= count  # few at a time: nobody waits for its blocks
                return
            end = sequence.computed + count
            draft.blocks.update(sequence.keys[sequence.shared : blocks_for(end)])

    def _admit(self, draft: _Draft) -> None:
        """Start waiting sequences while there are budget, a place, and blocks: for all their tokens and the
        next one, and one for each that runs to grow into, else somebody would soon be preempted for it. (So
        whoever gave way a moment ago does not fit.)

        Whoever is first and cannot start is waited for: the large do not starve behind the small. Nor does a
        sequence start whose next block is being computed in this step: it finds it in the following one, so
        that equal prompts, or n answers to one, are computed once.
        """
        while draft.budget and len(self.running) < self.max_running:
            sequence = self._resuming[0] if self._resuming else self._queue.first()
            if sequence is None:
                return
            keys = sequence.shareable
            found = self.prefixes.find(keys)
            if not draft.blocks.isdisjoint(keys[len(found) :][:1]):
                return
            revived = sum(self.ledger.references(block) == 0 for block in found)
            lacking = blocks_for(len(sequence.tokens) + 1) - len(found) + len(self.running)
            if lacking > self.ledger.num_available - revived:
                return
            self._start(sequence, found)
            self._compute(sequence, _chunk(sequence, draft), draft)

    def _start(self, sequence: Sequence, found: list[int]) -> None:
        """Make a waiting sequence a running one that holds the `found` blocks and those for all its
        tokens: a prompt that has begun should not be the one that runs out.
        """
        if self._resuming:
            self._resuming.popleft()
        else:
            self._queue.remove(sequence.submit.tenant, sequence)
        self.running.append(sequence)
        self.ledger.share(found)
        sequence.table.extend(found)
        sequence.shared = len(found)
        sequence.computed = len(found) * BLOCK_SIZE
        self.prefixes.extend(sequence.table, len(sequence.tokens))
        if sequence.cached is None:  # not when it comes back: that is no service, and no news to the cache
            sequence.cached = sequence.computed
            self._queue.charge(sequence.submit.tenant, sequence.prompt_length - sequence.cached)
            if sequence.submit.params.prompt_logprobs is None:
                self.prefixes.queries += sequence.prompt_length
                self.prefixes.hits += sequence.cached

    def _draft_ceiling(self, sequence: Sequence) -> int:
        """Drafts that a decoding sequence could use in one step."""
        params = sequence.submit.params
        if params.drafting == "off":
            return 0
        own = self.max_draft_tokens if params.max_draft_tokens is None else params.max_draft_tokens
        # one token of the room is the correction or bonus
        return max(0, min(own, self.max_draft_tokens, self.room(sequence) - 1))

    def _grant_drafts(
        self, wanted: dict[Sequence, int], promised: dict[Sequence, int], budget: int
    ) -> dict[Sequence, int]:
        """Draft slots with blocks, for which nobody is preempted: at most what each wants, and when the
        budget is short, first what each was promised.
        """
        first = _share(promised, budget)
        more = _share({each: wanted[each] - first[each] for each in wanted}, budget - sum(first.values()))
        limits: dict[Sequence, int] = {}
        for sequence in first:
            spare = (self.ledger.num_available + len(sequence.table)) * BLOCK_SIZE - len(sequence.tokens)
            limit = min(first[sequence] + more[sequence], spare)
            if limit > 0:
                self.prefixes.extend(sequence.table, len(sequence.tokens) + limit)
                limits[sequence] = limit
        return limits


def _share(wants: dict[Sequence, int], budget: int) -> dict[Sequence, int]:
    """At most what each wants, as even as can be; those who want least come first."""
    shares: dict[Sequence, int] = {}
    by_want = sorted(wants, key=wants.__getitem__)
    for place, sequence in enumerate(by_want):
        shares[sequence] = min(wants[sequence], budget // (len(by_want) - place))
        budget -= shares[sequence]
    return shares


def _chunk(sequence: Sequence, draft: _Draft) -> int:
    """How many of its missing tokens to compute within the budget: to the end of a tile where a prompt is cut
    anyway, since half a tile costs as much as a whole one.
    """
    count = min(sequence.missing, draft.budget)
    if sequence.submit.params.prompt_logprobs is not None:
        count = min(count, max(0, draft.told))
    end = sequence.computed + count
    whole = end - end % PROMPT_TILE
    return whole - sequence.computed if sequence.computed < whole and end < sequence.prompt_length else count
