"""Training of drafts: whether one is due, runs or has ended, and what follows. Pure: the time is a parameter.

Everything is read from what the cluster holds: the TurboDeployment's status, the Job and its pods, and the
TurboDrafts. What decides is the same after a restart.
"""

from turbo_operator.training.decide import decide, fitting
from turbo_operator.training.due import chosen
from turbo_operator.training.machine import dtype, threads
from turbo_operator.training.names import draft_name, folder, is_training_job, job_name
from turbo_operator.training.progress import spelled
from turbo_operator.training.question import planned_on, question
from turbo_operator.training.step import Ask, Begin, Made, Step, Told

__all__ = [
    "Ask",
    "Begin",
    "Made",
    "Step",
    "Told",
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
