"""The scalar types and the rules of the API: each says once what is wrong, to the API server and to Python.

A rule carries its CEL expression (for the CRD, so that a bad object is refused even while the operator is
down), the same predicate in Python (for `turbo plan`, and for objects stored before the rule), and one
message that says what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

CEL_RULES = "x-kubernetes-validations"

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_AMOUNT = re.compile(r"\d{1,9}(\.\d{1,6})?", re.ASCII)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([numkMGTPE]|[KMGTPE]i)?", re.ASCII)
_UNITS: dict[str | None, Decimal] = {
    None: Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    **{letter: Decimal(10 ** (3 * power)) for power, letter in enumerate("MGTPE", start=2)},
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}


def seconds(duration: str) -> float:
    """A duration such as `90s` or `1m30s` in seconds; ValueError when it is none."""
    parts = _DURATION_PART.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is no duration: write it like 90s, 1m30s or 250ms")
    return float(sum(Decimal(number) * _SECONDS[unit] for number, unit in parts))


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity (`4`, `400m`, `1.5Gi`) as a number; ValueError when it is none."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity: write it like 4, 400m or 1.5Gi")
    return Decimal(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class Rule:
    """A condition on an object or a value: `cel` and `holds` say the same; `field` is where it goes wrong."""

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str | None = None  # camelCase name below the object

    def as_schema(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message}
        if self.field:
            entry["fieldPath"] = f".{self.field}"
        return entry


def refusal(message: str, field: str | None = None) -> PydanticCustomError:
    """The error of a broken rule while an object is parsed; `field` lies below the place it is raised at."""
    return PydanticCustomError("rule", "{message}", {"message": message, "field": field})


class Record(BaseModel):
    """Base of all API records: frozen, camelCase on the wire, unknown fields refused, `rules` kept."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise refusal(rule.message, rule.field)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        reference = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(reference)[CEL_RULES] = [rule.as_schema() for rule in cls.rules]
        return reference

    def dump(self) -> dict[str, Any]:
        """The JSON form with camelCase names; absent fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Text:
    """Annotation of a string of 1 to `max_length` characters that matches `pattern` and keeps further rules.

    The pattern goes into CEL and not into the schema's `pattern`, whose refusals quote a regular expression
    and nothing else.
    """

    max_length: int
    pattern: str | None = None
    message: str = ""
    further: tuple[Rule, ...] = ()

    @property
    def _rules(self) -> tuple[Rule, ...]:
        if self.pattern is None:
            return self.further
        whole = re.compile(self.pattern, re.ASCII)  # as RE2 reads \d and \s
        matches = Rule(
            f"self.matches(r'^(?:{self.pattern})$')", self.message, lambda value: bool(whole.fullmatch(value))
        )
        return (matches, *self.further)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        rules = self._rules

        def check(value: str) -> str:
            for rule in rules:
                if not rule.holds(value):
                    raise refusal(rule.message)
            return value

        string = core_schema.str_schema(strict=True, min_length=1, max_length=self.max_length)
        checked = core_schema.no_info_after_validator_function(check, string)
        return core_schema.no_info_before_validator_function(self._only_text, checked)

    def _only_text(self, value: object) -> object:
        """What the pattern's message says is of more help than that a number is no string."""
        if self.message and not isinstance(value, str):
            raise refusal(self.message)
        return value

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        json_schema: JsonSchemaValue = {"type": "string", "minLength": 1, "maxLength": self.max_length}
        if self._rules:
            json_schema[CEL_RULES] = [rule.as_schema() for rule in self._rules]
        return json_schema


@dataclass(frozen=True)
class Amount:
    """Annotation of a `Decimal` written as a string such as "24.00": YAML's floats would lose cents."""

    message: str
    positive: bool

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: object) -> Decimal:
            if isinstance(value, Decimal):
                return value
            if (
                not isinstance(value, str)
                or _AMOUNT.fullmatch(value) is None
                or (self.positive and not Decimal(value))
            ):
                raise refusal(self.message)
            return Decimal(value)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        cel = f"self.matches(r'^{_AMOUNT.pattern}$')" + (" && double(self) > 0.0" if self.positive else "")
        return {"type": "string", "maxLength": 16, CEL_RULES: [{"rule": cel, "message": self.message}]}


def _read_quantity(value: object) -> str:
    written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        if isinstance(written, str) and quantity(written) > 0:
            return written
    except ValueError:
        pass  # refused below, in the words that the API server uses
    raise refusal(QUANTITY_MESSAGE)


QUANTITY_MESSAGE = "write a Kubernetes quantity above 0, like 4, 400m or 16Gi"
_QUANTITY_SCHEMA = {
    "x-kubernetes-int-or-string": True,
    "maxLength": 32,
    CEL_RULES: [
        {
            "rule": r"type(self) == int ? self > 0 :"
            r" (string(self).matches(r'^\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i)?$')"
            " && quantity(string(self)).isGreaterThan(quantity('0')))",
            "message": QUANTITY_MESSAGE,
        }
    ],
}
Quantity = Annotated[str, BeforeValidator(_read_quantity), WithJsonSchema(_QUANTITY_SCHEMA)]
"""A Kubernetes quantity above 0 as it was written; `quantity` gives its value."""

_DURATION = r"(\d{1,6}(\.\d{1,3})?(ms|s|m|h))+"
_AN_HOUR = Rule(
    # The API server evaluates every rule, so this one must not trip over what the pattern refuses.
    f"!self.matches(r'^{_DURATION}$') || duration(self) <= duration('1h')",
    "write at most 1h",
    lambda value: seconds(value) <= 3600,
)
Duration = Annotated[str, Text(32, _DURATION, "write a duration like 120s, 2m or 25ms", (_AN_HOUR,))]
"""A duration of at most an hour as it was written; `seconds` gives its value."""

_DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
ObjectName = Annotated[
    str,
    Text(
        253,
        rf"{_DNS_LABEL}(\.{_DNS_LABEL})*",
        "write the name of a Kubernetes object: lower-case letters, digits, '-' and '.', like my-object",
    ),
]
"""The name of another object."""
LabelValue = Annotated[str, StringConstraints(strict=True, max_length=63)]
"""The value of a label or node selector; may be empty."""
