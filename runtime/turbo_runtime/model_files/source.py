"""What the user wrote after `turbo serve` or `turbo inspect`: a .gguf file, a folder of safetensors or a hub
id; and the errors of the hub. Free of torch and transformers, so that `turbo inspect` starts at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbo_runtime.contract.endpoints import S3_SCHEME

# Decoder-only classes that hand `**kwargs` to the attention interface and have no part of their own whose
# rows mix.
ARCHITECTURES = (
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Gemma3ForCausalLM",
    "GptOssForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
_HUB_REMEDY = ": set the environment variable HF_ENDPOINT to a mirror, or name a model on disk"
_GATED_REMEDY = ": a gated or private model needs a token (HF_TOKEN) of somebody who may read it"
_PASSING = (408, 429)  # besides all of 5xx: statuses that the same request may not meet again


class ModelError(ValueError):
    """The model cannot be served; the text is a sentence for the user."""


class HubUnreachableError(ModelError):
    """The hub did not answer, or could not just now: the same model may be served later."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are, in the words of transformers' `from_pretrained`."""

    name: str  # a folder or a hub id
    gguf_file: str | None = None
    revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        arguments: dict[str, Any] = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {key: value for key, value in arguments.items() if value is not None}


def find(model: str, revision: str | None) -> Source:
    """Tell file, folder and hub id apart; raises ModelError for a path where nothing is, and for what is none
    of the three.
    """
    if model.startswith(S3_SCHEME):
        raise ModelError(f"turbo fetch {model} brings it to disk: name the folder that it prints")
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no file {model}")
        return Source(str(path.parent), gguf_file=path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{model} has no config.json; name a folder of safetensors, a GGUF file or a hub id"
            )
        return Source(str(path))
    if path.exists():
        raise ModelError(f"{model} is neither a folder nor a .gguf file")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelError(f"there is no folder {model}")
    if not is_hub_id(model):
        raise ModelError(f"{model} is no folder, no .gguf file and no hub id such as org/model")
    return Source(model, revision=revision)


def is_hub_id(model: str) -> bool:
    """Whether the hub can have a model of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


@contextmanager
def hub_errors() -> Iterator[None]:
    """Raise HubUnreachableError where another try may help, and ModelError for what the hub refuses."""
    # here, since a local model needs no hub; HTTPError is its HTTP client's, whichever that is
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in _PASSING:
            raise HubUnreachableError(f"the hub answered with status {status}") from error
        remedy = _GATED_REMEDY if status in (401, 403) else ""
        raise ModelError(f"the hub refused it: {first_line(error).rstrip('.')}{remedy}") from error
    except (HTTPError, ConnectionError) as error:
        raise HubUnreachableError(f"the hub cannot be reached ({first_line(error)}){_HUB_REMEDY}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its type."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
