"""What the parts of a training are called, by its number, and the hashes that tell two trainings apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from turbo_operator.api import Training, TurboDeployment
from turbo_runtime.version import turbo_version


def job_name(td: TurboDeployment, number: int) -> str:
    """`NAME-train-NUMBER`."""
    return f"{td.metadata.name}-train-{number}"


def draft_name(td: TurboDeployment, number: int) -> str:
    """`NAME-draft-NUMBER`."""
    return f"{td.metadata.name}-draft-{number}"


def folder(td: TurboDeployment, number: int) -> str:
    """`NAME/NUMBER`, below the root of the claim of drafts."""
    return f"{td.metadata.name}/{number}"


def is_training_job(td: TurboDeployment, name: str) -> bool:
    """Whether a Job of that name trains."""
    return number_in(f"{td.metadata.name}-train-", name) is not None


def number_in(prefix: str, name: str) -> int | None:
    """The number that follows the prefix; None where none does."""
    rest = name.removeprefix(prefix)
    return int(rest) if name.startswith(prefix) and rest.isascii() and rest.isdecimal() else None


def largest(prefix: str, names: Iterable[str]) -> int:
    """The largest number that follows the prefix in one of the names; 0 where there is none."""
    return max((number_in(prefix, name) or 0 for name in names), default=0)


def spec_hash(training: Training) -> str:
    """Of all that is asked: what ended badly waits for another one."""
    return _hash(training.dump())


def work_hash(td: TurboDeployment, training: Training, model_digest: str) -> str:
    """Of what decides the draft: a folder that was begun by one is of no use to another, nor to another
    version of Turbo, as `turbo distill` would say of it.
    """
    resources = td.spec.template.resources if td.spec.template else None
    return _hash(
        [
            model_digest,
            training.prompts.dump(),
            training.domain,
            training.answer_tokens,
            training.accelerator,
            training.pvc.dump(),
            td.spec.model.dtype,
            td.spec.engine.image,
            turbo_version(),
            resources.dump() if resources else None,
        ]
    )


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
