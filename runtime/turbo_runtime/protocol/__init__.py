"""What a client may send: the fields of both endpoints, their types and ranges."""

from turbo_runtime.protocol.chat import ChatRequest
from turbo_runtime.protocol.completion import CompletionRequest
from turbo_runtime.protocol.parsing import parse_chat, parse_completion

__all__ = ["ChatRequest", "CompletionRequest", "parse_chat", "parse_completion"]
