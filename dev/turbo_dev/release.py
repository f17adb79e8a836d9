"""The chart as a helm release, and the example as an object that becomes Ready."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import binaries
from .access import Access
from .images import Images
from .paths import REPOSITORY, cache_root
from .progress import say
from .shell import CommandError, run

RELEASE = "turbo"
NAMESPACE = "turbo-system"
EXAMPLE = REPOSITORY / "examples" / "smollm2.yaml"
DEPLOYMENT = "smollm2"
CRDS = tuple(
    f"{plural}.serving.turbo.dev" for plural in ("turbodeployments", "turboaccelerators", "turbodrafts")
)
READY_SECONDS = 600.0
LOOK_SECONDS = 0.5
# For who renders the chart and runs no pod of it: the chart refuses to name images by itself.
UNUSED_IMAGES = (
    "--set=image.operator.repository=turbo-operator",
    "--set=image.runtime.repository=turbo-runtime",
)


def install(access: Access, images: Images, registry: str | None) -> None:
    """`helm upgrade --install` of the chart with this checkout's images; waits until the operator is up."""
    recover(access)
    options = ["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"]
    options += _naming(images, registry)
    try:
        _helm(access, "upgrade", "--install", RELEASE, str(REPOSITORY / "charts" / "turbo"), *options)
    except CommandError as error:  # helm says only that it has waited long enough
        raise CommandError(f"{error}\n{_operator_says(access)}".rstrip()) from error


def recover(access: Access) -> None:
    """Undo a change that a stopped run has left half done: until then helm refuses every other."""
    if not (status := _status(access)):
        return
    history = json.loads(_helm(access, "history", RELEASE, "--namespace", NAMESPACE, "--output", "json"))
    if words := undoing(history):
        say(f"   a stopped run has left the release {status}: helm {' '.join(words)}")
        _helm(access, *words, "--namespace", NAMESPACE)


def undoing(history: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The helm command that undoes a release's last revision where it is half done; empty where it is not.

    `history` is what `helm history` lists, the last revision at its end.
    """
    last = history[-1]["status"]
    whole = [each["revision"] for each in history if each["status"] in ("deployed", "superseded")]
    if last == "uninstalling" or (last.startswith("pending-") and not whole):
        return ("uninstall", RELEASE, "--wait")
    return ("rollback", RELEASE, str(whole[-1])) if last.startswith("pending-") else ()


def command(images: Images, registry: str) -> str:
    """What a person types to install the chart with these images."""
    words = ["helm", "upgrade", "--install", RELEASE, "charts/turbo", "--namespace", NAMESPACE]
    lines = [" ".join([*words, "--create-namespace"])]
    naming = _naming(images, registry)
    lines += [f"  {flag} {value}" for flag, value in zip(naming[::2], naming[1::2], strict=True)]
    return " \\\n".join(lines)


def _naming(images: Images, registry: str | None) -> list[str]:
    prefix = f"{registry}/" if registry else ""
    options: list[str] = []
    parts = {"operator": images.operator, "runtime": images.runtime, "router": images.router}
    for part, image in parts.items():
        options += ["--set", f"image.{part}.repository={prefix}{image.repository}"]
        options += ["--set-string", f"image.{part}.tag={image.tag}"]
    return options


def list_foreign_values(access: Access) -> list[str]:
    """Values of a release of this name that the demo does not set; empty without a release."""
    if not _status(access):
        return []
    values = _helm(access, "get", "values", RELEASE, "--namespace", NAMESPACE, "--output", "json")
    return sorted((json.loads(values) or {}).keys() - {"image"})


def uninstall(access: Access) -> None:
    """Remove the example, then the release; its CRDs too where no TurboDeployment of anybody's is left."""
    access.kubectl("delete", "-f", str(EXAMPLE), "--ignore-not-found", "--timeout=100s")
    if _status(access):
        _helm(access, "uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    if not access.get("turbodeployments", "--all-namespaces")["items"]:
        access.kubectl("delete", "crd", *CRDS, "--ignore-not-found", "--timeout=100s")
    access.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")


def apply_example(access: Access) -> None:
    """Apply the example as its file has it; what somebody tried on it since is taken back."""
    access.kubectl("apply", "-f", str(EXAMPLE))
    as_written = {"spec": {"replicas": 1, "suspend": False}}  # defaults that the file leaves out
    access.kubectl("patch", "td", DEPLOYMENT, "--type=merge", f"--patch={json.dumps(as_written)}")


def wait_ready(access: Access, say: Callable[[str], None], seconds: float = READY_SECONDS) -> None:
    """Wait until the example is Ready for its current generation, and `say` each new state on the way.

    Raises TimeoutError with the last state after `seconds`.
    """
    last = "no status"
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        deployment = access.get("td", DEPLOYMENT)
        status = deployment.get("status", {})
        ready = next((each for each in status.get("conditions", []) if each["type"] == "Ready"), None)
        if ready is not None and status.get("observedGeneration") == deployment["metadata"]["generation"]:
            state = f"Ready={ready['status']} {ready['reason']}: {ready['message']}"
            if state != last:
                say(state)
                last = state
            if ready["status"] == "True":
                return
        time.sleep(LOOK_SECONDS)  # an object at rest ends a watch sooner or later; asking again does not
    raise TimeoutError(f"{DEPLOYMENT} is not Ready after {seconds:.0f} s; last: {last}")


def _operator_says(access: Access) -> str:
    """The end of the operator's log where it is not up; of all else helm's error says enough."""
    try:
        status = access.get("deployment", RELEASE, "-n", NAMESPACE)["status"]
        if not status.get("unavailableReplicas"):
            return ""
        return access.kubectl("logs", f"deployment/{RELEASE}", "-n", NAMESPACE, "--tail=30")
    except CommandError as silent:
        return str(silent)


def _status(access: Access) -> str:
    """What helm calls the state of the release; empty without one."""
    releases = json.loads(_helm(access, "list", "--all", "--namespace", NAMESPACE, "--output", "json"))
    return next((str(each["status"]) for each in releases if each["name"] == RELEASE), "")


def _helm(access: Access, *words: str) -> str:
    home = cache_root() / "helm"
    places = {f"HELM_{what}_HOME": str(home / what.lower()) for what in ("CACHE", "CONFIG", "DATA")}
    program = binaries.ensure(binaries.HELM_CLIENT)["helm"]
    return run([program, f"--kubeconfig={access.kubeconfig}", *words], env={**os.environ, **places})
