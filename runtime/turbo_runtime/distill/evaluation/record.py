"""What is told of heads beside their tensors: how they were made, and what they are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from turbo_runtime.atomic_write import write_whole
from turbo_runtime.distill.evaluation.acceptance import Evaluation
from turbo_runtime.distill.evaluation.speedup_benchmark import Gain
from turbo_runtime.distill.workspace import EVALUATION_FILE


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """Of one domain's prompts that were held out."""

    unseen: Evaluation  # without answers that stand word for word among those learnt from
    whole: Evaluation
    measured_on: str  # digest of the unseen answers and their prompts
    gains: tuple[Gain, ...] = ()  # measured on the unseen


@dataclass(frozen=True, slots=True)
class Record:
    """Of one distillation."""

    method: str
    domains: Mapping[str, DomainRecord]
    answers: Mapping[str, int]  # by part of the prompts, looping ones left out
    left_out: int  # answers that say one thing over and over or end at once
    losses: tuple[float, ...]  # by epoch
    judged: tuple[float, ...]  # acceptance length on the judges' answers, by epoch
    best: int  # epoch, from 0
    seconds: Mapping[str, float]  # by stage, but for what was lost with a run that was killed

    def write(self, folder: Path) -> None:
        """Beside the tensors."""
        write_whole(folder / EVALUATION_FILE, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")
