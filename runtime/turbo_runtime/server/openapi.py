"""The OpenAPI document: what this server takes, written from the models that check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbo_runtime.contract import endpoints
from turbo_runtime.protocol import ChatRequest, CompletionRequest
from turbo_runtime.protocol.unsupported import CHAT, COMPLETION, Unsupported
from turbo_runtime.version import turbo_version

OPENAPI_PATH = "/openapi.json"

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/"
_ERRORS = {
    "400": "a field is wrong or not supported, or prompt and answer pass the context",
    "401": "there is no API key, or it is not one of this server's",
    "404": "another model",
    "408": "the body or the answer took too long",
    "413": "the body is too large",
    "429": "the queue is full; Retry-After says when to come back",
    "500": "the engine failed on this request",
    "503": "the model is loading, the server is shutting down, or its engine is gone",
}
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def openapi_document() -> Json:
    """As OpenAPI 3.1."""
    schemas: Json = {"Error": _ERROR}
    for kind, table in ((ChatRequest, CHAT), (CompletionRequest, COMPLETION)):
        schema = kind.model_json_schema(ref_template=_REFERENCE + "{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema | {"properties": schema["properties"] | _refused(table)}
    for schema in schemas.values():
        _let_null_mean_absent(schema)
    gets = {
        endpoints.HEALTH_PATH: "whether server and engine are alive",
        endpoints.READY_PATH: "whether requests should be sent here",
        endpoints.LOAD_PATH: "what runs and waits",
        endpoints.METRICS_PATH: "Prometheus metrics",
        endpoints.VERSION_PATH: "what is served and what it promises",
        "/v1/models": "the one served model",
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Turbo", "version": turbo_version()},
        "paths": {
            "/v1/chat/completions": {"post": _post("a chat, through the model's chat template", ChatRequest)},
            "/v1/completions": {"post": _post("a completion of a prompt", CompletionRequest)},
            **{path: {"get": _get(summary)} for path, summary in gets.items()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(summary: str, kind: type) -> Json:
    body = {"application/json": {"schema": {"$ref": _REFERENCE + kind.__name__}}}
    error = {"application/json": {"schema": {"$ref": _REFERENCE + "Error"}}}
    done: Json = {"application/json": {}, "text/event-stream": {}}
    responses: Json = {"200": {"description": "the answer, whole or as a stream of events", "content": done}}
    responses |= {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    return {
        "summary": summary,
        "security": [{}, {"key": []}],
        "requestBody": {"required": True, "content": body},
        "responses": responses,
    }


def _get(summary: str) -> Json:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary}, "401": {"description": _ERRORS["401"]}}
        | {"503": {"description": _ERRORS["503"]}},
    }


def _refused(table: Mapping[str, Unsupported]) -> Json:
    """Parameters of which only the values that ask for nothing are taken."""
    return {
        name: {"enum": [*entry.harmless, None], "description": f"Not supported: {entry.remedy}."}
        for name, entry in table.items()
    }


def _let_null_mean_absent(schema: Json) -> None:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        if name not in required:
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
