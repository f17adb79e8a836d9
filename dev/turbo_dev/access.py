"""A way into one Kubernetes cluster: ours or somebody else's."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import binaries
from .shell import run

_PATIENCE = 100.0  # seconds


@dataclass(frozen=True)
class Access:
    """What a client needs to reach a cluster as its administrator.

    `ca` and `token` are None where the cluster is not ours (its kubeconfig may log in otherwise);
    `audit_log` is the API server's log of all writes, one JSON event a line, and None likewise.
    """

    kubeconfig: Path
    url: str
    ca: Path | None = None
    token: str | None = None
    audit_log: Path | None = None

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 120) -> str:  # noqa: A002
        """Run kubectl and return its output; CommandError when it fails or takes longer than `timeout` s."""
        program = binaries.ensure(("kubectl",))["kubectl"]
        return run([program, f"--kubeconfig={self.kubeconfig}", *arguments], input=input, timeout=timeout)

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """Apply objects server-side under the field manager `turbo-dev`; returns what kubectl said."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self.kubectl(
            "apply", "--server-side", "--field-manager=turbo-dev", "-f", "-", input=json.dumps(bundle)
        )

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    @contextmanager
    def knowing(self, *definitions: Path) -> Iterator[None]:
        """With the CustomResourceDefinitions of files; afterwards their kinds are gone, and all objects."""
        files = [f"--filename={path}" for path in definitions]
        names = self.kubectl("apply", "--server-side", "--output=name", *files).split()
        self.wait_for_crds()
        for name in names:  # an established one may answer 429 for a moment, and kubectl tries again
            self.kubectl("get", name.partition("/")[2], "--all-namespaces")
        try:
            yield
        finally:
            self.kubectl("delete", "--ignore-not-found", *files)

    def wait_for_crds(self) -> None:
        """Wait until the API server serves every CustomResourceDefinition; TimeoutError after 100 s."""
        deadline = time.monotonic() + _PATIENCE
        while waiting := [each for each in self.get("crd")["items"] if not established(each)]:
            if time.monotonic() > deadline:
                names = ", ".join(each["metadata"]["name"] for each in waiting)
                raise TimeoutError(f"not established within {_PATIENCE:g} s: {names}")
            time.sleep(0.2)  # `kubectl wait` fails while a status is empty


def established(definition: Mapping[str, Any]) -> bool:
    """Whether the API server serves a CustomResourceDefinition, which at first has no conditions, or null."""
    conditions = definition.get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)


def load(path: Path) -> Access:
    """The way into an embedded cluster whose administrator's kubeconfig is `path`."""
    config = json.loads(path.read_text(encoding="utf-8"))
    return Access(
        kubeconfig=path,
        url=config["clusters"][0]["cluster"]["server"],
        ca=path.with_name("pki") / "ca.crt",
        token=config["users"][0]["user"]["token"],
        audit_log=path.with_name("audit.log"),
    )


def kubeconfig(url: str, ca_pem: str, token: str) -> str:
    """A kubeconfig (JSON, which is YAML too) with one context `turbo`."""
    ca = base64.b64encode(ca_pem.encode()).decode()
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "turbo", "cluster": {"server": url, "certificate-authority-data": ca}}],
            "users": [{"name": "turbo", "user": {"token": token}}],
            "contexts": [{"name": "turbo", "context": {"cluster": "turbo", "user": "turbo"}}],
            "current-context": "turbo",
        },
        indent=1,
    )


def from_context(context: str, directory: Path) -> Access:
    """The cluster that `context` of the user's kubeconfig names, as a kubeconfig of its own in `directory`.

    Only that context is in the file, so that nothing can fall back on another one.
    """
    program = binaries.ensure(("kubectl",))["kubectl"]
    view = run([program, "config", "view", "--minify", "--flatten", f"--context={context}", "-o", "json"])
    config = json.loads(view)
    path = directory / "kubeconfig"
    directory.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(view, encoding="utf-8")
    return Access(kubeconfig=path, url=config["clusters"][0]["cluster"]["server"])
