"""What happened in the engine since it started, counted in place: a step counts several times per answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_runtime.engine.verify import Verdict


@dataclass(slots=True)
class Counters:
    """The fields of `EngineStats` of the same names, which says what they are."""

    prompts: int = 0
    prompt_tokens: int = 0
    begun_prompt_tokens: int = 0
    generated_tokens: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    chosen_drafts: list[int] = field(default_factory=list)
    step_seconds: float = 0.0
    forward_seconds: float = 0.0
    audits: int = 0
    audit_mismatches: int = 0

    def count_prompt(self, tokens: int) -> None:
        """An answer was taken in."""
        self.prompts += 1
        self.prompt_tokens += tokens

    def count_verdict(self, verdict: Verdict, drafted: int) -> None:
        """One answer's part of a step, with so many drafts."""
        self.generated_tokens += len(verdict.tokens)
        _reach(self.chosen_drafts, drafted + 1)
        self.chosen_drafts[drafted] += 1
        if drafted:
            self.drafts += 1
            self.draft_tokens += drafted
            self.accepted_tokens += verdict.accepted
            _reach(self.accepted_per_position, drafted)
            for position in range(verdict.accepted):
                self.accepted_per_position[position] += 1

    def count_step(self, seconds: float, forward_seconds: float) -> None:
        """A step took so long, of it in the model."""
        self.step_seconds += seconds
        self.forward_seconds += forward_seconds

    def count_audit(self, held: bool) -> None:
        """An answer was replayed."""
        self.audits += 1
        self.audit_mismatches += not held


def _reach(counts: list[int], length: int) -> None:
    counts += [0] * (length - len(counts))
