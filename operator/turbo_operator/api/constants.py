"""The fixed names of the API but those of conditions: group, labels, annotations, values of fields."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Final

GROUP: Final = "serving.turbo.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "serving.turbo.dev/v1alpha1"
TURBODEPLOYMENT: Final = "TurboDeployment"
TURBOACCELERATOR: Final = "TurboAccelerator"
TURBODRAFT: Final = "TurboDraft"
TURBOBUDGET: Final = "TurboBudget"
PLURALS = {kind: f"{kind.lower()}s" for kind in (TURBODEPLOYMENT, TURBOACCELERATOR, TURBODRAFT, TURBOBUDGET)}
FIELD_MANAGER = "turbo-operator"

MAX_REPLICAS: Final = 1000  # as many as the scale subresource takes

# A child's name is the TurboDeployment's and a suffix of at most 13 characters, and must fit a label's 63.
MAX_NAME_LENGTH = 50

LABEL_DEPLOYMENT = f"{GROUP}/deployment"
LABEL_PLAN_HASH = f"{GROUP}/plan-hash"
LABEL_ENGINE = f"{GROUP}/engine"  # of a serving pod
LABEL_ACCELERATOR = f"{GROUP}/accelerator"
LABEL_ACCELERATOR_COUNT = f"{GROUP}/accelerator-count"  # of one pod
LABEL_NODES = f"{GROUP}/nodes"  # of a pod whose replica is on several: on how many
LABEL_CAPACITY_TYPE = f"{GROUP}/capacity-type"
LABEL_DRAFT_VERSION = (
    f"{GROUP}/draft-version"  # of a pod that a new draft is tried on, or of vLLM that loads one
)
LABEL_OWNER_UID = f"{GROUP}/owner-uid"  # of a serving pod: of its TurboDeployment, which nobody else's has
LABEL_ROLE = f"{GROUP}/role"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_COMPONENT = "app.kubernetes.io/component"
ROLE_SERVING = "serving"
ROLE_WORKER = "worker"  # of a replica on several nodes: a pod that does not answer itself
ROLE_INSPECT = "inspect"
ROLE_FETCH = "fetch"
ROLE_ROUTER = "router"
ROLE_TRAIN = "train"

ANNOTATION_APPLIED_HASH = f"{GROUP}/applied-hash"
ANNOTATION_APPROVED_PLAN = f"{GROUP}/approved-plan"  # written by the user: the hash of a plan

OFF: Final = "Off"  # no speculation, where a method is named


_MAX_LABEL = 63
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_TOLD_APART_BY = 8  # hexadecimal digits


def label_value(name: str) -> str:
    """Convert a name to a valid label value: where it is none, other characters are replaced, what is too
    long is cut, and a short digest of the whole is appended.
    """
    if len(name) <= _MAX_LABEL and _LABEL_VALUE.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_TOLD_APART_BY]
    kept = re.sub(r"[^-A-Za-z0-9_.]", "-", name)[: _MAX_LABEL - _TOLD_APART_BY - 1].strip("-_.")
    return f"{kept}-{digest}" if kept else digest


class EngineName(StrEnum):
    """The programs that a plan may drive."""

    TURBO = "Turbo"
    VLLM = "VLLM"


class Routing(StrEnum):
    """How requests reach the pods."""

    SERVICE = "Service"
    ROUTER = "Router"
    GATEWAY = "Gateway"


class CapacityType(StrEnum):
    """How an accelerator is paid for."""

    ON_DEMAND = "OnDemand"
    SPOT = "Spot"
    RESERVED = "Reserved"


class Provisioning(StrEnum):
    """Whether the cluster has what nodes have now, or grows when pods wait."""

    FIXED = "Fixed"
    ELASTIC = "Elastic"


class Placement(StrEnum):
    """Where a draft runs: with the model, on an accelerator of its own in the same pod, or on cores."""

    COLOCATED = "Colocated"
    SEPARATE = "Separate"
    CPU = "CPU"


class Provenance(StrEnum):
    """What a prediction rests on, the weakest first."""

    ASSUMED = "Assumed"  # acceptance or lengths that nobody has measured here
    ROOFLINE = "Roofline"  # the step-time model with the catalog's figures
    CALIBRATED = "Calibrated"  # the same, scaled by three points that a pod measured at its start
    MEASURED = "Measured"
