"""Who asks port 10250, and may they: certificates of the CA, bearer tokens, and the API server's word.

A certificate that TLS has verified names its user itself. A token means nothing to the node: the API server
is asked (TokenReview), and it is asked too whether that user may (SubjectAccessReview on a subresource of
this node's object), so that RBAC objects rule here as everywhere. Answers are remembered for a while,
refusals for a shorter one; an answer that could not be had is never taken for a yes.
Source: upstream's pkg/kubelet/server/auth.go, and KubeletFineGrainedAuthz for /pods, /configz and /healthz.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from kubelet_py.server.access_settings import AccessSettings
from kubelet_py.server.errors import HttpError

log = logging.getLogger(__name__)

T = TypeVar("T")

_REMEMBERED = 1024
REFUSED_SECONDS = 5.0
VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
MASTERS, AUTHENTICATED = "system:masters", "system:authenticated"
_WHOLE = {"stats": "stats", "metrics": "metrics", "logs": "log", "checkpoint": "checkpoint", "spec": "spec"}
_FINE = {"pods": "pods", "runningpods": "pods", "healthz": "healthz", "configz": "configz"}


class ReviewError(Exception):
    """The API server could not be asked; nothing is known."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, as the API server knows them."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


ANONYMOUS = Identity("system:anonymous", ("system:unauthenticated",))


class Reviewer(Protocol):
    """Asks the API server. Both raise ReviewError."""

    def whose_token(self, token: str) -> Identity | None: ...

    def may(self, who: Identity, verb: str, subresource: str) -> bool: ...


def subresources(path: str) -> tuple[str, ...]:
    """PURE. The subresources of nodes that a request path is authorised as; one that is allowed is enough."""
    head = path.strip("/").partition("/")[0]
    if head in _WHOLE:
        return (_WHOLE[head],)
    return (_FINE[head], "proxy") if head in _FINE else ("proxy",)


class Access:
    """Authentication and authorization of one server; used by all its threads."""

    def __init__(
        self,
        settings: AccessSettings,
        reviewer: Reviewer,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` judges certificates, `ticks` how long an answer is remembered."""
        self._settings, self._reviewer, self._clock = settings, reviewer, clock
        self._tokens: _Remembered[Identity | None] = _Remembered(ticks)
        self._answers: _Remembered[bool] = _Remembered(ticks)

    def check(
        self, certificate: Mapping[str, Any] | None, authorization: str, method: str, path: str
    ) -> None:
        """`certificate` as getpeercert tells it, `authorization` the header. Raises HttpError."""
        who = self.authenticate(certificate, authorization)
        self.authorize(who, VERBS.get(method, method.lower()), path)

    def authenticate(self, peer: Mapping[str, Any] | None, authorization: str) -> Identity:
        """The certificate counts before the token, as upstream. Raises HttpError (401)."""
        if peer:
            # TLS looked at the time when the connection began; a connection may outlive the certificate.
            if ssl.cert_time_to_seconds(str(peer["notAfter"])) <= self._clock():
                raise HttpError(401, "Unauthorized")
            return of_certificate(peer)
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token.strip() and self._settings.webhook:
            found = self._of_token(token.strip())
            if found is not None:
                return found
        elif not authorization and self._settings.anonymous:
            return ANONYMOUS
        raise HttpError(401, "Unauthorized", (("WWW-Authenticate", 'Bearer realm="kubelet"'),))

    def authorize(self, who: Identity, verb: str, path: str) -> None:
        """Raises HttpError (403, or 500 where nobody could be asked)."""
        if MASTERS in who.groups or self._settings.always_allow:
            return
        names = subresources(path)
        asked = f"user={who.name}, verb={verb}, resource=nodes, subresource(s)=[{' '.join(names)}]"
        try:
            if any(self._may(who, verb, name) for name in names):
                return
        except ReviewError as error:
            log.warning("Failed to authorize %s error=%s", asked, error)
            raise HttpError(500, f"Authorization error ({asked})") from error
        raise HttpError(403, f"Forbidden ({asked})")

    def _of_token(self, token: str) -> Identity | None:
        key = hashlib.sha256(token.encode()).digest()  # the token itself is not kept
        known, found = self._tokens.get(key)
        if known:
            return found
        try:
            found = self._reviewer.whose_token(token)
        except ReviewError as error:
            log.warning("Failed to authenticate a bearer token error=%s", error)
            return None
        # A refused token may only be younger than what the API server has seen.
        seconds = self._settings.token_seconds
        self._tokens.put(key, found, min(seconds, REFUSED_SECONDS) if found is None else seconds)
        return found

    def _may(self, who: Identity, verb: str, subresource: str) -> bool:
        key = (who.name, who.uid, who.groups, verb, subresource)
        known, allowed = self._answers.get(key)
        if not known or allowed is None:
            allowed = self._reviewer.may(who, verb, subresource)
            settings = self._settings
            self._answers.put(key, allowed, settings.allowed_seconds if allowed else settings.denied_seconds)
        return allowed


class _Remembered(Generic[T]):
    """Answers, each good for some seconds; the oldest go when there are too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: OrderedDict[Hashable, tuple[T, float]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[bool, T | None]:
        """(known, answer)."""
        with self._lock:
            found = self._found.get(key)
            if found is None or self._clock() >= found[1]:
                return False, None
            return True, found[0]

    def put(self, key: Hashable, answer: T, seconds: float) -> None:
        if seconds <= 0:
            return
        with self._lock:
            self._found[key] = (answer, self._clock() + seconds)
            self._found.move_to_end(key)
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)


def of_certificate(peer: Mapping[str, Any]) -> Identity:
    """The common name is the user, the organisations are the groups. Raises HttpError (401)."""
    pairs = [pair for part in peer.get("subject", ()) for pair in part]
    name = next((str(value) for key, value, *_ in pairs if key == "commonName"), "")
    if not name:
        raise HttpError(401, "Unauthorized")
    groups = [str(value) for key, value, *_ in pairs if key == "organizationName"]
    return Identity(name, (*groups, AUTHENTICATED))
