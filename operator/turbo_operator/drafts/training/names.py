"""Names of the parts of a training, what decides its draft, and the hashes of that. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from turbo_operator.api import Training, TurboDeployment, quantity
from turbo_operator.budget import DEVICE_POD_CORES
from turbo_operator.plan import Choice
from turbo_operator.planner.performance.memory import on_cpu
from turbo_operator.render.metadata import digest
from turbo_operator.snapshot import Accelerator
from turbo_runtime.version import turbo_version


def job_name(td: TurboDeployment, number: int | str) -> str:
    """`NAME-train-NUMBER`."""
    return f"{td.metadata.name}-train-{number}"


def draft_name(td: TurboDeployment, number: int | str) -> str:
    """`NAME-draft-NUMBER`."""
    return f"{td.metadata.name}-draft-{number}"


def folder(td: TurboDeployment, number: int, work: str) -> str:
    """`NAME/NUMBER-WORK` below the root of the claim of drafts: what was begun otherwise is of no use."""
    return f"{td.metadata.name}/{number}-{work}"


def is_training_job(td: TurboDeployment, name: str) -> bool:
    """Whether a Job of that name trains."""
    return _number_in(job_name(td, ""), name) is not None


def last_draft(td: TurboDeployment, names: Iterable[str]) -> int:
    """Return the largest number of a TurboDraft among the names; 0 where there is none."""
    return max((_number_in(draft_name(td, ""), name) or 0 for name in names), default=0)


def _number_in(prefix: str, name: str) -> int | None:
    """Return the number that follows the prefix; None where none does."""
    rest = name.removeprefix(prefix)
    return int(rest) if name.startswith(prefix) and rest.isascii() and rest.isdecimal() else None


def dtype(serving: Choice) -> str:
    """Return what a training computes in: as what is served, so that answers are those that are served."""
    return "float32" if serving.dtype == "float32" else "bfloat16"


def threads(td: TurboDeployment, accelerator: Accelerator) -> int:
    """Return the threads of a training: one for each core that its pod may use."""
    if not on_cpu(accelerator):
        return int(quantity(DEVICE_POD_CORES))
    overlay = td.spec.pod_template.spec.resources
    limits = (overlay.limits if overlay else None) or {}
    return max(1, int(quantity(limits["cpu"]) if "cpu" in limits else accelerator.quantity))


def spec_hash(training: Training) -> str:
    """Hash all of the spec: what ended badly waits for another one."""
    return digest(training.dump())[:8]


def work_hash(
    td: TurboDeployment, training: Training, model_digest: str, accelerator: Accelerator, dtype: str
) -> str:
    """Hash what decides the draft, as far as the operator knows it, and of whose it is: a folder that was
    begun by one is of no use to another, as `turbo distill` would say of it.

    The version of Turbo is the image's, so the operator's own counts only where it brings the image. What
    prompts say is not known; a TurboDeployment that is made again may well bring others under their name.
    """
    work = (
        td.metadata.uid,
        model_digest,
        training.prompts.dump(),
        training.domain or td.metadata.name,
        training.max_output_tokens,
        training.persistent_volume_claim.dump(),
        accelerator.name,
        threads(td, accelerator),
        dtype,
        td.spec.engine.image or turbo_version(),
    )
    return digest(work)[:8]
