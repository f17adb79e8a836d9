"""Port, paths, limit, and exit codes of the runtime's processes; where copies of models in buckets lie."""

from __future__ import annotations

PORT = 8000
PORT_NAME = "http"

HEALTH_PATH = "/health"  # the server process and its engine are alive
READY_PATH = "/ready"  # the model is loaded, the engine finishes steps, and the pod is not draining
LOAD_PATH = "/load"  # `Load` as JSON
METRICS_PATH = "/metrics"
VERSION_PATH = "/version"

MAX_BODY_BYTES = 4 * 1024 * 1024  # of a request

PERMANENT_ERROR = 3  # exit status of `turbo inspect` and `turbo distill` when trying again cannot help
TERMINATION_MESSAGE_BYTES = 4096  # Kubernetes' bound; `ModelInfo` as JSON must fit

S3_SCHEME = "s3://"
S3_CACHE_VARIABLE = "TURBO_S3_CACHE"  # the folder of the copies of models in buckets

# What a fetch leaves out of a model: weights of other frameworks, and the same weights again.
UNUSED_FILES = (
    *("*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.tflite", "*.ot"),
    *("original/*", "onnx/*", ".git*"),
)
CONSOLIDATED_FILES = "consolidated*"  # the same weights again, where there are others


def s3_folder(model: str, revision: str) -> str:
    """Return where in that folder the copy of a revision of s3://BUCKET/PREFIX is."""
    return f"{model.removeprefix(S3_SCHEME).strip('/')}/{revision}"
