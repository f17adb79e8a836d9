"""A model in a bucket of a real S3 server: its Jobs run as they are, with the test in the kubelet's place."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from turbo_dev import object_store, pod_reports
from turbo_dev.object_store import ObjectStore
from turbo_operator import resources

pytestmark = pytest.mark.cluster
BUCKET, PREFIX = "models", "acme/tiny"
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "num_attention_heads": 2,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
# In the order of their words: what of the runtime the image would start.
PROGRAMS = {"inspect": "serve", "fetch": "fetch"}


class Jobs:
    """Runs the pods that inspect and fetch as processes, over a folder as the claim."""

    def __init__(self, cluster: Any, store: ObjectStore, claim: Path) -> None:
        self.cluster, self.store, self.claim = cluster, store, claim
        self.namespace = ""
        self.log = list[tuple[str, int, str]]()  # command, exit status and last words of each
        claim.mkdir()

    def open(self, namespace: str, keys: dict[str, str]) -> None:
        """Start an operator for a namespace with a Secret."""
        self.namespace = self.cluster.namespace(namespace)
        self.apply_keys(keys)
        self.cluster.start(namespace)

    def apply_keys(self, keys: dict[str, str]) -> None:
        meta = {"name": "keys", "namespace": self.namespace}
        self.cluster.access.apply(
            {"kind": "Secret", "apiVersion": "v1", "metadata": meta, "stringData": keys}
        )

    def create(self, name: str, **spec: Any) -> None:
        reached = {"endpoint": self.store.url, "region": object_store.REGION, "secretRef": {"name": "keys"}}
        self.cluster.create_deployment(
            self.namespace,
            name,
            model={"uri": f"s3://{BUCKET}/{PREFIX}", "maxModelLen": 1024, "s3": reached},
            cache={"persistentVolumeClaim": {"claimName": "weights"}},
            **spec,
        )

    def deployment(self, name: str) -> Any:
        return self.cluster.deployment(self.namespace, name)

    def until_served(self, name: str, beside: str | None = None) -> str:
        """Wait until an object is Ready with another revision than one; return it."""

        def served() -> Any:
            self.run()
            body = self.deployment(name)
            found = body.get("status", {}).get("cache", {}).get("revision")
            return found != beside and self.cluster.is_ready(body) and found

        return str(self.cluster.until(served, f"{name} serves"))

    def served_paths(self) -> set[str]:
        """What the engines of all pods get as their model; none has keys."""
        found = set()
        for item in self.cluster.objects(resources.CHILDREN["Deployment"], self.namespace):
            (container,) = item["spec"]["template"]["spec"]["containers"]
            assert "envFrom" not in container
            assert not [each for each in container["env"] if each["name"].startswith("AWS_")]
            found.add(container["args"][0])
        return found

    def run(self) -> None:
        """Run those that wait, and report their ends."""
        for pod in self.cluster.objects(resources.POD, self.namespace):
            if pod["status"]["phase"] != "Pending" or "deletionTimestamp" in pod["metadata"]:
                continue
            if pod_reports.inspects(pod) or pod_reports.fetches(pod):
                status, message = self._run(pod["spec"]["containers"][0])
                phase = "Failed" if status else "Succeeded"
                end = {"exitCode": status, "message": message, "reason": "Error" if status else "Completed"}
                report = pod_reports.report(pod, time.time(), phase, {"terminated": end})
                name = pod["metadata"]["name"]
                self.cluster.api.patch(resources.POD, self.namespace, name, {"status": report}, "status")

    def _run(self, container: dict[str, Any]) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for source in container.get("envFrom", ()):
            path = f"/api/v1/namespaces/{self.namespace}/secrets/{source['secretRef']['name']}"
            secret = self.cluster.api.send("GET", path)["data"]
            environment |= {name: base64.b64decode(value).decode() for name, value in secret.items()}
        values = {each["name"]: each["value"] for each in container["env"]}
        environment |= {name: value.replace("/cache", str(self.claim)) for name, value in values.items()}
        command, message = container["command"][1], self.claim / "message"
        own = ("--termination-message", "--progress-port")
        arguments = [it for it in container["args"] if not it.startswith(own)]
        module = PROGRAMS[command]
        code = (
            f"import sys\nfrom turbo_runtime.cli import {module}\nsys.exit({module}.{command}(sys.argv[1:]))"
        )
        program = [sys.executable, "-c", code, *arguments, f"--termination-message={message}"]
        ended = subprocess.run(program, env=environment, capture_output=True, text=True)
        said = message.read_text() if message.exists() else ended.stderr[-1000:]
        self.log.append((command, ended.returncode, said))
        return ended.returncode, said


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "tokenizer.json").write_text("{}")
    weights = np.random.default_rng(0).random((1000, 64), np.float32)
    save_file({"model.embed_tokens.weight": weights}, model / "model.safetensors")
    with object_store.serve(tmp_path / "store") as served:
        object_store.upload(served, BUCKET, PREFIX, model)
        yield served


@pytest.fixture
def jobs(cluster: Any, store: ObjectStore, tmp_path: Path) -> Iterator[Jobs]:
    own = {"-inspect-", "-fetch-"}
    cluster.kubelet.refused |= own
    try:
        yield Jobs(cluster, store, tmp_path / "claim")
    finally:
        cluster.kubelet.refused -= own


def test_a_bucket_is_inspected_fetched_and_served_from_the_claim_and_later_without_the_store(
    cluster: Any, jobs: Jobs
) -> None:
    jobs.open("bucket", object_store.credentials())
    jobs.create("first")
    first = jobs.until_served("first")
    assert [(command, status) for command, status, _ in jobs.log] == [("inspect", 0), ("fetch", 0)]
    assert cluster.condition(jobs.deployment("first"), "ModelCached")["reason"] == "Cached"
    assert jobs.deployment("first")["status"]["model"]["resolvedRevision"] == first
    copies = jobs.claim / "s3" / BUCKET / PREFIX
    files = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in (copies / first).iterdir()} == files
    assert jobs.served_paths() == {f"/cache/s3/{BUCKET}/{PREFIX}/{first}"}

    upload = {"Bucket": BUCKET, "Key": f"{PREFIX}/tokenizer.json", "Body": b'{"version": "2"}'}
    jobs.store.client().put_object(**upload)
    cluster.access.kubectl("delete", "configmap", "first-model", "-n", jobs.namespace)
    second = jobs.until_served("first", beside=first)
    paths = {f"/cache/s3/{BUCKET}/{PREFIX}/{second}"}
    cluster.until(lambda: jobs.served_paths() == paths, "the earlier pods are gone")
    assert (copies / first / "tokenizer.json").read_text() == "{}", "what pods may still read stays"

    jobs.store.stop()
    jobs.log.clear()
    # In a pod of another kind, so that it does not take what the first one has just found out.
    jobs.create("second", podTemplate={"spec": {"env": [{"name": "TEAM", "value": "second"}]}})
    assert jobs.until_served("second") == second
    assert [(command, status) for command, status, _ in jobs.log] == [("inspect", 0), ("fetch", 0)]


def test_keys_that_the_store_refuses_are_told_and_can_be_corrected(cluster: Any, jobs: Jobs) -> None:
    jobs.open("wrong-keys", object_store.credentials("wrong"))
    jobs.create("chat")

    def failed() -> Any:
        jobs.run()
        found = cluster.condition(jobs.deployment("chat"), "ModelInspected")
        return found["reason"] == "InspectFailed" and found["message"]

    message = cluster.until(failed, "the inspection has failed")
    assert "the store denies access (SignatureDoesNotMatch): set AWS_ACCESS_KEY_ID" in message
    (job,) = cluster.objects(resources.CHILDREN["Job"], jobs.namespace)
    assert f"delete the Job {job['metadata']['name']}" in message
    jobs.apply_keys(object_store.credentials())
    cluster.access.kubectl("delete", "job", job["metadata"]["name"], "-n", jobs.namespace)
    jobs.until_served("chat")
