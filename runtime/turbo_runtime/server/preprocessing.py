"""From a checked request to what the engine computes, and how the answers are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from turbo_runtime.messages import DEFAULT_DRAFT, Grammar, SamplingParams
from turbo_runtime.parsers import AnswerReader
from turbo_runtime.parsers.json_tool_calls import BareJson
from turbo_runtime.parsers.reasoning import CLOSE, OPEN, after_thinking
from turbo_runtime.protocol import ChatRequest, CompletionRequest
from turbo_runtime.protocol.errors import cut, invalid, unavailable
from turbo_runtime.server.sampling_params import (
    check_ids,
    check_text,
    check_told,
    drawn_seed,
    for_prompt,
    sampling_params,
)
from turbo_runtime.server.served_model import ServedModel
from turbo_runtime.server.thread_offload import Wanted
from turbo_runtime.tokenization.chat_template import ChatTemplate, TemplateRefusalError

_TEMPLATES_OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One HTTP request's work: `n` answers to each prompt. Answer i belongs to prompt i // n."""

    prompts: tuple[tuple[int, ...], ...]
    params: tuple[SamplingParams, ...]  # one for each prompt: what max_tokens may be depends on its length
    seed: int  # as the client gave it, or drawn
    n: int
    stops: tuple[str, ...]
    reader: Callable[[], AnswerReader]  # a new one for each answer
    echoes: tuple[str, ...] = ()  # texts of the prompts, where they are to be told again
    tells_prompt: bool = False  # by vLLM's `prompt_logprobs`
    tenant: str = ""
    salt: str = ""  # divides what the tenant's requests share
    draft: str = DEFAULT_DRAFT  # the trained draft that was chosen

    @property
    def choices(self) -> int:
        """All answers."""
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each counted once however many answers it has."""
        return sum(map(len, self.prompts))


def chat_job(request: ChatRequest, model: ServedModel, wanted: Wanted) -> PreparedRequest:  # noqa: ARG001
    """Raises ApiError (400) when the messages fit no template or no context, or the model takes no tools."""
    template = model.tokenizer.template
    if template is None:
        raise invalid(
            "messages",
            f"The model '{model.name}' has no chat template: send a 'prompt' to /v1/completions instead.",
            "unsupported_model",
        )
    told = model.tokenizer.output_format
    if request.offered and "tools" not in template.names:
        raise invalid(
            "tools",
            f"The chat template of '{model.name}' takes no tools: describe them in a message.",
            "unsupported_model",
        )
    if request.offered and told.calls is None and not request.must_call:
        raise invalid(
            "tools",
            f"How '{model.name}' writes tool calls is not known to this server: "
            "send 'tool_choice': 'required', which prescribes it.",
            "unsupported_model",
        )
    prompt = _render(request, template)
    calls = BareJson if request.must_call else told.calls if request.offered else None
    names = {tool.function.name for tool in request.must_call or request.offered}
    thinking_after = prompt[-64:] if told.reasons else None  # of the prompt only its end matters

    def reader() -> AnswerReader:
        single = bool(request.must_call) or not request.parallel_tool_calls
        return AnswerReader(calls(names) if calls else None, thinking_after, single=single)

    grammar = request.grammar
    if grammar is not None and thinking_after is not None and thinking_after.rstrip().endswith(OPEN):
        grammar = after_thinking(grammar)
        if grammar is None:
            raise invalid(
                "structured_outputs",
                "A 'grammar' cannot follow reasoning: switch that off with 'chat_template_kwargs', "
                "or let the grammar itself begin with the thoughts.",
            )
    check_text(prompt, "messages", model)
    ids = model.tokenizer.encode_written(prompt)
    return _job(request, (ids,), "messages", reader, grammar, model)


def least_tokens(request: ChatRequest | CompletionRequest, model: ServedModel) -> int:
    """How many tokens its prompts have at the least, each answer's counted: known without tokenising them."""
    if isinstance(request, ChatRequest):
        return request.n
    lengths = (
        model.tokenizer.least_tokens(prompt) if isinstance(prompt, str) else len(prompt)
        for prompt in request.prompt
    )
    return sum(lengths) * request.n


def completion_job(request: CompletionRequest, model: ServedModel, wanted: Wanted) -> PreparedRequest:
    """Raises ApiError (400) when a prompt is empty, holds an unknown token id, or fits no context."""
    for prompt in request.prompt:
        if isinstance(prompt, str):
            check_text(prompt, "prompt", model)
    prompts = tuple(_ids(prompt, model, wanted) for prompt in request.prompt)
    job = _job(request, prompts, "prompt", lambda: AnswerReader(None, None), request.grammar, model)
    if not request.echo:
        return job
    echoes = (
        prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt) for prompt in request.prompt
    )
    return replace(job, echoes=tuple(echoes))


def _ids(prompt: str | list[int], model: ServedModel, wanted: Wanted) -> tuple[int, ...]:
    if not wanted():
        raise unavailable("The client left.")  # and so nobody reads it
    return model.tokenizer.encode(prompt) if isinstance(prompt, str) else tuple(prompt)


def _job(
    request: ChatRequest | CompletionRequest,
    prompts: tuple[tuple[int, ...], ...],
    field: str,
    reader: Callable[[], AnswerReader],
    grammar: Grammar | None,
    model: ServedModel,
) -> PreparedRequest:
    seed = drawn_seed(request)
    for prompt in prompts:
        check_ids(prompt, field, model)
    shared = sampling_params(request, seed, grammar, model)
    params = tuple(for_prompt(shared, len(prompt), request, field, model) for prompt in prompts)
    check_told(params, prompts, request.n)
    tells_prompt = request.prompt_logprobs is not None
    return PreparedRequest(prompts, params, seed, request.n, tuple(request.stop), reader, (), tells_prompt)


def _render(request: ChatRequest, template: ChatTemplate) -> str:
    """The prompt's text; raises ApiError (400) for what the template refuses or does not read."""
    extra: dict[str, Any] = dict(request.chat_template_kwargs)
    for name in extra:
        if name in _TEMPLATES_OWN or name not in template.names:
            told = cut(name)
            raise invalid(
                f"chat_template_kwargs.{told}", f"The model's chat template takes no '{told}': leave it out."
            )
    if request.reasoning_effort is not None:
        if "reasoning_effort" in template.names:
            extra["reasoning_effort"] = request.reasoning_effort
        elif request.reasoning_effort == "none" and "enable_thinking" in template.names:
            extra["enable_thinking"] = False
        elif request.reasoning_effort != "none" or CLOSE in template.source:
            raise invalid(
                "reasoning_effort",
                "The model's chat template takes no 'reasoning_effort': leave it out.",
                "unsupported_parameter",
            )
    messages = [message.for_template() for message in request.messages]
    tools = [tool.for_template() for tool in request.offered]
    try:
        return template.render(messages, tools, extra)
    except TemplateRefusalError as error:
        raise invalid("messages", f"The model's chat template refuses these messages: {error}.") from error
