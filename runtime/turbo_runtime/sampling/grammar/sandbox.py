"""Trial compilation of grammars, in a process that ends when one takes too much time or memory.

llguidance bounds most of a grammar's cost, but not all (`multipleOf` of a large prime takes as many states),
and its threads cannot be stopped. The engine compiles a grammar that passes again, in about the same time and
memory.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from turbo_runtime.messages import Grammar
from turbo_runtime.sampling.grammar.compiler import GrammarError, compile_grammar, read_tokenizer

MAX_BYTES = 1 << 30  # in addition to the process's memory before it compiles


class SlowGrammarError(GrammarError):
    """The grammar takes more than its time."""


class GrammarTrial:
    """The process, which starts with the first grammar, and again with the next after it was ended."""

    def __init__(
        self, tokenizer_file: Path, vocabulary: int, end_ids: Sequence[int], max_bytes: int = MAX_BYTES
    ) -> None:
        """The tokenizer is that of the engine."""
        self._arguments = json.dumps([str(tokenizer_file), vocabulary, list(end_ids), max_bytes])
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # `close` comes from another thread
        self._closed = False

    def start(self) -> None:
        """Start the process unless it runs; it reads the tokenizer first."""
        with self._lock:
            self._running()

    def check(self, grammar: Grammar, seconds: float) -> None:
        """Compile for at most `seconds`. Raises GrammarError if the grammar must not be compiled."""
        with self._lock:
            stdin = self._running().stdin
            assert stdin
            with suppress(BrokenPipeError):  # it has ended: no line follows
                stdin.write(json.dumps([grammar.kind, grammar.text, seconds]) + "\n")
                stdin.flush()
        process = self._process
        if process is None:
            raise GrammarError("the engine ends")
        assert process.stdout
        line = process.stdout.readline()
        if line:
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
        """End the process for good, from any thread."""
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
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # of what it did not read
                    pipe.close()


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
