"""The clusters that tests share, and what a run says about the tests that it left out.

A test that takes `control_plane` (or a fixture built on it) gets a real API server: the embedded one, or the
cluster that TURBO_TEST_CONTEXT names. KUBECONFIG alone changes nothing, since tests break things on purpose.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from turbo_dev import lanes
from turbo_dev.access import Access, from_context
from turbo_dev.binaries import GoMissingError
from turbo_dev.cluster import Cluster, NotRootError, of_this_process
from turbo_dev.controlplane import ControlPlane, Settings
from turbo_operator.api import crd

# How long an example takes says how busy the machine is. Where a change is judged, the same ones are tried
# every time.
settings.register_profile("turbo", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("turbo")
# A shell's background job ignores it, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
SETTLED = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "THP_MEM_ALLOC_ENABLE",
    "GLIBC_TUNABLES",
    "TQDM_DISABLE",
)


@pytest.fixture(scope="module", autouse=True)
def process_as_before() -> Iterator[None]:
    """What an engine or a command settles for its process would hold for the modules behind."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    before = {name: os.environ.get(name) for name in SETTLED}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if torch and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A Kubernetes API server with scheduler and controllers, without nodes; one for the whole run."""
    directory = tmp_path_factory.mktemp("control-plane")
    context = os.environ.get("TURBO_TEST_CONTEXT")
    if context:
        yield from_context(context, directory)
        return
    try:
        plane = ControlPlane(directory)
        with plane as access:
            yield access
    except GoMissingError as missing:
        pytest.skip(f"no Kubernetes: {missing}")


@pytest.fixture(scope="session")
def api_server(control_plane: Access) -> Access:
    """The shared control plane with our CustomResourceDefinitions established."""
    definitions = crd.definitions()
    control_plane.apply(*definitions)
    control_plane.wait_for_crds()
    return control_plane


@pytest.fixture(scope="session")
def fake_gpu_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A control plane of its own whose nodes and pods are KWOK's: see turbo_dev.fakenodes."""
    if os.environ.get("TURBO_TEST_CONTEXT"):
        pytest.skip("fake GPU nodes are put into the embedded cluster only; TURBO_TEST_CONTEXT names another")
    try:
        directory = tmp_path_factory.mktemp("fake-gpu-cluster")
        plane = ControlPlane(directory, kwok=True, settings=Settings(audit_level="RequestResponse"))
        with plane as access:
            yield access
    except GoMissingError as missing:
        pytest.skip(f"no Kubernetes: {missing}")


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """The whole embedded cluster with a real node, in its sandbox; one for the whole run."""
    if os.environ.get("TURBO_TEST_CONTEXT"):
        pytest.skip("images are put straight on the embedded node; TURBO_TEST_CONTEXT names another cluster")
    cluster = of_this_process()
    try:
        cluster.up()
        yield cluster
    except (NotRootError, GoMissingError) as missing:
        pytest.skip(f"no Kubernetes node: {missing}")
    finally:
        cluster.down()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest lanes first: see turbo_dev.lanes."""
    items.sort(key=lambda item: lanes.order(item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave the processor to tests of a cluster that run side by side with this one."""
    lanes.give_way(item.path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> lanes.Lanes:
    """Where tests run side by side (`make test`), those that share a cluster follow one another."""
    return lanes.Lanes(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long faults took to heal, and what was skipped."""
    _tell_healings(terminalreporter)
    _tell_skips(terminalreporter)


def _tell_healings(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    lines = [value for each in reports for name, value in each.user_properties if name == "healed"]
    if lines:
        terminalreporter.section("healed")
    for line in lines:
        terminalreporter.write_line(str(line))


def _tell_skips(terminalreporter: pytest.TerminalReporter) -> None:
    """By reason and name: a skip that nobody reads about is a test that nobody has."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        by_reason[reason.removeprefix("Skipped: ")].append(report.nodeid)
    if not by_reason:
        return
    terminalreporter.section("left out")
    for reason, tests in sorted(by_reason.items()):
        terminalreporter.write_line(f"{len(tests)} skipped: {reason}")
        for name in tests:
            terminalreporter.write_line(f"    {name}")
