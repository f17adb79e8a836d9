"""The claim that holds the demo's model, and the Job that puts the file on it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from .access import Access
from .cluster import Cluster

NAMESPACE = "default"
CLAIM = "models"
_LABEL = "turbo.dev/fills"
_USER = 65532  # of the images
_SIZE = "1Gi"


def fill(access: Access, cluster: Cluster | None, image: str) -> None:
    """Make the claim, and wait until one Job has copied the model from `image` onto it.

    On the embedded cluster the claim gets a folder of the cluster's; elsewhere the default storage class
    gives the volume. A Job that has done its work is left as it is. CommandError when it takes over
    5 minutes.
    """
    if cluster is not None:
        claim(access, cluster, CLAIM)
    else:
        access.apply(_claim(CLAIM, static=False))
    job = _job(image)
    access.apply(job)
    _wait(access, f"job/{job['metadata']['name']}", "condition=Complete")


def claim(access: Access, cluster: Cluster, name: str) -> Path:
    """A claim on the embedded cluster, for which pods of our images write to the folder that is returned."""
    folder = cluster.directory / "volumes" / name
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, _USER, _USER)
    access.apply(_volume(name, folder))
    # One after the other: the binder looks for a volume when a claim comes, and then only every 15 s.
    if access.get("pv", name)["status"]["phase"] != "Bound":
        _wait(access, f"pv/{name}", "jsonpath={.status.phase}=Available")
    access.apply(_claim(name, static=True))
    _wait(access, f"pvc/{name}", "jsonpath={.status.phase}=Bound")
    return folder


def remove(access: Access) -> None:
    """Take the Job and the claim away, with what the claim holds."""
    access.kubectl("delete", "job", "-l", f"{_LABEL}={CLAIM}", "-n", NAMESPACE, "--timeout=100s")
    access.kubectl("delete", "pvc", CLAIM, "-n", NAMESPACE, "--ignore-not-found", "--timeout=100s")


def _wait(access: Access, what: str, state: str) -> None:
    access.kubectl("wait", what, "-n", NAMESPACE, f"--for={state}", "--timeout=300s", timeout=320)


def _volume(name: str, folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": _SIZE},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": NAMESPACE, "name": name},
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


def _claim(name: str, static: bool) -> dict[str, Any]:
    by_hand = {"storageClassName": "", "volumeName": name} if static else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": _SIZE}},
            **by_hand,
        },
    }


def _job(image: str) -> dict[str, Any]:
    short = hashlib.sha256(image.encode()).hexdigest()[:10]
    container = {
        "name": "load",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "restartPolicy": "OnFailure",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        # A Job cannot be changed: another image is another Job.
        "metadata": {
            "name": f"load-{short}",
            "namespace": NAMESPACE,
            "labels": {_LABEL: CLAIM},
        },
        "spec": {"backoffLimit": 4, "template": {"spec": pod}},
    }
