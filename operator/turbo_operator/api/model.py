"""The model that is served, its adapters, and where both lie before a pod serves them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from turbo_operator.api.template import LocalRef
from turbo_operator.api.validation import ModelSource, ModelURI, ObjectName, Quantity, Record, Rule, Text
from turbo_runtime.contract.endpoints import S3_CACHE_VARIABLE

# What would have pods look elsewhere than in the cache, ask the hub, or fetch without it.
CACHE_VARIABLES = ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", S3_CACHE_VARIABLE)

_Revision = Annotated[
    str,
    Text(128, r"[A-Za-z0-9][-A-Za-z0-9_./]*", "write a commit, a tag or a branch, like main"),
    Rule("!self.contains('..')", "write the revision without '..'", holds=lambda name: ".." not in name),
]
_SERVED_NAME = "write a name of letters, digits, '-', '_', '.', ':' and '/'"
_ServedName = Annotated[str, Text(128, r"[A-Za-z0-9][-A-Za-z0-9_.:/]*", _SERVED_NAME)]


class TokenSecretRef(Record):
    """The key of a Secret that holds a Hugging Face token; the kubelet reads it, never the operator."""

    name: ObjectName
    """Name of the Secret, in the same namespace."""
    key: Annotated[str, Text(253)] = "token"
    """The key in it."""


class Bucket(Record):
    """How the bucket of a model is read. Only the Jobs and containers that read it get this."""

    endpoint: (
        Annotated[str, Text(512, r"https?://[^\s/]+(/\S*)?", "write a URL, like https://minio.example:9000")]
        | None
    ) = None
    """Where the store is. Default: at AWS, or as AWS_ENDPOINT_URL says."""
    region: Annotated[str, Text(63, r"[-a-z0-9]+", "write a region, like eu-central-1")] | None = None
    """Its region. Default: as AWS_REGION says."""
    secret_ref: LocalRef | None = None
    """A Secret in the same namespace, each key of which is an environment variable: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL. The kubelet reads it, never the
    operator. Default: what the service account of podTemplate brings, or none for a public bucket."""


class Model(ModelSource):
    """The model that is served."""

    uri: ModelURI
    """hf://ORGANIZATION/NAME, or a folder of safetensors or a .gguf file: pvc://CLAIM/PATH on a claim,
    oci://REGISTRY/REPOSITORY:TAG/PATH in an image, which nodes mount where the cluster has image volumes. Or
    s3://BUCKET/PREFIX: a folder of safetensors in a bucket, with spec.cache.
    """
    revision: _Revision | None = None
    """Commit, tag or branch of a model of the hub."""
    dtype: Literal["Auto", "Float32", "BFloat16"] = "Auto"
    """What the model is computed in. Auto: BFloat16 on accelerators, also of weights in float32; Float32 on
    cores.
    """
    max_model_len: Annotated[int, Field(strict=True, ge=16, le=16_777_216)] | None = None
    """Longest prompt plus output in tokens. Default: the model's own."""
    name: _ServedName | None = None
    """Name of the model in the OpenAI API. Default: the name of the TurboDeployment."""
    token_secret_ref: TokenSecretRef | None = None
    """A Hugging Face token, for gated or private models."""
    s3: Bucket | None = None
    """How the bucket of a model in one (s3://) is read."""

    rules = (
        Rule(
            "!self.uri.matches('^s3://.*[.]gguf/?$')",
            "name a folder of safetensors, or a .gguf file of a claim or an image: GGUF files in buckets are "
            "not supported",
            "uri",
        ),
        Rule(
            "self.uri.startsWith('s3://') || !has(self.s3)",
            "leave s3 out: only models in a bucket (s3://) have one",
            "s3",
        ),
        Rule(
            "self.uri.startsWith('hf://') || !has(self.revision)",
            "leave revision out: only models of the hub (hf://) have one, elsewhere the uri says which",
            "revision",
        ),
        Rule(
            "self.uri.startsWith('hf://') || !has(self.tokenSecretRef)",
            "leave tokenSecretRef out: only models of the hub (hf://) need a token",
            "tokenSecretRef",
        ),
    )


class CacheClaim(Record):
    """A PersistentVolumeClaim that keeps models."""

    claim_name: ObjectName
    """Name of the claim, in the same namespace; with pods on several nodes one that several may mount. Its
    folder hub is a cache of the Hugging Face hub, and s3 has models of buckets: other TurboDeployments may
    share both.
    """


class CacheFolder(Record):
    """A folder that each pod has for itself."""

    size_limit: Quantity | None = None
    """Of the folder. Default: what the node has."""


class Cache(Record):
    """Where a model of the hub or in a bucket, and adapters, lie before a pod serves them: one of the two."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    persistent_volume_claim: CacheClaim | None = None
    """A Job fetches the model to a claim once. Pods start when all of it is there, and need no hub."""
    empty_dir: CacheFolder | None = None
    """Each pod fetches the model before its engine starts, which needs no hub then."""

    rules = (
        Rule(
            "has(self.persistentVolumeClaim) != has(self.emptyDir)",
            "write one of persistentVolumeClaim and emptyDir",
        ),
    )


class Adapter(ModelSource):
    """A LoRA adapter of the model, served under its own name."""

    name: Annotated[str, Text(63, r"[A-Za-z0-9][-A-Za-z0-9_.:/]*", _SERVED_NAME)]
    """Its name in the OpenAI API."""
    uri: ModelURI
    """hf://ORGANIZATION/NAME, or pvc://CLAIM/PATH: a folder with adapter_config.json and safetensors. A token
    is that of the model."""
    revision: _Revision | None = None
    """Commit, tag or branch of an adapter of the hub. Pods take the commit that it was when it was read."""

    rules = (
        Rule(
            "self.uri.startsWith('hf://') || !has(self.revision)",
            "leave revision out: only adapters of the hub (hf://) have one",
            "revision",
        ),
        Rule(
            "!self.uri.matches('^(oci|s3)://')",
            "write hf:// or pvc://: adapters in images and buckets are not supported yet",
            "uri",
        ),
    )
