"""Control planes that tests share, each with the operator as a process: see turbo_dev.operated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from turbo_dev.access import Access
from turbo_dev.audit_reader import StatusReader
from turbo_dev.binaries import GoMissingError
from turbo_dev.controlplane import ControlPlane, Settings
from turbo_dev.hall import Hall
from turbo_dev.operated import OperatedCluster, manned


@pytest.fixture(scope="session")
def statuses() -> list[StatusReader]:
    """Of the control planes that were started."""
    return []


@pytest.fixture(scope="module", autouse=True)
def _coherent_statuses(statuses: list[StatusReader]) -> Iterator[None]:
    """No status that the tests of a module have seen contradicts itself."""
    yield
    found = [sentence for reader in statuses for sentence in reader.contradictions()]
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def plane(
    tmp_path_factory: pytest.TempPathFactory, statuses: list[StatusReader]
) -> Iterator[OperatedCluster]:
    """A control plane whose audit log holds bodies, with CRDs and the chart's role; no operator runs."""
    if os.environ.get("TURBO_TEST_CONTEXT"):
        pytest.skip(
            "the operator is judged by the embedded API server's audit log; TURBO_TEST_CONTEXT names another"
        )
    directory = tmp_path_factory.mktemp("operator-e2e")
    try:
        control_plane = ControlPlane(directory / "plane", settings=Settings(audit_level="RequestResponse"))
        with control_plane as access, manned(access, directory) as cluster:
            statuses.append(StatusReader(access, cluster.user))
            yield cluster
    except GoMissingError as missing:
        pytest.skip(f"no Kubernetes: {missing}")


@pytest.fixture(scope="session")
def gpu_plane(
    fake_gpu_cluster: Access, tmp_path_factory: pytest.TempPathFactory, statuses: list[StatusReader]
) -> Iterator[OperatedCluster]:
    """The same with KWOK for nodes: a pod that a node takes runs, and one that none takes waits."""
    directory = tmp_path_factory.mktemp("operator-gpus")
    with manned(fake_gpu_cluster, directory, serves=False) as cluster:
        statuses.append(StatusReader(fake_gpu_cluster, cluster.user))
        yield cluster


@pytest.fixture
def gpu_cluster(gpu_plane: OperatedCluster) -> Iterator[OperatedCluster]:
    """That control plane; every operator that the test started is gone afterwards."""
    try:
        yield gpu_plane
    finally:
        gpu_plane.stop_all()


@pytest.fixture
def hall(gpu_cluster: Any, request: pytest.FixtureRequest) -> Hall:
    return Hall(gpu_cluster, request.node.name.removeprefix("test_").replace("_", "-")[:24].strip("-"))


@pytest.fixture
def cluster(plane: OperatedCluster) -> Iterator[OperatedCluster]:
    """The control plane; every operator that the test started is gone afterwards."""
    try:
        yield plane
    finally:
        plane.stop_all()
