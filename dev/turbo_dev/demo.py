"""From nothing to two answers, to two replicas, and back to nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass

from . import binaries, clients, images, release, scaling, screen, talk, volume
from .access import Access, from_context
from .cluster import Cluster
from .paths import cache_root
from .progress import say, step

NAME = "demo"


@dataclass(frozen=True)
class Place:
    """Where the demo runs: on the embedded cluster, or in the cluster of a kubeconfig context."""

    context: str | None = None
    registry: str | None = None

    @property
    def command(self) -> str:
        """What makes it, and goes on where it was stopped."""
        return self._on_context("make demo") + (f" REGISTRY={self.registry}" if self.registry else "")

    @property
    def down_command(self) -> str:
        """What removes it."""
        return self._on_context("make demo-down")

    def _on_context(self, command: str) -> str:
        return command + (f" CONTEXT={self.context}" if self.context else "")

    def access(self) -> Access:
        """The way into the user's cluster, as a kubeconfig of its own."""
        assert self.context is not None
        return from_context(self.context, cache_root() / "contexts" / self.context.replace("/", "_"))


def run(place: Place) -> int:
    """Do all of it; run it again to go on.

    0 when the object is Ready, speculation has changed no byte and no request failed while it was scaled.
    """
    if place.context is not None:
        binaries.ensure(("kubectl", *binaries.HELM_CLIENT))
        if _refuses(place.access()):
            return 1
    try:
        return _run(place)
    except Exception as error:
        error.add_note(
            f"What was made is still there: `{place.command}` goes on from here, `{place.down_command}` "
            "removes it."
        )
        raise


def _run(place: Place) -> int:
    began = time.monotonic()
    if place.context is None:
        access, made, cluster = _embedded()
    else:
        access, made, cluster = place.access(), images.of_this_checkout(), None
    prefix = f"{place.registry}/" if place.registry else ""
    with step("put the model on the claim `models`, with a Job that stays until `make demo-down`", "5 s"):
        volume.fill(access, cluster, prefix + made.model.name)
    with step("helm upgrade --install turbo charts/turbo", "10 s"):
        release.install(access, made, place.registry)
    with step("kubectl apply -f examples/smollm2.yaml, and wait until it is Ready", "30 s"):
        release.apply_example(access)
        release.wait_ready(access, lambda state: say(f"   {state}"))
    with talk.service(access, cluster is not None) as url:
        with step("ask two questions, with speculation and without", "20 s"):
            pairs = talk.ask(url)
        print(screen.answers(access, pairs))
    print(screen.large(), flush=True)
    crowd = f"{scaling.NUM_CLIENTS} clients until two replicas answer, then one client until one is left"
    say(f"\n > send it {crowd} (usually 2 min)")
    outcome = scaling.up_and_down(access, prefix + made.operator.name, say)
    print(screen.scaled(outcome))
    print(screen.next_steps(access, url if cluster else None, place.down_command))
    print(f"\n(all of it: {time.monotonic() - began:.0f} s)")
    if not screen.all_equal(pairs):
        say("Speculation has changed a text: that must not be. Please report it.")
        return 1
    if outcome.failed:
        say("A request failed while the replicas changed: that must not be. Please report it.")
        return 1
    return 0


def down(place: Place) -> int:
    """Remove what `run` made; 0 also where there is nothing."""
    if place.context is None:
        with step("remove the embedded Kubernetes"):
            there = Cluster(NAME).down()
        if not there:
            say("The demo's cluster was not up: nothing to remove.")
        return 0
    access = place.access()
    if _refuses(access):
        return 1
    with step(f"remove the demo from the cluster of context `{place.context}`"):
        clients.remove(access)
        release.uninstall(access)
        volume.remove(access)
    return 0


def _refuses(access: Access) -> bool:
    """Whether a release is there that is not the demo's to change or to remove; says so."""
    names = release.list_foreign_values(access)
    if names:
        say(
            f"\nThe release {release.RELEASE} in {release.NAMESPACE} has values that the demo does not set "
            f"({', '.join(names)}), so it is not the demo's. Name another cluster with CONTEXT."
        )
    return bool(names)


def _embedded() -> tuple[Access, images.Images, Cluster]:
    cluster = Cluster(NAME)
    binaries.ensure(binaries.CONTROL_PLANE + binaries.NODE + binaries.HELM_CLIENT)
    made = images.build()
    access = cluster.up()
    images.deliver(made, cluster)
    images.prune(made, cluster)
    return access, made, cluster
