"""The project's images: named by what they are made of, built once, brought to a node or to a registry."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import buildah, model, packages
from .cluster import Cluster
from .layout import Layout
from .paths import REPOSITORY
from .progress import say, step

_CODE = (
    "Dockerfile",
    ".dockerignore",
    "dev/install-locked.sh",
    "pyproject.toml",
    "uv.lock",
    "README.md",
    "LICENSE",
)
_CODE_FOLDERS = ("operator", "runtime")
LOCAL = "docker.io/library"  # the registry of images that come from none
_USUALLY = {
    "operator": "40 s, later 10 s",
    "runtime": "3 min, later 10 s",
    "router": "30 s, later 5 s",
    "model": "10 s",
}


@dataclass(frozen=True)
class Image:
    """One image: a target of the Dockerfile and a tag that is a hash of all that goes into it."""

    target: str
    repository: str
    tag: str

    @property
    def name(self) -> str:
        """As a pod writes it: turbo-runtime:TAG."""
        return f"{self.repository}:{self.tag}"

    @property
    def full_name(self) -> str:
        """As stores write it: docker.io/library/turbo-runtime:TAG."""
        return f"{LOCAL}/{self.name}"


@dataclass(frozen=True)
class Images:
    """The images of this checkout."""

    operator: Image
    runtime: Image
    router: Image
    model: Image

    def __iter__(self) -> Iterator[Image]:
        return iter((self.operator, self.runtime, self.router, self.model))


def of_this_checkout() -> Images:
    """The images that the files of this checkout make, built or not."""
    code = _hash_of_code()
    return Images(
        operator=Image("operator", "turbo-operator", code),
        runtime=Image("runtime", "turbo-runtime", code),
        router=Image("router", "turbo-router", code),
        model=Image("model", "turbo-model-smollm2", model.FILE_SHA256[:12]),
    )


def build() -> Images:
    """Build what is not built yet. Raises CommandError with the end of the build's log."""
    wanted = of_this_checkout()
    packages.install(packages.plan(packages.missing(packages.IMAGE_PROGRAMS)))
    with locked():
        known = buildah.images()
        for image in wanted:
            if image.full_name in known:
                continue
            contexts = {"model-file": model.ensure().parent} if image.target == "model" else {}
            with step(f"build the image {image.name}", _USUALLY[image.target]):
                buildah.build(image.target, image.full_name, contexts)
        current = {image.full_name for image in wanted}
        ours = tuple(f"{LOCAL}/{image.repository}:" for image in wanted)
        for name in known:
            if name.startswith(ours) and name not in current:
                buildah.forget(name)
    return wanted


def deliver(images: Images, cluster: Cluster) -> None:
    """Put the images on the node of the embedded cluster."""
    layout = Layout()
    there = set(cluster.ctr("images", "ls", "-q").split())
    with locked():
        for image in images:
            if image.full_name in there:
                continue
            with step(
                f"put {image.name} on the node", "3 min the first time" if image.target == "runtime" else ""
            ):
                layout.add(image.full_name)
                blobs = set(cluster.ctr("content", "ls", "-q").split())
                with cluster.importing() as stream:
                    layout.write_archive(image.full_name, blobs, stream)
        layout.keep_only({image.full_name for image in images})


def prune(images: Images, cluster: Cluster) -> None:
    """Remove the project's older images from the node, but those that a pod or a Deployment names."""
    pods = [pod["spec"] for pod in cluster.access.get("pods", "--all-namespaces")["items"]]
    deployments = cluster.access.get("deployments", "--all-namespaces")["items"]
    specs = pods + [each["spec"]["template"]["spec"] for each in deployments]
    needed = {image.full_name for image in images}
    needed |= {f"{LOCAL}/{container['image']}" for spec in specs for container in spec["containers"]}
    ours = tuple(f"{LOCAL}/{image.repository}:" for image in images)
    for name in cluster.ctr("images", "ls", "-q").split():
        if name.startswith(ours) and name not in needed:
            cluster.ctr("images", "rm", name)


def publish(images: Images, registry: str) -> dict[str, str]:
    """Push the images to `registry` ("host[:port]/path"); returns each target's "repository@sha256:..."."""
    pushed = {}
    host = registry.partition("/")[0].partition(":")[0]
    plain = ["--tls-verify=false"] if host in ("localhost", "127.0.0.1") else []
    with locked():  # the build of another checkout would forget an image that is being pushed
        for image in images:
            digest = buildah.home() / f"{image.target}.digest"
            destination = f"{registry}/{image.name}"
            with step(f"push {destination}"):
                buildah.push(image.full_name, f"docker://{destination}", f"--digestfile={digest}", *plain)
            pushed[image.target] = (
                f"{registry}/{image.repository}@{digest.read_text(encoding='ascii').strip()}"
            )
            say(f"   {pushed[image.target]}")
    return pushed


def _hash_of_code() -> str:
    files = [REPOSITORY / name for name in _CODE]
    for folder in _CODE_FOLDERS:
        files += (path for path in sorted((REPOSITORY / folder).rglob("*")) if _counts(path))
    total = hashlib.sha256()
    for path in files:
        total.update(
            f"{path.relative_to(REPOSITORY)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()[:12]


def _counts(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


@contextmanager
def locked() -> Iterator[None]:
    """One build at a time: the layers' cache is of no use to two that make the same layer."""
    buildah.home().mkdir(parents=True, exist_ok=True)
    with (buildah.home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
