"""Kubernetes, etcd, KWOK, LeaderWorkerSet, helm, a registry and an S3 server, built once from Go modules.

They lie in the user's cache, each in a folder named by its version, so that a new version never meets an
old binary and two checkouts share what they have in common.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .paths import REPOSITORY, cache_root
from .progress import step
from .shell import CommandError, run

KUBERNETES = "1.34.4"
ETCD = "3.6.4"
KWOK = "0.8.0"
HELM = "3.22.0"
DISTRIBUTION = "3.0.0"
LWS = "0.7.0"
GATEWAY_API = "1.4.1"
INFERENCE_EXTENSION = "1.3.0"  # of it
VERSITYGW = "1.8.0"
PROMETHEUS = "0.316.0"  # 3.16.0, by the version of its Go module
PAUSE = "1"  # ours; raise it when its source changes

_MODULES = REPOSITORY / "dev" / "cluster"
_STRIP = "-s -w"
_MAJOR, _MINOR, _ = KUBERNETES.split(".")
_VERSION = "k8s.io/component-base/version"
# Without these the components call themselves v0.0.0 and refuse to talk to each other.
_STAMP = (
    f"{_STRIP} -X {_VERSION}.gitVersion=v{KUBERNETES}"
    f" -X {_VERSION}.gitMajor={_MAJOR} -X {_VERSION}.gitMinor={_MINOR}"
)
# What `helm template` and `helm lint` take the cluster's version to be; unstamped they say 1.20.
_HELM_STAMP = " ".join(
    [
        _STRIP,
        *(
            f"-X helm.sh/helm/v3/pkg/{package}.k8sVersion{part}={number}"
            for package in ("chartutil", "lint/rules")
            for part, number in (("Major", _MAJOR), ("Minor", _MINOR))
        ),
    ]
)

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy", "pause")
HELM_CLIENT = ("helm",)
FAKE_NODES = ("kwok",)
REGISTRY = ("registry",)
LEADER_WORKER_SETS = ("lws",)
ENDPOINT_PICKER = ("epp",)
OBJECT_STORE = ("versitygw",)
PROMETHEUS_TOOLS = ("promtool",)


@dataclass(frozen=True)
class _Tool:
    """How one program is built: a package of one of our modules, or a released module."""

    folder: str
    package: str
    usually: str
    flags: str = _STRIP
    module: Path | None = None  # None: `go install package`
    release: str | None = None  # of a module in which `package` is built as it was released


def _kubernetes(name: str, usually: str) -> _Tool:
    return _Tool(f"kubernetes-{KUBERNETES}", f"k8s.io/kubernetes/cmd/{name}", usually, _STAMP, _MODULES)


_TOOLS = {
    "etcd": _Tool(f"etcd-{ETCD}", ".", "25 s", module=_MODULES / "etcd"),
    "kube-apiserver": _kubernetes("kube-apiserver", "5 min the first time, with all that the others share"),
    "kubectl": _kubernetes("kubectl", "40 s"),
    "kube-controller-manager": _kubernetes("kube-controller-manager", "1 min"),
    "kube-scheduler": _kubernetes("kube-scheduler", "20 s"),
    "kubelet": _kubernetes("kubelet", "1 min"),
    "kube-proxy": _kubernetes("kube-proxy", "20 s"),
    "pause": _Tool(f"pause-{PAUSE}", ".", "2 s", module=_MODULES / "pause"),
    "kwok": _Tool(f"kwok-{KWOK}", f"sigs.k8s.io/kwok/cmd/kwok@v{KWOK}", "80 s"),
    "registry": _Tool(
        f"distribution-{DISTRIBUTION}",
        f"github.com/distribution/distribution/v3/cmd/registry@v{DISTRIBUTION}",
        "90 s",
    ),
    "lws": _Tool(f"lws-{LWS}", "./cmd", "3 min", release=f"sigs.k8s.io/lws@v{LWS}"),
    "epp": _Tool(
        f"inference-extension-{INFERENCE_EXTENSION}",
        "./cmd/epp",
        "4 min",
        release=f"sigs.k8s.io/gateway-api-inference-extension@v{INFERENCE_EXTENSION}",
    ),
    "versitygw": _Tool(
        f"versitygw-{VERSITYGW}", f"github.com/versity/versitygw/cmd/versitygw@v{VERSITYGW}", "2 min"
    ),
    "promtool": _Tool(
        f"prometheus-{PROMETHEUS}",
        "./cmd/promtool",
        "8 min",
        release=f"github.com/prometheus/prometheus@v{PROMETHEUS}",
    ),
    "helm": _Tool(
        f"helm-{HELM}-for-{KUBERNETES}", f"helm.sh/helm/v3/cmd/helm@v{HELM}", "2 min 30 s", _HELM_STAMP
    ),
}


class GoMissingError(RuntimeError):
    """A tool has to be built and there is no Go toolchain."""


def folder() -> Path:
    """Where the built tools are."""
    return cache_root() / "tools"


def missing(names: tuple[str, ...]) -> list[str]:
    """Those of `names` that are not built yet."""
    return [name for name in names if not _target(name).exists()]


def ensure(names: tuple[str, ...]) -> dict[str, Path]:
    """Build what is missing of `names` and return where each one is.

    Raises GoMissingError where something has to be built without Go, CommandError where a build fails.
    """
    for name in missing(names):
        if shutil.which("go") is None:
            raise GoMissingError(f"{name} has to be built and there is no `go` (>= 1.24) on the PATH")
        with _locked(name):
            if not _target(name).exists():  # another process may have built it while we waited
                _build(name)
    return {name: _target(name) for name in names}


def kwok_stages() -> list[Path]:
    """The stage files of KWOK's own module: nodes that start and beat, pods that run and finish at once."""
    stages = _module(f"sigs.k8s.io/kwok@v{KWOK}") / "kustomize" / "stage"
    wanted = (
        "node/fast/node-initialize",
        "node/heartbeat/node-heartbeat",
        "pod/fast/pod-ready",
        "pod/fast/pod-complete",
        "pod/fast/pod-delete",
    )
    return [stages / f"{name}.yaml" for name in wanted]


def lws_config() -> Path:
    """The folder of LeaderWorkerSet's own module with its CustomResourceDefinition and webhooks."""
    return _module(f"sigs.k8s.io/lws@v{LWS}") / "config"


def http_routes() -> Path:
    """The CustomResourceDefinition of HTTPRoutes in the Gateway API's own module."""
    crds = _module(f"sigs.k8s.io/gateway-api@v{GATEWAY_API}") / "config" / "crd" / "standard"
    return crds / "gateway.networking.k8s.io_httproutes.yaml"


def inference_extension() -> Path:
    """The folder of the Gateway API Inference Extension's module with its definitions and Helm charts."""
    return _module(f"sigs.k8s.io/gateway-api-inference-extension@v{INFERENCE_EXTENSION}") / "config"


def inference_pools() -> Path:
    """The CustomResourceDefinition of InferencePools."""
    return inference_extension() / "crd" / "bases" / "inference.networking.k8s.io_inferencepools.yaml"


def _module(path: str) -> Path:
    """Where the files of a module are; GoMissingError where Go, which downloads it, is missing."""
    if shutil.which("go") is None:
        raise GoMissingError(f"{path} has to be looked up and there is no `go` (>= 1.24) on the PATH")
    answer = run(["go", "mod", "download", "-json", path], cwd=_MODULES / "etcd")
    return Path(json.loads(answer)["Dir"])


def _target(name: str) -> Path:
    return folder() / _TOOLS[name].folder / name


def _build(name: str) -> None:
    tool = _TOOLS[name]
    target = _target(name)
    half_done = target.with_name(f".{name}.partial")
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    options = ["-trimpath", "-ldflags", tool.flags]
    with step(f"build {tool.folder.replace('-', ' ')}: {name}", tool.usually):
        module = _module(tool.release) if tool.release else tool.module
        if module is not None:
            run(["go", "build", *options, "-o", half_done, tool.package], cwd=module, env=env)
        else:
            staging = target.with_name(f".{name}.install")
            run(["go", "install", *options, tool.package], cwd=_MODULES, env={**env, "GOBIN": str(staging)})
            (staging / name).replace(half_done)
            staging.rmdir()
        half_done.replace(target)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    target = _target(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


__all__ = [
    "CONTROL_PLANE",
    "ENDPOINT_PICKER",
    "FAKE_NODES",
    "HELM_CLIENT",
    "LEADER_WORKER_SETS",
    "NODE",
    "OBJECT_STORE",
    "PROMETHEUS_TOOLS",
    "REGISTRY",
    "CommandError",
    "GoMissingError",
    "ensure",
    "folder",
    "http_routes",
    "inference_extension",
    "inference_pools",
    "kwok_stages",
    "lws_config",
    "missing",
]
