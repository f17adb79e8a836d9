"""Arguments that several commands take, and types of theirs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

from turbo_runtime.client.client import KEY_VARIABLE

Number = TypeVar("Number", int, float)


def bounded(
    read: Callable[[str], Number], minimum: float, maximum: float = math.inf
) -> Callable[[str], Number]:
    """Return a parser of numbers in a range, `read` by int or float."""

    def number(text: str) -> Number:
        value = read(text)
        if not minimum <= value <= maximum:
            bounds = "be at least {0}" if maximum == math.inf else "lie between {0} and {1}"
            raise argparse.ArgumentTypeError(f"must {bounds.format(minimum, maximum)}, not {text}")
        return value

    number.__name__ = "whole number" if read is int else "number"  # argparse names it
    return number


def client_parser(command: str, description: str, note: str = "") -> argparse.ArgumentParser:
    """Create the parser of a command that talks to a server, with the address and the model."""
    epilog = f"An API key is read from the variable {KEY_VARIABLE}.{note}"
    parser = argparse.ArgumentParser(prog=command, description=description, epilog=epilog)
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    return parser
