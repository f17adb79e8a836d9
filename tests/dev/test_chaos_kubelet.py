"""The kubelet of the storm of rollouts."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from turbo_dev.api import Api
from turbo_dev.chaos_kubelet import MISHAPS, ChaosKubelet
from turbo_operator.api import LABEL_DEPLOYMENT, LABEL_PLAN_HASH


def pod(number: int) -> dict[str, Any]:
    labels = {LABEL_DEPLOYMENT: f"storm-{number}", LABEL_PLAN_HASH: "1234567"}
    return {"metadata": {"namespace": "storm", "labels": labels}}


def test_no_mishap_happens_a_second_time_before_each_has_happened_once() -> None:
    for seed in range(20):
        kubelet = ChaosKubelet(cast("Api", None), {"storm"}, set(), seed)
        mishaps: Counter[str] = Counter()
        for number in range(100):
            for _, what in kubelet.fate(pod(number)):
                kubelet.done[what] += 1
                mishaps[what] += what in MISHAPS
            assert max(mishaps.values()) - min(mishaps[what] for what in MISHAPS) <= 1
        assert min(mishaps[what] for what in MISHAPS) > 1
