"""From a request line to what is asked for: the verb, the kind, the place.

Kubernetes' paths are regular, so one function reads them all; the answer is what authorization rules are
written in terms of and what the handlers dispatch on (apiserver pkg/endpoints/request/requestinfo.go). The
query is read here too, because `?watch=true` turns a list into another verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from controlplane.apiserver.resources import ResourceInfo, group_versions, lookup

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_COLLECTION_VERBS = {"GET": "list", "HEAD": "list", "POST": "create", "DELETE": "deletecollection"}
_OF_A_NAMESPACE = ("status", "finalize")  # anything else below a namespace's name is a kind of object
TRUE = ("true", "1", "t", "T", "TRUE", "True")

_GROUP_VERSIONS = frozenset(group_versions())


@dataclass(frozen=True, slots=True)
class Request:
    """A request line, understood.

    `info` is None for a path that names no resource (then `path` is all there is). `unknown` is true for a
    path inside a group and version that is served, but of a kind that is not. `tail` is what follows the
    subresource, for proxies. `query` holds the last value of each parameter, `pairs` all of them in order.
    """

    method: str
    path: str
    verb: str
    info: ResourceInfo | None
    namespace: str
    name: str
    subresource: str
    tail: str
    query: Mapping[str, str]
    pairs: tuple[tuple[str, str], ...]
    unknown: bool = False

    def flag(self, name: str) -> bool:
        """A boolean parameter; `?watch` alone means true, as in Go's conversion."""
        return _flag(self.query, name)


class _Line(NamedTuple):
    """A request line, taken apart."""

    method: str
    path: str
    query: Mapping[str, str]
    pairs: tuple[tuple[str, str], ...]

    def plain(self, *, unknown: bool = False) -> Request:
        """What names no resource that is served."""
        verb = self.method.lower()
        return Request(self.method, self.path, verb, None, "", "", "", "", self.query, self.pairs, unknown)


def parse(method: str, target: str) -> Request:
    """Read `target` (path and query as sent). Never fails: nonsense is a path that nobody serves."""
    raw_path, _, raw_query = target.partition("?")
    pairs = tuple(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else ()
    line = _Line(method, raw_path, dict(pairs), pairs)
    parts = [part for part in raw_path.split("/") if part]
    if "%" in raw_path:
        parts = [unquote(part) for part in parts]
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return line.plain()
    if (group, version) not in _GROUP_VERSIONS:
        return line.plain()
    watching = rest[0] == "watch" and len(rest) > 1  # the old form, /api/v1/watch/pods
    if watching:
        rest = rest[1:]
    return _resource(line, group, version, rest, watching)


def _resource(line: _Line, group: str, version: str, rest: list[str], watching: bool) -> Request:
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in _OF_A_NAMESPACE:
        namespace, rest = rest[1], rest[2:]
    info = lookup(group, version, rest[0])
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if info is None or (bool(namespace) and not info.namespaced):
        return line.plain(unknown=True)
    if info.namespaced and name and not namespace:
        return line.plain(unknown=True)
    if subresource and subresource not in info.subresources:
        proxied = subresource == "proxy" and info.plural in ("pods", "services", "nodes")
        if not proxied:
            return line.plain(unknown=True)
    return Request(
        line.method,
        line.path,
        _verb(line, name, watching),
        info,
        namespace if info.plural != "namespaces" else "",
        name,
        subresource,
        "/".join(rest[3:]),
        line.query,
        line.pairs,
    )


def _verb(line: _Line, name: str, watching: bool) -> str:
    if line.method in ("GET", "HEAD") and (watching or _flag(line.query, "watch")):
        return "watch"
    if name:
        return _VERBS.get(line.method, "get")
    return _COLLECTION_VERBS.get(line.method, line.method.lower())


def _flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name)
    return value is not None and (value == "" or value in TRUE)
