"""How a refused value is worded, and the formats that names and labels must have.

Clients show these sentences to people and tests match on them, so the wording is upstream's, rebuilt from its
parts: the kinds of field errors of apimachinery's pkg/util/validation/field, and the formats of
pkg/util/validation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver import errors
from controlplane.apiserver.errors import Cause

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_KEY = r"[-._a-zA-Z0-9]+"

ALPHANUMERIC_ENDS = "and must start and end with an alphanumeric character"
IMMUTABLE = "field is immutable"
NOT_NEGATIVE = "must be greater than or equal to 0"
PORT_RANGE = "must be between 1 and 65535, inclusive"


_MOST_CAUSES = 10_000


class Causes:
    """Collects refusals. Paths are upstream's: spec.containers[0].image, data[key]."""

    def __init__(self) -> None:
        self.found: list[Cause] = []

    def required(self, path: str, detail: str = "") -> None:
        self._add(errors.REQUIRED, path, "Required value", detail)

    def invalid(self, path: str, value: Any, detail: str) -> None:
        lead = "Invalid value" if value is OMITTED else f"Invalid value: {go_value(value)}"
        self._add(errors.INVALID, path, lead, detail)

    def not_supported(self, path: str, value: Any, supported: Iterable[str]) -> None:
        listed = ", ".join(go_value(item) for item in supported)
        detail = f"supported values: {listed}" if listed else ""
        self._add(errors.NOT_SUPPORTED, path, f"Unsupported value: {go_value(value)}", detail)

    def duplicate(self, path: str, value: Any) -> None:
        self._add(errors.DUPLICATE, path, f"Duplicate value: {go_value(value)}", "")

    def not_found(self, path: str, value: Any) -> None:
        self._add(errors.NOT_FOUND, path, f"Not found: {go_value(value)}", "")

    def forbidden(self, path: str, detail: str) -> None:
        self._add(errors.FORBIDDEN, path, "Forbidden", detail)

    def too_long(self, path: str, limit: int) -> None:
        self._add(errors.TOO_LONG, path, "Too long", f"may not be more than {limit} bytes")

    def too_many(self, path: str, count: int, limit: int) -> None:
        self._add(errors.TOO_MANY, path, f"Too many: {count}", f"must have at most {limit} items")

    def _add(self, type_: str, path: str, lead: str, detail: str) -> None:
        """Raises StatusError (422) where a body has more wrong with it than anybody reads: a million causes
        take gigabytes and half a minute, in which nobody else is served."""
        if len(self.found) >= _MOST_CAUSES:
            text = f"it is invalid in more than {_MOST_CAUSES} places, the first: {self.found[0].text}"
            raise errors.StatusError(422, "Invalid", text)
        self.found.append(Cause(type_, path, f"{lead}: {detail}" if detail else lead))

    def each(self, path: str, value: Any, details: Iterable[str]) -> None:
        """One Invalid per detail, as the format functions below give them."""
        for detail in details:
            self.invalid(path, value, detail)

    def non_negative(self, path: str, value: Any) -> None:
        if isinstance(value, int) and value < 0:
            self.invalid(path, value, NOT_NEGATIVE)

    def one_of(self, path: str, value: Any, supported: Iterable[str], *, empty_ok: bool = False) -> None:
        """Required when empty, NotSupported when not among `supported` (listed in that order)."""
        listed = list(supported)
        if not value:
            if not empty_ok:
                self.required(path)
        elif value not in listed:
            self.not_supported(path, value, listed)

    def port(self, path: str, value: Any) -> None:
        if not isinstance(value, int) or not 1 <= value <= 65535:
            self.invalid(path, value, PORT_RANGE)

    def port_or_name(self, path: str, value: Any) -> None:
        """An IntOrString that names a container port or gives its number."""
        if isinstance(value, str):
            self.each(path, value, port_name(value))
        else:
            self.port(path, value)


@dataclass(frozen=True, slots=True)
class GoLiteral:
    """A value that must print as the Go literal it is in upstream's sentence, e.g. intstr.IntOrString{…}."""

    text: str


OMITTED = object()
"""A value that the sentence does not show: it would be long, or the fault is not in it."""


def go_value(value: Any) -> str:
    """A value as Go prints it in these sentences: strings quoted, maps and lists in Go syntax, null as null.
    """
    if isinstance(value, GoLiteral):
        return value.text
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        if all(isinstance(item, str) for item in value.values()):
            inner = ", ".join(f"{go_value(key)}:{go_value(value[key])}" for key in sorted(value))
            return f"map[string]string{{{inner}}}"
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return f"[]string{{{', '.join(go_value(item) for item in value)}}}"
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)


def _regex_detail(what: str, pattern: str, *examples: str) -> str:
    quoted = ",  or ".join(f"'{example}'" for example in examples)
    return f"{what} (e.g. {quoted}, regex used for validation is '{pattern}')"


def _too_long(text: str, limit: int) -> list[str]:
    return [f"must be no more than {limit} characters"] if len(text) > limit else []


def dns_label(text: str) -> list[str]:
    """RFC 1123 label, at most 63 characters; what is wrong with it."""
    out = _too_long(text, 63)
    if not re.fullmatch(_LABEL, text):
        what = (
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
            + ALPHANUMERIC_ENDS
        )
        out.append(_regex_detail(what, _LABEL, "my-name", "123-abc"))
    return out


def dns_subdomain(text: str) -> list[str]:
    """RFC 1123 subdomain, at most 253 characters."""
    out = _too_long(text, 253)
    if not re.fullmatch(_SUBDOMAIN, text):
        what = (
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
            + ALPHANUMERIC_ENDS
        )
        out.append(_regex_detail(what, _SUBDOMAIN, "example.com"))
    return out


def dns_1035_label(text: str) -> list[str]:
    """A Service's name: a label that starts with a letter."""
    out = _too_long(text, 63)
    if not re.fullmatch(_LABEL_1035, text):
        what = (
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
            "start with an alphabetic character, and end with an alphanumeric character"
        )
        out.append(_regex_detail(what, _LABEL_1035, "my-name", "abc-123"))
    return out


def path_segment(text: str) -> list[str]:
    """The loose names of RBAC objects: whatever fits into one path segment."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{char}'" for char in "/%" if char in text]


def qualified_name(text: str) -> list[str]:
    """A label or annotation key: an optional DNS prefix, a slash, a name of at most 63 characters."""
    prefix, slash, name = text.rpartition("/")
    out: list[str] = []
    if "/" in prefix:
        what = (
            f"a qualified name must consist of alphanumeric characters, '-', '_' or '.', {ALPHANUMERIC_ENDS}"
        )
        detail = _regex_detail(what, _QUALIFIED, "MyName", "my.name", "123-abc")
        return [f"{detail} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    if slash and not prefix:
        out.append("prefix part must be non-empty")
    elif slash:
        out.extend(f"prefix part {detail}" for detail in dns_subdomain(prefix))
    if not name:
        out.append("name part must be non-empty")
    elif len(name) > 63:
        out.append("name part must be no more than 63 characters")
    if not re.fullmatch(_QUALIFIED, name):
        what = f"name part must consist of alphanumeric characters, '-', '_' or '.', {ALPHANUMERIC_ENDS}"
        out.append(_regex_detail(what, _QUALIFIED, "MyName", "my.name", "123-abc"))
    return out


def label_value(text: str) -> list[str]:
    out = _too_long(text, 63)
    if not re.fullmatch(f"({_QUALIFIED})?", text):
        what = (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
            + ALPHANUMERIC_ENDS
        )
        out.append(_regex_detail(what, f"({_QUALIFIED})?", "MyValue", "my_value", "12345"))
    return out


def config_key(text: str) -> list[str]:
    """A key of a ConfigMap or Secret; it becomes a file name."""
    out = _too_long(text, 253)
    if not re.fullmatch(_KEY, text):
        what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
        out.append(_regex_detail(what, _KEY, "key.name", "KEY_NAME", "key-name"))
    elif text == ".":
        out.append("must not be '.'")
    elif text == "..":
        out.append("must not be '..'")
    elif text.startswith(".."):
        out.append("must not start with '..'")
    return out


def port_name(text: str) -> list[str]:
    """An IANA service name: what a container port may be called."""
    out: list[str] = []
    if len(text) > 15:
        out.append("must be no more than 15 characters")
    if not re.fullmatch(r"[-a-z0-9]+", text):
        out.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", text):
        out.append("must contain at least one letter (a-z)")
    if "--" in text:
        out.append("must not contain consecutive hyphens")
    if text.startswith("-") or text.endswith("-"):
        out.append("must not begin or end with a hyphen")
    return out


def environment_name(text: str) -> list[str]:
    """Since 1.32 any printable ASCII but `=` may stand in the name of a variable."""
    if text and all(" " <= char <= "~" and char != "=" for char in text):
        return []
    return [
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
    ]


def check_labels(causes: Causes, path: str, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        causes.each(path, key, qualified_name(key))
        causes.each(path, value, label_value(value))


def check_selector(causes: Causes, path: str, selector: Mapping[str, Any]) -> None:
    """A LabelSelector: values where the operator needs them, and only there."""
    check_labels(causes, f"{path}.matchLabels", selector.get("matchLabels") or {})
    for index, term in enumerate(selector.get("matchExpressions") or ()):
        where = f"{path}.matchExpressions[{index}]"
        operator, values = term.get("operator"), term.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                causes.required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                causes.forbidden(
                    f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                )
        else:
            causes.invalid(f"{where}.operator", operator or "", "not a valid selector operator")
        causes.each(f"{where}.key", term.get("key") or "", qualified_name(term.get("key") or ""))


def selector_matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector accepts these labels; an invalid operator accepts nothing."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or ():
        key, operator, values = term.get("key"), term.get("operator"), term.get("values") or []
        fits = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not fits.get(operator, False):
            return False
    return True
