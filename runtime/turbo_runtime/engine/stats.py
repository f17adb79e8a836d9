"""Counters of the engine since its start, changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from turbo_runtime.drafters.heads.drafter import HeadsDrafter
from turbo_runtime.drafters.interface import Draft
from turbo_runtime.messages import DraftStats
from turbo_runtime.speculation.verification import VerificationResult


@dataclass(slots=True)
class Counters:
    """The fields of `EngineStats` of the same names."""

    prompts: int = 0
    prompt_tokens: int = 0
    begun_prompt_tokens: int = 0
    generated_tokens: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    verified_draft_length: list[int] = field(default_factory=list)
    step_seconds: float = 0.0
    forward_seconds: float = 0.0
    audits: int = 0
    audit_mismatches: int = 0
    _by_draft: dict[str, DraftStats] = field(default_factory=dict)

    def count_prompt(self, tokens: int) -> None:
        """Count an accepted answer."""
        self.prompts += 1
        self.prompt_tokens += tokens

    def count_verdict(self, verdict: VerificationResult, drafted: int, draft: Draft, chosen: str) -> None:
        """Count one answer's part of a step: `drafted` tokens were verified, the first of `draft` or those
        that a grammar forced; `chosen`: its trained draft.
        """
        self.generated_tokens += len(verdict.tokens)
        _reach(self.verified_draft_length, drafted + 1)
        self.verified_draft_length[drafted] += 1
        if drafted:
            self.drafts += 1
            self.draft_tokens += drafted
            self.accepted_tokens += verdict.accepted
            _reach(self.accepted_per_position, drafted)
            for position in range(verdict.accepted):
                self.accepted_per_position[position] += 1
            before = self._by_draft.get(chosen, DraftStats(chosen))
            self._by_draft[chosen] = replace(
                before,
                drafts=before.drafts + 1,
                draft_tokens=before.draft_tokens + drafted,
                accepted_tokens=before.accepted_tokens + verdict.accepted,
                own_draft_tokens=before.own_draft_tokens + draft.drafted_by(HeadsDrafter.name, drafted),
                own_accepted_tokens=before.own_accepted_tokens
                + draft.drafted_by(HeadsDrafter.name, verdict.accepted),
            )

    def count_step(self, seconds: float, forward_seconds: float) -> None:
        """Count a step and its time in the model."""
        self.step_seconds += seconds
        self.forward_seconds += forward_seconds

    def count_audit(self, passed: bool) -> None:
        """Count a replayed answer."""
        self.audits += 1
        self.audit_mismatches += not passed

    def values(self) -> dict[str, Any]:
        """The counters as keyword arguments of `EngineStats`."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "_by_draft"}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    def by_draft(self, versions: Mapping[str, str]) -> tuple[DraftStats, ...]:
        """The counters of the drafts in use, by `versions`; the others are dropped."""
        self._by_draft = {
            name: replace(self._by_draft.get(name, DraftStats(name)), version=version)
            for name, version in versions.items()
        }
        return tuple(self._by_draft.values())


def _reach(counts: list[int], length: int) -> None:
    counts += [0] * (length - len(counts))
