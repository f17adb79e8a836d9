"""What serving, inspecting and training pods share: model, locks and overlay. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from turbo_operator import api
from turbo_operator.capacity_types import build_constraint
from turbo_operator.plan import Choice
from turbo_operator.render.metadata import digest
from turbo_operator.settings import Settings
from turbo_runtime.contract.documents import ModelInfo
from turbo_runtime.contract.endpoints import PERMANENT_ERROR, S3_CACHE_VARIABLE, s3_folder

TERMINATION_LOG = "/dev/termination-log"  # where the kubelet reads it
MODELS_PATH = "/models"  # where a claim or an image is mounted
DRAFT_MODEL_PATH = "/draft-model"  # and that of a draft model
ADAPTERS_PATH = "/adapters"  # and claims of adapters, by their names
ADAPTER_CACHE_PATH = "/adapter-cache"  # where adapters of a hub are kept for the life of a pod
CACHE_PATH = "/cache"  # where a hub's files are kept, by a claim or for the life of a pod
# As a folder of it is called where HF_HOME is /cache, and that of models of buckets.
HUB_FOLDER, S3_FOLDER = "hub", "s3"
HUB_CACHE_PATH, S3_CACHE_PATH = f"{CACHE_PATH}/{HUB_FOLDER}", f"{CACHE_PATH}/{S3_FOLDER}"
TMP_PATH = "/tmp"  # noqa: S108  the one writable folder that libraries expect; an emptyDir of the pod's own
TMP_LIMIT = "1Gi"

# Of the claim that a model is fetched to. Pods that serve and train mount the folders that are filled, since
# others that have the claim as HF_HOME keep their token beside them. Before a fetch there is no such folder.
CacheAccess = Literal["Folders", "Read", "Write"]
MountedVolume = tuple[dict[str, Any], dict[str, Any]]  # a volume of a pod, and its mount
WITH_A_MODEL = (api.Method.EAGLE3, api.Method.DRAFT_MODEL)  # methods whose drafts a model of its own makes
USER_ID = 65532  # of the runtime image; any other would do as well
# A claim belongs to root where its driver is not told otherwise.
OWN_GROUP = {"fsGroup": USER_ID, "fsGroupChangePolicy": "OnRootMismatch"}

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def source_hash(td: api.TurboDeployment) -> str:
    """Hash what decides which model it is: the inspect Job's answer is good for one such hash. Four letters
    of base 32 are enough to tell the few sources that one object ever had apart.
    """
    adapters = [adapter.dump() for adapter in sorted_adapters(td)]
    return _short(digest({**_model_source(td), **({"adapters": adapters} if adapters else {})}))


def sources(td: api.TurboDeployment) -> dict[str, str]:
    """Hash where the model and each adapter come from, by an adapter's name; the model has none."""
    named = {adapter.name: _short(digest(adapter.dump())) for adapter in sorted_adapters(td)}
    return {"": _short(digest(_model_source(td))), **named}


def _model_source(td: api.TurboDeployment) -> dict[str, Any]:
    model = td.spec.model
    token = model.token_secret_ref.dump() if model.token_secret_ref else None
    parts = {"uri": model.uri, "revision": model.revision, "token": token}
    return parts | ({"s3": model.s3.dump()} if model.s3 else {})


def _short(digest: str) -> str:
    return base64.b32encode(bytes.fromhex(digest)).decode().lower()[:4]


def model_argument(source: api.ModelSource, path: str = MODELS_PATH) -> str:
    """Return what an engine gets as a model: a hub id, or a path in the volume mounted at `path`; and what
    commands of ours get as one in a bucket.
    """
    if source.in_bucket:
        return source.uri
    return source.hub_id if source.on_hub else f"{path}/{source.path}".rstrip("/")


def draft_model(td: api.TurboDeployment, choice: Choice) -> api.ModelSource | None:
    """Return the draft model that the server reads."""
    return td.spec.speculation.draft_model if choice.method in WITH_A_MODEL else None


def fetched_claim(td: api.TurboDeployment) -> str | None:
    """Return the claim that the model is fetched to before a pod starts; None where it is to none."""
    claim = td.spec.cache.persistent_volume_claim if td.spec.cache else None
    return claim.claim_name if claim else None


def is_fetched(td: api.TurboDeployment) -> bool:
    """Whether the model is fetched before an engine starts, which needs no hub then."""
    return td.spec.cache is not None


def served_model(td: api.TurboDeployment, facts: ModelInfo) -> tuple[str, str | None]:
    """Return what an engine gets as the model, and of a model that it asks the hub for the commit."""
    source = td.spec.model
    if source.in_bucket:
        return f"{S3_CACHE_PATH}/{s3_folder(source.uri, facts.revision or '')}", None
    revision = (facts.revision or source.revision) if source.on_hub else None
    if is_fetched(td):
        return f"{cached_folder(source)}/snapshots/{revision}", None
    return model_argument(source), revision


def cached_folder(source: api.ModelSource) -> str:
    """Return the folder of a repository of the hub in the cache."""
    return f"{HUB_CACHE_PATH}/models--{source.hub_id.replace('/', '--')}"


def sorted_adapters(td: api.TurboDeployment) -> list[api.Adapter]:
    """Return the adapters by name: their order in the spec decides nothing."""
    return sorted(td.spec.adapters or (), key=lambda adapter: adapter.name)


def adapter_path(td: api.TurboDeployment, adapter: api.Adapter, facts: ModelInfo) -> str:
    """Return the folder of an adapter: on a claim, in the cache, or where a server's pod downloads it to."""
    if not adapter.on_hub:
        return claimed_path(adapter)
    commit = adapter_commit(adapter, facts)
    if is_fetched(td):
        return f"{cached_folder(adapter)}/snapshots/{commit}"
    return f"{ADAPTER_CACHE_PATH}/{adapter.hub_id}/{commit}"


def claimed_path(adapter: api.Adapter) -> str:
    """Return the path of an adapter on a claim."""
    return model_argument(adapter, f"{ADAPTERS_PATH}/{adapter.claim}")


def adapter_argument(adapter: api.Adapter, revision: str | None) -> str:
    """Return what commands of ours get as an adapter: a path on a claim, or a hub id with its revision."""
    if not adapter.on_hub:
        return claimed_path(adapter)
    return f"{adapter.hub_id}@{revision}" if revision else adapter.hub_id


def adapter_commit(adapter: api.Adapter, facts: ModelInfo) -> str:
    """Return the commit of an adapter of the hub that was inspected."""
    known = next((it.revision for it in facts.adapters if it.name == adapter.name), None)
    return known or adapter.revision or "main"


def mounted_volume(
    name: str, volume: Mapping[str, Any], path: str, *, read_only: bool = False
) -> MountedVolume:
    """Build a volume, and the mount by which a container has it at `path`."""
    mount: dict[str, Any] = {"name": name, "mountPath": path}
    return {"name": name, **volume}, mount | ({"readOnly": True} if read_only else {})


def _model_volumes(
    td: api.TurboDeployment, draft: api.ModelSource | None, access: CacheAccess
) -> list[MountedVolume]:
    """Build the volumes of a pod that reads the model, and a draft model."""
    volumes = [mounted_volume("tmp", {"emptyDir": {"sizeLimit": TMP_LIMIT}}, TMP_PATH)]
    for name, source, path in (
        ("model", td.spec.model, MODELS_PATH),
        ("draft-model", draft, DRAFT_MODEL_PATH),
    ):
        if source is not None and not source.on_hub and not source.in_bucket:
            volume: dict[str, Any] = {"persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}}
            if source.image:
                volume = {"image": {"reference": source.image, "pullPolicy": "IfNotPresent"}}
            volumes.append(mounted_volume(name, volume, path, read_only=True))
    claims = sorted({adapter.claim for adapter in td.spec.adapters or () if not adapter.on_hub})
    for number, name in enumerate(claims):
        volume = {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        path = f"{ADAPTERS_PATH}/{name}"
        volumes.append(mounted_volume(f"adapters-{number}", volume, path, read_only=True))
    if any(adapter.on_hub for adapter in td.spec.adapters or ()) and not is_fetched(td):
        volumes.append(mounted_volume("adapter-cache", {"emptyDir": {}}, ADAPTER_CACHE_PATH))
    if (claim_name := fetched_claim(td)) is not None:
        kept = {"claimName": claim_name} | ({} if access == "Write" else {"readOnly": True})
        volume = {"persistentVolumeClaim": kept}
        root, mount = mounted_volume("cache", volume, CACHE_PATH, read_only=access != "Write")
        if access == "Folders":
            folders = _cache_folders(td)
            volumes += [(root, {**mount, "mountPath": f"{CACHE_PATH}/{it}", "subPath": it}) for it in folders]
        else:
            volumes.append((root, mount))
    elif is_fetched(td) or _needs_hub(td, draft):
        folder = td.spec.cache.empty_dir.dump() if td.spec.cache and td.spec.cache.empty_dir else {}
        volumes.append(mounted_volume("cache", {"emptyDir": folder}, CACHE_PATH))
    return volumes


def _cache_folders(td: api.TurboDeployment) -> list[str]:
    """Return the folders of the cache that are filled."""
    needs_hub = _needs_hub(td, td.spec.speculation.draft_model)
    return [*([HUB_FOLDER] if needs_hub else []), *([S3_FOLDER] if td.spec.model.in_bucket else [])]


def _share_claims(volumes: Sequence[MountedVolume]) -> list[MountedVolume]:
    """Return them with one volume for each claim: the kubelet waits for ever for a second one of the same.
    It is read-only where all its mounts are.
    """
    by_claim: dict[str, dict[str, Any]] = {}
    shared = []
    for volume, mount in volumes:
        source = volume.get("persistentVolumeClaim")
        if source is not None:
            known = by_claim.setdefault(source["claimName"], volume)
            if not source.get("readOnly"):
                known["persistentVolumeClaim"] = source
            volume, mount = known, {**mount, "name": known["name"]}
        shared.append((volume, mount))
    return shared


def _needs_hub(td: api.TurboDeployment, draft: api.ModelSource | None) -> bool:
    sources = (td.spec.model, draft, *(td.spec.adapters or ()))
    return any(source is not None and source.on_hub for source in sources)


def _environment(
    td: api.TurboDeployment, draft: api.ModelSource | None, asks_hub: bool
) -> list[dict[str, Any]]:
    """Build its environment. The root is read-only, so homes and caches lie on the emptyDirs."""
    model = td.spec.model
    variables: list[dict[str, Any]] = [{"name": "HOME", "value": TMP_PATH}]
    if is_fetched(td):
        variables.append({"name": "HF_HUB_CACHE", "value": HUB_CACHE_PATH})
    if not _needs_hub(td, draft) or (is_fetched(td) and not asks_hub):
        # A model on a claim is complete there: nothing of it may be fetched from elsewhere.
        return [*variables, {"name": "HF_HUB_OFFLINE", "value": "1"}]
    if not is_fetched(td):
        variables.append({"name": "HF_HOME", "value": CACHE_PATH})
    if model.token_secret_ref:
        key = {"name": model.token_secret_ref.name, "key": model.token_secret_ref.key}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    return variables


def runtime_image(td: api.TurboDeployment, settings: Settings) -> str:
    """Return the image of pods that run our runtime, as those that inspect and train do with any engine."""
    own = td.spec.engine.image if td.spec.engine.type != api.EngineName.VLLM else None
    return own or settings.runtime_image


def build_container(
    td: api.TurboDeployment,
    settings: Settings,
    image: str,
    name: str,
    command: Sequence[str],
    arguments: Sequence[str],
    resources: Mapping[str, Any],
    draft: api.ModelSource | None = None,
    *,
    asks_hub: bool = False,
) -> dict[str, Any]:
    """Build a container that reads the model, and a draft model; one that `asks_hub` does so too where the
    model is fetched before an engine starts.
    """
    overlay = [variable.dump() for variable in td.spec.pod_template.spec.env or ()]
    variables = [*_environment(td, draft, asks_hub), *overlay]
    named = {variable["name"] for variable in variables}
    given = [{"name": name, "value": value} for name, value in settings.model_env if name not in named]
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(command),
        "args": list(arguments),
        # As the API server keeps them: an empty value is no value there.
        "env": [
            {key: value for key, value in variable.items() if value != ""}
            for variable in (*given, *variables)
        ],
        "resources": resources,
    }


def reading_bucket(td: api.TurboDeployment, container: Mapping[str, Any]) -> dict[str, Any]:
    """Return a container as one that may read the bucket of a model in one; any other as it is."""
    model = td.spec.model
    if not model.in_bucket:
        return dict(container)
    values = {S3_CACHE_VARIABLE: S3_CACHE_PATH}
    if (bucket := model.s3) is not None:
        values |= {"AWS_ENDPOINT_URL_S3": bucket.endpoint} if bucket.endpoint else {}
        values |= {"AWS_REGION": bucket.region} if bucket.region else {}
    # Fields come before variables of all pods, and AWS_ENDPOINT_URL_S3 is before AWS_ENDPOINT_URL.
    own = [{"name": name, "value": value} for name, value in values.items()]
    others = [variable for variable in container["env"] if variable["name"] not in values]
    complete = {**container, "env": [*own, *others]}
    if bucket is not None and bucket.secret_ref is not None:
        complete["envFrom"] = [{"secretRef": {"name": bucket.secret_ref.name}}]
    return complete


def merge_environment(
    own: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return both, each variable once: the others' value wins, but a path of ours comes before theirs."""
    merged = {variable["name"]: dict(variable) for variable in own}
    for variable in others:
        path = merged.get("PYTHONPATH", {}) if variable["name"] == "PYTHONPATH" else {}
        value = {"value": f"{path['value']}:{variable['value']}"} if path and "value" in variable else {}
        merged[variable["name"]] = {**variable, **value}
    return list(merged.values())


def pod_metadata(td: api.TurboDeployment, own: Mapping[str, str]) -> dict[str, Any]:
    """Build the metadata of a pod template: the overlay's, under our own labels."""
    overlay = td.spec.pod_template.metadata
    metadata = {"labels": {**(overlay.labels or {}), **own}}
    return metadata | ({"annotations": dict(overlay.annotations)} if overlay.annotations else {})


def placement_labels(choice: Choice) -> dict[str, str]:
    """Return the labels by which, and the catalog's prices, anybody can tell what a pod costs."""
    return {
        api.LABEL_ACCELERATOR: api.label_value(choice.accelerator.name),
        api.LABEL_ACCELERATOR_COUNT: str(choice.accelerators_per_replica // choice.nodes),
        api.LABEL_CAPACITY_TYPE: choice.capacity_type,
    }


def pod_spec(
    td: api.TurboDeployment,
    container: dict[str, Any],
    choice: Choice | None = None,
    volumes: Sequence[MountedVolume] = (),
    draft: api.ModelSource | None = None,
    downloads: Sequence[Mapping[str, Any]] = (),
    *,
    access: CacheAccess = "Folders",
) -> dict[str, Any]:
    """Build a pod around one container that reads the model; with a choice, it goes only where the
    accelerator and the capacity type of that are. The overlay adds to it. `downloads` run before it.

    No token of the Kubernetes API is mounted, and Services are not announced in the environment.
    """
    overlay = td.spec.pod_template.spec
    mounted = _share_claims([*_model_volumes(td, draft, access), *volumes])
    mounts = [mount for _, mount in mounted]
    optional: dict[str, Any] = {
        "nodeSelector": {**(overlay.node_selector or {})},
        "tolerations": [toleration.dump() for toleration in overlay.tolerations or ()],
        "serviceAccountName": overlay.service_account_name,
        "imagePullSecrets": [{"name": secret.name} for secret in overlay.image_pull_secrets or ()],
        "priorityClassName": overlay.priority_class_name,
    }
    if choice is not None:
        constraint = build_constraint(choice.accelerator, choice.capacity_type)
        tolerations = map(dict, (*choice.accelerator.tolerations, *constraint.tolerations))
        optional |= {
            "affinity": constraint.affinity,
            "runtimeClassName": overlay.runtime_class_name,
            "nodeSelector": {**choice.accelerator.node_selector, **optional["nodeSelector"]},
            "tolerations": [*tolerations, *optional["tolerations"]],
        }
    if downloads:
        optional["initContainers"] = [secured(download, mounts) for download in downloads]
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**POD_SECURITY},
        "containers": [secured(container, mounts)],
        "volumes": list({volume["name"]: volume for volume, _ in mounted}.values()),
        **{name: value for name, value in optional.items() if value},
    }


def secured(container: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Complete a container of a pod with what it mounts."""
    return {
        **container,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": list(mounts),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def failing_at_once(container: str) -> dict[str, Any]:
    """Return a Job's rule to fail at once of what no retry can mend, like a path where nothing is."""
    codes = {"containerName": container, "operator": "In", "values": [PERMANENT_ERROR]}
    return {"action": "FailJob", "onExitCodes": codes}
