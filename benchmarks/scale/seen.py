"""What is read of the operator while it works: its memory, its own histogram, its writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

RECONCILES = "turbo_operator_reconcile_seconds_bucket"
Buckets = dict[float, float]  # by upper bound, how many were at most that


def read_buckets(url: str) -> Buckets:
    """Read how long reconciles took, of all results together."""
    page = httpx.get(url, timeout=30.0, trust_env=False).text
    found: Buckets = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == RECONCILES:
                bound = float(sample.labels["le"])
                found[bound] = found.get(bound, 0.0) + sample.value
    return found


def quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float:
    """The bound of the bucket that a share of what happened in between lies within; 0 where nothing did."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = counts.get(math.inf, 0.0)
    return next((bound for bound, count in counts.items() if total and count >= share * total), 0.0)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that a share of them is at most."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def peak_mib(pid: int) -> float:
    """The most memory that a process has held so far."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (held,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return held / 1024.0
