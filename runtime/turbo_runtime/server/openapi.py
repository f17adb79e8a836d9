"""The OpenAPI document, generated from the models that check requests."""

from __future__ import annotations

from typing import Any

from turbo_runtime.contract import endpoints
from turbo_runtime.protocol import UNSUPPORTED, ChatRequest, CompletionRequest
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
_STRING = {"type": "string"}
_ERROR_PROPERTIES = {
    "message": _STRING,
    "type": _STRING,
    "param": {"type": ["string", "null"]},
    "code": _STRING,
}
_GETS = {
    endpoints.HEALTH_PATH: "whether server and engine are alive",
    endpoints.READY_PATH: "whether requests should be sent here",
    endpoints.LOAD_PATH: "what runs and waits",
    endpoints.METRICS_PATH: "Prometheus metrics",
    endpoints.VERSION_PATH: "what is served and what it promises",
    "/v1/models": "the one served model",
}


def build_openapi_document() -> Json:
    """Build the document, as OpenAPI 3.1."""
    error = {"type": "object", "required": [*_ERROR_PROPERTIES], "properties": _ERROR_PROPERTIES}
    schemas: Json = {"Error": {"type": "object", "required": ["error"], "properties": {"error": error}}}
    for model, unsupported in UNSUPPORTED.items():
        schema = model.model_json_schema(ref_template=_REFERENCE + "{model}")
        schemas |= schema.pop("$defs", {})
        rejected = {  # but for the values that change nothing
            name: {"enum": [*parameter.harmless, None], "description": f"Not supported: {parameter.remedy}."}
            for name, parameter in unsupported.items()
        }
        schemas[model.__name__] = schema | {"properties": schema["properties"] | rejected}
    for schema in schemas.values():  # null means absent
        properties = schema.get("properties", {})
        for name in properties.keys() - schema.get("required", []):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Turbo", "version": turbo_version()},
        "paths": {
            "/v1/chat/completions": {"post": _post("a chat, through the model's chat template", ChatRequest)},
            "/v1/completions": {"post": _post("a completion of a prompt", CompletionRequest)},
            **{path: {"get": _get(summary)} for path, summary in _GETS.items()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(summary: str, model: type) -> Json:
    body = {"application/json": {"schema": {"$ref": _REFERENCE + model.__name__}}}
    error = {"application/json": {"schema": {"$ref": _REFERENCE + "Error"}}}
    content: Json = {"application/json": {}, "text/event-stream": {}}
    success = {"description": "the answer, whole or as a stream of events", "content": content}
    errors = {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    return {
        "summary": summary,
        "security": [{}, {"key": []}],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": success, **errors},
    }


def _get(summary: str) -> Json:
    descriptions = {"200": summary, "401": _ERRORS["401"], "503": _ERRORS["503"]}
    responses = {code: {"description": text} for code, text in descriptions.items()}
    return {"summary": summary, "responses": responses}
