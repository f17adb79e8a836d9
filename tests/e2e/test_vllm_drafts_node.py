"""Drafts for vLLM on a real node: one is trained from the pods' own answers, tried and promoted, a bad one is
tried and rejected, and no request fails meanwhile. All of them pass through the router.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import weights
from safetensors.torch import load_file, save_file

from turbo_dev import dns, model, release, served, sizes, vllm_image, volume
from turbo_dev.calls import Crowd, describe
from turbo_dev.cluster import Cluster
from turbo_dev.served import NAMESPACE, Served
from turbo_operator import resources
from turbo_operator.api import API_VERSION, LABEL_DRAFT_VERSION

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="3 GB of vLLM on a real node: make test-full"),
]
NAME, CLAIM, DRAFTS = "taught", "smollm2-float32", "vllm-drafts"
DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "distill" / "json.jsonl"
PROMPTS, ANSWER_TOKENS = 120, 48
PATIENCE, CLIENT_SECONDS = 2400.0, 300.0  # a pod loads, and a draft is trained, beside one that answers
FOLDER_USER = 65532  # as whom pods read


@pytest.fixture(scope="module")
def chat(node_cluster: Cluster) -> Iterator[Served]:
    """One replica of vLLM without drafts, prompts, and a claim for drafts."""
    image = vllm_image.build()
    served.install(node_cluster)
    vllm_image.deliver(image, node_cluster)
    folder = volume.claim(node_cluster.access, node_cluster, CLAIM)
    for path in weights.float32_folder(model.ensure()).iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    volume.claim(node_cluster.access, node_cluster, DRAFTS)
    lines = DATA.read_text(encoding="utf-8").splitlines(keepends=True)[:PROMPTS]
    prompts = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "bookings", "namespace": NAMESPACE},
        "data": {"prompts.jsonl": "".join(lines)},
    }
    node_cluster.access.apply(prompts)
    chat = Served(node_cluster, NAME)
    small = {"spec": {"quantity": "800m", "memory": "6Gi"}}  # serve, try, router, operator
    chat.api.patch(resources.TURBOACCELERATOR, "", "cpu", small)
    training = {
        "persistentVolumeClaim": {"claimName": DRAFTS},
        "prompts": {"type": "ConfigMap", "configMap": {"name": "bookings"}},
        "maxOutputTokens": ANSWER_TOKENS,
        "suspend": True,
    }
    chat.create(
        routing="Router",
        model={"uri": f"pvc://{CLAIM}", "name": "chat", "maxModelLen": 2048},
        engine={"type": "VLLM", "image": image.name, "args": ["--enforce-eager"]},
        speculation={"method": "EAGLE3", "training": training, "maxDraftTokens": 4},
        rollout={
            "minReadySeconds": 0,
            "progressDeadline": "30m",
            "canary": {"minGenerationDuration": "20s", "minDuration": "30s"},
        },
    )
    with dns.serving(node_cluster):
        chat.until(lambda: chat.in_force() and chat.is_routed(), "it serves by the router", PATIENCE)
        yield chat
    chat.remove()
    node_cluster.access.kubectl("delete", "turbodrafts", "--all", "-n", NAMESPACE, "--timeout=100s")
    release.uninstall(node_cluster.access)


def spoil(folder: Path) -> None:
    """Weights at random: a draft that is as quick as before and never right."""
    file, lots = folder / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = load_file(file)
    for name in ("fc.weight", "lm_head.weight"):
        tensors[name] = torch.randn(tensors[name].shape, generator=lots).to(tensors[name].dtype)
    save_file(tensors, file, {"format": "pt"})
    for each in (folder, *folder.iterdir()):
        os.chown(each, FOLDER_USER, FOLDER_USER)


def until(chat: Served, what: str, start: float, *path: str) -> Any:
    """The field of the status once it is there."""

    def field() -> Any:
        found: Any = chat.status()
        for name in path:
            found = (found or {}).get(name)
        return found

    chat.until(field, what, PATIENCE)
    print(f"{time.monotonic() - start:7.1f} s  {what}")
    return field()


def versions(chat: Served) -> list[str]:
    """The drafts that its pods load, those that end left out."""
    pods = (pod["metadata"] for pod in chat.pods() if "deletionTimestamp" not in pod["metadata"])
    return sorted(each["labels"].get(LABEL_DRAFT_VERSION, "") for each in pods)


def columns(chat: Served) -> str:
    return chat.access.kubectl("get", "td", NAME, "-n", NAMESPACE, "-o", "wide")


def test_a_draft_is_trained_tried_and_promoted_a_bad_one_rejected_and_no_request_fails(chat: Served) -> None:
    assert (chat.status()["plan"]["engine"], chat.status()["plan"]["method"]) == ("VLLM", "Off")
    prompts = tuple(json.loads(line)["prompt"] for line in DATA.read_text(encoding="utf-8").splitlines())
    target = replace(chat.target(CLIENT_SECONDS, ANSWER_TOKENS), prompts=prompts[PROMPTS:], temperature=0.0)
    start = time.monotonic()
    with Crowd(target, keeping=0, reconnecting=2) as crowd:
        chat.change(speculation={"training": {"suspend": False}})
        until(chat, "it trains", start, "training", "startTime")
        until(chat, "it is trained, and tried", start, "canary")
        good = until(chat, "it is promoted", start, "draft")
        print(f"{'':10} {chat.condition('DraftPromoted')[2]}")
        assert good["name"] == f"{NAME}-draft-1"
        chat.until(lambda: chat.says("DraftReady", "True", "Loaded"), "all pods load it", PATIENCE)
        chat.until(chat.in_force, "the rollout is over", PATIENCE)
        assert versions(chat) == [good["version"]]
        assert chat.status()["plan"]["method"] == "EAGLE3"

        def is_told() -> bool:
            observed = chat.status().get("observed") or {}
            return float(observed.get("acceptanceLength", 0)) > 1.2 and "speedup" in observed

        chat.until(is_told, "the status tells acceptance length and speedup", PATIENCE)
        print(columns(chat))

        folder = chat.cluster.directory / "volumes" / DRAFTS
        shutil.copytree(folder / good["path"], folder / NAME / "spoilt")
        spoil(folder / NAME / "spoilt")
        (made,) = chat.access.get("turbodrafts", "-n", NAMESPACE)["items"]
        spec = {**made["spec"], "version": "spoilt"}
        spec["location"] = {"claimName": DRAFTS, "path": f"{NAME}/spoilt"}
        bad = {"name": "spoilt", "namespace": NAMESPACE}
        chat.access.apply({"apiVersion": API_VERSION, "kind": "TurboDraft", "metadata": bad, "spec": spec})
        chat.until(lambda: (chat.status().get("canary") or {}).get("name") == "spoilt", "it is tried")
        (rejected,) = until(chat, "the bad one is rejected", start, "rejectedDrafts")
        print(f"{'':10} {rejected['message']}")
        assert (rejected["name"], rejected["reason"]) == ("spoilt", "NoImprovement"), rejected
        assert chat.status()["draft"] == good
        chat.until(lambda: versions(chat) == [good["version"]], "its pod is gone", PATIENCE)
        chat.until(chat.in_force, "all is as it was", PATIENCE)
        print(columns(chat))
    print(f"{len(crowd.calls)} requests, {len(crowd.failures)} failed")
    assert not crowd.failures, describe(crowd.failures, start)
