"""The autoscaler on a real node: the demo's clients take the example from one replica to two and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from turbo_dev import images, release, scaling, volume
from turbo_dev.access import Access
from turbo_dev.cluster import Cluster

pytestmark = [pytest.mark.node, pytest.mark.model]


@pytest.fixture(scope="module")
def made() -> images.Images:
    return images.build()


@pytest.fixture(scope="module")
def deployed(node_cluster: Cluster, made: images.Images) -> Iterator[Access]:
    """The example, which is scaled by its load, with one replica Ready on the embedded node."""
    images.deliver(made, node_cluster)
    access = node_cluster.access
    volume.fill(access, node_cluster, made.model.name)
    release.install(access, made, None)
    release.apply_example(access)
    release.wait_ready(access, print)
    yield access
    release.uninstall(access)


def test_a_load_takes_it_from_one_replica_to_two_and_back_and_no_request_fails(
    deployed: Access, made: images.Images
) -> None:
    outcome = scaling.up_and_down(deployed, made.operator.name, print)
    assert outcome.failed == 0, outcome.error
    assert outcome.replicas == [1, 2, 1]
    assert outcome.answered > scaling.NUM_CLIENTS
    history = deployed.get("td", release.DEPLOYMENT)["status"]["scaleHistory"]
    changes = [(each["from"], each["to"], each["reason"]) for each in history]
    assert changes == [(1, 2, "Scaling"), (2, 1, "Scaling")]
    assert deployed.get("pods", "-l", "turbo.dev/clients")["items"] == []
