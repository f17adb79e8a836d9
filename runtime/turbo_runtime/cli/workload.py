"""Prompts of `turbo bench`: from a file, or generated, no two alike."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbo_runtime.prompts import PromptsError
from turbo_runtime.prompts import read_prompts as read_objects

Messages = list[Mapping[str, Any]]

_NAMES = ("Amara", "Bruno", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jonas", "Kira", "Lena")
_GOODS = ("lamps", "chairs", "cables", "notebooks", "filters", "boots", "tents", "kettles", "radios", "maps")
_TOWNS = ("Bergen", "Cork", "Dresden", "Evora", "Faro", "Graz", "Hull", "Izmir", "Jena", "Kotor")
_CARRIERS = ("post", "courier", "freight", "own van")


def read_prompts(path: Path) -> list[Messages]:
    """Read a text a line, or the JSON lines of `turbo_runtime.prompts`. Raises ValueError."""
    if path.suffix == ".jsonl":
        try:
            prompts = read_objects([path])
        except PromptsError as error:
            raise ValueError(f"--prompts: {error}.") from error
        if any(prompt.written for prompt in prompts):
            raise ValueError(
                f"--prompts: {path} holds captured prompts, which are no chats: give a file of chats."
            )
        return [list(prompt.messages) for prompt in prompts]
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ValueError(f"--prompts: {path} cannot be read: {reason}.") from error
    if not lines:
        raise ValueError(f"--prompts: {path} holds no prompt; write one a line.")
    return [[{"role": "user", "content": line}] for line in lines]


def generate_prompts(count: int) -> list[Messages]:
    """Generate three kinds in turn: text to JSON, a customer's letter, a sum in words. Always the same."""
    kinds = (_order, _letter, _sum)
    return [
        [{"role": "user", "content": kinds[number % 3](random.Random(number))}]  # noqa: S311  no secret
        for number in range(count)
    ]


def _order(draw: random.Random) -> str:
    goods = draw.sample(_GOODS, 4)
    items = ", ".join(f"{draw.randint(2, 90)} {good} at {draw.randint(3, 200)} euros" for good in goods)
    return (
        f"{draw.choice(_NAMES)} in {draw.choice(_TOWNS)} orders {items}, by {draw.choice(_CARRIERS)}, order "
        f"number {draw.randint(10_000, 99_999)}. Write the order as JSON with the keys customer, town, "
        "carrier, number and items, each item with name, quantity and price."
    )


def _letter(draw: random.Random) -> str:
    return (
        f"Customer {draw.choice(_NAMES)} from {draw.choice(_TOWNS)} writes: the {draw.randint(2, 9)} "
        f"{draw.choice(_GOODS)} of order {draw.randint(10_000, 99_999)} came {draw.randint(2, 20)} days late "
        f"by {draw.choice(_CARRIERS)} and one is broken. Write a friendly answer that names the order, says "
        "sorry and offers a replacement or the money back."
    )


def _sum(draw: random.Random) -> str:
    first, second = draw.sample(_NAMES, 2)
    good = draw.choice(_GOODS)
    return (
        f"{first} has {draw.randint(12, 60)} {good} and sells {draw.randint(2, 11)} of them a day for "
        f"{draw.randint(3, 30)} euros each. {second} brings {draw.randint(5, 40)} more after two days. How "
        "many are left after three days, and how much money came in? Think step by step."
    )
