"""Who asks on port 10250, and may they? A client certificate that our CA signed says who, or a bearer token
that the API server knows; what they may, the API server decides.

Every path is a subresource of this node's object. Source: upstream's pkg/kubelet/server/auth.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubelet_py.server.errors import HttpError

VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
SUBRESOURCES = {"stats": "stats", "metrics": "metrics", "logs": "log", "checkpoint": "checkpoint"}


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and their groups, system:authenticated among them."""

    user: str
    groups: tuple[str, ...]


Authorize = Callable[[str, Sequence[str], str, str], bool]
"""(user, groups, verb, path) → allowed"""
Authenticate = Callable[[str], Identity | None]
"""A bearer token → whose it is; None: nobody's"""


class Access:
    """The certificate counts before the token, as upstream."""

    def __init__(self, authorize: Authorize, authenticate: Authenticate = lambda token: None) -> None:
        self._authorize, self._authenticate = authorize, authenticate

    def check(
        self, certificate: Mapping[str, Any] | None, authorization: str, method: str, path: str
    ) -> None:
        """Raise HttpError 401 or 403; `certificate` as getpeercert tells it, `authorization` the header."""
        asks = _subject(certificate) if certificate else self._by_token(authorization)
        if asks is None:
            raise HttpError(401, "Unauthorized")
        verb = VERBS.get(method, method.lower())
        if "system:masters" in asks.groups or self._authorize(asks.user, asks.groups, verb, path):
            return
        where = f"verb={verb}, resource=nodes, subresource={subresource(path)}"
        raise HttpError(403, f"Forbidden (user={asks.user}, {where})")

    def _by_token(self, authorization: str) -> Identity | None:
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        return self._authenticate(token) if scheme.lower() == "bearer" and token else None


def subresource(path: str) -> str:
    """The subresource of nodes that a request path is authorised as."""
    return SUBRESOURCES.get(path.strip("/").partition("/")[0], "proxy")


def _subject(certificate: Mapping[str, Any]) -> Identity:
    """The common name is the user, each organisation a group."""
    parts = certificate.get("subject", ())
    pairs = [pair for part in parts if isinstance(part, tuple) for pair in part if isinstance(pair, tuple)]
    user = next((str(value) for key, value, *_ in pairs if key == "commonName"), "")
    groups = [str(value) for key, value, *_ in pairs if key == "organizationName"]
    return Identity(user, (*groups, "system:authenticated"))
