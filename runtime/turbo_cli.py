"""The console command `turbo`: finds a sub-command among the entry points of the group `turbo.commands` and
runs it.

It imports neither the operator nor the runtime: each sub-command brings only the packages of its own extra.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import cast

GROUP = "turbo.commands"

# One line each, kept here because reading a command's own docstring would import its whole extra.
SUMMARIES = {
    "activator": "pass requests on to a router, and hold them while no replica is there",
    "approve": "let a plan take effect that waits for approval",
    "bench": "measure a server with speculation on and off",
    "capture": "show and delete prompts kept of a deployment's traffic",
    "chat": "talk to a server and see how fast it answers",
    "distill": "train a draft from a model's own answers to your prompts",
    "drafts": "list, show and compare drafts",
    "events": "print what happened to a TurboDeployment and its pods",
    "explain": "print the plan of a TurboDeployment of a cluster",
    "fetch": "download models of the hub into its cache on disk",
    "inspect": "print a model's shape and digest as JSON",
    "operator": "run the Kubernetes operator",
    "plan": "print the plan for a TurboDeployment, without a cluster",
    "serve": "serve a model with lossless speculative decoding",
    "top": "show what TurboDeployments do and cost now",
    "cost": "show what TurboDeployments cost now, by namespace, model or label",
}

Command = Callable[[list[str]], int]

# As a shell tells of a command that a signal has ended: 128 and the signal's number.
INTERRUPTED, UNREAD = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `turbo ARGV`; returns the exit status: 1 for an unknown command, else the command's own.

    Whatever the command, Ctrl-C ends it with 130 and no traceback. Where standard output cannot be written,
    a sentence says so, and the status is 1; a reader that has read enough (`| head -1`) is no error: the
    status is the command's own if it has come to an end, else 141.
    """
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as ended:  # argparse's, after its help or a wrong flag
        if (refused := _refused()) is not None:
            return _unwritten(refused, ended.code if isinstance(ended.code, int) else bool(ended.code))
        raise
    except OSError:
        # What was lost need not be in the buffer any more: one line more tells whether it is the output.
        if (refused := _refused("\n")) is None:
            raise
        return _unwritten(refused, UNREAD)
    refused = _refused()
    return status if refused is None else _unwritten(refused, status)


def _dispatch(arguments: list[str]) -> int:
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(commands))
        return 0
    name, *rest = arguments
    if name == "--version":
        from turbo_runtime.version import turbo_version

        print(f"turbo {turbo_version()}")
        return 0
    if name not in commands:
        print(unknown(name, commands), file=sys.stderr)
        return 1
    return _run(commands[name], rest)


def _refused(more: str = "") -> OSError | None:
    """Write `more` and all that is buffered; the error with which standard output refuses it."""
    try:
        print(end=more, flush=True)
    except OSError as error:
        return error
    return None


def _unwritten(error: OSError, status: int) -> int:
    """The exit status where standard output was refused; nobody tries to write to it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return status
    print(f"turbo: standard output cannot be written: {error.strerror}.", file=sys.stderr)
    return 1


def usage(commands: dict[str, EntryPoint]) -> str:
    """The text of `turbo --help`."""
    width = max((len(name) for name in commands), default=0)
    lines = [f"  {name:<{width}}  {SUMMARIES.get(name, '')}".rstrip() for name in sorted(commands)]
    head, foot = "usage: turbo COMMAND [ARGUMENTS]", "`turbo COMMAND --help` says more; `turbo --version`."
    return "\n".join([head, "", *lines, "", foot])


def unknown(name: str, commands: dict[str, EntryPoint]) -> str:
    """One sentence for a command that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
    hint = f"did you mean `turbo {near[0]}`?" if near else "`turbo --help` lists them."
    return f"turbo: there is no command {name!r}; {hint}"


def missing_extra(entry: EntryPoint, module: str) -> str:
    """One sentence for a command whose packages are not installed."""
    extra = "operator,runtime" if entry.value.startswith("turbo_runtime") else "operator"
    return (
        f"turbo {entry.name} needs the Python package {module!r}, which is not installed: "
        f"run `uv tool install '.[{extra}]'` in a checkout of Turbo."
    )


def _run(entry: EntryPoint, arguments: list[str]) -> int:
    try:
        return cast("Command", entry.load())(arguments)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "turbo_runtime", "turbo_operator"):
            raise  # our own package is incomplete: a bug, and its traceback is what helps
        print(missing_extra(entry, module), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
