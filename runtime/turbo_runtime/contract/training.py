"""What a training tells whoever runs it: how far it is, and what it has made. The standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turbo_runtime.contract.codec import JsonDocument

PROGRESS_PATH = "/progress"  # `TrainingProgress` as JSON
MOST_DOMAINS = 6  # of a draft's worth, so that it fits a termination message


@dataclass(frozen=True, slots=True)
class MeasuredGain:
    """Speeds over no drafts at so many requests at a time, where a draft was trained."""

    batch: int
    before: float  # from memory alone
    after: float  # with the draft


@dataclass(frozen=True, slots=True)
class DomainEvaluation:
    """What a draft is worth on one kind of traffic, on prompts that it has not learnt from."""

    domain: str
    acceptance_length: float | None = None  # None: no answer was left to measure it on
    acceptance_per_position: tuple[float, ...] = ()
    gains: tuple[MeasuredGain, ...] = ()

    def to_api(self) -> dict[str, Any]:
        """Return it as `spec.evaluation` of a TurboDraft has it."""
        length = self.acceptance_length
        return {
            "domain": self.domain,
            **({} if length is None else {"acceptanceLength": f"{length:.3f}"}),
            "acceptancePerPosition": [f"{share:.3f}" for share in self.acceptance_per_position],
            "speedups": [
                {
                    "batchSize": gain.batch,
                    "suffixOnly": f"{gain.before:.3f}",
                    "withDraft": f"{gain.after:.3f}",
                }
                for gain in self.gains
            ],
        }


@dataclass(frozen=True, slots=True)
class DraftManifest(JsonDocument):
    """What `turbo distill` writes as its pod's termination message."""

    method: str  # heads or eagle3
    version: str
    digest: str  # of the artefact
    target_digest: str
    domain: str
    captured: int  # captured prompts that it learnt from
    worth: tuple[DomainEvaluation, ...]  # at most `MOST_DOMAINS` of them


@dataclass(frozen=True, slots=True)
class TrainingProgress(JsonDocument):
    """The body of `PROGRESS_PATH`: how far `turbo distill` is."""

    stage: str
    done: int
    total: int
    unit: str
    left_seconds: float | None = None  # of the stage; None: not known yet
