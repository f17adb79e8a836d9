"""Helm, and a control plane that it may install into and uninstall from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from turbo_dev import binaries
from turbo_dev.access import Access
from turbo_dev.controlplane import ControlPlane
from turbo_dev.release import UNUSED_IMAGES
from turbo_dev.shell import run

CHART = Path(__file__).parents[2] / "charts" / "turbo"

Helm = Callable[..., str]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs helm with an empty home of its own; CommandError with what it said when it fails."""
    try:
        program = binaries.ensure(("helm",))["helm"]
    except binaries.GoMissingError as missing:
        pytest.skip(f"no helm: {missing}")
    home = tmp_path_factory.mktemp("helm")
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    environment |= {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}

    def call(*arguments: str) -> str:
        return run([program, *arguments], env=environment)

    return call


@pytest.fixture(scope="module")
def empty_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """A control plane of its own: a release's cluster-wide objects would meet others in a shared one."""
    if os.environ.get("TURBO_TEST_CONTEXT"):
        pytest.skip(
            "charts are installed into an empty cluster of their own, and TURBO_TEST_CONTEXT names another"
        )
    try:
        with ControlPlane(tmp_path_factory.mktemp("empty-cluster")) as access:
            yield access
    except binaries.GoMissingError as missing:
        pytest.skip(f"no Kubernetes: {missing}")


@pytest.fixture(scope="session")
def chart() -> str:
    """Path of the chart."""
    return str(CHART)


@pytest.fixture(scope="session")
def render(helm: Helm, chart: str) -> Callable[..., list[dict[str, Any]]]:
    """The manifests of a release with images named and further arguments to `helm template`."""

    def call(*arguments: str, release: str = "turbo") -> list[dict[str, Any]]:
        rendered = helm("template", release, chart, "--namespace=turbo-system", *UNUSED_IMAGES, *arguments)
        return [document for document in yaml.safe_load_all(rendered) if document]

    return call
