"""The model that is served, and its adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from turbo_operator.api.validation import ModelSource, ModelURI, ObjectName, Record, Rule, Text

_Revision = Annotated[
    str, Text(128, r"[A-Za-z0-9][-A-Za-z0-9_./]*", "write a commit, a tag or a branch, like main")
]
_SERVED_NAME = "write a name of letters, digits, '-', '_', '.', ':' and '/'"
_ServedName = Annotated[str, Text(128, r"[A-Za-z0-9][-A-Za-z0-9_.:/]*", _SERVED_NAME)]


class TokenSecretRef(Record):
    """The key of a Secret that holds a Hugging Face token; the kubelet reads it, never the operator."""

    name: ObjectName
    """Name of the Secret, in the same namespace."""
    key: Annotated[str, Text(253)] = "token"
    """The key in it."""


class Model(ModelSource):
    """The model that is served."""

    uri: ModelURI
    """hf://ORGANIZATION/NAME, or a folder of safetensors or a .gguf file: pvc://CLAIM/PATH on a claim,
    oci://REGISTRY/REPOSITORY:TAG/PATH in an image, which nodes mount where the cluster has image volumes.
    """
    revision: _Revision | None = None
    """Commit, tag or branch of a model of the hub."""
    dtype: Literal["Auto", "Float32", "BFloat16"] = "Auto"
    """What the model is computed in; Auto takes what the weights are stored in where the hardware can."""
    max_model_len: Annotated[int, Field(strict=True, ge=16, le=16_777_216)] | None = None
    """Longest prompt plus output in tokens. Default: the model's own."""
    name: _ServedName | None = None
    """Name of the model in the OpenAI API. Default: the name of the TurboDeployment."""
    token_secret_ref: TokenSecretRef | None = None
    """A Hugging Face token, for gated or private models."""

    rules = (
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


class Adapter(ModelSource):
    """A LoRA adapter of the model, served under its own name. Engine VLLM alone."""

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
            "!self.uri.startsWith('oci://')",
            "write hf:// or pvc://: adapters in images are not supported yet",
            "uri",
        ),
    )
