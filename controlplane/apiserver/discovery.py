"""Discovery: how a client learns which kinds exist, under which paths and names.

Two forms are spoken. The old one is one document per group and version, and all clients can read it. The
aggregated one is a single document for everything; it may only be sent to a client that listed exactly its
version in Accept (a v2 answer to a v2beta1 question makes kubectl 1.27 to 1.29 see no kinds at all). Both
follow from resources.py, are built once and kept as bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from controlplane.apiserver import issuer_discovery
from controlplane.apiserver.resources import ResourceInfo, Subresource, group_versions, in_group

Object = dict[str, Any]

AGGREGATED_VERSIONS = ("v2", "v2beta1")


def aggregated_content_type(version: str) -> str:
    """The Content-Type by which a client recognises the aggregated form."""
    return f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"


def api_versions(server_address: str = "") -> bytes:
    """GET /api. `server_address` is host:port, as reached from anywhere."""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]
    versions = [version for group, version in group_versions() if not group]
    return _encode({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": addresses})


@lru_cache(maxsize=1)
def api_groups() -> bytes:
    """GET /apis: every named group with its versions, the preferred one first."""
    groups = [_group(name) for name in _group_names()]
    return _encode({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})


def api_group(name: str) -> bytes | None:
    """GET /apis/{group}; None when there is no such group."""
    if name not in _group_names():
        return None
    return _encode({"kind": "APIGroup", "apiVersion": "v1", **_group(name)})


@lru_cache(maxsize=64)
def resource_list(group: str, version: str) -> bytes | None:
    """GET /api/v1 and /apis/{group}/{version}; None when that is not served."""
    rows = in_group(group, version)
    if not rows:
        return None
    head: Object = {"kind": "APIResourceList"}
    if group:
        head["apiVersion"] = "v1"
    listed = [entry for info in rows for entry in _entries(info)]
    listed.sort(key=lambda entry: str(entry["name"]))
    return _encode({**head, "groupVersion": rows[0].api_version, "resources": listed})


@lru_cache(maxsize=4)
def aggregated(path: str, version: str) -> bytes:
    """The aggregated form for `path` "/api" or "/apis", in one of AGGREGATED_VERSIONS."""
    names = [""] if path.rstrip("/") == "/api" else _group_names()
    items = [_aggregated_group(name) for name in names]
    head = {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{version}", "metadata": {}}
    return _encode({**head, "items": items})


def root_paths() -> list[str]:
    """What GET / lists."""
    paths = ["/api", "/apis"]
    for group, version in group_versions():
        paths += [f"/apis/{group}", f"/apis/{group}/{version}"] if group else [f"/api/{version}"]
    extra = ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
    return sorted({*paths, *extra, *issuer_discovery.PATHS})


def _encode(document: Object) -> bytes:
    return orjson.dumps(document) + b"\n"


def _group_names() -> list[str]:
    return list(dict.fromkeys(group for group, _ in group_versions() if group))


def _group(name: str) -> Object:
    versions = [
        {"groupVersion": f"{group}/{version}", "version": version}
        for group, version in group_versions()
        if group == name
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _entries(info: ResourceInfo) -> list[Object]:
    entry: Object = {
        "name": info.plural,
        "singularName": info.singular,
        "namespaced": info.namespaced,
        "kind": info.kind,
        "verbs": list(info.verbs),
    }
    if info.short_names:
        entry["shortNames"] = list(info.short_names)
    if info.categories:
        entry["categories"] = list(info.categories)
    return [entry, *(_sub_entry(info, name, sub) for name, sub in info.subresources.items())]


def _sub_entry(info: ResourceInfo, name: str, sub: Subresource) -> Object:
    entry: Object = {"name": f"{info.plural}/{name}", "singularName": "", "namespaced": info.namespaced}
    if (sub.group, sub.version) != (info.group, info.version):
        entry["group"] = sub.group
        entry["version"] = sub.version
    return {**entry, "kind": sub.kind, "verbs": list(sub.verbs)}


def _aggregated_group(name: str) -> Object:
    metadata = {"name": name, "creationTimestamp": None} if name else {"creationTimestamp": None}
    versions = [
        {
            "version": version,
            "resources": [
                _aggregated_resource(info)
                for info in sorted(in_group(group, version), key=lambda info: info.plural)
            ],
            "freshness": "Current",
        }
        for group, version in group_versions()
        if group == name
    ]
    return {"metadata": metadata, "versions": versions}


def _aggregated_resource(info: ResourceInfo) -> Object:
    out: Object = {
        "resource": info.plural,
        "responseKind": {"group": info.group, "version": info.version, "kind": info.kind},
        "scope": "Namespaced" if info.namespaced else "Cluster",
        "singularResource": info.singular,
        "verbs": list(info.verbs),
    }
    if info.short_names:
        out["shortNames"] = list(info.short_names)
    if info.categories:
        out["categories"] = list(info.categories)
    if info.subresources:
        out["subresources"] = [
            {
                "subresource": name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": list(sub.verbs),
            }
            for name, sub in info.subresources.items()
        ]
    return out
