"""A crowd of clients as a pod inside the cluster, and what it says of its answers."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import binaries, crowd
from .access import Access
from .release import DEPLOYMENT
from .shell import CommandError

NAMESPACE = "default"
_LABEL = "turbo.dev/clients"
_LONGEST_END = 330  # seconds, more than a client waits for one answer


@dataclass(frozen=True)
class Tally:
    """Answers and failures so far; `error` is the last failure's."""

    answered: int = 0
    failed: int = 0
    error: str | None = None
    done: bool = False


class Clients:
    """`number` clients of the example's Service, as long as the context lasts."""

    def __init__(self, access: Access, image: str, number: int) -> None:
        """`image` is one with a python3 that the cluster can pull."""
        self._access, self._image, self._number = access, image, number
        self._name = f"clients-{number}"
        self.tally = Tally()

    def __enter__(self) -> Self:
        service = self._access.get("service", DEPLOYMENT, "-n", NAMESPACE)["spec"]
        url = f"http://{service['clusterIP']}:{service['ports'][0]['port']}/v1"
        self._delete()  # what an interrupted run has left
        self._access.apply(self._pod(url))
        self._access.kubectl(
            "wait",
            f"pod/{self._name}",
            "-n",
            NAMESPACE,
            "--for=condition=Ready",
            "--timeout=120s",
            timeout=130,
        )
        kubectl = binaries.ensure(("kubectl",))["kubectl"]
        words: list[str | Path] = [kubectl, f"--kubeconfig={self._access.kubeconfig}"]
        words += ["logs", "--follow", f"pod/{self._name}", "-n", NAMESPACE]
        self._log = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """End them after their last answers; CommandError where the last word is not heard."""
        self._delete()
        self._reader.join(10)
        self._log.terminate()
        self._log.communicate()
        if kind is None and not self.tally.done:
            raise CommandError(f"the pod {self._name} ended without its last tally; so far: {self.tally}")

    def _read(self) -> None:
        assert self._log.stdout is not None
        for line in self._log.stdout:
            if line.startswith("{"):
                self.tally = Tally(**json.loads(line))

    def _delete(self) -> None:
        words = ["delete", "pod", self._name, "-n", NAMESPACE, "--ignore-not-found"]
        self._access.kubectl(*words, f"--timeout={_LONGEST_END}s", timeout=_LONGEST_END + 10)

    def _pod(self, url: str) -> dict[str, Any]:
        source = Path(crowd.__file__).read_text(encoding="utf-8")
        container = {
            "name": "clients",
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-u", "-c", source, url, DEPLOYMENT, str(self._number)],
            "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self._name, "namespace": NAMESPACE, "labels": {_LABEL: "crowd"}},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": _LONGEST_END - 20,
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
            },
        }


def remove(access: Access) -> None:
    """Take away what an interrupted run has left."""
    access.kubectl("delete", "pod", "-l", _LABEL, "-n", NAMESPACE, "--timeout=100s")
