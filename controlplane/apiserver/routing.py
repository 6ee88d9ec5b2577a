"""From a request line to what is asked for: the verb, the kind, the place.

Kubernetes' paths are regular, so one function reads them all; the answer is what authorization rules are
written in terms of and what the handlers dispatch on (apiserver pkg/endpoints/request/requestinfo.go). The
query is read here too, because `?watch=true` turns a list into another verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        value = self.query.get(name)
        return value is not None and (value == "" or value in TRUE)


def parse(method: str, target: str) -> Request:
    """Read `target` (path and query as sent). Never fails: nonsense is a path that nobody serves."""
    raw_path, _, raw_query = target.partition("?")
    pairs = tuple(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else ()
    query = dict(pairs)
    parts = [unquote(part) for part in raw_path.split("/") if part]
    plain = Request(method, raw_path, method.lower(), None, "", "", "", "", query, pairs)
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return plain
    if (group, version) not in _GROUP_VERSIONS:
        return plain
    watching = rest[0] == "watch" and len(rest) > 1  # the old form, /api/v1/watch/pods
    if watching:
        rest = rest[1:]
    return _resource(plain, group, version, rest, watching)


def _resource(plain: Request, group: str, version: str, rest: list[str], watching: bool) -> Request:
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in _OF_A_NAMESPACE:
        namespace, rest = rest[1], rest[2:]
    info = lookup(group, version, rest[0])
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    tail = "/".join(rest[3:])
    misplaced = info is None or (bool(namespace) and not info.namespaced)
    misplaced = misplaced or (info is not None and info.namespaced and not namespace and bool(name))
    if subresource and info is not None and subresource not in info.subresources:
        proxied = subresource == "proxy" and info.plural in ("pods", "services", "nodes")
        misplaced = misplaced or not proxied
    if misplaced:
        return _replace(plain, unknown=True)
    verb = _verb(plain, name, watching)
    return Request(
        plain.method,
        plain.path,
        verb,
        info,
        namespace if info is None or info.plural != "namespaces" else "",
        name,
        subresource,
        tail,
        plain.query,
        plain.pairs,
    )


def _verb(plain: Request, name: str, watching: bool) -> str:
    if plain.method in ("GET", "HEAD") and (watching or plain.flag("watch")):
        return "watch"
    if name:
        return _VERBS.get(plain.method, "get")
    return _COLLECTION_VERBS.get(plain.method, plain.method.lower())


def _replace(plain: Request, *, unknown: bool) -> Request:
    return Request(
        plain.method,
        plain.path,
        plain.verb,
        None,
        "",
        "",
        "",
        "",
        plain.query,
        plain.pairs,
        unknown,
    )
