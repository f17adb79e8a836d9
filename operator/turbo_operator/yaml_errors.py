"""What is wrong with a text that is no YAML, in the words of a person. Pure."""

from __future__ import annotations

from yaml import YAMLError
from yaml.error import MarkedYAMLError


def described(error: YAMLError) -> str:
    """Where and what, like `line 2, column 1: did not find expected node content`; without a full stop."""
    if not isinstance(error, MarkedYAMLError) or error.problem is None:
        return " ".join(str(error).split()).replace('"<unicode string>", ', "").rstrip(".")
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else error.problem
