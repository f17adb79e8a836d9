"""`turbo serve` and `turbo inspect`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from turbo_runtime.contract.config import RuntimeConfig
from turbo_runtime.contract.endpoints import PERMANENT_ERROR
from turbo_runtime.model_files.source import HubUnreachableError, ModelError, find

TEMPORARY_ERROR = 1


def serve(argv: list[str]) -> int:
    """`turbo serve MODEL [FLAGS]`: see RuntimeConfig."""
    # A container's first process has no default actions: until the server has its own, a second from here,
    # the kernel would drop a SIGTERM, and the pod would load on until it is killed.
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        config = RuntimeConfig.from_argv(argv)
        _check_places(config)
        from turbo_runtime.server.lifecycle import run_server

        return run_server(config)
    except ModelError as error:
        print(f"turbo serve: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, handler)


def _check_places(config: RuntimeConfig) -> None:
    """Report a missing path before anything starts. Raises ModelError."""
    find(config.model, config.revision)
    if config.draft_model is not None:
        try:
            find(config.draft_model, None)
        except ModelError as error:
            raise ModelError(f"--draft-model={config.draft_model}: {error}") from error
    for name, place in config.adapters.items():
        if place.startswith(("/", ".", "~")) and not Path(place).expanduser().is_dir():
            raise ModelError(f"--lora-modules {name}={place}: there is no such folder")


def inspect(argv: list[str]) -> int:
    """`turbo inspect MODEL`: the model's shape and digest as one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="turbo inspect",
        description="Print a model's shape and digest as JSON, without loading its weights.",
        epilog="Exit status: 0 when done; 1 when it failed and may work later, such as when the hub cannot "
        "be reached; 2 for a wrong command line; 3 when trying again cannot help, such as for a file that is "
        "not there or a format that is not served.",
    )
    model_help = RuntimeConfig.__dataclass_fields__["model"].metadata["help"]
    parser.add_argument("model", metavar="MODEL", help=f"{model_help}, or s3://BUCKET/PREFIX")
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a LoRA adapter that must fit the model: a folder, or a hub id with @ and a revision behind it; "
        "may be repeated",
    )
    parser.add_argument(
        "--termination-message", type=Path, metavar="FILE", help="write the JSON, or the error, to FILE too"
    )
    options = parser.parse_args(argv)
    from turbo_runtime.model_files.adapters import inspect_with_adapters

    try:
        adapters = dict(adapter.partition("=")[::2] for adapter in options.adapter)
        text, status = inspect_with_adapters(options.model, options.revision, adapters).to_json(), 0
    except (OSError, ValueError) as error:
        is_temporary = isinstance(error, HubUnreachableError | OSError)
        text = f"Cannot inspect {options.model}: {error}"
        status = TEMPORARY_ERROR if is_temporary else PERMANENT_ERROR
    print(text, file=sys.stderr if status else sys.stdout)
    if options.termination_message is not None:
        options.termination_message.write_text(text, encoding="utf-8")
    return status
