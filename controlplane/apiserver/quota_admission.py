"""Refuses what would exceed a namespace's ResourceQuota.

What is used is counted anew for every such create, over the objects as a writer sees them, so that two
requests at once cannot share what is left, and nothing depends on how far the controller is with its status.
Source: upstream's plugin/pkg/admission/resourcequota, whose messages these are.
"""

from __future__ import annotations

from typing import Any

import orjson

from controlplane import quota
from controlplane.apiserver.errors import forbidden
from controlplane.apiserver.resources import ResourceInfo
from controlplane.storage.cache import Cache
from kubeclient import quantity
from kubeclient.resources import Resource

Object = dict[str, Any]

QUOTAS = "core/resourcequotas"


def check_quota(
    cache: Cache, info: ResourceInfo, namespace: str, obj: Object, old: Object | None = None
) -> None:
    """`old`: the object as it is, when it is only to grow. Raises StatusError (403)."""
    resource = next((r for r in quota.COUNTED if (r.group, r.plural) == (info.group, info.plural)), None)
    if resource is None:
        return
    for entry in cache.newest(QUOTAS, namespace):
        found = entry.parse()
        if quota.enforceable(found) and quota.covers(found, resource, obj):
            _check(cache, info, resource, found, namespace, obj, old)


def _check(
    cache: Cache,
    info: ResourceInfo,
    resource: Resource,
    found: Object,
    namespace: str,
    obj: Object,
    old: Object | None,
) -> None:
    own, name = found["metadata"]["name"], obj["metadata"].get("name", "")
    if resource.plural == "pods":
        missing = quota.unspecified(found, obj)
        if missing:
            listed = "; ".join(f"{what} for: {','.join(names)}" for what, names in missing.items())
            raise forbidden(info, name, f"failed quota: {own}: must specify {listed}")
    hard = found["spec"].get("hard") or {}
    before = quota.usage(resource, old) if old is not None else {}
    more = {k: v - before.get(k, 0) for k, v in quota.usage(resource, obj).items()}
    wanted = {k: v for k, v in more.items() if k in hard and v > 0}
    if not wanted:
        return
    present = cache.newest(f"{info.storage_version[0] or 'core'}/{info.plural}", namespace)
    used = quota.used(found, resource, (orjson.loads(entry.raw) for entry in present))
    limits = {k: quantity.parse(str(hard[k])) for k in wanted}
    exceeded = sorted(k for k in wanted if used[k] + wanted[k] > limits[k])
    if exceeded:
        parts = (
            f"requested: {quota.text(wanted, hard, exceeded)}",
            f"used: {quota.text(used, hard, exceeded)}",
            f"limited: {quota.text(limits, hard, exceeded)}",
        )
        raise forbidden(info, name, f"exceeded quota: {own}, {', '.join(parts)}")
