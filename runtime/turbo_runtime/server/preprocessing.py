"""From a checked request to what the engine computes, and how to parse the answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from turbo_runtime.messages import DEFAULT_DRAFT, MASK_64, EngineReady, Grammar, SamplingParams
from turbo_runtime.parsers import CLOSE, OPEN, OutputParser, add_reasoning, find_tool_parser
from turbo_runtime.protocol import ChatRequest, CompletionRequest
from turbo_runtime.protocol.errors import cut, invalid, unavailable
from turbo_runtime.tokenization.tokenizer import ChatTemplate, ServedTokenizer, TemplateRefusalError

IsWanted = Callable[[], bool]  # whether anybody still waits for the work; long work asks now and then

MAX_TOTAL_LOGPROBS = 1 << 20  # of several answers together: some 100 MB of JSON
# Fields that a request and its SamplingParams have in common
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_SAME_FIELDS = ("temperature", "top_p", "min_p", *_PENALTIES, "min_tokens", "max_draft_tokens")
_RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model once the engine is ready: its name in the API, what the engine reported, its tokenizer."""

    name: str
    info: EngineReady
    tokenizer: ServedTokenizer

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together: the model's limit or the KV cache's."""
        return min(self.info.max_model_len, self.kv_tokens)

    @property
    def kv_tokens(self) -> int:
        """Capacity of the KV cache in tokens."""
        return self.info.kv_blocks * self.info.block_size

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer, by the model's generation config and by its tokenizer."""
        return self.tokenizer.eos_token_ids | frozenset(self.info.eos_token_ids)


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One HTTP request's work: `n` answers to each prompt. Answer i belongs to prompt i // n."""

    prompts: tuple[tuple[int, ...], ...]
    params: tuple[SamplingParams, ...]  # one for each prompt
    seed: int  # as the client gave it, or drawn
    n: int
    stops: tuple[str, ...]
    build_parser: Callable[[], OutputParser]  # called for each answer
    wants_prompt_logprobs: bool = False  # by vLLM's `prompt_logprobs`
    echoes: tuple[str, ...] = ()  # texts of the prompts, where answers repeat them
    tenant: str = ""
    salt: str = ""  # divides what the tenant's requests share
    draft: str = DEFAULT_DRAFT
    lora_id: int = 0  # number of the adapter; 0: none
    grammar_field: str | None = None  # that its grammar comes from

    @property
    def num_answers(self) -> int:
        """Number of answers to all prompts."""
        return len(self.prompts) * self.n

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens of all prompts, each counted once however many answers it has."""
        return sum(map(len, self.prompts))


def min_prompt_tokens(request: ChatRequest | CompletionRequest, model: ServedModel) -> int:
    """Return a lower bound of the prompts' tokens, counted for each answer, without tokenization."""
    if isinstance(request, ChatRequest):
        return request.n
    lengths = (
        model.tokenizer.min_tokens(prompt) if isinstance(prompt, str) else len(prompt)
        for prompt in request.prompt
    )
    return sum(lengths) * request.n


def prepare_chat(request: ChatRequest, model: ServedModel, _: IsWanted) -> PreparedRequest:
    """Raise ApiError (400) when the messages fit no template or no context, or the model takes no tools."""
    template, offered, required = model.tokenizer.template, request.offered_tools, request.required_tools
    if template is None:
        message = f"The model '{model.name}' has no chat template: send a 'prompt' to /v1/completions."
        raise invalid("messages", message, "unsupported_model")
    tool_parser = find_tool_parser(template.source, is_required=bool(required))
    if offered and "tools" not in template.names:
        message = f"The chat template of '{model.name}' takes no tools: describe them in a message."
        raise invalid("tools", message, "unsupported_model")
    if offered and tool_parser is None:
        message = (
            f"How '{model.name}' writes tool calls is not known to this server: "
            "send 'tool_choice': 'required', which prescribes it."
        )
        raise invalid("tools", message, "unsupported_model")
    prompt = _render(request, template)
    names = {tool.function.name for tool in required or offered}
    single_call = bool(required) or not request.parallel_tool_calls
    prompt_end = prompt[-64:] if CLOSE in template.source else None

    def build_parser() -> OutputParser:
        parser = tool_parser(names) if tool_parser and offered else None
        return OutputParser(parser, prompt_end, single_call=single_call)

    grammar = request.grammar
    if grammar is not None and prompt_end is not None and prompt_end.rstrip().endswith(OPEN):
        grammar = add_reasoning(grammar)
        if grammar is None:
            raise invalid(
                "structured_outputs",
                "A 'grammar' cannot follow reasoning: switch that off with 'chat_template_kwargs', "
                "or let the grammar itself begin with the thoughts.",
            )
    _check_length(model.tokenizer.min_tokens(prompt), "messages", model, bound="at least ")
    ids = model.tokenizer.encode_written(prompt)
    return _prepare(request, (ids,), "messages", build_parser, grammar, model)


def prepare_completion(
    request: CompletionRequest, model: ServedModel, is_wanted: IsWanted
) -> PreparedRequest:
    """Raise ApiError (400) when a prompt is empty, holds an unknown token id, or fits no context."""
    tokenizer = model.tokenizer
    for prompt in request.prompt:
        if isinstance(prompt, str):
            _check_length(tokenizer.min_tokens(prompt), "prompt", model, bound="at least ")
    prompts = []
    for prompt in request.prompt:
        if not is_wanted():
            raise unavailable("The client left.")  # so nobody reads this
        prompts.append(tokenizer.encode(prompt) if isinstance(prompt, str) else tuple(prompt))
    prepared = _prepare(
        request, tuple(prompts), "prompt", lambda: OutputParser(None, None), request.grammar, model
    )
    if not request.echo:
        return prepared
    echoes = (prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in request.prompt)
    return replace(prepared, echoes=tuple(echoes))


def _render(request: ChatRequest, template: ChatTemplate) -> str:
    """Render the prompt. Raises ApiError (400) for what the template rejects or does not read."""
    extra: dict[str, Any] = dict(request.chat_template_kwargs)
    for name in extra:
        if name in _RESERVED_VARIABLES or name not in template.names:
            short = cut(name)
            message = f"The model's chat template takes no '{short}': leave it out."
            raise invalid(f"chat_template_kwargs.{short}", message)
    effort = request.reasoning_effort
    if effort is not None:
        if "reasoning_effort" in template.names:
            extra["reasoning_effort"] = effort
        elif effort == "none" and "enable_thinking" in template.names:
            extra["enable_thinking"] = False
        elif effort != "none" or CLOSE in template.source:
            message = "The model's chat template takes no 'reasoning_effort': leave it out."
            raise invalid("reasoning_effort", message, "unsupported_parameter")
    messages = [message.for_template() for message in request.messages]
    tools = [tool.model_dump(exclude_unset=True) for tool in request.offered_tools]
    try:
        return template.render(messages, tools, extra)
    except TemplateRefusalError as error:
        raise invalid("messages", f"The model's chat template refuses these messages: {error}.") from error


def _prepare(
    request: ChatRequest | CompletionRequest,
    prompts: tuple[tuple[int, ...], ...],
    field: str,
    build_parser: Callable[[], OutputParser],
    grammar: Grammar | None,
    model: ServedModel,
) -> PreparedRequest:
    """Add the parameters for the prompts, which came in `field`: `max_tokens` depends on their lengths."""
    for prompt in prompts:
        _check_ids(prompt, field, model)
    stop_ids = frozenset(request.stop_token_ids)
    _check_ids(stop_ids, "stop_token_ids", model)
    bias = tuple(sorted((int(token), value) for token, value in request.logit_bias.items()))
    _check_ids((token for token, _ in bias), "logit_bias", model)
    # each word as it is written at the start of a text and inside one, behind a space
    words = (
        model.tokenizer.encode_written(text) for word in request.bad_words for text in (word, f" {word}")
    )
    # a drawn seed has 53 bits, which every client reads back unchanged, JavaScript's too
    seed = secrets.randbits(53) if request.seed is None else request.seed
    num_echoed = request.num_logprobs if isinstance(request, CompletionRequest) and request.echo else None
    prompt_logprobs = [count for count in (request.prompt_logprobs, num_echoed) if count is not None]
    shared = SamplingParams(
        **{name: getattr(request, name) for name in _SAME_FIELDS},
        top_k=min(max(request.top_k, 0), model.info.vocab_size),
        logit_bias=bias,
        bad_words=tuple(dict.fromkeys(filter(None, words))),
        grammar=grammar,
        seed=seed & MASK_64,
        stop_token_ids=stop_ids if request.ignore_eos else stop_ids | model.stop_token_ids,
        logprobs=request.num_logprobs,
        prompt_logprobs=max(prompt_logprobs, default=None),
        draft_method=request.speculation,
    )
    params = tuple(
        replace(shared, max_tokens=_max_tokens(len(prompt), request, field, model)) for prompt in prompts
    )
    _check_total_logprobs(params, prompts, request.n)
    return PreparedRequest(
        prompts,
        params,
        seed,
        request.n,
        tuple(request.stop),
        build_parser,
        wants_prompt_logprobs=request.prompt_logprobs is not None,
        grammar_field=request.grammar_field if grammar else None,
    )


def _check_length(num_tokens: int, field: str, model: ServedModel, *, bound: str = "") -> None:
    """Reject a prompt that no context holds; by a lower bound before tokenization (seconds per MiB)."""
    if num_tokens >= model.context:
        message = (
            f"The prompt has {bound}{num_tokens} tokens and the context of this server {model.context}, "
            "of which the answer needs at least one: shorten the prompt."
        )
        raise invalid(field, message, "context_length_exceeded")


def _check_total_logprobs(params: Sequence[SamplingParams], prompts: Sequence[Sequence[int]], n: int) -> None:
    """Reject several answers that could have more logprobs together than memory should hold."""

    def num_entries(logprobs: int | None) -> int:  # at one position
        return 0 if logprobs is None else logprobs + 1

    total = n * sum(
        prompt_params.max_tokens * num_entries(prompt_params.logprobs)
        + len(prompt) * num_entries(prompt_params.prompt_logprobs)
        for prompt_params, prompt in zip(params, prompts, strict=True)
    )
    if total > MAX_TOTAL_LOGPROBS and n * len(prompts) > 1:
        raise invalid(
            "logprobs",
            f"The answers could tell {total} logprobs together, and at most {MAX_TOTAL_LOGPROBS} are told "
            "at once: ask for fewer answers, fewer likely tokens or a smaller 'max_tokens'.",
        )


def _check_ids(ids: Iterable[int], field: str, model: ServedModel) -> None:
    """A tokenizer, too, may know tokens that the model has no embedding for."""
    size = model.info.vocab_size
    wrong = next((token for token in ids if not 0 <= token < size), None)
    if wrong is not None:
        raise invalid(field, f"Invalid '{field}': token ids must lie between 0 and {size - 1}, not {wrong}.")


def _max_tokens(
    num_prompt_tokens: int, request: ChatRequest | CompletionRequest, field: str, model: ServedModel
) -> int:
    if num_prompt_tokens == 0:
        raise invalid(field, f"Invalid '{field}': it has no tokens; send at least one.")
    _check_length(num_prompt_tokens, field, model)
    room = model.context - num_prompt_tokens
    limit = room if request.max_tokens is None else request.max_tokens
    if limit > room:
        is_newer = isinstance(request, ChatRequest) and request.max_completion_tokens
        message = (
            f"The prompt has {num_prompt_tokens} tokens and the answer may have {limit}, together more than "
            f"the context of {model.context}: shorten the prompt, or ask for at most {room} tokens."
        )
        raise invalid(
            "max_completion_tokens" if is_newer else "max_tokens", message, "context_length_exceeded"
        )
    if request.min_tokens > limit:
        message = f"'min_tokens' is {request.min_tokens} and the answer may have {limit}: ask for fewer."
        raise invalid("min_tokens", message)
    return limit
