"""The drafters of an engine: for each request those that it wants."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from turbo_runtime.contract.config import DraftMethod
from turbo_runtime.drafters.interface import (
    ComputedTokens,
    Draft,
    Drafter,
    DraftRequest,
    TokenCandidate,
    TokenOrigin,
)
from turbo_runtime.drafters.loader import ActiveDrafts, WatchedFile
from turbo_runtime.drafters.pass_gate import PassGate
from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.messages import DEFAULT_DRAFT

log = logging.getLogger(__name__)

Result = TypeVar("Result")
MIN_ACCEPTANCE = 0.02  # a lower bound for whatever the caller says


class Guarded:
    """Wraps a drafter and disables it at its first failure, which is logged: no draft is ever needed."""

    def __init__(self, drafter: Drafter, draft: str | None = None) -> None:
        """`draft`: the trained draft that it drafts with, for requests that chose it; None: for all."""
        self.drafter, self.draft = drafter, draft
        named = draft not in (None, DEFAULT_DRAFT)
        self._label = f"{drafter.name} of the draft {draft}" if named else drafter.name
        self.problem = ""  # why it gives no drafts any more; else empty
        self.seconds = 0.0  # of all its work
        self._gate = PassGate() if drafter.has_passes else None

    def attempt(self, call: Callable[..., Result], *arguments: object, always: bool = False) -> Result | None:
        """Call a method of the drafter; None if it fails or has failed. `always`: call it even then."""
        if self.problem and not always:
            return None
        start_time = time.perf_counter()
        try:
            return call(*arguments)
        except Exception as error:  # no reason to stop serving
            if not self.problem:
                log.exception("the drafter %s failed and gives no drafts from now on", self._label)
                self.problem = f"the drafter {self._label} failed: {type(error).__name__}: {error}"
            return None
        finally:
            self.seconds += time.perf_counter() - start_time

    def next_candidates(
        self, drafts: Sequence[_GrowingDraft], best_confidence: Sequence[float], token_seconds: float
    ) -> list[TokenCandidate | None]:
        """The drafter's; none where that takes a pass which is not worth its time."""
        none: list[TokenCandidate | None] = [None] * len(drafts)
        if (gate := self._gate) is None:
            return self.attempt(self.drafter.next_candidates, best_confidence) or none
        growing = [
            (draft.acceptance[-1] if draft.acceptance else 1.0, best)
            for draft, best in zip(drafts, best_confidence, strict=True)
            if not draft.ended
        ]
        depth = max((len(draft.tokens) for draft in drafts if not draft.ended), default=0)
        if not gate.pays(depth, growing, token_seconds):
            return none
        before = self.seconds
        offered = self.attempt(self.drafter.next_candidates, best_confidence) or none
        gate.learn(depth, self.seconds - before, [one.confidence for one in offered if one is not None])
        return offered


def propose(
    guards: Sequence[Guarded],
    requests: Sequence[DraftRequest],
    min_acceptance: float = MIN_ACCEPTANCE,
    token_seconds: float = math.inf,
) -> list[Draft]:
    """Return one draft for each request, which ends where its cumulative acceptance is below
    `min_acceptance`. Every drafter continues the common draft; the costly ones come last and see the
    others' confidence. A token that is gained is worth `token_seconds` of a drafter's passes.
    """
    if not guards or not requests:
        return [Draft() for _ in requests]
    for guard in guards:
        guard.attempt(guard.drafter.begin, requests)
    drafters = [guard.drafter for guard in guards]
    growing = [_GrowingDraft(request.limit, max(min_acceptance, MIN_ACCEPTANCE)) for request in requests]
    while True:
        candidates: list[list[TokenCandidate | None]] = []
        best_confidence = [0.0] * len(requests)
        for guard in guards:
            candidates.append(guard.next_candidates(growing, best_confidence, token_seconds))
            best_confidence = [
                max(best, candidate.confidence) if candidate else best
                for best, candidate in zip(best_confidence, candidates[-1], strict=True)
            ]
        by_draft = zip(*candidates, strict=True)
        taken = [draft.take(drafters, options) for draft, options in zip(growing, by_draft, strict=True)]
        if all(token is None for token in taken):
            return [Draft(tuple(d.tokens), tuple(d.acceptance), tuple(d.origins)) for d in growing]
        for guard in guards:
            guard.attempt(guard.drafter.advance, taken)


@dataclass(slots=True)
class _GrowingDraft:
    limit: int
    min_acceptance: float
    tokens: list[int] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)  # cumulative
    origins: list[TokenOrigin] = field(default_factory=list)
    ended: bool = False
    free_acceptance: float = 1.0  # of the same tokens by drafters that are not costly; 0 if theirs differ

    def take(self, drafters: Sequence[Drafter], options: Sequence[TokenCandidate | None]) -> int | None:
        """Append the most confident candidate's token; None where the draft ends."""
        token = None if self.ended else self._take(drafters, options)
        self.ended = token is None
        return token

    def _take(self, drafters: Sequence[Drafter], options: Sequence[TokenCandidate | None]) -> int | None:
        if len(self.tokens) == self.limit:
            return None
        candidates = [
            (drafter, candidate)
            for drafter, candidate in zip(drafters, options, strict=True)
            if candidate is not None and candidate.confidence > 0  # False for NaN
        ]
        if not candidates:
            return None
        winner, best = max(candidates, key=lambda pair: pair[1].confidence)
        acceptance = best.confidence * (self.acceptance[-1] if self.acceptance else 1.0)
        if acceptance < self.min_acceptance:
            return None
        losers = [(winner.name, *rival) for rival in best.rivals]
        for drafter, candidate in candidates:
            if candidate is not best:
                own = (candidate.cell, candidate.token)
                losers += [(drafter.name, *rival) for rival in (own, *candidate.rivals)]
        self.tokens.append(best.token)
        self.acceptance.append(acceptance)
        fallback = self._find_fallback(best.token, candidates)
        self.origins.append(TokenOrigin(winner.name, best.cell, fallback, tuple(losers)))
        return best.token

    def _find_fallback(self, taken: int, candidates: Sequence[tuple[Drafter, TokenCandidate]]) -> int | None:
        """The token that would be drafted here without costly drafters."""
        free = [candidate for drafter, candidate in candidates if not drafter.is_costly]
        if not free or not self.free_acceptance:
            self.free_acceptance = 0.0
            return None
        best = max(free, key=lambda candidate: candidate.confidence)
        self.free_acceptance *= best.confidence
        fallback = best.token if self.free_acceptance >= self.min_acceptance else None
        if fallback != taken:
            self.free_acceptance = 0.0
        return fallback


class Proposer:
    """Proposes drafts for whole batches, and learns from what is committed."""

    def __init__(
        self,
        active: ActiveDrafts = ActiveDrafts(),  # noqa: B008  frozen
        *,
        file: WatchedFile | None = None,
        suffix: SuffixDrafter | None = None,
    ) -> None:
        """`poll` follows `file`; `active` holds until then."""
        self._file = file
        self._suffix = SuffixDrafter() if suffix is None else suffix
        self.costly_seconds: dict[Hashable, float] = {}  # of the last proposal, by `Draft.costly_key`
        self._generation = 0  # counts the sets of drafts
        self._use(active)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all drafts that a request can choose, by name; the deployment's own comes first."""
        named = {name: draft.version for name, draft in self._active.named.items()}
        return {DEFAULT_DRAFT: self._active.version, **named}

    def name_of(self, draft: str) -> str:
        """Resolve a request's choice: the default if `draft` is not in use any more."""
        return draft if draft in self._active.named else DEFAULT_DRAFT

    @property
    def problem(self) -> str:
        """Why they are not what the file names, or give no drafts; else empty."""
        problems = [guard.problem for guard in self._guards]
        return "; ".join(filter(None, [self._file.problem if self._file else "", *problems]))

    @property
    def reads_hidden(self) -> bool:
        """Whether any drafter reads the model's hidden rows."""
        return any(guard.drafter.reads_hidden for guard in self._guards)

    @property
    def reads_streams(self) -> bool:
        """Whether any drafter reads what enters layers of the model, at all positions of a prompt."""
        return any(guard.drafter.stream_layers and not guard.problem for guard in self._guards)

    @property
    def follows(self) -> bool:
        """Whether any drafter needs to `follow`."""
        return any(guard.drafter.follows and not guard.problem for guard in self._guards)

    def poll(self, now: float) -> None:
        """Take up what the file names by now, between steps; takes microseconds."""
        loaded = self._file.poll(now) if self._file else None
        if loaded is not None and loaded != self._active:
            self._use(loaded)

    def expect(self, request_id: str, tokens: Sequence[int], method: DraftMethod) -> None:
        """Announce a request whose prompt is being computed, so that `read` reads it; `tokens` only grow."""
        for guard in self._of_method(self._resolve(method)):
            guard.attempt(guard.drafter.expect, request_id, tokens)

    @property
    def waiting(self) -> bool:
        """Whether there is something to `read`."""
        return any(guard.drafter.waiting and not guard.problem for guard in self._guards)

    def read(self, max_tokens: int) -> int:
        """Read up to `max_tokens` of prompts and finished answers; the number of tokens read."""
        num_read = 0
        for guard in self._guards:
            num_read += guard.attempt(guard.drafter.read, max_tokens - num_read) or 0
        return num_read

    def propose(
        self,
        requests: Sequence[DraftRequest],
        min_acceptance: float = 0.0,
        pays: Callable[[Hashable], bool] = lambda _: True,
        token_seconds: float = math.inf,
        /,
    ) -> list[Draft]:
        """Return one draft for each request, perhaps empty; requests with the same drafters share a pass.
        Costly ones draft in addition to others only where `pays` says so for their key, `Draft.costly_key`;
        their passes are worth `token_seconds` for each token gained.
        """
        self.costly_seconds = {}
        drafts = [Draft()] * len(requests)
        groups: defaultdict[tuple[DraftMethod, str], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[self._resolve(request.method), self.name_of(request.draft)].append(index)
        for (method, name), indices in groups.items():
            key, guards, costly = self._drafting(method, name)
            used = [guard for guard in costly if not guard.problem]
            if used and guards and not pays(key):
                used = []
            seconds_before = sum(guard.seconds for guard in used)
            wanted = [requests[index] for index in indices]
            proposed = propose([*guards, *used], wanted, min_acceptance, token_seconds)
            if used:
                self.costly_seconds[key] = sum(guard.seconds for guard in used) - seconds_before
            for index, draft in zip(indices, proposed, strict=True):
                drafts[index] = replace(draft, name=name, costly_key=key if costly else None)
        return drafts

    def stream_layers(
        self, choices: Iterable[tuple[DraftMethod, str]], pays: Callable[[Hashable], bool], /
    ) -> tuple[int, ...]:
        """Layers of the model whose input drafters need to follow requests of these methods and drafts."""
        following = (self._following(method, draft, pays) for method, draft in {*choices})
        return tuple(
            sorted({layer for guards in following for g in guards for layer in g.drafter.stream_layers})
        )

    def follow(
        self,
        computed: Sequence[tuple[ComputedTokens, DraftMethod, str]],
        layers: tuple[int, ...],
        pays: Callable[[Hashable], bool],
        /,
    ) -> None:
        """Let drafters with a KV cache keep up with a step, which computed this for requests of those methods
        and drafts.
        """
        followed: defaultdict[Guarded, list[ComputedTokens]] = defaultdict(list)
        for part, method, draft in computed:
            for guard in self._following(method, draft, pays):
                followed[guard].append(part)
        for guard, parts in followed.items():
            guard.attempt(guard.drafter.follow, parts, layers)

    def observe(self, draft: Draft, committed: Sequence[int]) -> None:
        """Learn from the committed tokens: of the whole draft, verified or not, and its losing candidates."""
        for origin, token, actual in zip(draft.origins, draft.tokens, committed, strict=False):
            for name, cell, candidate in ((origin.source, origin.cell, token), *origin.losing_candidates):
                for guard in self._guards:
                    if guard.drafter.name == name and guard.draft in (None, draft.name):
                        guard.attempt(guard.drafter.learn, cell, candidate == actual)
            if token != actual:
                return

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Release the state of an ended request: `tokens` are prompt and answer so far."""
        remembering = self._of_method(self._active.drafter)
        for guard in self._guards:
            remembered = tokens if guard in remembering and not guard.problem else ()
            guard.attempt(guard.drafter.finish, request_id, remembered, prompt_length, scope, always=True)

    def _use(self, drafts: ActiveDrafts) -> None:
        """Use these drafts, with fresh guards: they may work where earlier ones failed."""
        self._active = drafts
        self._generation += 1
        own = [Guarded(drafter, DEFAULT_DRAFT) for drafter in drafts.own.values()]
        named = [Guarded(drafter, name) for name, drafter in drafts.named.items()]
        self._guards = [Guarded(self._suffix), *own, *named]
        brought = () if drafts.drafter == "off" else drafts.memories
        self._guards[0].attempt(self._suffix.bring, brought)

    def _drafting(self, method: DraftMethod, draft: str) -> tuple[Hashable, list[Guarded], list[Guarded]]:
        """The key of the costly drafters of a method and a draft; the others that work; and these."""
        chosen = [guard for guard in self._of_method(method) if guard.draft in (None, draft)]
        free = [guard for guard in chosen if not guard.drafter.is_costly and not guard.problem]
        return (method, draft, self._generation), free, [guard for guard in chosen if guard.drafter.is_costly]

    def _following(self, method: DraftMethod, draft: str, pays: Callable[[Hashable], bool]) -> list[Guarded]:
        """The drafters with a KV cache that may draft for such a request."""
        key, free, costly = self._drafting(self._resolve(method), self.name_of(draft))
        guards = [guard for guard in costly if guard.drafter.follows and not guard.problem]
        return guards if guards and (not free or pays(key)) else []

    def _of_method(self, method: DraftMethod) -> list[Guarded]:
        """The drafters of a method, of whichever trained draft."""
        return [guard for guard in self._guards if method in ("auto", guard.drafter.name)]

    def _resolve(self, method: DraftMethod) -> DraftMethod:
        """Resolve a request's choice: the deployment's `off` holds for all."""
        deployed = self._active.drafter
        return deployed if deployed == "off" or method == "auto" else method
