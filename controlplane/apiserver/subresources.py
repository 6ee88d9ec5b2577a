"""Paths below an object that are not the object: binding, eviction, scale, token, finalize, streams.

Each is a small act on the object with rules of its own (upstream: pkg/registry/core/pod/rest and its
siblings); whatever changes the object goes through the registry like any other write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from controlplane.apiserver import deletion, rendering
from controlplane.apiserver.answers import answer
from controlplane.apiserver.calls import Call
from controlplane.apiserver.errors import (
    REQUIRED,
    Cause,
    bad_request,
    cannot_decode,
    conflict,
    forbidden,
    invalid,
    method_not_allowed,
    success_body,
    uid_mismatch,
    unknown_resource,
)
from controlplane.apiserver.eviction import announce_eviction, respect_budgets
from controlplane.apiserver.handlers import Change, ObjectHandler
from controlplane.apiserver.negotiation import wanted
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.scale import get_scale, put_scale
from controlplane.apiserver.timestamps import rfc3339
from controlplane.apiserver.tokens import TokenSigner

if TYPE_CHECKING:
    from controlplane.apiserver.node_streams import StreamHandler

Object = dict[str, Any]
Handler = Callable[[Call, ResourceInfo], Awaitable[web.StreamResponse]]

_MIN_TOKEN_SECONDS, _DEFAULT_TOKEN_SECONDS, _MAX_TOKEN_SECONDS = 600, 3600, 2**32


class SubresourceHandler:
    """Dispatches on the subresource's name."""

    def __init__(
        self,
        registry: Registry,
        objects: ObjectHandler,
        tokens: TokenSigner,
        pki: Path,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._objects = objects
        self._tokens = tokens
        self._clock = clock
        self._handlers: dict[str, Handler] = {
            "binding": self._binding,
            "eviction": self._eviction,
            "scale": self._scale,
            "token": self._token,
            "finalize": self._objects.handle,
            "approval": self._objects.handle,
            "ephemeralcontainers": self._objects.handle,
            "resize": self._objects.handle,
        }
        self._streams: StreamHandler | None = None
        self._pki = pki

    async def handle(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """Raises StatusError."""
        name = call.request.subresource or "binding"  # POST …/bindings is the old form
        subresource = info.subresources.get(name)
        if subresource is not None and call.request.verb not in subresource.verbs:
            raise method_not_allowed()
        handler = self._handlers.get(name)
        if handler is not None:
            return await handler(call, info)
        if name in ("log", "exec", "attach", "portforward", "proxy"):
            return await self._stream_handler().handle(call, info)
        raise unknown_resource()

    def _stream_handler(self) -> StreamHandler:
        if self._streams is None:
            from controlplane.apiserver.node_streams import StreamHandler

            self._streams = StreamHandler(self._registry, self._pki)
        return self._streams

    async def _binding(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """The scheduler's decision: a pod gets its node, once."""
        write = await call.write()
        body = await call.object("Binding")
        metadata = body.get("metadata") or {}
        name = call.request.name or metadata.get("name", "")
        if call.request.name and metadata.get("name", name) != name:
            raise bad_request("name in URL does not match name in Binding object")
        target = body.get("target") or {}
        node = target.get("name")
        if not node or target.get("kind", "Node") not in ("Node", ""):
            raise invalid(
                "Binding", "", name, [Cause(REQUIRED, "target.name", "Required value: node name is required")]
            )

        def bind(pod: Object) -> Object:
            _check_binding(_PODS, name, pod, metadata)
            pod["spec"]["nodeName"] = node
            if metadata.get("annotations"):
                pod["metadata"].setdefault("annotations", {}).update(metadata["annotations"])
            scheduled = {"type": "PodScheduled", "status": "True"}
            scheduled["lastTransitionTime"] = rfc3339(self._clock())
            conditions = pod.setdefault("status", {}).setdefault("conditions", [])
            conditions[:] = [part for part in conditions if part.get("type") != "PodScheduled"] + [scheduled]
            return pod

        await self._registry.amend(_PODS, call.request.namespace, name, bind, write)
        return answer(success_body(code=201), 201)

    async def _eviction(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """A delete that respects PodDisruptionBudgets (policy/v1, and v1beta1 from old clients)."""
        request = call.request
        write = await call.write()
        body = await call.object("Eviction")
        given = (body.get("metadata") or {}).get("name") or request.name
        if given != request.name:
            raise bad_request("name in URL does not match name in Eviction object")
        options = deletion.read_options(body.get("deleteOptions"), request.query)
        write = replace(write, dry_run=write.dry_run or options.dry_run)
        pod = self._registry.get(_PODS, request.namespace, request.name).parse()
        deletion.check_preconditions(_PODS, request.name, pod, options)
        now = rfc3339(self._clock())
        await respect_budgets(self._registry, pod, write, now)
        if "deletionTimestamp" not in pod["metadata"]:
            options = replace(options, resource_version=None)  # checked, and the next line changes it
            mark = partial(announce_eviction, now=now)
            await self._registry.amend(_PODS, request.namespace, request.name, mark, write)
        await self._registry.delete(_PODS, request.namespace, request.name, options, write)
        return answer(success_body(code=201), 201)

    async def _scale(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        if request.verb == "get":
            obj = self._registry.get(info, request.namespace, request.name).parse()
            return self._shown(call, get_scale(info, obj))
        write = await call.write()
        if request.verb == "update":
            given = await call.object("Scale")
            wanted_scale: Change = lambda _: given  # noqa: E731
        else:
            wanted_scale = await self._objects.change(call, _SCALE)

        def scale(obj: Object) -> Object:
            return put_scale(info, obj, wanted_scale(get_scale(info, obj)))

        written = await self._registry.patch(info, request.namespace, request.name, scale, write)
        return self._shown(call, get_scale(info, orjson.loads(written.body)), write.warnings)

    def _shown(self, call: Call, scale: Object, warnings: Sequence[str] = ()) -> web.StreamResponse:
        form = wanted(call.accept)
        view = replace(rendering.view(call.request, form), info=_SCALE)
        body = rendering.one(self._registry, view, orjson.dumps(scale), self._clock())
        return answer(body, wanted=form, warnings=warnings)

    async def _token(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """TokenRequest: a token for this service account, perhaps bound to a pod."""
        request = call.request
        body = await call.object("TokenRequest")
        checked = self._registry.schema.check("io.k8s.api.authentication.v1.TokenRequest", body)
        if checked.causes:
            raise cannot_decode("TokenRequest", "v1", checked.causes[0].message)
        spec = checked.obj.get("spec") or {}
        account = self._registry.get(info, request.namespace, request.name).parse()
        if call.user.node_name:
            self._check_node(call, info, spec.get("boundObjectRef") or {})
        seconds = spec.get("expirationSeconds") or _DEFAULT_TOKEN_SECONDS
        if not _MIN_TOKEN_SECONDS <= seconds <= _MAX_TOKEN_SECONDS:
            text = f"Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            if seconds > _MAX_TOKEN_SECONDS:
                text = f"Invalid value: {seconds}: may not specify a duration larger than 2^32 seconds"
            cause = Cause("FieldValueInvalid", "spec.expirationSeconds", text)
            raise invalid("TokenRequest", "authentication.k8s.io", "", [cause])
        from controlplane.apiserver.authentication import API_AUDIENCES

        audiences = spec.get("audiences") or list(API_AUDIENCES[:1])
        token, expires = self._tokens.sign(
            namespace=request.namespace,
            name=request.name,
            uid=account["metadata"]["uid"],
            audiences=audiences,
            seconds=seconds,
            bound=self._bound(request.namespace, request.name, spec.get("boundObjectRef")),
        )
        answered = {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": request.name,
                "namespace": request.namespace,
                "creationTimestamp": rfc3339(self._clock()),
            },
            "spec": {**spec, "audiences": audiences, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": rfc3339(expires)},
        }
        return answer(orjson.dumps(answered), 201)

    def _check_node(self, call: Call, info: ResourceInfo, reference: Object) -> None:
        """A kubelet gets tokens for the pods that run on its node, and for nobody else (NodeRestriction)."""
        name = call.request.name
        if reference.get("kind") != "Pod" or not reference.get("uid"):
            raise forbidden(info, name, "node requested token not bound to a pod")
        pod = self._registry.get(_PODS, call.request.namespace, reference.get("name", "")).parse()
        if pod["spec"].get("nodeName") != call.user.node_name:
            raise forbidden(info, name, "node requested token bound to a pod scheduled on a different node")

    def _bound(self, namespace: str, account: str, reference: Object | None) -> Object | None:
        """The claims of a bound token. Raises StatusError when the object is not the one that is meant."""
        if not reference:
            return None
        kind, name = reference.get("kind", ""), reference.get("name", "")
        info = {"Pod": _PODS, "Secret": _SECRETS, "Node": _NODES}.get(kind)
        if info is None:
            raise bad_request(f"cannot bind token for serviceaccount to a {kind}")
        obj = self._registry.get(info, namespace if info.namespaced else "", name).parse()
        uid = obj["metadata"]["uid"]
        if reference.get("uid") and reference["uid"] != uid:
            raise uid_mismatch(info, name, reference["uid"], uid)
        if kind == "Pod" and obj["spec"].get("serviceAccountName") != account:
            used = obj["spec"].get("serviceAccountName", "")
            raise bad_request(
                f'cannot bind token for serviceaccount "{account}" to pod running with different'
                f' serviceaccount name "{used}".'
            )
        claims: Object = {kind.lower(): {"name": name, "uid": uid}}
        node = obj["spec"].get("nodeName") if kind == "Pod" else ""
        if node:
            entry = self._registry.cache.get(self._registry.collection_name(_NODES), "", node)
            known = {"uid": entry.parse()["metadata"]["uid"]} if entry is not None else {}
            claims["node"] = {"name": node, **known}
        return claims


def _check_binding(info: ResourceInfo, name: str, pod: Object, metadata: Object) -> None:
    uid, stored = metadata.get("uid"), pod["metadata"]["uid"]
    if uid and uid != stored:
        text = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {stored}"
        raise conflict(info, name, text)
    if "deletionTimestamp" in pod["metadata"]:
        raise conflict(info, name, f"pod {name} is being deleted, cannot be assigned to a host")
    bound = pod["spec"].get("nodeName")
    if bound:
        raise conflict(info, name, f'pod {name} is already assigned to node "{bound}"')
    if pod["spec"].get("schedulingGates"):
        raise conflict(info, name, f"pod {name} has non-empty .spec.schedulingGates")


def _info(group: str, version: str, plural: str) -> ResourceInfo:
    found = lookup(group, version, plural)
    assert found is not None
    return found


_PODS = _info("", "v1", "pods")
_SECRETS = _info("", "v1", "secrets")
_NODES = _info("", "v1", "nodes")
# Its definition merges patches of a Scale, its name finds the columns of one.
_SCALE = ResourceInfo(
    group="autoscaling",
    version="v1",
    plural="scales",
    singular="scale",
    kind="Scale",
    list_kind="ScaleList",
    namespaced=True,
    definition="io.k8s.api.autoscaling.v1.Scale",
    storage_version=("autoscaling", "v1"),
)
