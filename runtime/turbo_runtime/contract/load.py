"""What a serving pod reports at `/load`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from turbo_runtime.contract.codec import JsonDocument
from turbo_runtime.contract.model import StepTime

Guarantee = Literal["bitwise", "distribution"]


@dataclass(frozen=True, slots=True)
class Load(JsonDocument):
    """The body of `/load`: a few numbers that autoscaler, planner and router read every few seconds."""

    running_requests: int
    waiting_requests: int
    running_tokens: int  # prompt and answer tokens of running requests held in the KV cache
    waiting_tokens: int  # prompt tokens of waiting requests
    kv_cache_usage: float  # 0 to 1
    kv_cache_tokens: int  # capacity
    drafts: int  # verification passes with at least one drafted token, since start
    draft_tokens: int
    accepted_tokens: int
    generated_tokens: int
    guarantee: Guarantee
    draining: bool
    # Absent means unknown, of an older or another runtime.
    max_num_seqs: int | None = None  # requests decoded together at most
    prompts: int | None = None  # requests taken in, since start
    prompt_tokens: int | None = None  # of those
    step_times: tuple[StepTime, ...] | None = None  # of the start-up micro-benchmark; None: not made
    speedup: float | None = None  # tokens per second lately over those without drafts; None: not known
    generation_seconds: float | None = None  # of steps that brought answers tokens, since start
    baseline_generation_seconds: float | None = None  # that as many tokens would have taken without drafts
    audits: int | None = None  # answers replayed without speculation, since start
    audit_mismatches: int | None = None
    draft_version: str | None = None  # of the draft weights in use; empty: none
    draft_error: str | None = None  # why drafts are not those asked for; empty: they are
    captured: int | None = None  # prompts kept to learn from, since start
