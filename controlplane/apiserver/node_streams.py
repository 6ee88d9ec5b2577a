"""Which kubelet a stream goes to, and under which path: pods/log, exec, attach, portforward, and the proxies.

The API server checks here what it can know (the container's name, that the pod has a node), in upstream's
words (pkg/registry/core/pod/strategy.go), translates the parameters of the public API into the kubelet's
(`stdin` is `input`, `ports` is `port`), and hands the connection on: see `streams`.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from aiohttp import web

from controlplane.apiserver import log_socket, streams
from controlplane.apiserver.calls import Call
from controlplane.apiserver.errors import (
    INVALID,
    Cause,
    StatusError,
    bad_request,
    invalid,
    not_found,
    service_unavailable,
    unknown_resource,
)
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.validation_addresses import reachable
from controlplane.errors import AuthorityError
from kubeclient.addresses import read_ip

Object = dict[str, Any]
Query = list[tuple[str, str]]

_KUBELET_PORT = 10250
_LOG_OPTIONS = (
    "follow",
    "previous",
    "timestamps",
    "sinceSeconds",
    "sinceTime",
    "tailLines",
    "limitBytes",
    "stream",
)
_STREAM_FLAGS = (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))
_TRUE = ("true", "1", "")
_ADDRESSES = ("InternalIP", "ExternalIP", "Hostname")


class StreamHandler:
    """Forwards requests about pods and nodes to kubelets, and proxied ones to pods and Services."""

    def __init__(self, registry: Registry, pki: Path) -> None:
        """Raises AuthorityError when the client certificate for kubelets cannot be read."""
        self._registry = registry
        self._context = client_context(pki)

    async def handle(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """Raises StatusError."""
        try:
            return await self._handle(call, info)
        except streams.NodeUnreachable as error:
            if call.request.subresource == "proxy" and info.plural != "nodes":
                raise service_unavailable(str(error)) from error
            text = f"Get {call.request.path}: {error}" if call.request.subresource == "log" else str(error)
            raise StatusError(500, "InternalError", text) from error
        except streams.NodeRefused as error:
            reason = {400: "BadRequest", 403: "Forbidden", 404: "NotFound"}.get(error.code, "InternalError")
            raise StatusError(error.code, reason, error.text.strip()) from error

    async def _handle(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        if request.subresource == "proxy":
            return await self._proxy(call, info)
        pod = self._registry.get(info, request.namespace, request.name).parse()
        if request.subresource == "log":
            return await self._log(call, pod)
        place = f"{request.namespace}/{request.name}"
        if request.subresource == "portforward":
            host, port = self._node_of(pod)
            query = [("port", ports) for name, ports in request.pairs if name == "ports"]
            path = f"/portForward/{place}"
        else:
            container = _container(pod, request.query.get("container", ""))
            phase = pod.get("status", {}).get("phase")
            if phase in ("Succeeded", "Failed"):
                verb = "exec" if request.subresource == "exec" else "attach"
                where = "into" if verb == "exec" else "to"
                raise bad_request(
                    f"cannot {verb} {where} a container in a completed pod; current phase is {phase}"
                )
            host, port = self._node_of(pod)
            query = _stream_query(call)
            path = f"/{request.subresource}/{place}/{container}"
        return await streams.proxy_upgrade(
            call.http, host=host, port=port, path=path, query=query, ssl=self._context
        )

    async def _log(self, call: Call, pod: Object) -> web.StreamResponse:
        query = call.request.query
        _check_log_options(pod["metadata"]["name"], query)
        container = _container(pod, query.get("container", ""))
        if not pod["spec"].get("nodeName"):
            return web.Response(status=204)
        host, port = self._node_of(pod)
        passed = [(name, query[name]) for name in _LOG_OPTIONS if name in query]
        in_messages = log_socket.wanted(call.http)
        path = f"/containerLogs/{call.request.namespace}/{call.request.name}/{container}"
        return await streams.proxy_http(
            call.http,
            host=host,
            port=port,
            path=path,
            query=passed,
            ssl=self._context,
            method="GET",
            checked=True,
            deliver=log_socket.deliver if in_messages else None,
        )

    async def _proxy(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """…/proxy/PATH of a node, a pod or a Service; `name`, `name:port` or `scheme:name:port`."""
        request = call.request
        scheme, name, port_name = _split_target(request.name)
        context: ssl.SSLContext | None = None
        if info.plural == "nodes":
            host, port = self._kubelet(name)
            context = self._context
        elif info.plural == "pods":
            host, port = self._pod_target(info, request.namespace, name, port_name)
        elif info.plural == "services":
            host, port = self._service_target(info, request.namespace, name, port_name)
        else:
            raise unknown_resource()
        if scheme == "https" and context is None:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # as upstream: the backend's certificate is nobody's business
        path = "/" + request.tail
        if request.path.endswith("/") and not path.endswith("/"):
            path += "/"
        upgraded = "upgrade" in call.http.headers.get("Connection", "").lower()
        forward = streams.proxy_upgrade if upgraded else streams.proxy_http
        return await forward(
            call.http, host=host, port=port, path=path, query=list(request.pairs), ssl=context
        )

    def _node_of(self, pod: Object) -> tuple[str, int]:
        node = pod["spec"].get("nodeName")
        if not node:
            raise bad_request(f"pod {pod['metadata']['name']} does not have a host assigned")
        return self._kubelet(node)

    def _kubelet(self, name: str) -> tuple[str, int]:
        nodes = lookup("", "v1", "nodes")
        assert nodes is not None
        entry = self._registry.cache.get("core/nodes", "", name)
        if entry is None:
            raise not_found(nodes, name)
        found = kubelet_address(entry.parse().get("status") or {})
        if found is None:
            raise StatusError(500, "InternalError", f"no preferred addresses found for node {name}")
        return found

    def _pod_target(self, info: ResourceInfo, namespace: str, name: str, port: str) -> tuple[str, int]:
        pod = self._registry.get(info, namespace, name).parse()
        ports = [
            item["containerPort"]
            for container in pod["spec"]["containers"]
            for item in container.get("ports") or ()
            if not port or port in (item.get("name"), str(item["containerPort"]))
        ]
        plain = port.isascii() and port.isdigit() and len(port) <= 5
        number = ports[0] if ports else int(port) if plain else 80
        if number > 65535:
            raise bad_request(f"address not allowed: port {number}")
        address = pod.get("status", {}).get("podIP")
        if not reachable(address or ""):
            raise bad_request("address not allowed")
        return address, number

    def _service_target(self, info: ResourceInfo, namespace: str, name: str, port: str) -> tuple[str, int]:
        service = self._registry.get(info, namespace, name).parse()
        for item in service["spec"].get("ports") or ():
            if not port or port in (item.get("name"), str(item["port"])):
                found = self._ready_endpoint(namespace, name, item.get("name") or "")
                if found:
                    return found
                raise service_unavailable(f'no endpoints available for service "{name}"')
        raise service_unavailable(f'no service port "{port}" found for service "{name}"')

    def _ready_endpoint(self, namespace: str, name: str, port_name: str) -> tuple[str, int] | None:
        for entry in self._registry.cache.collection("discovery.k8s.io/endpointslices").present(namespace):
            if entry.labels.get("kubernetes.io/service-name") != name:
                continue
            slice_ = entry.parse()
            for port in slice_.get("ports") or ():
                if (port.get("name") or "") != port_name:
                    continue
                for endpoint in slice_.get("endpoints") or ():
                    ready = (endpoint.get("conditions") or {}).get("ready", True)
                    if ready and self._is_a_pods(namespace, endpoint):
                        return endpoint["addresses"][0], port["port"]
        return None

    def _is_a_pods(self, namespace: str, endpoint: Object) -> bool:
        """Whether it is a pod of this namespace that answers there: whoever may write slices would else
        have the API server connect where only it can (upstream: isValidAddress of the Service's storage)."""
        target, address = endpoint.get("targetRef") or {}, endpoint["addresses"][0]
        if target.get("namespace") != namespace or not reachable(address):
            return False
        entry = self._registry.cache.get("core/pods", namespace, target.get("name") or "")
        listed = (entry.parse().get("status") or {}).get("podIPs") or () if entry else ()
        return read_ip(address) in [read_ip(found.get("ip") or "") for found in listed]


def kubelet_address(status: Object) -> tuple[str, int] | None:
    """Where a Node's status says that its kubelet listens; None while it says nothing."""
    for kind in _ADDRESSES:
        for address in status.get("addresses") or ():
            if address.get("type") == kind:
                endpoint = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}
                return address["address"], endpoint.get("Port") or _KUBELET_PORT
    return None


def client_context(pki: Path) -> ssl.SSLContext:
    """TLS to kubelets, with the API server's client certificate. Raises AuthorityError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a node's addresses change more often than its certificate
    try:
        context.load_verify_locations(pki / "ca.crt")
        context.load_cert_chain(pki / "apiserver-kubelet-client.crt", pki / "apiserver-kubelet-client.key")
    except (OSError, ssl.SSLError) as error:
        raise AuthorityError(f"Could not read the certificate for kubelets in {pki}: {error}") from error
    return context


def _split_target(text: str) -> tuple[str, str, str]:
    """(scheme, name, port)."""
    parts = text.split(":")
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    return "", parts[0], parts[1] if len(parts) == 2 else ""


def _stream_query(call: Call) -> Query:
    query: Query = []
    for name, value in call.request.pairs:
        if name == "command":
            query.append(("command", value))
        for public, private in _STREAM_FLAGS:
            if name == public and value in _TRUE:
                query.append((private, "1"))
    return query


def _container(pod: Object, wanted: str) -> str:
    """The container that is meant. Raises StatusError (400) as upstream's validateContainer words it."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    listed = {
        kind: [container["name"] for container in spec.get(kind) or ()]
        for kind in ("containers", "initContainers", "ephemeralContainers")
    }
    if wanted:
        if any(wanted in names for names in listed.values()):
            return wanted
        raise bad_request(f"container {wanted} is not valid for pod {name}")
    if len(listed["containers"]) == 1:
        return str(listed["containers"][0])
    text = f"a container name must be specified for pod {name}, choose one of:"
    text += f" [{' '.join(listed['containers'])}]"
    if listed["initContainers"]:
        text += f" or one of the init containers: [{' '.join(listed['initContainers'])}]"
    if listed["ephemeralContainers"]:
        text += f" or one of the ephemeral containers: [{' '.join(listed['ephemeralContainers'])}]"
    raise bad_request(text)


def _check_log_options(name: str, query: Any) -> None:
    causes = []
    for option, least in (("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)):
        value = query.get(option)
        if value is None:
            continue
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise bad_request(f'{option}: Invalid value: "{value}": must be an integer')
        if int(value) < least:
            text = f"must be greater than {'or equal to ' if not least else ''}0"
            causes.append(Cause(INVALID, option, f"Invalid value: {value}: {text}"))
    if "sinceSeconds" in query and "sinceTime" in query:
        text = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
        causes.append(Cause("FieldValueForbidden", "", text))
    if causes:
        raise invalid("PodLogOptions", "", name, causes)
