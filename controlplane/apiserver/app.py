"""The API server: HTTP over TLS, one request from the socket to the answer.

Read `_handle` from top to bottom: understand the request line, authenticate, authorize, hand over to the one
handler that knows the rest. aiohttp's router is not used, because Kubernetes' paths are regular enough to be
read by one function, which authorization needs anyway; nor is its Application, which does nothing without
routes but costs each request. HTTP/1.1 only: every client falls back to it, and upgrades to SPDY need it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
from aiohttp import HttpVersion11, web

from controlplane.apiserver import bootstrap
from controlplane.apiserver.admission import Admission
from controlplane.apiserver.allocators import ServiceAllocator
from controlplane.apiserver.answers import presented, refusal
from controlplane.apiserver.authentication import Authenticator
from controlplane.apiserver.authorization import Authorizer, of_request
from controlplane.apiserver.calls import MAX_BODY, Call
from controlplane.apiserver.endpoints import VERSION, EndpointHandler
from controlplane.apiserver.errors import StatusError, access_denied, bad_request, internal, unknown_resource
from controlplane.apiserver.handlers import ObjectHandler
from controlplane.apiserver.impersonation import impersonated
from controlplane.apiserver.issuer_discovery import IssuerDiscovery
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.reviews import ReviewHandler
from controlplane.apiserver.routing import Request, parse
from controlplane.apiserver.schema import Schema
from controlplane.apiserver.subresources import SubresourceHandler
from controlplane.apiserver.tokens import TokenSigner
from controlplane.apiserver.usage_api import UsageHandler
from controlplane.apiserver.users import User
from controlplane.errors import AuthorityError, ServeError
from controlplane.storage.cache import Cache
from controlplane.storage.store import Store

log = logging.getLogger(__name__)

_PREPARE_AFTER = 3.0  # seconds; a node that starts with the server is Ready by then

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the server is started with; names are kube-apiserver's flags."""

    pki: Path
    bind_address: str = "0.0.0.0"
    secure_port: int = 6443
    advertise_address: str = "127.0.0.1"
    service_cluster_ip_range: str = "10.96.0.0/12"
    service_node_port_range: tuple[int, int] = (30000, 32767)
    cluster_cidr: str = "10.244.0.0/16"  # only told to joining nodes; the controllers give it away
    automount_service_account_token: bool = True
    not_ready_seconds: int = 300  # --default-not-ready-toleration-seconds
    unreachable_seconds: int = 300  # --default-unreachable-toleration-seconds


class ApiServer:
    """Serves one store. `start` returns when requests are answered; `stop` ends watches first."""

    def __init__(self, options: ServerOptions, store: Store, clock: Callable[[], float] = time.time) -> None:
        """Loads the store. Raises StoreError, ServeError. Needs a running loop."""
        self._options = options
        self.cache = Cache(store, asyncio.get_running_loop())
        services = ServiceAllocator(options.service_cluster_ip_range, options.service_node_port_range)
        self._first_address = services.first_address
        self._tokens = tokens = TokenSigner(options.pki / "sa.key", options.pki / "sa.pub", clock)
        self._authorizer = Authorizer(self.cache)
        admission = Admission(
            self.cache,
            automount=options.automount_service_account_token,
            tolerated=(options.not_ready_seconds, options.unreachable_seconds),
            may=self._authorizer.may_use_signer,
            rights=self._authorizer,
        )
        self.registry = Registry(self.cache, Schema.load(), admission, services, clock)
        self._authenticator = Authenticator(self.cache, tokens, clock)
        self._objects = ObjectHandler(self.registry, clock)
        self._reviews = ReviewHandler(self.registry, self._authenticator, self._authorizer)
        self._subresources = SubresourceHandler(self.registry, self._objects, tokens, options.pki, clock)
        self._usage = UsageHandler(self.registry, options.pki, clock)
        self._serving = False
        checks = {"ping": lambda: True, "serving": lambda: self._serving}
        self._endpoints = EndpointHandler(checks, IssuerDiscovery(tokens, lambda: self._facts().server))
        self._runner: web.ServerRunner | None = None
        self._preparing: asyncio.TimerHandle | None = None
        self.port = options.secure_port  # of interest when 0 was asked for: known after `start`

    async def start(self) -> None:
        """Listen and answer. Raises ServeError with one line for the user."""
        options = self._options
        context = tls_context(options.pki)
        listener = _listen(options.bind_address, options.secure_port)
        self.port = listener.getsockname()[1]
        try:
            await bootstrap.ensure(self.registry, self._facts())
        except StatusError as error:
            listener.close()
            raise ServeError(f"Could not make the cluster's first objects: {error}") from error
        server = web.Server(
            cast(_Handler, self._handle),  # it gets what _request makes
            request_factory=_request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=180.0,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=0.3)
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=context, backlog=1024).start()
        self._serving = True
        self._preparing = asyncio.get_running_loop().call_later(_PREPARE_AFTER, self._prepare)
        log.info("Served address=%s port=%d", options.bind_address, self.port)

    async def stop(self) -> None:
        """End the watches, finish what is being answered, close the store."""
        self._serving = False
        if self._preparing is not None:
            self._preparing.cancel()
        self._objects.end_watches()
        await self._usage.stop()
        if self._runner is not None:
            await self._runner.cleanup()
        self.cache.close()

    def _prepare(self) -> None:
        """What the first pod would wait for, now that nobody waits for the server itself."""
        try:
            self._tokens.prepare()
        except AuthorityError as error:
            log.error("Could not prepare signing tokens error=%s", error)  # each token will say so, too

    def _facts(self) -> bootstrap.ClusterFacts:
        options = self._options
        return bootstrap.ClusterFacts(
            cluster_ip=self._first_address,
            address=options.advertise_address,
            port=self.port,
            ca=(options.pki / "ca.crt").read_bytes(),  # tls_context has read it before
            version=VERSION,
            pod_range=options.cluster_cidr,
            service_range=options.service_cluster_ip_range,
        )

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        request = parse(http.method, http.raw_path)
        return await presented(http, request, await self._answer(http, request))

    async def _answer(self, http: web.Request, request: Request) -> web.StreamResponse:
        try:
            if "Expect" in http.headers:
                await _expected(http)
            user = self._authenticate(http)
            call = Call(http, request, user)
            asked = of_request(request)
            if not self._authorizer.allowed(user, asked):
                raise access_denied(
                    user.name,
                    request.verb,
                    request.info,
                    name=request.name,
                    namespace=request.namespace,
                    path=request.path,
                )
            return await self._dispatch(call)
        except StatusError as error:
            return refusal(error)
        except (asyncio.CancelledError, web.HTTPException):
            raise
        except AuthorityError as error:
            log.error("Could not answer method=%s path=%s error=%s", request.method, request.path, error)
            return refusal(internal(str(error)))
        except Exception as error:  # a bug of ours must not look like a broken connection
            if _too_deep(error):
                return refusal(bad_request("the body of the request exceeded max depth"))
            log.exception("Could not answer method=%s path=%s", request.method, request.path)
            return refusal(internal(f"{type(error).__name__}: {error}"))

    async def _dispatch(self, call: Call) -> web.StreamResponse:
        info = call.request.info
        if info is None:
            return await self._endpoints.handle(call)
        if info.measured:
            return await self._usage.handle(call, info)
        if call.request.subresource and call.request.subresource != "status":
            return await self._subresources.handle(call, info)
        if not info.stored:
            if info.plural == "bindings":
                return await self._subresources.handle(call, info)
            return await self._reviews.handle(call, info)
        if call.request.subresource and call.request.subresource not in info.subresources:
            raise unknown_resource()
        return await self._objects.handle(call, info)

    def _authenticate(self, http: web.Request) -> User:
        transport = http.transport
        peer = transport.get_extra_info("peercert") if transport is not None else None
        user = self._authenticator.authenticate(peer, http.headers.get("Authorization", ""))
        return impersonated(http.headers, user, self._authorizer.allowed)


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.Request:
    """What aiohttp's Application would make, without its router and middlewares for each request."""
    loop = asyncio.get_running_loop()
    return web.Request(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY)


def _too_deep(error: Exception) -> bool:
    """Was it a body nested more deeply than Python calls functions, or orjson writes (254 levels)?"""
    return isinstance(error, RecursionError) or (
        isinstance(error, orjson.JSONEncodeError) and "Recursion limit" in str(error)
    )


async def _expected(http: web.Request) -> None:
    """Have a client send its body that first asks whether it may (curl with a long one)."""
    if http.version < HttpVersion11:
        return
    if http.headers["Expect"].lower() != "100-continue":
        raise web.HTTPExpectationFailed(text=f"Unknown Expect: {http.headers['Expect']}")
    await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    http.writer.output_size = 0  # the answer itself has not begun


def _listen(address: str, port: int) -> socket.socket:
    """The listening socket. Raises ServeError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # All addresses means IPv4's as well: the node's own processes come by 127.0.0.1.
    both = address == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((address, port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "unknown")
        advice = "check --bind-address"
        if error.errno == errno.EADDRINUSE:
            advice = "is another server running? choose another --secure-port"
        raise ServeError(f"Could not listen on {address}:{port}: {code} ({advice})") from error


def tls_context(pki: Path) -> ssl.SSLContext:
    """TLS as the server speaks it: client certificates are welcome but not required. Raises ServeError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
        context.load_verify_locations(pki / "ca.crt")
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"Could not read the server's certificate in {pki}: {error} (run `kubelet-py up`, which makes it)"
        ) from error
    return context
