"""The real node: containerd, kubelet and kube-proxy, run inside a sandbox."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from . import certificates, ociarchive
from .access import Access
from .controlplane import NODE_NAME, ControlPlane
from .shell import CommandError, run
from .slots import Slot

PAUSE_IMAGE = "localhost/turbo-pause:1"
# In the sandbox's own /run, since the path of a socket may have 107 bytes only.
SOCKET = Path("/run/containerd/containerd.sock")
_START_SECONDS = 90.0


@dataclass(frozen=True)
class Node:
    """The one node of a cluster: its files under `directory`, its images under the slot's store."""

    directory: Path
    slot: Slot

    def start(self, plane: ControlPlane, tools: dict[str, Path]) -> None:
        """Start the node's programs and wait until the API server calls the node Ready."""
        self._write_files(plane)
        processes = plane.processes
        processes.start("containerd", ["containerd", "--config", self.directory / "containerd.toml"])
        processes.wait_until(self._containerd_answers, "containerd answers", _START_SECONDS)
        archive = self.directory / "pause.tar"
        ociarchive.single_program(archive, tools["pause"], PAUSE_IMAGE)
        self.ctr("images", "import", "--no-unpack", str(archive))
        processes.start(
            "kubelet",
            [
                tools["kubelet"],
                f"--config={self.directory / 'kubelet.json'}",
                f"--kubeconfig={plane.kubeconfig_of('kubelet')}",
                "--root-dir=/var/lib/kubelet",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={self.slot.address}",
                f"--pod-infra-container-image={PAUSE_IMAGE}",
            ],
        )
        processes.start("kube-proxy", [tools["kube-proxy"], f"--config={self.directory / 'kube-proxy.json'}"])
        processes.wait_until(lambda: is_ready(plane.access), "the node is Ready", _START_SECONDS)

    def ctr(self, *arguments: str) -> str:
        """Run containerd's client in the namespace that the kubelet sees."""
        return run(["ctr", "--address", SOCKET, "--namespace", "k8s.io", *arguments])

    def _containerd_answers(self) -> bool:
        try:
            self.ctr("version")
        except CommandError:
            return False
        return True

    def _write_files(self, plane: ControlPlane) -> None:
        certificates.server(plane.ca.parent, "kubelet", [NODE_NAME], [self.slot.address])
        (self.directory / "containerd.toml").write_text(self._containerd(), encoding="utf-8")
        network = self.directory / "cni"
        network.mkdir(exist_ok=True)
        (network / "10-turbo.conflist").write_text(json.dumps(self._network()), encoding="utf-8")
        (self.directory / "resolv.conf").write_text("", encoding="ascii")  # there is no DNS to ask
        for name, content in (("kubelet", self._kubelet(plane)), ("kube-proxy", self._proxy(plane))):
            (self.directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def _containerd(self) -> str:
        return f"""version = 2
root = "{self.slot.store}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.directory / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE runc could not lower the score and would die.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.directory / "cni"}"
"""

    def _network(self) -> dict[str, object]:
        return {
            "cniVersion": "1.0.0",
            "name": "turbo",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods",
                    "isGateway": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.slot.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": "/run/cni",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def _kubelet(self, plane: ControlPlane) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.slot.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(plane.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(plane.ca.with_name("kubelet.crt")),
            "tlsPrivateKeyFile": str(plane.ca.with_name("kubelet.key")),
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            # A root of its own: a kubelet removes the pods' cgroups that it does not know.
            "cgroupRoot": f"/{self.slot.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            # Our images come from no registry: what is collected would not come back.
            "imageGCHighThresholdPercent": 100,
            "resolvConf": str(self.directory / "resolv.conf"),
            "volumePluginDir": str(self.directory / "volume-plugins"),
            "healthzBindAddress": self.slot.address,
            "registerWithTaints": [],
        }

    def _proxy(self, plane: ControlPlane) -> dict[str, object]:
        unlimited = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(plane.kubeconfig_of("proxy"))},
            "mode": "iptables",
            "clusterCIDR": self.slot.pods,
            "hostnameOverride": NODE_NAME,
            "healthzBindAddress": f"{self.slot.address}:10256",
            "metricsBindAddress": f"{self.slot.address}:10249",
            "conntrack": unlimited,
            # Two pods on one bridge would answer each other past the address translation.
            "iptables": {"masqueradeAll": True},
        }


def is_ready(access: Access) -> bool:
    """The API server answers and calls the node Ready."""
    try:
        node = access.get("node", NODE_NAME)
    except CommandError:  # not registered yet
        return False
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
