"""A deployment teaches itself a draft on a real node: prompts are kept, a draft is trained, tried beside what
serves and promoted; a bad one is tried and rejected; and no request fails meanwhile.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from turbo_dev import images, release, volume
from turbo_dev.access import Access
from turbo_dev.cluster import Cluster
from turbo_dev.cores import accelerator
from turbo_dev.model import FILE
from turbo_dev.shell import CommandError
from turbo_operator.api import API_VERSION
from turbo_operator.drafts.speedup import WINDOW_SECONDS, GenerationStats
from turbo_runtime.contract.documents import Load
from turbo_runtime.contract.endpoints import LOAD_PATH, PORT

pytestmark = [pytest.mark.node, pytest.mark.model]

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "distill" / "support.jsonl"
NAME, MINE = "chat", ("-n", "default")
NUM_CAPTURED, ANSWER_TOKENS = 48, 24
PATIENCE = 900.0


@pytest.fixture(scope="module")
def node(node_cluster: Cluster) -> Iterator[Cluster]:
    """The chart, the model, claims for prompts and drafts, and two sizes of an accelerator."""
    made = images.build()
    images.deliver(made, node_cluster)
    access = node_cluster.access
    volume.fill(access, node_cluster, made.model.name)
    release.install(access, made, None)
    for claim in ("taught", "kept"):
        volume.claim(access, node_cluster, claim)
    access.apply(accelerator("small", "400m", 4), accelerator("large", "900m", 4))  # two and one fit
    yield node_cluster
    access.kubectl("delete", "td", NAME, *MINE, "--ignore-not-found", "--timeout=100s")
    access.kubectl("delete", "turbodrafts", "--all", *MINE, "--timeout=100s")
    access.kubectl("delete", "turboaccelerator", "small", "large", "--ignore-not-found", "--timeout=100s")
    release.uninstall(access)


def deployment() -> dict[str, Any]:
    training = {
        "persistentVolumeClaim": {"claimName": "taught"},
        "prompts": {"type": "Captured"},
        "trigger": {"minPrompts": NUM_CAPTURED},
        "acceleratorName": "large",
        "maxOutputTokens": ANSWER_TOKENS,
        "maxCost": "1.00",
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "TurboDeployment",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "model": {"uri": f"pvc://models/{FILE}", "maxModelLen": 1024},
            "accelerators": {"allowed": ["small"]},
            "capture": {"persistentVolumeClaim": {"claimName": "kept"}},
            "speculation": {"training": training},
            "rollout": {
                "canary": {"minGenerationDuration": "20s", "minDuration": "60s", "minSpeedupRatio": "1.02"}
            },
        },
    }


class Traffic:
    """A client that never stops asking, each time over another connection, so that all pods are asked."""

    def __init__(self, url: str, tokens: int) -> None:
        self._url, self.tokens = url, tokens
        self._stop = threading.Event()
        lines = DATA.read_text(encoding="utf-8").splitlines()
        self._prompts = itertools.cycle(json.loads(line)["prompt"] for line in lines)
        self._lock = threading.Lock()
        self.failures: list[str] = []
        self.answered: list[tuple[float, float, int]] = []  # when it ended, seconds, tokens
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                prompt = next(self._prompts)
            asked = {
                "model": NAME,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": self.tokens,
                "temperature": 0,
                "speculation": "heads",  # what was said before would draft as well; this is about the draft
            }
            began = time.monotonic()
            try:
                with httpx.Client(trust_env=False, timeout=300) as client:
                    reply = client.post(f"{self._url}/chat/completions", json=asked)
                reply.raise_for_status()
                tokens = reply.json()["usage"]["completion_tokens"]
                self.answered.append((time.monotonic(), time.monotonic() - began, tokens))
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self.failures.append(repr(error))


class Watch(threading.Thread):
    """Reads every pod's counters, as the operator does, and keeps them."""

    def __init__(self, access: Access) -> None:
        super().__init__(daemon=True)
        self._access = access
        self._over = threading.Event()
        self.told: list[tuple[float, str, Load]] = []

    def run(self) -> None:
        while not self._over.wait(3.0):
            for name in pods(self._access):
                path = f"/api/v1/namespaces/default/pods/{name}:{PORT}/proxy{LOAD_PATH}"
                try:
                    load = Load.from_json(self._access.kubectl("get", "--raw", path))
                except CommandError:  # not up yet, or gone
                    continue
                self.told.append((time.monotonic(), name, load))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def last_of(self, version: str) -> Load | None:
        """What a pod with a draft of that version said last."""
        return next((load for _, _, load in reversed(self.told) if load.draft_version == version), None)

    def speedup(self) -> float | None:
        """Of all pods, over the window that the operator shows."""
        first: dict[str, GenerationStats] = {}
        done, since = GenerationStats(), time.monotonic() - WINDOW_SECONDS
        for at, name, load in list(self.told):
            now = GenerationStats.of(load)
            if now is None:
                continue
            if at > since and name in first:
                done += now.since(first[name])
            first[name] = now
        return done.speedup


def pods(access: Access) -> list[str]:
    found = access.get(
        "pods", *MINE, "-l", f"serving.turbo.dev/deployment={NAME},serving.turbo.dev/role=serving"
    )
    return [
        pod["metadata"]["name"]
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
    ]


def url(access: Access) -> str:
    spec = access.get("service", NAME, *MINE)["spec"]
    return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}/v1"


def status(access: Access) -> dict[str, Any]:
    found: dict[str, Any] = access.get("td", NAME, *MINE).get("status", {})
    return found


def until(access: Access, holds: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        now = status(access)
        if holds(now):
            print(f"{what} at {time.strftime('%H:%M:%S')}")
            return now
        time.sleep(1.0)
    raise AssertionError(f"not yet: {what}; {json.dumps(status(access))}")


def shown_speedup(access: Access) -> float | None:
    header, row = access.kubectl("get", "td", NAME, *MINE).splitlines()
    start = header.index("SPEEDUP")
    text = row[start : start + 9].split()
    return float(text[0]) if text and text[0] != "<none>" else None


def spoil(folder: Path) -> None:
    """Heads that know nothing and are sure of it."""
    file = folder / "heads.safetensors"
    drawn = torch.Generator().manual_seed(0)
    tensors = load_file(file)
    for name in ("block", "markov_out"):
        tensors[name] = torch.randn(tensors[name].shape, generator=drawn)
    tensors["confidence_bias"] = torch.full_like(tensors["confidence_bias"], 20.0)
    save_file(tensors, file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "version": "spoilt"}), encoding="utf-8")
    for each in folder.iterdir():
        os.chown(each, 65532, 65532)  # as whom pods read


def test_a_draft_is_trained_tried_and_promoted_a_bad_one_rejected_and_no_request_fails(
    node: Cluster,
) -> None:
    access = node.access
    access.apply(deployment())
    until(access, lambda now: now.get("readyReplicas"), "it serves")
    watch = Watch(access)
    watch.start()
    with Traffic(url(access), 4) as traffic:
        until(
            access,
            lambda now: (now.get("training") or {}).get("number"),
            "enough prompts are kept, it trains",
        )
        traffic.tokens = ANSWER_TOKENS
        until(access, lambda now: now.get("canary"), "it is trained and tried")
        done = until(access, lambda now: now.get("draft"), "it is promoted")
        good = done["draft"]
        assert good["name"] == f"{NAME}-draft-1"
        until(access, lambda now: _reason(now, "DraftReady") == "Loaded", "all pods use it")

        folder = node.directory / "volumes" / "taught" / NAME
        shutil.copytree(folder.parent / good["path"], folder / "spoilt")
        spoil(folder / "spoilt")
        (made,) = access.get("turbodrafts", *MINE)["items"]
        spec = {**made["spec"], "version": "spoilt"}
        spec["location"] = {"claimName": "taught", "path": f"{NAME}/spoilt"}
        spec.pop("evaluation", None)
        bad = {"name": "spoilt", "namespace": "default"}
        access.apply({"apiVersion": API_VERSION, "kind": "TurboDraft", "metadata": bad, "spec": spec})
        until(access, lambda now: (now.get("canary") or {}).get("name") == "spoilt", "the bad one is tried")
        after = until(access, lambda now: now.get("rejectedDrafts"), "the bad one is rejected")
        (down,) = after["rejectedDrafts"]
        assert (down["name"], down["reason"]) == ("spoilt", "NoImprovement"), down
        assert after["draft"] == good
        until(access, lambda now: len(pods(access)) == 1 and not now.get("canary"), "its pod is gone")

        def agrees(_: dict[str, Any]) -> bool:
            shown, counted = shown_speedup(access), watch.speedup()
            return shown is not None and counted is not None and abs(shown - counted) <= 0.1 * counted

        until(access, agrees, "the speedup shown is that of the counters")
        shown, counted = shown_speedup(access), watch.speedup()
    watch.stop()

    spoilt = watch.last_of("spoilt")
    assert spoilt is not None
    assert spoilt.draft_tokens > 0
    assert spoilt.accepted_tokens <= 0.05 * spoilt.draft_tokens
    seconds, tokens = sum(one for _, one, _ in traffic.answered), sum(n for _, _, n in traffic.answered)
    print(f"speedup shown {shown}, counted {counted}; {down['message']}")
    print(f"client: {len(traffic.answered)} answers, {tokens / seconds:.2f} tokens/s of one request")
    assert traffic.failures == []


def _reason(now: dict[str, Any], kind: str) -> str:
    return next((str(each["reason"]) for each in now["conditions"] if each["type"] == kind), "")
