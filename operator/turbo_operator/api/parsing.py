"""From the dictionaries of the Kubernetes API, or of a file, to records, or to a sentence per wrong field."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from turbo_operator.api.accelerator import TurboAccelerator
from turbo_operator.api.budget import TurboBudget
from turbo_operator.api.deployment import TurboDeployment
from turbo_operator.api.draft import TurboDraft
from turbo_operator.api.validation import Record


class InvalidObject(ValueError):  # noqa: N818  named after what it is, like the condition that it becomes
    """An object that is not of the API; its text is one sentence per problem, with the field's path."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


# What to write, where pydantic says what it expected.
_REMEDIES = {
    "extra_forbidden": "is not a field of this version of the API: correct its spelling or leave it out",
    "missing": "is required",
    "string_type": "write text, in quotes where it looks like a number",
    "string_too_short": "write at least {min_length} character",
    "string_too_long": "write at most {max_length} characters",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "write a whole number, without quotes"),
    "greater_than_equal": "write at least {ge}",
    "less_than_equal": "write at most {le}",
    "bool_type": "write true or false",
    **dict.fromkeys(("enum", "literal_error"), "write {expected}"),
    **dict.fromkeys(("tuple_type", "list_type"), "write a list, like [a, b]"),
    "too_long": "write at most {max_length}",
    **dict.fromkeys(("model_type", "dict_type"), "write its fields, like {{name: value}}"),
}
_R = TypeVar("_R", bound=Record)


def _parse(kind: type[_R], document: Mapping[str, Any]) -> _R:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise InvalidObject(_sentence(problem) for problem in error.errors(include_url=False)) from error


def _sentence(problem: ErrorDetails) -> str:
    where = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    about: dict[str, Any] = problem.get("ctx") or {}
    if problem["type"] == "rule" and about.get("field"):
        where.append(about["field"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    message = _REMEDIES[problem["type"]].format_map(about) if problem["type"] in _REMEDIES else problem["msg"]
    return f"{path}: {message}" if path else message


# A record of the kind from its JSON form; InvalidObject names each wrong field and what to write.
parse = functools.partial(_parse, TurboDeployment)
parse_accelerator = functools.partial(_parse, TurboAccelerator)
parse_draft = functools.partial(_parse, TurboDraft)
parse_budget = functools.partial(_parse, TurboBudget)
