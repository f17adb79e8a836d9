"""The scalar types and the rules of the API: each says once what is wrong, to the API server and to Python.

A rule carries its CEL expression and one message that says what to write instead. The API server refuses a
bad object by the CRD even while the operator is down; Python tries the same expression for `turbo plan`, and
on objects stored before the rule.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

CEL_RULES = "x-kubernetes-validations"

_T = TypeVar("_T")

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_AMOUNT = re.compile(r"\d{1,9}(\.\d{1,6})?", re.ASCII)
_FRACTION = re.compile(r"(0(\.\d{1,6})?|1(\.0{1,6})?)", re.ASCII)
_QUANTITY = re.compile(r"\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i)?", re.ASCII)
_MEMORY = re.compile(r"\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)", re.ASCII)
_UNITS: dict[str | None, Decimal] = {
    None: Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    **{letter: Decimal(10 ** (3 * power)) for power, letter in enumerate("MGTPE", start=2)},
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity (`4`, `400m`, `1.5Gi`) as a number; ValueError when it is none."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity: write it like 4, 400m or 1.5Gi")
    return Decimal(text.removesuffix(found[2] or "")) * _UNITS[found[2]]


class Duration(str):
    """A duration as it was written, like `1m30s`."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        """The same in seconds; ValueError when it is none."""
        parts = _DURATION_PART.findall(self)
        if not parts or "".join(number + unit for number, unit in parts) != self:
            raise ValueError(f"{str(self)!r} is no duration: write it like 90s, 1m30s or 250ms")
        return float(sum(Decimal(number) * _SECONDS[unit] for number, unit in parts))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


def rfc3339(epoch: float) -> str:
    """Seconds since the epoch as Kubernetes writes them, like 2026-01-19T08:30:00Z; fractions are dropped."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(stamp: str) -> float:
    """Such a text, or one with a fraction, in seconds since the epoch; ValueError when it is none."""
    return datetime.fromisoformat(stamp).timestamp()


def refusal(message: str, field: str | int | None = None) -> PydanticCustomError:
    """The error of a broken rule while an object is parsed; `field` lies below the place it is raised at."""
    return PydanticCustomError("rule", "{message}", {"message": message, "field": field})


@functools.cache
def _predicate(cel: str) -> Callable[[Any], bool]:
    """Write a condition in Python: operators, fields, `duration`, and what is replaced here."""
    python = re.sub(r"has\(([\w.]+)\)", r"(\1 is not None)", cel)
    python = re.sub(r"([\w.]+)\.size\(\)", r"len(\1)", python.replace(".startsWith(", ".startswith("))
    python = re.sub(r"([\w.]+)\.matches\(", r"matches(\1, ", python)
    python = re.sub(r"!(?!=)", "not ", python).replace("||", "or").replace("&&", "and")
    python = re.sub(r"\.\w+", lambda name: re.sub("[A-Z]", r"_\g<0>", name[0]).lower(), python)
    known = {"matches": _matches, "duration": lambda text: Duration(text).seconds}
    return cast("Callable[[Any], bool]", eval(f"lambda self: {python}", known))  # noqa: S307  a constant of ours


def _matches(text: str, pattern: str) -> bool:
    """Whether RE2 finds the pattern: its $ is the very end, and \\d a digit of ASCII."""
    return re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None


@dataclass(frozen=True)
class Rule:
    """A condition on an object, or as an annotation on a value."""

    cel: str
    message: str
    field: str | None = None  # camelCase name below the object, where it goes wrong
    holds: Callable[[Any], bool] | None = None  # the same in Python, where `_predicate` cannot tell

    def check(self, value: _T) -> _T:
        """Return what keeps the rule, and refuse what breaks it."""
        if not (self.holds or _predicate(self.cel))(value):
            raise refusal(self.message, self.field)
        return value

    def as_schema(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.message}
        return entry | ({"fieldPath": f".{self.field}"} if self.field else {})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        json_schema = handler(core)
        return {**json_schema, CEL_RULES: [*json_schema.get(CEL_RULES, ()), self.as_schema()]}


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
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> dict[str, Any]:
        reference = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(reference)[CEL_RULES] = [rule.as_schema() for rule in cls.rules]
        return reference

    def dump(self) -> dict[str, Any]:
        """The JSON form with camelCase names; absent fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Metadata(Record):
    """The part of an object's metadata that the operator reads."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    annotations: Mapping[str, str] = {}


@dataclass(frozen=True)
class Text:
    """Annotation of a string of 1 to `max_length` characters that matches `pattern`.

    The pattern goes into CEL and not into the schema's `pattern`, whose refusals quote a regular expression
    and nothing else.
    """

    max_length: int
    pattern: str | None = None
    message: str = ""

    def __get_pydantic_core_schema__(self, source: type[str], handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(strict=True, min_length=1, max_length=self.max_length)
        if self.pattern is None:
            return text
        whole = re.compile(self.pattern, re.ASCII)  # as RE2 reads \d and \s

        def read(value: object, bounded: core_schema.ValidatorFunctionWrapHandler) -> str:
            """What the pattern's message says is of more help than that a number is no string."""
            if not isinstance(value, str) or whole.fullmatch(bounded(value)) is None:
                raise refusal(self.message)
            return source(value)

        return core_schema.no_info_wrap_validator_function(read, text)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        json_schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": self.max_length}
        rule = {"rule": f"self.matches(r'^(?:{self.pattern})$')", "message": self.message}
        return json_schema | ({CEL_RULES: [rule]} if self.pattern is not None else {})


@dataclass(frozen=True)
class Amount:
    """Annotation of a number written as a string such as "24.00", since YAML's floats would lose cents; or as
    `keep` str of a Kubernetes quantity, which if `whole` may be written as an integer too.
    """

    message: str
    pattern: re.Pattern[str] = _AMOUNT
    positive: bool = True
    whole: bool = False
    keep: type[Decimal | str] = Decimal

    def read(self, value: object) -> object:
        """Return the number, and refuse what is none."""
        if isinstance(value, Decimal):
            return value
        if isinstance(value, str):
            fits = self.pattern.fullmatch(value) is not None and (quantity(value) > 0 or not self.positive)
        else:
            fits = self.whole and isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not fits:
            raise refusal(self.message)
        return self.keep(str(value))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.to_string_ser_schema(when_used="json")
        return core_schema.no_info_plain_validator_function(self.read, serialization=text)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        text = "string(self)" if self.whole else "self"
        max_length, above_zero = 16, f"double({text}) > 0.0"
        if self.keep is str:
            max_length, above_zero = 32, f"quantity({text}).isGreaterThan(quantity('0'))"
        cel = f"{text}.matches(r'^{self.pattern.pattern}$')" + (f" && {above_zero}" if self.positive else "")
        kind: dict[str, Any] = {"type": "string"}
        if self.whole:
            kind, cel = {"x-kubernetes-int-or-string": True}, f"type(self) == int ? self > 0 : ({cel})"
        return {**kind, "maxLength": max_length, CEL_RULES: [{"rule": cel, "message": self.message}]}


_FRACTION_MESSAGE = 'write a fraction from "0" to "1" as a string, like "0.10"'
Fraction = Annotated[Decimal, Amount(_FRACTION_MESSAGE, _FRACTION, positive=False)]
_PART_MESSAGE = 'write a fraction above "0", up to "1", as a string, like "0.25"'
PositiveFraction = Annotated[Decimal, Amount(_PART_MESSAGE, _FRACTION)]
_QUANTITY_MESSAGE = "write a Kubernetes quantity above 0, like 4, 400m or 16Gi"
Quantity = Annotated[str, Amount(_QUANTITY_MESSAGE, _QUANTITY, whole=True, keep=str)]
"""A Kubernetes quantity above 0 as it was written; `quantity` gives its value."""
Memory = Annotated[str, Amount("write memory with its unit, like 80Gi", _MEMORY, keep=str)]
"""Bytes above 0 as they were written; `quantity` gives their number."""

_DURATION = r"(\d{1,6}(\.\d{1,3})?(ms|s|m|h))+"


def duration_cel(cel: str, place: str = "self") -> str:
    """A condition on a duration that holds for what is none: the API server evaluates every rule, and would
    add a sentence about its failure to that of the pattern.
    """
    return f"!{place}.matches(r'^{_DURATION}$') || {cel}"


UpToAnHour = Annotated[
    Duration,
    Text(32, _DURATION, "write a duration like 120s, 2m or 25ms"),
    Rule(duration_cel("duration(self) <= duration('1h')"), "write at most 1h"),
]
ASecondToAnHour = Annotated[
    UpToAnHour, Rule(duration_cel("duration(self) >= duration('1s')"), "write at least 1s")
]
TenSecondsToADay = Annotated[
    Duration,
    Text(32, _DURATION, "write a duration like 90s, 10m or 2h"),
    Rule(duration_cel("duration(self) >= duration('10s')"), "write at least 10s"),
    Rule(duration_cel("duration(self) <= duration('24h')"), "write at most 24h"),
]

DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
ObjectName = Annotated[
    str,
    Text(
        253,
        rf"{DNS_LABEL}(\.{DNS_LABEL})*",
        "write the name of a Kubernetes object: lower-case letters, digits, '-' and '.', like my-object",
    ),
]
"""The name of another object."""


class _KeyedByName:
    """Annotation of a list in which no two items have one name, as the API server has it of its maps."""

    def _check(self, items: Any) -> Any:
        names = [item.name for item in items or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise refusal(f"choose another name, or leave it out: {name} is in the list before", index)
        return items

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "x-kubernetes-list-map-keys": ["name"]}


KEYED_BY_NAME = _KeyedByName()
"""Of a list whose items are told apart by their names."""
LabelValue = Annotated[str, StringConstraints(strict=True, max_length=63)]
"""The value of a label or node selector; may be empty."""


def below_root(message: str) -> Text:
    """A path below the root of a claim, whose parts begin with no dot."""
    return Text(512, r"[A-Za-z0-9_][-A-Za-z0-9_.]*(/[A-Za-z0-9_][-A-Za-z0-9_.]*)*", message)


_HUB = r"hf://[A-Za-z0-9][-A-Za-z0-9_.]{0,95}/[A-Za-z0-9][-A-Za-z0-9_.]{0,95}"
_CLAIM = r"pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/[^/\s]+)*/?"
# A reference as containers have it, and the path in the image.
_REFERENCE = (
    r"[a-zA-Z0-9][-a-zA-Z0-9.]*(:[0-9]{1,5})?(/[a-z0-9]+([-._]+[a-z0-9]+)*)+"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127}|@sha256:[0-9a-f]{64})"
)
_IN_IMAGE = r"oci://" + _REFERENCE + r"(/[^/\s]+)*/?"
_IN_BUCKET = r"s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/[^/\s.][^/\s]*)*/?"
ModelURI = Annotated[
    str,
    Text(
        1024,
        f"{_HUB}|{_CLAIM}|{_IN_IMAGE}|{_IN_BUCKET}",
        "write hf://ORGANIZATION/NAME for a model of the Hugging Face hub (its commit in revision), "
        "pvc://CLAIM/PATH for a folder or .gguf file on a PersistentVolumeClaim, "
        "oci://REGISTRY/REPOSITORY:TAG/PATH for one in an image, or s3://BUCKET/PREFIX for a folder of a "
        "bucket",
    ),
    Rule(
        "!self.split('/').exists(part, part == '..')",
        "write the path without '..'",
        holds=lambda uri: ".." not in uri.split("/"),
    ),
]
"""Where a model lies."""


class ModelSource(Record):
    """Where a model comes from."""

    uri: ModelURI

    @property
    def on_hub(self) -> bool:
        """Whether the model comes from the Hugging Face hub."""
        return self.uri.startswith("hf://")

    @property
    def in_bucket(self) -> bool:
        """Whether the model is below a prefix of an S3 bucket."""
        return self.uri.startswith("s3://")

    @property
    def hub_id(self) -> str:
        """ORGANIZATION/NAME of a model of the hub."""
        return self.uri.removeprefix("hf://")

    @property
    def image(self) -> str | None:
        """The reference of the image that a model is in; None where it is elsewhere."""
        found = re.match(f"oci://({_REFERENCE})", self.uri)
        return found[1] if found else None

    @property
    def claim(self) -> str:
        """The claim's name of a model on a PersistentVolumeClaim."""
        return self.uri.removeprefix("pvc://").partition("/")[0]

    @property
    def path(self) -> str:
        """The path below the root of claim or image, without a slash at either end; empty is the root."""
        volume = f"oci://{self.image}" if self.image else f"pvc://{self.claim}"
        return self.uri.removeprefix(volume).strip("/")
