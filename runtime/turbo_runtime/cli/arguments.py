"""Arguments that several commands take, and types of theirs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from turbo_runtime.client.client import KEY_VARIABLE

UNBOUNDED = 1 << 40


def bounded_float(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return a parser of numbers in a range."""

    def number(text: str) -> float:
        value = float(text)
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must lie between {minimum:g} and {maximum:g}, not {text}")
        return value

    return number


def bounded_int(minimum: int, maximum: int = UNBOUNDED) -> Callable[[str], int]:
    """Return a parser of whole numbers in a range."""

    def count(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            bound = f"at least {minimum}" if maximum == UNBOUNDED else f"between {minimum} and {maximum}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    return count


def client_parser(command: str, description: str, note: str = "") -> argparse.ArgumentParser:
    """Create the parser of a command that talks to a server, with the address and the model."""
    epilog = f"An API key is read from the variable {KEY_VARIABLE}.{note}"
    parser = argparse.ArgumentParser(prog=command, description=description, epilog=epilog)
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="(default: the first that the server lists)")
    return parser
