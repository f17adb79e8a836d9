"""What a client may send: the fields of both endpoints, and the parameters of OpenAI's that are rejected."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from turbo_runtime.protocol.errors import ApiError, cut, invalid
from turbo_runtime.protocol.requests import ChatRequest, CompletionRequest
from turbo_runtime.protocol.sampling import Sampling

__all__ = ["UNSUPPORTED", "ChatRequest", "CompletionRequest", "parse"]

Request = TypeVar("Request", bound=Sampling)


class Unsupported(NamedTuple):
    """Rejected parameter. `harmless` values mean what the server does anyway, so they pass; so does null."""

    remedy: str
    harmless: tuple[Any, ...] = ()


_LEAVE_OUT = "leave it out"
_TOOLS = "use 'tools' and 'tool_choice'"
_TEXT_ONLY = "this server takes and gives text only; leave it out"

_GUIDED = "use 'structured_outputs' or 'response_format'"
# vLLM's, some of them of its earlier versions
_VLLM: Mapping[str, Unsupported] = {
    "best_of": Unsupported("use `n` and choose yourself, by `logprobs` perhaps", (1,)),
    "guided_choice": Unsupported(_GUIDED),
    "guided_decoding_backend": Unsupported("there is one only; leave it out"),
    "guided_grammar": Unsupported(_GUIDED),
    "guided_json": Unsupported(_GUIDED),
    "guided_regex": Unsupported(_GUIDED),
    "priority": Unsupported("tenants take turns; leave it out", (0,)),
    "skip_special_tokens": Unsupported("special tokens are never told; leave it out", (True,)),
    "truncate_prompt_tokens": Unsupported("send a shorter prompt"),
    "use_beam_search": Unsupported("use `n` and `temperature`", (False,)),
}

# What vLLM's router writes into every request, as SGLang's servers know it.
_ROUTER: Mapping[str, Unsupported] = {
    "continue_final_message": Unsupported(_LEAVE_OUT, (False,)),
    "include_reasoning": Unsupported(_LEAVE_OUT, (True,)),
    "no_stop_trim": Unsupported(_LEAVE_OUT, (False,)),
    "return_hidden_states": Unsupported(_LEAVE_OUT, (False,)),
    "separate_reasoning": Unsupported(_LEAVE_OUT, (True,)),
    "stream_reasoning": Unsupported(_LEAVE_OUT, (True,)),
}

UNSUPPORTED: Mapping[type[Sampling], Mapping[str, Unsupported]] = {
    ChatRequest: {
        **_VLLM,
        **_ROUTER,
        "add_generation_prompt": Unsupported(_LEAVE_OUT, (True,)),
        "audio": Unsupported(_TEXT_ONLY),
        "function_call": Unsupported(_TOOLS, ("none", "auto")),
        "functions": Unsupported(_TOOLS, ([],)),
        "modalities": Unsupported(_TEXT_ONLY, (["text"],)),
        "moderation": Unsupported(_LEAVE_OUT),
        "prediction": Unsupported("drafts are found by the server itself; leave it out"),
        "prompt": Unsupported("send it to /v1/completions, or use 'messages'"),
        "prompt_cache_options": Unsupported("the prompt cache needs none; leave it out"),
        "prompt_cache_retention": Unsupported("the cache keeps what it has room for; leave it out"),
        "service_tier": Unsupported(_LEAVE_OUT, ("auto", "default")),
        "store": Unsupported("this server stores nothing; leave it out", (False,)),
        "verbosity": Unsupported("ask for it in a message", ("medium",)),
        "web_search_options": Unsupported("put what was found into a message"),
    },
    CompletionRequest: {
        **_VLLM,
        **_ROUTER,
        "messages": Unsupported("send them to /v1/chat/completions, or use 'prompt'"),
        "suffix": Unsupported("put the whole context into `prompt`", ("",)),
    },
}


def parse(model: type[Request], body: Mapping[str, Any]) -> Request:
    """Parse the body of a request. Raises ApiError (400) that names the field."""
    fields = _drop_harmless(body, UNSUPPORTED[model], model.model_fields)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _to_api_error(error, fields) from error


def _to_api_error(error: ValidationError, body: Mapping[str, Any]) -> ApiError:
    """Report the first problem as one sentence: a client can fix one at a time."""
    problem = error.errors(include_url=False)[0]
    kind = problem["type"]
    param = _format_path(problem["loc"], body, is_missing=kind == "missing")
    if kind == "missing":
        return invalid(param, f"'{param}' is missing.", "missing_required_parameter")
    if kind == "extra_forbidden":
        message = f"'{param}' is not supported by this server: leave it out."
        return invalid(param, message, "unsupported_parameter")
    reason = problem["msg"].removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(param, f"Invalid '{param}': {reason[0].lower()}{reason[1:]}.", code)


def _format_path(location: tuple[int | str, ...], body: Any, *, is_missing: bool) -> str:
    """Leave out what the client did not send: pydantic also names which type of a union it tried."""
    path = ""
    for step in location:
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
        elif not (is_missing and step == location[-1]):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{cut(step)}"
    return path.removeprefix(".")


def _drop_harmless(
    body: Mapping[str, Any], unsupported: Mapping[str, Unsupported], known: Collection[str]
) -> dict[str, Any]:
    """Return the `known` fields. Raises ApiError (400) for an unsupported one that asks for something."""
    for name, value in body.items():
        if name in known or (name in unsupported and value is None):
            continue
        if name not in unsupported:
            short = cut(name)
            matches = difflib.get_close_matches(short, sorted(known), n=1)
            hint = f"did you mean '{matches[0]}'?" if matches else "leave it out."
            raise invalid(short, f"There is no parameter '{short}'; {hint}", "unknown_parameter")
        parameter = unsupported[name]
        # `True == 1` in Python, but logprobs=true and logprobs=1 are not the same request
        if (type(value) is bool, value) in [(type(item) is bool, item) for item in parameter.harmless]:
            continue
        accepted = " or ".join(map(repr, parameter.harmless))
        only = f" (only {accepted} is accepted, which changes nothing)" if accepted else ""
        message = f"'{name}' is not supported by this server{only}: {parameter.remedy}."
        raise invalid(name, message, "unsupported_parameter")
    return {name: value for name, value in body.items() if name in known}
