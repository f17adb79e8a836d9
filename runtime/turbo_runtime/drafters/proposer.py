"""What the engine's loop holds: the drafts in use, for each request those that it wants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from turbo_runtime.drafters.fail_safe import Guarded
from turbo_runtime.drafters.hybrid import propose
from turbo_runtime.drafters.interface import Draft, DraftRequest, LosingCandidate
from turbo_runtime.drafters.loader import ActiveDrafts
from turbo_runtime.drafters.reload import WatchedFile
from turbo_runtime.drafters.suffix import SuffixDrafter
from turbo_runtime.messages import DEFAULT_DRAFT, Drafting


class Proposer:
    """Proposes for whole batches, and learns from what is committed."""

    def __init__(
        self,
        in_use: ActiveDrafts | None = None,
        *,
        file: WatchedFile[ActiveDrafts] | None = None,
        suffix: SuffixDrafter | None = None,
    ) -> None:
        """`file` is followed by `poll`; `in_use` is what holds until it says something else."""
        self._in_use = ActiveDrafts() if in_use is None else in_use
        self._file = file
        self._suffix = SuffixDrafter() if suffix is None else suffix
        self.heads_seconds: dict[Hashable, float] = {}  # of the last proposal, of those that were asked
        self._taken_up = 0  # times that drafts were taken into use
        self._guard()

    @property
    def version(self) -> str:
        """Of the deployment's own draft."""
        return self._in_use.version

    @property
    def versions(self) -> dict[str, str]:
        """Of each draft that a request can choose, by its name; the deployment's own comes first."""
        named = {name: trained.version for name, trained in self._in_use.named.items()}
        return {DEFAULT_DRAFT: self._in_use.version, **named}

    def name_of(self, draft: str) -> str:
        """Which one a request has that chose `draft`: the default where that is in use no more."""
        return draft if draft in self._in_use.named else DEFAULT_DRAFT

    @property
    def problem(self) -> str:
        """Why they are not what the file names, or give no drafts; empty if all is well."""
        told = [self._file.problem] if self._file else []
        return "; ".join(filter(None, [*told, *(source.problem for source in self._guarded)]))

    @property
    def use_hidden(self) -> bool:
        """Whether any of them looks at the model's hidden rows."""
        return bool(self._heads)

    @property
    def num_bytes(self) -> int:
        """Memory of what is remembered to draft from."""
        return self._suffix.num_bytes

    def poll(self, now: float) -> None:
        """Take up what the file names by now. To be called between steps; takes microseconds."""
        loaded = self._file.poll(now) if self._file else None
        if loaded is not None and loaded != self._in_use:
            self._in_use = loaded
            self._guard()

    def expect(self, request_id: str, tokens: Sequence[int], drafting: Drafting) -> None:
        """A request's prompt is being computed and drafts may be wanted behind it: `read` it meanwhile.
        `tokens` only ever grow.
        """
        if self._recent in self._sources(self._drafter(drafting), DEFAULT_DRAFT):
            self._recent.attempt(lambda: self._suffix.expect(request_id, tokens), None)

    @property
    def waiting(self) -> bool:
        """Whether there is something to `read`."""
        return self._suffix.waiting and not self._recent.problem

    def read(self, most: int) -> int:
        """Read at most so many tokens of prompts and of answers to be remembered; how many it were."""
        return self._recent.attempt(lambda: self._suffix.read(most), 0)

    def propose(
        self,
        wants: Sequence[DraftRequest],
        least: float = 0.0,
        pays: Callable[[Hashable], bool] = lambda _: True,
        /,
    ) -> list[Draft]:
        """One draft for each want, perhaps an empty one, which ends where less than `least` of it survives; a
        pass for all that want the same. Heads, which take time, are asked beside others where `pays` says so
        of them: see `heads_of`.
        """
        self.heads_seconds = {}
        drafts = [Draft()] * len(wants)
        groups: defaultdict[tuple[Drafting, str], list[int]] = defaultdict(list)
        for index, want in enumerate(wants):
            groups[self._drafter(want.drafting), self.name_of(want.name)].append(index)
        for (drafter, name), indices in groups.items():
            sources, heads = self._sources(drafter, name), self._heads.get(name)
            key = self._key(drafter, name)
            if heads in sources and len(sources) > 1 and not pays(key):
                sources.remove(heads)
            before = heads.seconds if heads is not None else 0.0
            proposed = propose(sources, [wants[index] for index in indices], least)
            if heads is not None and heads in sources:
                self.heads_seconds[key] = heads.seconds - before
            for index, draft in zip(indices, proposed, strict=True):
                drafts[index] = replace(draft, name=name)
        return drafts

    def heads_of(self, drafting: Drafting, draft: str) -> Hashable | None:
        """Which heads a request may be drafted for by, and whether beside others, in a key that no others
        ever have; None: by none.
        """
        drafter, name = self._drafter(drafting), self.name_of(draft)
        return self._key(drafter, name) if drafter in ("auto", "heads") and name in self._heads else None

    def _key(self, drafter: Drafting, name: str) -> Hashable:
        return drafter, name, self._taken_up

    def observe(self, draft: Draft, committed: Sequence[int]) -> None:
        """What was committed where the draft was made for. The whole draft teaches, however little of it was
        verified, and so does what was outbid: the committed tokens are what they are.
        """
        for evidence, token, said in zip(draft.evidence, draft.tokens, committed, strict=False):
            for name, cell, told in (
                LosingCandidate(evidence.source, evidence.cell, token),
                *evidence.outbid,
            ):
                source = self._recent if name == SuffixDrafter.name else self._heads.get(draft.name)
                if source is not None:
                    source.learn(cell, told == said)
            if token != said:
                return

    def finish(self, request_id: str, tokens: Sequence[int], prompt_length: int, scope: str) -> None:
        """The request ended: `tokens` are prompt and answer so far. What it held is let go."""
        remembered = self._recent in self._sources(self._in_use.drafter, DEFAULT_DRAFT)
        self._recent.finish(request_id, tokens if remembered else (), prompt_length, scope)

    def _guard(self) -> None:
        """What is taken up anew may be well where what was there before had failed."""
        self._taken_up += 1
        self._recent = Guarded(self._suffix)
        self._heads: dict[str, Guarded] = {}
        if self._in_use.heads is not None:
            self._heads[DEFAULT_DRAFT] = Guarded(self._in_use.heads)
        for name, trained in self._in_use.named.items():
            self._heads[name] = Guarded(trained.heads, name)
        self._guarded = [self._recent, *self._heads.values()]

    def _drafter(self, drafting: Drafting) -> Drafting:
        """The deployment's `off` holds for all; else a request may choose."""
        deployed = self._in_use.drafter
        return deployed if deployed == "off" or drafting == "auto" else drafting

    def _sources(self, drafter: Drafting, name: str) -> list[Guarded]:
        sources: list[Guarded] = []
        if drafter in ("auto", "suffix"):
            sources.append(self._recent)
        if drafter in ("auto", "heads") and name in self._heads:
            sources.append(self._heads[name])
        return [source for source in sources if not source.problem]
