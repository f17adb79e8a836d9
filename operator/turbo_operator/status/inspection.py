"""What is known of the model, and what holds up the Job that reads it. Pure."""

from __future__ import annotations

from turbo_operator import api
from turbo_operator.api import ModelInspectedReason
from turbo_operator.api.condition_state import ConditionState, false, sentence, true, unknown
from turbo_operator.render import job_name
from turbo_operator.snapshot import Snapshot
from turbo_operator.status.failures import dropped_image, remedy_of


def model_inspected(td: api.TurboDeployment, observed: Snapshot) -> ConditionState:
    """Whether the model is known."""
    facts = observed.model
    if facts is not None:
        shape, parameters = facts.shape, facts.shape.parameters / 1e6
        message = f"{shape.architecture} of {parameters:.1f} million parameters, {facts.digest}."
        fit = [f"{adapter.name} (rank {adapter.rank})" for adapter in facts.adapters]
        message += f" Adapters that fit it: {', '.join(fit)}." if fit else ""
        return true(ModelInspectedReason.INSPECTED, message)
    if observed.inspected_by is not None:
        message = f"The inspect Job of TurboDeployment {observed.inspected_by} reads the same model's shape."
        return unknown(ModelInspectedReason.INSPECTING, message)
    name, error = job_name(td), sentence(observed.model_error)
    job = next((child for child in observed.children if (child.kind, child.name) == ("Job", name)), None)
    if job is not None and (dropped := dropped_image(td, job)):
        return false(ModelInspectedReason.INSPECT_FAILED, dropped)
    if job is not None and (job.failed or (job.complete and error)):
        message = f"The model could not be read. {error or 'The Job left no message.'}"
        fields = "spec.model or spec.adapters" if td.spec.adapters else "spec.model"
        remedy = f" Correct {fields}, or delete the Job {job.name} to try again."
        return false(ModelInspectedReason.INSPECT_FAILED, message + remedy)
    message = "The inspect Job reads the model's shape."
    if error:
        remedies = (remedy_of(pod.reason, pod.message) for pod in observed.inspecting)
        message = f"{message} Its last attempt said: {error}{next(filter(None, remedies), '')}"
        return unknown(ModelInspectedReason.INSPECT_RETRYING, message)
    return unknown(ModelInspectedReason.INSPECTING, message)
