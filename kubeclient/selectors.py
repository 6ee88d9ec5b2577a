"""Interim, by engineer G, until H's file lands: label and field selectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    field: str
    operator: str
    value: str


class FieldSelector:
    def __init__(self, requirements: tuple[FieldRequirement, ...]) -> None:
        self.requirements = requirements

    @classmethod
    def parse(cls, text: str) -> FieldSelector:
        found = []
        for part in text.split(","):
            for operator in ("!=", "==", "="):
                if operator in part:
                    field, _, value = part.partition(operator)
                    found.append(FieldRequirement(field.strip(), operator, value.strip()))
                    break
            else:
                raise ValueError(f"invalid selector: '{text}'; can't understand '{part}'")
        return cls(tuple(found))

    def matches(self, get: Callable[[str], str]) -> bool:
        return all((get(r.field) == r.value) != (r.operator == "!=") for r in self.requirements)


class LabelSelector:
    def __init__(self, requirements: list[tuple[str, str, list[str]]]) -> None:
        self.requirements = requirements

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        import re

        found: list[tuple[str, str, list[str]]] = []
        for part in re.split(r",(?![^(]*\))", text):
            part = part.strip()
            match = re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", part)
            if match:
                found.append((match[1], match[2], [v.strip() for v in match[3].split(",")]))
            elif "!=" in part:
                key, _, value = part.partition("!=")
                found.append((key.strip(), "notin", [value.strip()]))
            elif "=" in part:
                key, _, value = part.replace("==", "=").partition("=")
                found.append((key.strip(), "in", [value.strip()]))
            elif part.startswith("!"):
                found.append((part[1:].strip(), "!", []))
            elif part:
                found.append((part, "exists", []))
        return cls(found)

    @classmethod
    def from_object(cls, obj: Mapping[str, Any] | None) -> LabelSelector:
        obj = obj or {}
        found: list[tuple[str, str, list[str]]] = [(k, "in", [v]) for k, v in (obj.get("matchLabels") or {}).items()]
        names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}
        for e in obj.get("matchExpressions") or ():
            found.append((e["key"], names[e["operator"]], list(e.get("values") or ())))
        return cls(found)

    def matches(self, labels: Mapping[str, str]) -> bool:
        for key, operator, values in self.requirements:
            if operator == "in" and labels.get(key) not in values:
                return False
            if operator == "notin" and key in labels and labels[key] in values:
                return False
            if operator == "exists" and key not in labels:
                return False
            if operator == "!" and key in labels:
                return False
        return True
