"""metrics.k8s.io/v1beta1: what `kubectl top` and autoscalers read, NodeMetrics and PodMetrics.

Upstream this is metrics-server behind an APIService; here the API server answers itself, in the same form and
with the same texts. The objects are those nodes and pods of which something is known, with their labels;
selectors choose among the nodes and pods, not among numbers.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver import rendering
from controlplane.apiserver.answers import answer
from controlplane.apiserver.calls import Call
from controlplane.apiserver.errors import method_not_allowed, not_found
from controlplane.apiserver.negotiation import wanted
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.selection import Selection
from controlplane.apiserver.timestamps import rfc3339
from controlplane.apiserver.usage_gatherer import Gatherer, Target
from controlplane.apiserver.usage_samples import Usage
from controlplane.storage.cache import Entry
from kubeclient import quantity

Object = dict[str, Any]


class UsageHandler:
    """get and list of what is measured. Nothing is asked of a node before the first request."""

    def __init__(self, registry: Registry, pki: Path, clock: Callable[[], float]) -> None:
        self._registry, self._pki, self._clock = registry, pki, clock
        self._gatherer = Gatherer(self._targets, self._context)

    async def stop(self) -> None:
        await self._gatherer.stop()

    async def handle(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """Raises StatusError."""
        request = call.request
        if request.verb not in info.verbs:
            raise method_not_allowed()
        subject = lookup("", "v1", info.plural)
        assert subject is not None
        form = wanted(call.accept)
        view = rendering.view(request, form)
        if request.name:
            entry = self._registry.get(subject, request.namespace, request.name)
            await self._gatherer.awake()
            found = self._object(info, entry)
            if found is None:
                raise not_found(info, request.name)
            return answer(
                rendering.one(self._registry, view, orjson.dumps(found), self._clock()), wanted=form
            )
        query = request.query
        selection = Selection(
            subject, request.namespace, query.get("labelSelector", ""), query.get("fieldSelector", "")
        )
        await self._gatherer.awake()
        entries = selection.choose(self._registry.collection(subject).present(request.namespace))
        items = [found for entry in entries if (found := self._object(info, entry)) is not None]
        if form.form == "Table":
            return answer(rendering.tabulated(view, items, "", self._clock()), wanted=form)
        if form.form == "PartialObjectMetadata":
            items = [rendering.partial(item, form.version) for item in items]
            head: Object = {"kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{form.version}"}
        else:
            head = {"kind": info.list_kind, "apiVersion": info.api_version}
        return answer(orjson.dumps({**head, "metadata": {}, "items": items}), wanted=form)

    def _object(self, info: ResourceInfo, entry: Entry) -> Object | None:
        """None while nothing is known of it."""
        samples = self._gatherer.samples
        if not info.namespaced:
            usage = samples.node(entry.name)
            return None if usage is None else self._head(info, entry, usage) | {"usage": _amounts(usage)}
        containers = samples.pod(entry.namespace, entry.name)
        if not containers:
            return None
        last = max(containers.values(), key=lambda usage: usage.at)
        rows = [{"name": name, "usage": _amounts(usage)} for name, usage in sorted(containers.items())]
        return self._head(info, entry, last) | {"containers": rows}

    def _head(self, info: ResourceInfo, entry: Entry, usage: Usage) -> Object:
        metadata: Object = {"name": entry.name, "creationTimestamp": rfc3339(self._clock())}
        if entry.namespace:
            metadata["namespace"] = entry.namespace
        if entry.labels:
            metadata["labels"] = dict(entry.labels)
        return {
            "kind": info.kind,
            "apiVersion": info.api_version,
            "metadata": metadata,
            "timestamp": rfc3339(usage.at),
            "window": f"{usage.window:.3f}".rstrip("0").rstrip(".") + "s",
        }

    def _targets(self) -> Iterator[Target]:
        from controlplane.apiserver.node_streams import kubelet_address

        for entry in self._registry.cache.collection("core/nodes").present():
            address = kubelet_address(entry.parse().get("status") or {})
            if address is not None:
                yield entry.name, *address

    def _context(self) -> ssl.SSLContext:
        from controlplane.apiserver.node_streams import client_context

        return client_context(self._pki)


def _amounts(usage: Usage) -> Object:
    """metrics-server's units: billionths of a core, and whole Ki."""
    return {
        "cpu": quantity.canonical(f"{usage.cpu}n"),
        "memory": quantity.canonical(f"{-(-usage.memory // 1024)}Ki"),
    }
