"""The image of vLLM for CPUs, by which tests try engine VLLM on the embedded node."""

from __future__ import annotations

import hashlib

from . import buildah, packages
from .cluster import Cluster
from .images import LOCAL, Image, locked
from .layout import Layout
from .paths import REPOSITORY
from .progress import step

FILE = REPOSITORY / "dev" / "vllm-cpu.Dockerfile"


def build() -> Image:
    """Build it where it is not built yet. Raises CommandError with the end of the build's log."""
    image = Image("vllm-cpu", "turbo-vllm-cpu", hashlib.sha256(FILE.read_bytes()).hexdigest()[:12])
    packages.install(packages.plan(packages.missing(packages.IMAGE_PROGRAMS)))
    with locked():
        known = buildah.images()
        if image.full_name not in known:
            with step(f"build the image {image.name}", "8 min, 3 GB"):
                buildah.build(image.target, image.full_name, {}, FILE)
        for name in known:
            if name.startswith(f"{LOCAL}/{image.repository}:") and name != image.full_name:
                buildah.forget(name)
    return image


def deliver(image: Image, cluster: Cluster) -> None:
    """Put it on the node of the embedded cluster."""
    if image.full_name in cluster.ctr("images", "ls", "-q").split():
        return
    layout = Layout()
    with locked(), step(f"put {image.name} on the node", "3 min the first time"):
        layout.add(image.full_name)
        blobs = set(cluster.ctr("content", "ls", "-q").split())
        with cluster.importing() as stream:
            layout.write_archive(image.full_name, blobs, stream)
