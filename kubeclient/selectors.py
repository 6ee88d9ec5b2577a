"""Label and field selectors: which objects a list, a watch, a Service or a ReplicaSet is about.

Labels have a small language (`app=web,tier in (a, b),!canary`) and an object form (matchLabels,
matchExpressions) that mean the same; fields only know = and !=. Grammar, precedence and messages are those of
apimachinery's pkg/labels and pkg/fields. Anything that does not parse raises ValueError with upstream's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_BLANKS = " \t\r\n"
_NO_NAMES = frozenset(("==", "!=", "=", ",", "(", ")", "<", ">"))
_TOKEN = re.compile(r"[ \t\r\n]*(?:(==|!=|=|!|,|\(|\)|<|>)|([^ \t\r\n=!,()<>]+))")
_INTEGER = re.compile(r"[+-]?[0-9]{1,63}")
_NAME = re.compile(r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)$")
_PREFIX = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
_MAX_PREFIX = 253


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label; `operator` is in, notin, exists, !, gt or lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """A label that is absent satisfies notin and !, nothing else."""
        present = self.key in labels
        if self.operator == "exists":
            return present
        if self.operator == "!":
            return not present
        if self.operator == "notin":
            return not present or labels[self.key] not in self.values
        if not present:
            return False
        if self.operator == "in":
            return labels[self.key] in self.values
        number, bound = _int64(labels[self.key]), _int64(self.values[0])
        if number is None or bound is None:
            return False
        return number > bound if self.operator == "gt" else number < bound


class LabelSelector:
    """A conjunction of requirements; none at all matches everything."""

    __slots__ = ("requirements",)

    def __init__(self, requirements: tuple[Requirement, ...]) -> None:
        self.requirements = requirements

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        """The text form, as in ?labelSelector=. Raises ValueError."""
        return cls(tuple(_Parser(text).requirements()))

    @classmethod
    def from_object(cls, obj: Mapping[str, Any] | None) -> LabelSelector:
        """The object form (metav1.LabelSelector); None and {} match everything. Raises ValueError."""
        obj = obj or {}
        found = [Requirement(key, "in", (value,)) for key, value in (obj.get("matchLabels") or {}).items()]
        for expression in obj.get("matchExpressions") or ():
            operator = _OPERATORS.get(expression.get("operator", ""))
            if operator is None:
                raise ValueError(f'"{expression.get("operator", "")}" is not a valid label selector operator')
            found.append(Requirement(expression["key"], operator, tuple(expression.get("values") or ())))
        return cls(tuple(found))

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """One condition on one field; `operator` is =, == or !=."""

    field: str
    operator: str
    value: str


class FieldSelector:
    """A conjunction of field requirements."""

    __slots__ = ("requirements",)

    def __init__(self, requirements: tuple[FieldRequirement, ...]) -> None:
        self.requirements = requirements

    @classmethod
    def parse(cls, text: str) -> FieldSelector:
        """The text form, as in ?fieldSelector=; a comma, = or backslash in a value is escaped by a backslash.

        Raises ValueError.
        """
        found = []
        for part in re.split(r"(?<!\\),", text):
            if not part.strip():
                continue
            match = re.match(r"^([^=!]+)(!=|==|=)(.*)$", part, re.DOTALL)
            if match is None:
                raise ValueError(f"invalid selector: '{text}'; can't understand '{part}'")
            field, operator, value = match.groups()
            value = re.sub(r"\\([\\,=])", r"\1", value.strip())
            found.append(FieldRequirement(field.strip(), operator, value))
        return cls(tuple(found))

    def matches(self, get: Callable[[str], str]) -> bool:
        """`get` gives the text of a field, "" where it is absent."""
        return all((get(r.field) == r.value) != (r.operator == "!=") for r in self.requirements)


class _Parser:
    """Recursive descent over the tokens of a label selector."""

    def __init__(self, text: str) -> None:
        self._tokens = [first or second for first, second in _TOKEN.findall(text.rstrip(_BLANKS))]
        self._at = 0

    def requirements(self) -> Iterator[Requirement]:
        if not self._tokens:
            return
        while True:
            yield self._requirement()
            if self._peek() == "":
                return
            found = self._next()
            if found != ",":
                text = f"found '{found}', expected: ',' or 'end of string'"
                raise ValueError(f"unable to parse requirement: {text}")
            if (found := self._peek()) == "" or found in _NO_NAMES:
                raise ValueError(f"found '{found}', expected: identifier after ','")

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _requirement(self) -> Requirement:
        negated = self._peek() == "!"
        if negated:
            self._next()
        key = _label_key(self._next())
        operator = self._peek()
        if negated:
            return Requirement(key, "!")
        if operator in ("", ","):
            return Requirement(key, "exists")
        self._next()
        if operator in ("=", "=="):
            return Requirement(key, "in", (self._value(),))
        if operator == "!=":
            return Requirement(key, "notin", (self._value(),))
        if operator in ("in", "notin"):
            return Requirement(key, operator, self._values())
        if operator in (">", "<"):
            return Requirement(key, "gt" if operator == ">" else "lt", (self._integer(),))
        expected = "in, notin, =, ==, !=, gt, lt"
        raise ValueError(f"unable to parse requirement: found '{operator}', expected: {expected}")

    def _value(self) -> str:
        if self._peek() in ("", ","):
            return ""
        return _label_value(self._next())

    def _integer(self) -> str:
        text = self._value()
        if _int64(text) is None:
            why = "for 'Gt', 'Lt' operators, the value must be an integer"
            raise ValueError(f'unable to parse requirement: values[0]: Invalid value: "{text}": {why}')
        return text

    def _values(self) -> tuple[str, ...]:
        found = self._next()
        if found != "(":
            raise ValueError(f"unable to parse requirement: found '{found}' expected: '('")
        values: list[str] = [self._value_in_list()]
        while (found := self._next()) == ",":
            values.append(self._value_in_list())
        if found != ")":
            raise ValueError(f"unable to parse requirement: found '{found}', expected: ',' or ')'")
        return tuple(values)

    def _value_in_list(self) -> str:
        return "" if self._peek() in ("", ",", ")") else _label_value(self._next())


def _int64(text: str) -> int | None:
    """The number as strconv.ParseInt reads it; None where that fails."""
    number = int(text) if _INTEGER.fullmatch(text) else None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    good_prefix = not slash or (len(prefix) <= _MAX_PREFIX and _PREFIX.match(prefix))
    if not good_prefix or not _NAME.match(name):
        raise ValueError(
            f'unable to parse requirement: <nil>: Invalid value: "{text}": name part must consist of'
            " alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        )
    return text


def _label_value(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(
            f'unable to parse requirement: values[0]: Invalid value: "{text}": a valid label must be an'
            " empty string or consist of alphanumeric characters, '-', '_' or '.'"
        )
    return text
