"""The control plane of a cluster: etcd, API server, controller manager, scheduler, and KWOK on request."""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import binaries, certificates
from .access import Access, kubeconfig
from .processes import ProcessGroup

START_SECONDS = 90.0
NODE_NAME = "turbo-node"

# One user per component, so that RBAC holds inside too and the audit log says who wrote.
_USERS = {
    "admin": ("turbo-admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE_NAME}", "system:nodes"),
    "kwok": ("kwok", "system:masters"),
}


@dataclass(frozen=True)
class Settings:
    """What differs between a control plane on loopback and one in a sandbox.

    `audit_level` is the API server's audit level for writes other than pods' ("Metadata", "Request" or
    "RequestResponse");
    `qps` is the request rate of controller manager and scheduler: their defaults (20/s, 50/s) alone make
    3,000 pods take 150 s.
    """

    address: str = "127.0.0.1"
    port: int | None = None
    services: str = "10.96.0.0/16"
    audit_level: str = "Metadata"
    qps: int = 500


class ControlPlane:
    """A control plane in `directory`; `with ControlPlane(path) as access:` starts it and stops it.

    The components die with the thread that started them, so start it from a thread that lives as long.
    Raises binaries.GoMissingError where it has to be built first and there is no Go.
    """

    def __init__(self, directory: Path, kwok: bool = False, settings: Settings | None = None) -> None:
        self._directory = directory
        self._kwok = kwok
        self._settings = settings or Settings()
        self._pki = directory / "pki"
        self._tokens = {name: secrets.token_hex(16) for name in _USERS}
        self.processes = ProcessGroup(directory / "logs")
        port = self._settings.port or free_port(self._settings.address)
        self.access = Access(
            kubeconfig=directory / "admin.kubeconfig",
            url=f"https://{self._settings.address}:{port}",
            ca=self._pki / "ca.crt",
            token=self._tokens["admin"],
            audit_log=directory / "audit.log",
        )
        self._port = port

    def __enter__(self) -> Access:
        tools = binaries.ensure(binaries.CONTROL_PLANE + (binaries.FAKE_NODES if self._kwok else ()))
        self._write_files()
        try:
            self._start(tools)
        except BaseException:
            self.processes.stop()
            raise
        return self.access

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes.stop()

    def restart(self, name: str, seconds: float) -> None:
        """Kill a component, and start it again after a while; returns once the API server is ready."""
        self.processes.kill(name)
        time.sleep(seconds)
        self.processes.restart(name)
        self.processes.wait_until(self._ready, "the API server is ready", START_SECONDS)

    def kubeconfig_of(self, user: str) -> Path:
        """The kubeconfig file of one component ("kubelet", "proxy", ...) or of "admin"."""
        return self._directory / f"{user}.kubeconfig"

    @property
    def ca(self) -> Path:
        """The certificate authority that signs every certificate of the cluster."""
        return self._pki / "ca.crt"

    def _write_files(self) -> None:
        self._pki.mkdir(parents=True, exist_ok=True)
        first_service = str(ipaddress.ip_network(self._settings.services)[1])
        certificates.authority(self._pki)
        names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        certificates.server(
            self._pki, "apiserver", names, sorted({"127.0.0.1", self._settings.address, first_service})
        )
        certificates.client(self._pki, "kubelet-client", "kube-apiserver", "system:masters")
        certificates.signing_key(self._pki, "service-account")
        authority = self.ca.read_text(encoding="ascii")
        rows = []
        for name, (user, group) in _USERS.items():
            token = self._tokens[name]
            rows.append(f'{token},{user},{name},"{group}"' if group else f"{token},{user},{name}")
            path = self.kubeconfig_of(name)
            path.touch(mode=0o600)
            path.write_text(kubeconfig(self.access.url, authority, token), encoding="utf-8")
        tokens = self._directory / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text("\n".join(rows) + "\n", encoding="ascii")
        policy = self._directory / "audit-policy.json"
        policy.write_text(_audit_policy(self._settings.audit_level), encoding="ascii")

    def _start(self, tools: dict[str, Path]) -> None:
        client_url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        peer_url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        self.processes.start(
            "etcd",
            [
                tools["etcd"],
                "--name=turbo",
                f"--data-dir={self._directory / 'etcd'}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={client_url}",
                f"--advertise-client-urls={client_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=turbo={peer_url}",
                "--quota-backend-bytes=4294967296",
                "--log-level=warn",
            ],
        )
        self.processes.start(
            "kube-apiserver", [tools["kube-apiserver"], *self._apiserver_options(client_url)]
        )
        self.processes.wait_until(self._ready, "the API server is ready", START_SECONDS)
        rate = [f"--kube-api-qps={self._settings.qps}", f"--kube-api-burst={self._settings.qps}"]
        quiet = ["--leader-elect=false", "--bind-address=127.0.0.1", *rate]
        manager = self.kubeconfig_of("controller-manager")
        self.processes.start(
            "kube-controller-manager",
            [
                tools["kube-controller-manager"],
                f"--kubeconfig={manager}",
                *quiet,
                f"--authentication-kubeconfig={manager}",
                f"--authorization-kubeconfig={manager}",
                f"--secure-port={free_port('127.0.0.1')}",
                "--use-service-account-credentials=true",
                f"--service-account-private-key-file={self._pki / 'service-account.key'}",
                f"--root-ca-file={self.ca}",
                "--node-monitor-grace-period=40s",
            ],
        )
        scheduler = self.kubeconfig_of("scheduler")
        self.processes.start(
            "kube-scheduler",
            [
                tools["kube-scheduler"],
                f"--kubeconfig={scheduler}",
                *quiet,
                f"--authentication-kubeconfig={scheduler}",
                f"--authorization-kubeconfig={scheduler}",
                f"--secure-port={free_port('127.0.0.1')}",
            ],
        )
        if self._kwok:
            self._start_kwok(tools["kwok"])
        # The first pod of a namespace is refused until its default account is there.
        self.processes.wait_until(
            lambda: self._answers("/api/v1/namespaces/default/serviceaccounts/default"),
            "the default service account exists",
            START_SECONDS,
        )

    def _apiserver_options(self, etcd_url: str) -> list[str]:
        pki, settings = self._pki, self._settings
        bind = settings.address if settings.address == "127.0.0.1" else "0.0.0.0"
        return [
            f"--etcd-servers={etcd_url}",
            f"--bind-address={bind}",
            f"--secure-port={self._port}",
            f"--advertise-address={settings.address}",
            f"--service-cluster-ip-range={settings.services}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'service-account.pub'}",
            f"--service-account-signing-key-file={pki / 'service-account.key'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            # Else logs, exec and port-forward look the node's name up in DNS.
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={self._directory / 'audit-policy.json'}",
            f"--audit-log-path={self.access.audit_log}",
            "--audit-log-maxsize=100000",  # one file: it is turned over at 100 MB otherwise
            "--allow-privileged=true",
        ]

    def _start_kwok(self, program: Path) -> None:
        stages = [f"--config={path}" for path in binaries.kwok_stages()]
        self.processes.start(
            "kwok",
            [
                program,
                f"--kubeconfig={self.kubeconfig_of('kwok')}",
                *stages,
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=40",
                "--cidr=127.32.0.1/16",  # pods' addresses: on loopback, where nobody answers
            ],
        )

    def _ready(self) -> bool:
        return self._answers("/readyz")

    def _answers(self, path: str) -> bool:
        request = urllib.request.Request(
            self.access.url + path, headers={"Authorization": f"Bearer {self.access.token}"}
        )
        try:
            with _direct(self.ca).open(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):  # not listening yet, or not ready and says so
            return False


def free_port(address: str) -> int:
    """A TCP port that nobody listens on at `address` now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _direct(ca: Path) -> urllib.request.OpenerDirector:
    """An opener that trusts `ca` alone and goes through no proxy of the user's."""
    context = ssl.create_default_context(cafile=str(ca))
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )


def _audit_policy(level: str) -> str:
    """Every completed write with user, verb and object; reads, leases that only say "alive", and what
    controllers write at every change of a pod's address left out.
    """
    return json.dumps(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "omitManagedFields": True,
            "rules": [
                {"level": "None", "verbs": ["get", "list", "watch"]},
                {
                    "level": "None",
                    "userGroups": ["system:nodes"],
                    "resources": [{"group": "coordination.k8s.io"}],
                },
                {
                    "level": "None",
                    "users": [
                        "kwok",
                        *(
                            f"system:serviceaccount:kube-system:{name}-controller"
                            for name in ("endpoint", "endpointslice")
                        ),
                    ],
                    "resources": [
                        {"group": "", "resources": ["endpoints", "events"]},
                        {"group": "coordination.k8s.io"},
                        {"group": "discovery.k8s.io"},
                    ],
                },
                # with bodies at any level: how many pods there were at once is asked of every cluster
                {
                    "level": "RequestResponse",
                    "resources": [{"group": "", "resources": ["pods", "pods/status"]}],
                },
                {"level": level},
            ],
        }
    )
