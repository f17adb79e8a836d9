"""`make images` and `make demo` with a registry and a cluster of the user, and the commands of the README."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from turbo_dev import binaries, registry, sizes
from turbo_dev.access import Access
from turbo_dev.cluster import Cluster
from turbo_dev.paths import REPOSITORY

pytestmark = [
    pytest.mark.node,
    pytest.mark.model,
    pytest.mark.skipif(not sizes.IS_FULL, reason="pulls 2 GB of images: `make test-full` has it"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose node has none of our images."""
    cluster = Cluster(f"other-{os.getpid()}")
    cluster.up()
    for image in cluster.ctr("images", "ls", "-q").split():
        if "turbo-pause" not in image:
            cluster.ctr("images", "rm", image)
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def shell(cluster: Cluster) -> dict[str, str]:
    """The environment of somebody who has kubectl, helm and a kubeconfig with the context `turbo`."""
    tools = binaries.ensure(("kubectl", *binaries.HELM_CLIENT))
    folders = {str(path.parent) for path in tools.values()}
    return {
        **os.environ,
        "KUBECONFIG": str(cluster.access.kubeconfig),
        "PATH": ":".join([*sorted(folders), os.environ["PATH"]]),
    }


@pytest.fixture(scope="module")
def address(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry.serve(tmp_path_factory.mktemp("registry"), cluster) as address:
        yield address


@pytest.fixture(scope="module")
def pushed(address: str, shell: dict[str, str]) -> str:
    """What `make images` prints after it has built and pushed them."""
    return run(f"make images REGISTRY={address}/turbo", shell)


@pytest.fixture(scope="module")
def storage(cluster: Cluster) -> None:
    """A default StorageClass with one volume, as a user's cluster has a provisioner."""
    folder = cluster.directory / "volumes" / "any"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "standard",
        "hostPath": {"path": str(folder)},
    }
    cluster.access.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/no-provisioner",
        },
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "any"}, "spec": volume},
    )


def test_the_readmes_commands_install_from_the_users_registry(
    cluster: Cluster, pushed: str, address: str, shell: dict[str, str], tmp_path: Path
) -> None:
    install = pushed[pushed.index("helm upgrade --install") :].strip()
    assert f"{address}/turbo/turbo-operator" in install
    run(f"{install} --wait --timeout 5m", shell)
    readme = (REPOSITORY / "README.md").read_text()
    manifest = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0]
    (tmp_path / "smollm2.yaml").write_text(manifest)
    shown = "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    commands = [line for line in shown.splitlines() if line.startswith("kubectl")]
    assert commands
    for command in commands:
        run(command, shell, tmp_path)
    assert has_image_from(cluster.access, "turbo-system", address)
    run("helm test turbo --namespace turbo-system --timeout 3m", shell)
    run("kubectl delete -f smollm2.yaml", shell, tmp_path)


@pytest.mark.usefixtures("pushed", "storage")
def test_the_demo_runs_on_a_cluster_of_the_users_and_leaves_nothing(
    cluster: Cluster, address: str, shell: dict[str, str]
) -> None:
    output = run(f"make demo CONTEXT=turbo REGISTRY={address}/turbo", shell)
    assert "CONTEXT=turbo" in output
    assert has_image_from(cluster.access, "default", address)
    run("make demo-down CONTEXT=turbo", shell)
    assert cluster.access.get("pods", "--all-namespaces")["items"] == []
    assert json.loads(run("helm list --all-namespaces --output json", shell)) == []
    assert cluster.access.get("crd")["items"] == []


def has_image_from(access: Access, namespace: str, address: str) -> bool:
    pods = access.get("pods", "-n", namespace)["items"]
    return any(
        container["image"].startswith(f"{address}/turbo/")
        for pod in pods
        for container in pod["spec"]["containers"]
    )


def run(command: str, env: dict[str, str], folder: Path = REPOSITORY) -> str:
    result = subprocess.run(
        command, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout
