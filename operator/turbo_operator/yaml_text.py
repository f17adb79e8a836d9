"""YAML as Kubernetes reads it: dates are strings, and a field may be written once. Pure."""

from __future__ import annotations

from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError

# The C parser reads a cluster's nodes and pods ten times as fast; it is missing where libyaml is.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(_Safe):  # type: ignore[misc]
    """The safe loader with the results of sigs.k8s.io/yaml."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _Safe.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()  # mappings, before what they merge (<<) is written into them

    def flatten_mapping(self, node: Any) -> None:
        """Merge. Raises ConstructorError where a field is written twice, since one would be lost."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            written = set()
            for key, _ in node.value:
                if isinstance(key.value, str):
                    if key.value in written:
                        raise ConstructorError(None, None, f"{key.value} is written twice", key.start_mark)
                    written.add(key.value)
        super().flatten_mapping(node)


def documents(text: str) -> list[Any]:
    """Parse the documents of a text. Raises YAMLError."""
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # PyYAML's own tags let these out
        raise yaml.YAMLError("a value is not of the kind that its tag (!!) names") from error


def described(error: yaml.YAMLError) -> str:
    """Describe an error, like `line 2, column 1: did not find expected node content`, without a full stop."""
    if not isinstance(error, MarkedYAMLError) or error.problem is None:
        return " ".join(str(error).split()).replace('"<unicode string>", ', "").rstrip(".")
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else error.problem
