"""Serving pods and what they say of their answers, for tests of what the operator makes of it."""

from __future__ import annotations

from typing import Any

from turbo_operator.snapshot import LoadSample, PodView
from turbo_runtime.contract.documents import Load


def load(seconds: float, plain_seconds: float, **more: Any) -> Load:
    """Of a pod that has answered for so long, and would have for `plain_seconds` without drafts."""
    idle = Load(0, 0, 0, 0, 0.0, 1000, 0, 0, 0, 0, "bitwise", False)
    told = {"generation_seconds": seconds, "baseline_generation_seconds": plain_seconds, "audits": 0}
    values = {name: getattr(idle, name) for name in idle.__dataclass_fields__} | told
    return Load(**(values | {"audit_mismatches": 0} | more))


def pod(name: str, told: Load, variant: str = "v1now", **more: Any) -> PodView:
    """One that is ready and has said this."""
    ready = {"phase": "Running", "ready": True, "ip": "10.0.0.1", "reason": None, "message": None}
    return PodView(name, variant, **{**ready, "load": LoadSample(0.0, told), **more})
