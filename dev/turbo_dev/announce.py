"""What the demo is about to do on this machine, said before the first step."""

from __future__ import annotations

import os

from . import binaries, buildah, images, packages
from .cluster import NotRootError
from .paths import REPOSITORY, cache_root
from .progress import say

_TOOLS = binaries.CONTROL_PLANE + binaries.NODE + binaries.HELM_CLIENT


def embedded() -> None:
    """Say it for the embedded cluster; NotRootError where that cannot be."""
    if os.geteuid() != 0:
        raise NotRootError(
            "The embedded Kubernetes needs root (network and mount namespaces, containerd). Run it as root,"
            " or use a cluster of your own: make images REGISTRY=...; make demo CONTEXT=name REGISTRY=..."
        )
    say("What `make demo` does on this machine:")
    say(
        f" * keeps its files under {cache_root()} (about 25 GB), locked Python packages in {REPOSITORY}/.venv"
    )
    say("   (6 GB) and uv, which installs them, in .build; uv keeps a cache of its own, where yours is")
    wanted = packages.missing({**packages.NODE_PROGRAMS, **packages.IMAGE_PROGRAMS})
    if wanted:
        say(" * installs Debian packages, which stay; it starts and enables no service:")
        for change in packages.plan(wanted).changes:
            say(f"     {change}")
    else:
        say(" * installs no Debian package: what it needs is there")
    build = binaries.missing(_TOOLS)
    if build:
        say(f" * builds from Go modules, once: {', '.join(build)} (about 10 minutes on 2 cores)")
    made = images.of_this_checkout()
    if packages.missing(packages.IMAGE_PROGRAMS):
        known: list[str] = []
    else:
        known = buildah.images()
    to_build = [image.name for image in made if image.full_name not in known]
    if to_build:
        say(f" * builds images: {', '.join(to_build)} (minutes the first time, then seconds)")
    say(" * starts Kubernetes in network, mount and process namespaces of its own, reached through one link")
    say("   (turboN, 10.231.N.0/30) and routes to 10.232.N.0/24 and 10.233.N.0/24; no iptables rule, mount,")
    say("   port or service of this machine's is touched")
    say("`make demo-down` removes cluster, link, routes and cgroup; packages and the cache stay.\n")


def theirs(context: str, registry: str | None) -> None:
    """Say it for a cluster of the user's."""
    say(f"What `make demo CONTEXT={context}` does:")
    say(f" * on this machine: builds kubectl and helm into {cache_root()}, nothing else")
    say(f" * in the cluster of the kubeconfig context `{context}`: the helm release `turbo` in the namespace")
    say("   turbo-system (with CRDs); in the namespace default a claim of 1 GiB, a Job, a TurboDeployment,")
    say("   and for two minutes two pods of clients that load it;")
    say(f"   images come from {registry or 'where the bare names turbo-... are found'}")
    say(f"`make demo-down CONTEXT={context}` removes all of it.\n")
