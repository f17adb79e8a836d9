"""The real LeaderWorkerSet controller beside a control plane: its definition, webhooks and process."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from . import binaries, certificates
from .access import Access
from .controlplane import free_port
from .processes import ProcessGroup

START_SECONDS = 60.0
CRD = "leaderworkersets.leaderworkerset.x-k8s.io"
_HOST = "127.0.0.1"
_LABELED = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}


@contextmanager
def installed(access: Access) -> Iterator[ProcessGroup]:
    """Install it and run it; afterwards the cluster does not know the kind any more, nor any object of it."""
    (program,) = binaries.ensure(binaries.LEADER_WORKER_SETS).values()
    config, port = binaries.lws_config(), free_port(_HOST)
    with tempfile.TemporaryDirectory(prefix="turbo-lws-") as name:
        folder = Path(name)
        certificates.authority(folder)
        certificates.server(folder, "tls", ["localhost"], [_HOST])
        webhooks = _webhooks(config, port, (folder / "ca.crt").read_bytes())
        settings = folder / "config.yaml"
        settings.write_text(json.dumps(_settings(folder, port)), encoding="utf-8")
        processes = ProcessGroup(folder / "logs")
        try:
            # Webhooks come first: an object made in between would lack what they add, and never run.
            access.apply(*webhooks)
            access.kubectl("apply", "--server-side", "-f", str(config / "crd" / "bases"))
            access.wait_for_crds()
            processes.start(
                "lws",
                [program, f"--config={settings}", f"--kubeconfig={access.kubeconfig}"],
                {"POD_NAMESPACE": "default"},
            )
            processes.wait_until(
                lambda: "Starting workers" in processes.log("lws").read_text(), "it works", START_SECONDS
            )
            yield processes
        finally:
            for webhook in webhooks:
                access.kubectl("delete", webhook["kind"], webhook["metadata"]["name"], "--ignore-not-found")
            access.kubectl("delete", "crd", CRD, "--ignore-not-found")
            processes.stop()


def _settings(folder: Path, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "webhook": {"port": port, "host": _HOST, "certDir": str(folder)},
        "health": {"healthProbeBindAddress": "0"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }


def _webhooks(config: Path, port: int, authority: bytes) -> list[dict[str, Any]]:
    """Its own webhook configurations, by an address that needs no Service."""
    text = (config / "webhook" / "manifests.yaml").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    for document in found:
        document["metadata"]["name"] = f"lws-{document['metadata']['name']}"
        for webhook in document["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            bundle = base64.b64encode(authority).decode()
            webhook["clientConfig"] = {"url": f"https://{_HOST}:{port}{path}", "caBundle": bundle}
            if path.endswith("-pod"):  # as its own kustomization patches it
                webhook["objectSelector"] = _LABELED
    return found
