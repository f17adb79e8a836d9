"""Another request gets another folder, and the same one finds its own."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from turbo_dev.trainings import CORES, FACTS, HOUR, L4, NOW, job, look, pod, ran, seen, td
from turbo_operator.api import TurboDeployment
from turbo_operator.drafts.training import manifests
from turbo_operator.drafts.training.manifests import draft_name, folder, job_name, threads


def work(it: TurboDeployment, accelerator: Any = CORES, dtype: str = "float32") -> str:
    training = it.spec.speculation.training
    assert training is not None
    return manifests.work_hash(it, training, FACTS.digest, accelerator, dtype)


def test_a_deployment_that_is_made_again_under_a_name_has_folders_of_its_own() -> None:
    one = td()
    two = one.model_copy(update={"metadata": one.metadata.model_copy(update={"uid": "another"})})
    assert folder(one, 1, work(one)) == f"chat/1-{work(one)}"
    assert work(one) != work(two)
    assert (job_name(one, 1), draft_name(one, 1)) == ("chat-train-1", "chat-draft-1")


@pytest.mark.parametrize(
    "other",
    [
        td(maxOutputTokens=64),
        td(domain="support"),
        td(prompts={"type": "ConfigMap", "configMap": {"name": "others"}}),
        td(persistentVolumeClaim={"claimName": "elsewhere"}),
        td(spec={"engine": {"type": "Turbo", "image": "another"}}),
        td(spec={"podTemplate": {"spec": {"resources": {"limits": {"cpu": "1"}}}}}),
    ],
)
def test_what_decides_the_draft_is_another_work(other: TurboDeployment) -> None:
    assert work(other) != work(td())


def test_arithmetic_threads_and_machine_are_of_the_work_and_money_is_not() -> None:
    assert work(td(), dtype="bfloat16") != work(td())
    assert work(td(), replace(CORES, quantity=Decimal(4))) != work(td())
    assert work(td(), L4) != work(td())
    for same in (td(maxCost="1"), td(domain="chat"), td(trigger={"window": "1h"}), td(acceleratorName="cpu")):
        assert work(same) == work(td())
    assert work(td(), replace(CORES, prices={}, memory_bytes=1)) == work(td())


def test_an_upgrade_of_the_operator_is_another_work_only_where_it_brings_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned = {"engine": {"type": "Turbo", "image": "registry.example/runtime:1"}}
    before = work(td()), work(td(spec=pinned))
    monkeypatch.setattr(manifests, "turbo_version", lambda: "9.9.9")
    assert (work(td()) == before[0], work(td(spec=pinned)) == before[1]) == (False, True)


@pytest.mark.parametrize(("cores", "limit", "number"), [("2", None, 2), ("0.9", None, 1), ("2", "3500m", 3)])
def test_there_is_a_thread_for_each_core(cores: str, limit: str | None, number: int) -> None:
    template = {"podTemplate": {"spec": {"resources": {"limits": {"cpu": limit}}}}} if limit else {}
    assert threads(td(spec=template), replace(CORES, quantity=Decimal(cores))) == number
    assert threads(td(spec=template), L4) == 2


def test_half_done_work_goes_on_where_it_was_begun_and_nowhere_else() -> None:
    late = seen(children=(job(failed=True, reason="DeadlineExceeded", ended=NOW + HOUR),))
    over = look(td(ran(maxCost="0.04"), maxCost="0.04"), late, NOW + HOUR).state
    asked = {"maxCost": "1"}
    same = look(td(over, acceleratorName="cpu", **asked), seen()).job_request
    elsewhere = look(td(over, acceleratorName="l4", **asked), seen()).job_request
    larger = seen(accelerators={"cpu": replace(CORES, quantity=Decimal(4)), "l4": L4})
    other = look(td(over, **asked), larger).job_request
    assert same is not None
    assert elsewhere is not None
    assert other is not None
    assert (same.number, elsewhere.number, other.number) == (1, 2, 2)
    assert elsewhere.choice.accelerator.name == "l4"


def test_what_serves_in_another_type_meanwhile_begins_anew() -> None:
    dtype = {"model": {"uri": "pvc://models/chat", "dtype": "BFloat16"}}
    begun = look(td(ran(), spec=dtype), seen()).job_request
    assert begun is not None
    assert begun.number == 2
    assert look(td(ran(), spec=dtype), seen(children=(job(),), trainings=(pod(),))).job_request is None
