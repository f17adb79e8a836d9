"""The drafters of an engine: for each request those that it wants."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from turbo_runtime.drafters.interface import Draft, Drafter, DraftRequest, TokenCandidate, TokenOrigin
from turbo_runtime.drafters.loader import ActiveDrafts, WatchedFile
from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.messages import DEFAULT_DRAFT, Drafting

log = logging.getLogger(__name__)

Result = TypeVar("Result")
MIN_ACCEPTANCE = 0.02  # a lower bound for whatever the caller says
_WITH_SUFFIX, _WITH_HEADS = ("auto", "suffix"), ("auto", "heads")  # the choices that have these drafters


class Guarded:
    """Wraps a drafter and disables it at its first failure, which is logged: no draft is ever needed."""

    def __init__(self, drafter: Drafter, draft: str = "") -> None:
        """`draft`: its name among several, for messages."""
        self.drafter = drafter
        self._label = f"{drafter.name} of the draft {draft}" if draft else drafter.name
        self.problem = ""  # why it gives no drafts any more; else empty
        self.seconds = 0.0  # of all its work

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


def propose(
    guards: Sequence[Guarded], requests: Sequence[DraftRequest], min_acceptance: float = MIN_ACCEPTANCE
) -> list[Draft]:
    """Return one draft for each request, which ends where its cumulative acceptance is below
    `min_acceptance`. Every drafter continues the common draft; those that take time come last and see the
    others' confidence.
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
            offered = guard.attempt(guard.drafter.next_candidates, best_confidence)
            candidates.append(offered or [None] * len(requests))
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
    free_acceptance: float = 1.0  # of the same tokens by drafters that take no time; 0 if theirs differ

    def take(self, drafters: Sequence[Drafter], options: Sequence[TokenCandidate | None]) -> int | None:
        """Append the most confident candidate's token; None where the draft ends."""
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
        losers = tuple(
            (drafter.name, candidate.cell, candidate.token)
            for drafter, candidate in candidates
            if candidate is not best
        )
        self.tokens.append(best.token)
        self.acceptance.append(acceptance)
        fallback = self._find_fallback(best.token, candidates)
        self.origins.append(TokenOrigin(winner.name, best.cell, fallback, losers))
        return best.token

    def _find_fallback(self, taken: int, candidates: Sequence[tuple[Drafter, TokenCandidate]]) -> int | None:
        """The token that would be drafted here without drafters that take time."""
        free = [candidate for drafter, candidate in candidates if not drafter.takes_time]
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
        self.heads_seconds: dict[Hashable, float] = {}  # of the last proposal, by heads
        self._generation = 0  # counts the sets of drafts
        self._use(active)

    @property
    def version(self) -> str:
        """Version of the deployment's own draft."""
        return self._active.version

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all drafts that a request can choose, by name; the deployment's own comes first."""
        named = {name: heads.version for name, heads in self._active.named.items()}
        return {DEFAULT_DRAFT: self._active.version, **named}

    def name_of(self, draft: str) -> str:
        """Resolve a request's choice: the default if `draft` is not in use any more."""
        return draft if draft in self._active.named else DEFAULT_DRAFT

    @property
    def problem(self) -> str:
        """Why they are not what the file names, or give no drafts; else empty."""
        problems = [guard.problem for guard in (self._recent, *self._heads.values())]
        return "; ".join(filter(None, [self._file.problem if self._file else "", *problems]))

    @property
    def use_hidden(self) -> bool:
        """Whether any drafter reads the model's hidden rows."""
        return bool(self._heads)

    def poll(self, now: float) -> None:
        """Take up what the file names by now, between steps; takes microseconds."""
        loaded = self._file.poll(now) if self._file else None
        if loaded is not None and loaded != self._active:
            self._use(loaded)

    def expect(self, request_id: str, tokens: Sequence[int], drafting: Drafting) -> None:
        """Announce a request whose prompt is being computed, so that `read` reads it; `tokens` only grow."""
        if self._resolve(drafting) in _WITH_SUFFIX:
            self._recent.attempt(self._suffix.expect, request_id, tokens)

    @property
    def waiting(self) -> bool:
        """Whether there is something to `read`."""
        return self._suffix.waiting and not self._recent.problem

    def read(self, max_tokens: int) -> int:
        """Read up to `max_tokens` of prompts and finished answers; the number of tokens read."""
        return self._recent.attempt(self._suffix.read, max_tokens) or 0

    def propose(
        self,
        requests: Sequence[DraftRequest],
        min_acceptance: float = 0.0,
        pays: Callable[[Hashable], bool] = lambda _: True,
        /,
    ) -> list[Draft]:
        """Return one draft for each request, perhaps empty; requests with the same drafters share a pass.
        Heads draft in addition to others only where `pays` says so for their key, `Draft.heads`.
        """
        self.heads_seconds = {}
        drafts = [Draft()] * len(requests)
        groups: defaultdict[tuple[Drafting, str], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[self._resolve(request.drafting), self.name_of(request.name)].append(index)
        for (drafting, name), indices in groups.items():
            key = (drafting, name, self._generation)
            heads = self._heads.get(name) if drafting in _WITH_HEADS else None
            guards = [self._recent] if drafting in _WITH_SUFFIX and not self._recent.problem else []
            if heads is not None and not heads.problem and (not guards or pays(key)):
                guards.append(heads)
            seconds_before = heads.seconds if heads is not None else 0.0
            proposed = propose(guards, [requests[index] for index in indices], min_acceptance)
            if heads is not None and heads in guards:
                self.heads_seconds[key] = heads.seconds - seconds_before
            for index, draft in zip(indices, proposed, strict=True):
                drafts[index] = replace(draft, name=name, heads=None if heads is None else key)
        return drafts

    def observe(self, draft: Draft, committed: Sequence[int]) -> None:
        """Learn from the committed tokens: of the whole draft, verified or not, and its losing candidates."""
        for origin, token, actual in zip(draft.origins, draft.tokens, committed, strict=False):
            for name, cell, candidate in ((origin.source, origin.cell, token), *origin.losing_candidates):
                guard = self._recent if name == SuffixDrafter.name else self._heads.get(draft.name)
                if guard is not None:
                    guard.attempt(guard.drafter.learn, cell, candidate == actual)
            if token != actual:
                return

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Release the state of an ended request: `tokens` are prompt and answer so far."""
        is_remembered = self._active.drafter in _WITH_SUFFIX and not self._recent.problem
        remembered = tokens if is_remembered else ()
        self._recent.attempt(self._suffix.finish, request_id, remembered, prompt_length, scope, always=True)

    def _use(self, drafts: ActiveDrafts) -> None:
        """Use these drafts, with fresh guards: they may work where earlier ones failed."""
        self._active = drafts
        self._generation += 1
        self._recent = Guarded(self._suffix)
        self._heads = {DEFAULT_DRAFT: Guarded(drafts.heads)} if drafts.heads else {}
        self._heads |= {name: Guarded(heads, name) for name, heads in drafts.named.items()}

    def _resolve(self, drafting: Drafting) -> Drafting:
        """Resolve a request's choice: the deployment's `off` holds for all."""
        deployed = self._active.drafter
        return deployed if deployed == "off" or drafting == "auto" else drafting
