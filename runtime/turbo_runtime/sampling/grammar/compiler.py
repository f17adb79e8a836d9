"""From a grammar's text and a tokenizer's file to llguidance's matcher, or a sentence why not.

llguidance bounds most of a grammar's cost, but not all (`multipleOf` of a large prime takes as many states),
and its threads cannot be stopped. So a process that ends when one takes too much time or memory compiles it
first; the engine compiles one that passes again, in about the same time and memory. This module imports no
torch, so that the process starts fast.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from turbo_runtime.messages import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Without a bound a confused model writes blanks for ever. `x-guidance` in a schema overrides it.
_WHITESPACE: JsonCompileOptions = {"whitespace_pattern": r"[ \t\n\r]{0,32}"}

LIMITS = LLParserLimits(verbose_errors=False)
MAX_BYTES = 1 << 30  # in addition to the process's memory before it compiles


class GrammarError(ValueError):
    """The grammar cannot be used; the text is a sentence for the user."""


def read_tokenizer(file: Path, vocabulary: int, end_ids: Sequence[int]) -> LLTokenizer:
    """Read a tokenizer.json for llguidance. Raises GrammarError."""
    if not end_ids:
        raise GrammarError("the model has no end-of-sequence token, which a grammar needs")
    try:
        text = file.read_text(encoding="utf-8")
        return LLTokenizer(text, n_vocab=vocabulary, eos_token=list(end_ids))
    except OSError as error:
        raise GrammarError("the model's tokenizer has no tokenizer.json, which a grammar needs") from error
    except ValueError as error:
        raise GrammarError(f"the model's tokenizer cannot be used with a grammar: {error}") from error


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """Build a matcher at the grammar's beginning, whatever that takes. Raises GrammarError."""
    try:
        matcher = LLMatcher(tokenizer, _translate(grammar), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
    except ValueError as error:
        reason = summarize(str(error))
        raise GrammarError(f"the {grammar.kind} cannot be used: {reason}; mend or simplify it") from error
    return matcher


def summarize(error: str) -> str:
    """Reduce an error of many lines to the place and the causes."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    causes = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return ": ".join([lines[0].rstrip(":"), *causes])


def _translate(grammar: Grammar) -> str:
    """Translate the grammar to llguidance's notation; ValueError for a schema that is no JSON object."""
    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(_schema(grammar.text), defaults=_WHITESPACE)
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=_WHITESPACE)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"it is of type {type(schema).__name__}, not an object")
    return schema


class SlowGrammarError(GrammarError):
    """The grammar takes more than its time."""


class GrammarTrial:
    """The process, which starts with the first grammar, and again with the next after it was ended; and a
    thread that tries, then compiles one grammar at a time.
    """

    def __init__(
        self, tokenizer_file: Path, vocabulary: int, end_ids: Sequence[int], max_bytes: int = MAX_BYTES
    ) -> None:
        """The tokenizer is that of the engine."""
        self._arguments = json.dumps([str(tokenizer_file), vocabulary, list(end_ids), max_bytes])
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # `close` comes from another thread
        self._closed = False
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def start(self) -> None:
        """Start the process unless it runs; it reads the tokenizer first."""
        with self._lock:
            self._running()

    def check(self, grammar: Grammar, seconds: float) -> None:
        """Compile for at most `seconds`. Raises GrammarError if the grammar must not be compiled."""
        with self._lock:
            process = self._running()
            assert process.stdin
            assert process.stdout
            with suppress(BrokenPipeError):  # it has ended: no line follows
                process.stdin.write(json.dumps([grammar.kind, grammar.text, seconds]) + "\n")
                process.stdin.flush()
        if line := process.stdout.readline():
            if error := json.loads(line):
                raise GrammarError(error)
            return
        status = process.wait()
        with self._lock:
            if self._closed:
                raise GrammarError("the engine ends")
            self._drop()
        if status == -signal.SIGALRM:
            raise SlowGrammarError(f"the grammar takes more than {seconds:.0f} s to compile; simplify it")
        raise GrammarError(f"the {grammar.kind} takes too much memory to compile; simplify it")

    def close(self) -> None:
        """End the process for good, from any thread, without waiting for what is being compiled."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            self._drop()

    def _running(self) -> subprocess.Popen[str]:
        if self._closed:
            raise GrammarError("the engine ends")
        if self._process is None or self._process.poll() is not None:
            self._drop()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may quote the grammar, which is not for logs
                start_new_session=True,  # it ends with its input, not at the terminal's Ctrl-C
                encoding="utf-8",
            )
        return self._process

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process:
            with suppress(BrokenPipeError), process:  # of what it did not read
                process.kill()


def main(file: str, vocabulary: int, end_ids: Sequence[int], max_bytes: int) -> None:
    """Run the process: for each grammar a line in, and out why it cannot be used, or an empty sentence."""
    tokenizer = read_tokenizer(Path(file), vocabulary, end_ids)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        kind, text, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # the signal ends the process, even in native code
        error = ""
        try:
            # the first mask too: some grammars defer their work until then
            compile_grammar(tokenizer, Grammar(kind, text)).compute_bitmask()
        except GrammarError as rejection:
            error = str(rejection)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(error), flush=True)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
