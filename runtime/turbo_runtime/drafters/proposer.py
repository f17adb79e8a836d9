"""The drafters of an engine: for each request those that it wants."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

from turbo_runtime.drafters.hybrid import propose
from turbo_runtime.drafters.interface import (
    Draft,
    Drafter,
    DraftRequest,
    LosingCandidate,
    TokenCandidate,
)
from turbo_runtime.drafters.loader import ActiveDrafts, WatchedFile
from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.messages import DEFAULT_DRAFT, Drafting

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Guarded:
    """A drafter until it fails, which is reported once; then one without candidates: none are ever needed."""

    def __init__(self, source: Drafter, draft: str = "") -> None:
        """`draft`: its name among several, for messages."""
        self.source = source
        self.name, self.takes_time = source.name, source.takes_time
        self._who = f"{source.name} of the draft {draft}" if draft else source.name
        self._nothing: list[TokenCandidate | None] = []
        self.problem = ""  # why it gives no drafts any more; else empty
        self.seconds = 0.0  # of all its work

    def begin(self, requests: Sequence[DraftRequest]) -> None:
        """Begin empty drafts for these requests."""
        self._nothing = [None] * len(requests)
        self.attempt(lambda: self.source.begin(requests), None)

    def next_candidates(self, best_confidence: Sequence[float]) -> list[TokenCandidate | None]:
        """Return the next token for each draft."""
        return self.attempt(lambda: self.source.next_candidates(best_confidence), self._nothing)

    def advance(self, tokens: Sequence[int | None]) -> None:
        """Append a token to each draft."""
        self.attempt(lambda: self.source.advance(tokens), None)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """Learn the result of a candidate."""
        self.attempt(lambda: self.source.learn(cell, accepted), None)

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Release the state of an ended request, even after a failure."""
        self.attempt(lambda: self.source.finish(request_id, tokens, prompt_length, scope), None, always=True)

    def attempt(self, call: Callable[[], Result], default: Result, *, always: bool = False) -> Result:
        """Call the drafter; return `default` if it fails or has failed. `always`: call it even then."""
        if self.problem and not always:
            return default
        start_time = time.perf_counter()
        try:
            return call()
        except Exception as error:  # no reason to stop serving
            if not self.problem:
                log.exception("the drafter %s failed and gives no drafts from now on", self._who)
                self.problem = f"the drafter {self._who} failed: {type(error).__name__}: {error}"
            return default
        finally:
            self.seconds += time.perf_counter() - start_time


class Proposer:
    """Proposes drafts for whole batches, and learns from what is committed."""

    def __init__(
        self,
        in_use: ActiveDrafts = ActiveDrafts(),  # noqa: B008  frozen
        *,
        file: WatchedFile | None = None,
        suffix: SuffixDrafter | None = None,
    ) -> None:
        """`poll` follows `file`; `in_use` holds until then."""
        self._file = file
        self._suffix = SuffixDrafter() if suffix is None else suffix
        self.heads_seconds: dict[Hashable, float] = {}  # of the last proposal, by heads
        self._generation = 0  # counts the sets of drafts
        self._use(in_use)

    @property
    def version(self) -> str:
        """Version of the deployment's own draft."""
        return self._in_use.version

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all drafts that a request can choose, by name; the deployment's own comes first."""
        named = {name: draft.version for name, draft in self._in_use.named.items()}
        return {DEFAULT_DRAFT: self._in_use.version, **named}

    def name_of(self, draft: str) -> str:
        """Resolve a request's choice: the default if `draft` is not in use any more."""
        return draft if draft in self._in_use.named else DEFAULT_DRAFT

    @property
    def problem(self) -> str:
        """Why they are not what the file names, or give no drafts; else empty."""
        problems = [guard.problem for guard in (self._recent, *self._heads.values())]
        return "; ".join(filter(None, [self._file.problem if self._file else "", *problems]))

    @property
    def use_hidden(self) -> bool:
        """Whether any drafter reads the model's hidden rows."""
        return bool(self._heads)

    @property
    def num_bytes(self) -> int:
        """Memory of the texts to draft from."""
        return self._suffix.num_bytes

    def poll(self, now: float) -> None:
        """Take up what the file names by now, between steps; takes microseconds."""
        loaded = self._file.poll(now) if self._file else None
        if loaded is not None and loaded != self._in_use:
            self._use(loaded)

    def expect(self, request_id: str, tokens: Sequence[int], drafting: Drafting) -> None:
        """Announce a request whose prompt is being computed, so that `read` reads it; `tokens` only grow."""
        if self._recent in self._select(self._resolve(drafting), DEFAULT_DRAFT):
            self._recent.attempt(lambda: self._suffix.expect(request_id, tokens), None)

    @property
    def waiting(self) -> bool:
        """Whether there is something to `read`."""
        return self._suffix.waiting and not self._recent.problem

    def read(self, max_tokens: int) -> int:
        """Read up to `max_tokens` of prompts and finished answers; the number of tokens read."""
        return self._recent.attempt(lambda: self._suffix.read(max_tokens), 0)

    def propose(
        self,
        requests: Sequence[DraftRequest],
        min_acceptance: float = 0.0,
        pays: Callable[[Hashable], bool] = lambda _: True,
        /,
    ) -> list[Draft]:
        """Return one draft for each request, perhaps empty; requests with the same drafters share a pass.
        Heads draft in addition to others only where `pays` says so for their key (`heads_of`).
        """
        self.heads_seconds = {}
        drafts = [Draft()] * len(requests)
        groups: defaultdict[tuple[Drafting, str], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[self._resolve(request.drafting), self.name_of(request.name)].append(index)
        for (drafting, name), indices in groups.items():
            selected, heads = self._select(drafting, name), self._heads.get(name)
            key = (drafting, name, self._generation)
            if heads in selected and len(selected) > 1 and not pays(key):
                selected.remove(heads)
            seconds_before = heads.seconds if heads is not None else 0.0
            proposed = propose(selected, [requests[index] for index in indices], min_acceptance)
            if heads is not None and heads in selected:
                self.heads_seconds[key] = heads.seconds - seconds_before
            for index, draft in zip(indices, proposed, strict=True):
                drafts[index] = replace(draft, name=name)
        return drafts

    def heads_of(self, drafting: Drafting, draft: str) -> Hashable | None:
        """A unique key for the heads that may draft for a request and their company; None without heads."""
        drafting, name = self._resolve(drafting), self.name_of(draft)
        usable = drafting in ("auto", "heads") and name in self._heads
        return (drafting, name, self._generation) if usable else None

    def observe(self, draft: Draft, committed: Sequence[int]) -> None:
        """Learn from the committed tokens: of the whole draft, verified or not, and its losing candidates."""
        for origin, token, actual in zip(draft.origins, draft.tokens, committed, strict=False):
            for name, cell, candidate in (
                LosingCandidate(origin.source, origin.cell, token),
                *origin.losing_candidates,
            ):
                guard = self._recent if name == SuffixDrafter.name else self._heads.get(draft.name)
                if guard is not None:
                    guard.learn(cell, candidate == actual)
            if token != actual:
                return

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """Release the state of an ended request: `tokens` are prompt and answer so far."""
        remembered = self._recent in self._select(self._in_use.drafter, DEFAULT_DRAFT)
        self._recent.finish(request_id, tokens if remembered else (), prompt_length, scope)

    def _use(self, drafts: ActiveDrafts) -> None:
        """Use these drafts, with fresh guards: they may work where earlier ones failed."""
        self._in_use = drafts
        self._generation += 1
        self._recent = Guarded(self._suffix)
        self._heads = {name: Guarded(draft.heads, name) for name, draft in drafts.named.items()}
        if drafts.heads is not None:
            self._heads[DEFAULT_DRAFT] = Guarded(drafts.heads)

    def _resolve(self, drafting: Drafting) -> Drafting:
        """Resolve a request's choice: the deployment's `off` holds for all."""
        deployed = self._in_use.drafter
        return deployed if deployed == "off" or drafting == "auto" else drafting

    def _select(self, drafting: Drafting, name: str) -> list[Guarded]:
        guards: list[Guarded] = []
        if drafting in ("auto", "suffix"):
            guards.append(self._recent)
        if drafting in ("auto", "heads") and name in self._heads:
            guards.append(self._heads[name])
        return [guard for guard in guards if not guard.problem]
