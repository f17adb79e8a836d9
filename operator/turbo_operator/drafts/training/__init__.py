"""Training of drafts: whether one is due, runs or has ended, and what follows. Pure: the time is a parameter.

Everything is read from what the cluster holds: the TurboDeployment's status, the Job and its pods, and the
TurboDrafts. What decides is the same after a restart.
"""

from turbo_operator.drafts.training.accelerator_query import planned_on, question
from turbo_operator.drafts.training.decision import decide, fitting
from turbo_operator.drafts.training.hardware import dtype, threads
from turbo_operator.drafts.training.names import draft_name, folder, is_training_job, job_name
from turbo_operator.drafts.training.next_job import chosen
from turbo_operator.drafts.training.progress import spelled
from turbo_operator.drafts.training.step import AcceleratorQuery, FinishedDraft, JobRequest, TrainingDecision

__all__ = [
    "AcceleratorQuery",
    "FinishedDraft",
    "JobRequest",
    "TrainingDecision",
    "chosen",
    "decide",
    "draft_name",
    "dtype",
    "fitting",
    "folder",
    "is_training_job",
    "job_name",
    "planned_on",
    "question",
    "spelled",
    "threads",
]
