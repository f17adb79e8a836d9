"""What brings a model of the hub or in a bucket, and adapters, to where pods read them: a Job to a claim, or
a container that runs before the engine's to a folder of the pod's own. With a claim that container sees
whether all is there: `hf cache rm`, or another claim of the name, may have taken away what was brought. Pure.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from turbo_operator import api
from turbo_operator.render import metadata, pod
from turbo_operator.settings import Settings
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import (
    CONSOLIDATED_FILES,
    PERMANENT_ERROR,
    PORT,
    PORT_NAME,
    UNUSED_FILES,
)

CONTAINER = "fetch"
CHECK_CONTAINER = "check"
_PAUSE_SECONDS = 10
_PAUSES = 30  # of a pod of a group: five minutes between two groups
LACKS = "the claim lacks "  # and a path: the words of the check
_UNUSED = "|".join(UNUSED_FILES)
# Of each file that is linked last, whether it and what lies beside it are there; a link may lead nowhere.
# What a fetch leaves out is somebody else's. A LeaderWorkerSet makes a group anew with each container that
# starts again: pods of one wait for a fetch, and end after so many `pauses`, or on SIGTERM: the kernel drops
# what the first process of a container does not handle.
_CHECK = f"""\
lacks() {{
  for file in "$@"; do
    any= others=
    for each in "${{file%/*}}"/*.safetensors; do
      [ -L "$each" ] || [ -e "$each" ] || continue
      any=1
      case "${{each##*/}}" in {CONSOLIDATED_FILES}) ;; *) others=1 ;; esac
    done
    for each in "$file" "${{file%/*}}"/*; do
      [ -e "$each" ] && continue
      case "${{each##*/}}" in
        {_UNUSED}) continue ;;
        *.bin) [ "$any" ] && continue ;;
        {CONSOLIDATED_FILES}) [ "$others" ] && continue ;;
      esac
      echo "{LACKS}$each"
      return
    done
  done
  return 1
}}
trap 'exit 143' TERM
while said=$(lacks "$@"); do
  [ "$pauses" -gt 0 ] || {{ echo "$said"; exit {PERMANENT_ERROR}; }}
  pauses=$((pauses - 1))
  sleep {_PAUSE_SECONDS} &
  wait $!
done
"""
_CHECK_RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
RETRIES = 6  # pauses of 10 s, doubled each time: about ten minutes for a hub to come back
_RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}


def job_name(td: api.TurboDeployment, facts: ModelInfo) -> str:
    """`NAME-fetch-HASH`, by what is fetched, and where to."""
    token = td.spec.model.token_secret_ref
    material = [pod.fetched_claim(td), facts.revision, *_models(td, facts), token.dump() if token else None]
    material += [td.spec.model.s3.dump()] if td.spec.model.s3 else []
    digest = metadata.digest(material)
    return f"{td.metadata.name}-fetch-{base64.b32encode(bytes.fromhex(digest)).decode().lower()[:4]}"


def job(td: api.TurboDeployment, facts: ModelInfo, settings: Settings) -> dict[str, Any]:
    """Build a Job of one pod that downloads what of the model is missing on the claim."""
    container = _container(td, facts, settings, f"--progress-port={PORT}")
    container["ports"] = [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}]
    pod_spec = pod.pod_spec(td, container, access="Write")
    pod_spec["securityContext"] |= pod.OWN_GROUP
    spec = {
        "backoffLimit": RETRIES,
        "podFailurePolicy": {"rules": [pod.failing_at_once(CONTAINER)]},
        "template": {
            "metadata": pod.pod_metadata(td, metadata.labels(td, api.ROLE_FETCH)),
            "spec": {**pod_spec, "restartPolicy": "Never"},
        },
    }
    return metadata.build_child(td, "Job", job_name(td, facts), api.ROLE_FETCH, {"spec": spec})


def init_containers(
    td: api.TurboDeployment, facts: ModelInfo, settings: Settings, spec: Mapping[str, Any], nodes: int = 1
) -> list[dict[str, Any]]:
    """Build what runs in a pod before the container of its `spec`; nothing where no model is fetched.
    `nodes` is how many a replica is on.
    """
    if not pod.is_fetched(td):
        return []
    (main,) = spec["containers"]
    paths = (pod.TMP_PATH, pod.CACHE_PATH, pod.HUB_CACHE_PATH, pod.S3_CACHE_PATH)
    mounts = [mount for mount in main["volumeMounts"] if mount["mountPath"] in paths]
    if pod.fetched_claim(td) is None:
        return [pod.secured(_container(td, facts, settings), mounts)]
    arguments = [
        "-c",
        f"pauses={_PAUSES if nodes > 1 else 0}\n{_CHECK}",
        CHECK_CONTAINER,
        *_last_files(td, facts),
    ]
    of_check = (CHECK_CONTAINER, ["sh"], arguments, _CHECK_RESOURCES)
    return [pod.secured(pod.build_container(td, settings, main["image"], *of_check), mounts)]


def is_of(td: api.TurboDeployment, facts: ModelInfo, path: str) -> bool:
    """Whether a path that a check names is of what is fetched now; an empty one is the folder of all."""
    return not path or any(path.startswith(file.rpartition("/")[0]) for file in _last_files(td, facts))


def _last_files(td: api.TurboDeployment, facts: ModelInfo) -> list[str]:
    """Return what `turbo fetch` writes last of the model, of a draft model and of adapters."""
    draft = td.spec.speculation.draft_model
    return [
        f"{pod.served_model(td, facts)[0]}/config.json",
        *([f"{pod.cached_folder(draft)}/refs/main"] if draft is not None and draft.on_hub else []),
        *(f"{pod.adapter_path(td, it, facts)}/adapter_config.json" for it in _adapters(td)),
    ]


def _container(td: api.TurboDeployment, facts: ModelInfo, settings: Settings, *more: str) -> dict[str, Any]:
    revision = td.spec.model.revision
    arguments = [
        *_models(td, facts),
        *([f"--revision={revision}"] if revision else []),
        f"--commit={facts.revision}",
        f"--termination-message={pod.TERMINATION_LOG}",
        *more,
    ]
    image, command = pod.runtime_image(td, settings), ["turbo", "fetch"]
    draft = td.spec.speculation.draft_model
    container = pod.build_container(
        td, settings, image, CONTAINER, command, arguments, _RESOURCES, draft, asks_hub=True
    )
    return pod.reading_bucket(td, container)


def _models(td: api.TurboDeployment, facts: ModelInfo) -> list[str]:
    """Return the model, and of the hub the ids of a draft model and, each with its commit, of adapters."""
    draft = td.spec.speculation.draft_model
    adapters = [f"{it.hub_id}@{pod.adapter_commit(it, facts)}" for it in _adapters(td)]
    drafts = [draft.hub_id] if draft is not None and draft.on_hub else []
    return [pod.model_argument(td.spec.model), *drafts, *adapters]


def _adapters(td: api.TurboDeployment) -> list[api.Adapter]:
    """Return the adapters of the hub."""
    return [adapter for adapter in pod.sorted_adapters(td) if adapter.on_hub]
