"""The way in to an API server: a kubeconfig's context, or the service account of the pod."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from yaml import YAMLError

from turbo_operator.controller.kube.client import Kube
from turbo_operator.controller.kube.errors import NoWayInError
from turbo_operator.yaml_text import described


@asynccontextmanager
async def connect(context: str | None = None) -> AsyncIterator[Kube]:
    """Connect by a context of the kubeconfig (KUBECONFIG, ~/.kube/config). Without one by the pod's service
    account, and outside of a cluster by the kubeconfig's current context. NoWayInError where there is none.
    """
    configuration, namespace = Configuration(), "default"
    is_pod = False
    if context is None:
        with suppress(kube_config.ConfigException):
            kube_config.load_incluster_config(client_configuration=configuration)
            is_pod = True
    if not is_pod:
        loader = await _load_kubeconfig(context, configuration)
        namespace = loader.current_context["context"].get("namespace") or namespace
    # Else the session reads ~/.netrc for each request, and rejects a token where that has a password.
    configuration.client_session_kwargs = {"trust_env": False}
    configuration.proxy = configuration.proxy or _proxy(configuration.host)
    try:
        client = ApiClient(configuration)
    except OSError as error:  # ssl's errors among them
        raise NoWayInError(f"the certificates of the way in cannot be used: {error.strerror}") from error
    async with client:
        yield Kube(client, namespace)


def _proxy(server: str) -> str | None:
    """Return the proxy in the environment for a URL; NO_PROXY may exempt its host."""
    parts = urlsplit(server)
    is_exempt = proxy_bypass(parts.netloc) or proxy_bypass(parts.hostname or "")
    return None if is_exempt else getproxies().get(parts.scheme)


async def _load_kubeconfig(context: str | None, configuration: Configuration) -> Any:
    paths = _kubeconfig()
    try:
        return await kube_config.load_kube_config(paths, context=context, client_configuration=configuration)
    except kube_config.ConfigException as error:
        by = f" by context {context}" if context else ""
        raise NoWayInError(f"the kubeconfig {paths} gives no way in{by}: {str(error).rstrip('.')}") from error
    except YAMLError as error:
        raise NoWayInError(f"the kubeconfig {paths} is no YAML: {described(error)}") from error
    except OSError as error:  # a file that it names
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise NoWayInError(f"the kubeconfig {paths} cannot be used: {what}") from error
    except (TypeError, AttributeError, LookupError, UnicodeDecodeError) as error:  # without words of its own
        raise NoWayInError(f"the kubeconfig {paths} is not as kubectl config writes it") from error
    except ValueError as error:  # a way to log in that the library does not know
        raise NoWayInError(f"the kubeconfig {paths} cannot be used: {str(error).rstrip('.')}") from error


def _kubeconfig() -> str:
    """Return where it is, by KUBECONFIG; the library would only warn that nothing is there."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path):
        raise NoWayInError(f"there is no kubeconfig at {paths}: name one in KUBECONFIG")
    return paths
