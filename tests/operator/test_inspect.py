"""A model's facts: from the pod that read them, or the ConfigMap that keeps them; of this source alone."""

from __future__ import annotations

from typing import Any

from turbo_operator import render
from turbo_operator.api import TurboDeployment, parse
from turbo_operator.controller.decision import is_stale_inspection
from turbo_operator.controller.snapshot_builder import read_model
from turbo_operator.snapshot import ChildView, JobPod
from turbo_runtime.contract.documents import ModelInfo, ModelShape

SHAPE = ModelShape("LlamaForCausalLM", 1000, 2, 8, 2, 1, 4, 100, 64, "float32")
FACTS = ModelInfo(SHAPE, "sha256:00", None, 4000)


def deployment(uri: str = "pvc://models/m.gguf") -> TurboDeployment:
    return parse(
        {
            "apiVersion": "serving.turbo.dev/v1alpha1",
            "kind": "TurboDeployment",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u"},
            "spec": {"model": {"uri": uri}},
        }
    )


TD = deployment()


def kept(**data: str) -> ChildView:
    found = render.facts_data(TD, FACTS) | data
    return ChildView("ConfigMap", render.model_configmap_name(TD), "c", None, data=found)


def pod(**fields: Any) -> JobPod:
    view = {
        "name": "p",
        "job": render.job_name(TD),
        "phase": "Succeeded",
        "exit_code": 0,
        "reason": None,
        "message": FACTS.to_json(),
    }
    return JobPod(**(view | fields))


def test_nothing_is_known_and_nothing_is_wrong_before_the_pod_ends() -> None:
    assert read_model(TD, [], []) == (None, None)
    assert read_model(TD, [], [pod(exit_code=None, message=None)]) == (None, None)


def test_the_answer_is_read_from_the_pod_and_then_from_the_configmap() -> None:
    assert read_model(TD, [], [pod()]) == (FACTS, None)
    assert read_model(TD, [kept()], []) == (FACTS, None)


def test_an_answer_that_was_kept_before_there_were_adapters_is_as_good() -> None:
    """Found in review: an upgrade inspected every model anew, and took the next commit of a branch."""
    shape = (
        '"architecture":"LlamaForCausalLM","dtype":"float32","embedding_parameters":0,"expert_parameters":0,'
        '"experts":0,"experts_per_token":0,"head_dim":4,"heads":2,"hidden_size":8,"kv_heads":1,"kv_latent":0,'
        '"layers":2,"max_position":64,"mlp_width":0,"mtp_layers":0,"parameters":1000,"quantization":null,'
        '"quantized_parameters":0,"sliding_layers":0,"sliding_window":0,"vocab_size":100'
    )
    facts = f'{{"digest":"sha256:00","revision":null,"shape":{{{shape}}},"weight_bytes":4000}}'
    data = {"facts.json": facts, "source": "f6wk", "seal": "8cf4afce065be8bf"}
    stored = ChildView("ConfigMap", render.model_configmap_name(TD), "c", None, data=data)
    assert read_model(TD, [stored], []) == (FACTS, None)


def test_an_answer_about_another_source_counts_for_nothing() -> None:
    other = deployment("pvc://models/other.gguf")
    assert read_model(other, [kept()], [pod()]) == (None, None)


def test_a_configmap_that_somebody_broke_is_answered_anew() -> None:
    assert read_model(TD, [kept(**{render.FACTS_KEY: "{}"})], []) == (None, None)
    assert read_model(TD, [kept(**{render.FACTS_KEY: "{}"})], [pod()]) == (FACTS, None)


def test_what_holds_the_answer_up_is_said_in_a_sentence() -> None:
    pulling = pod(exit_code=1, reason="ErrImagePull", message="no such image")
    assert read_model(TD, [], [pulling]) == (None, "Pod p: no such image")
    assert read_model(TD, [], [pod(exit_code=1, reason="Error", message=None)]) == (None, "Pod p: Error")
    assert read_model(TD, [], [pod(message="Segmentation fault")])[1].startswith(
        "Pod p ended without the model's facts"
    )
    idle = ChildView("Job", render.job_name(TD), "j", None)
    assert "has made no pod" in read_model(TD, [idle], [])[1]
    assert read_model(TD, [idle], [pod(exit_code=None, message=None)]) == (None, None)
    failed = ChildView("Job", render.job_name(TD), "j", None, failed=True, message="it reached its limit")
    assert read_model(TD, [failed], []) == (None, f"Job {failed.name} failed: it reached its limit")


def test_facts_that_somebody_edited_are_not_believed() -> None:
    grown = FACTS.to_json().replace('"parameters":1000', '"parameters":7000000000')
    assert grown != FACTS.to_json()
    assert read_model(TD, [kept(**{render.FACTS_KEY: grown})], []) == (None, None)
    wrong = FACTS.to_json().replace('"layers":2', '"layers":"2"')
    assert read_model(TD, [kept(**{render.FACTS_KEY: wrong})], []) == (None, None)


def test_a_job_of_another_spec_or_whose_answer_is_lost_is_made_anew() -> None:
    job = ChildView("Job", render.job_name(TD), "j", "hash", complete=True)
    assert not is_stale_inspection(job, "hash", [pod()])
    assert is_stale_inspection(job, "another", [pod()])
    assert is_stale_inspection(job, "hash", [])
    assert is_stale_inspection(job, "hash", [pod(job="somebody-elses")])
    running = ChildView("Job", render.job_name(TD), "j", "hash")
    assert not is_stale_inspection(running, "hash", [])
    assert read_model(TD, [job], []) == (None, None)
