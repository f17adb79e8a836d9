"""Training of drafts: whether one is due, runs or has ended, and what follows. Pure: the time is a parameter.

Everything is read from what the cluster holds: the TurboDeployment's status, the Job and its pods, and the
TurboDrafts. What decides is the same after a restart.
"""

from turbo_operator.drafts.training.decision import decide, fitting
from turbo_operator.drafts.training.job_state import (
    NO_TRAINING,
    AcceleratorQuery,
    FinishedDraft,
    JobRequest,
    TrainingDecision,
    format_progress,
)
from turbo_operator.drafts.training.names import dtype, is_training_job
from turbo_operator.drafts.training.next_job import chosen, question

__all__ = [
    "NO_TRAINING",
    "AcceleratorQuery",
    "FinishedDraft",
    "JobRequest",
    "TrainingDecision",
    "chosen",
    "decide",
    "dtype",
    "fitting",
    "format_progress",
    "is_training_job",
    "question",
]
