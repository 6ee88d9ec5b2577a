"""Who is asking: a client certificate signed by the cluster's CA, a service account's or a bootstrap token.

The TLS handshake has verified the certificate already, so its subject can be believed: CN is the user, each O
a group. A request without either is anonymous, which is good for health checks and for what RBAC objects
allow system:anonymous (cluster-info, by which nodes join); a request with a token that is not good is
refused outright (apiserver pkg/authentication/request).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from controlplane import bootstrap_tokens
from controlplane.apiserver.errors import unauthorized
from controlplane.apiserver.tokens import ISSUER, PRIVATE, BadTokenError, TokenSigner
from controlplane.apiserver.users import ANONYMOUS, AUTHENTICATED, User
from controlplane.storage.cache import Cache

Object = dict[str, Any]

EXTRA = "authentication.kubernetes.io/"
LEEWAY = 60.0  # seconds that a token goes on after what it is bound to was to be gone
API_AUDIENCES = (ISSUER, "https://kubernetes.default.svc", "kubernetes")


class Authenticator:
    """Turns what came with a request into a User."""

    def __init__(self, cache: Cache, tokens: TokenSigner, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._tokens = tokens
        self._clock = clock

    def authenticate(self, peer: Mapping[str, Any] | None, authorization: str) -> User:
        """`peer` is the verified certificate as ssl.getpeercert gives it, `authorization` the header.

        Raises StatusError (401) for credentials that are not good.
        """
        if peer:
            return of_certificate(peer)
        if not authorization:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip() or not token.isascii():
            raise unauthorized()
        try:
            return self.of_token(token.strip(), API_AUDIENCES)
        except BadTokenError as error:
            raise unauthorized() from error

    def of_token(self, token: str, audiences: Sequence[str]) -> User:
        """The user of a bearer token. Raises BadTokenError."""
        if token.count(".") == 1 and set(audiences) & set(API_AUDIENCES):
            return self._of_bootstrap_token(token)
        claims = self._tokens.claims(token, audiences)
        private: Object = claims.get(PRIVATE) or {}
        namespace = private.get("namespace", "")
        account = private.get("serviceaccount") or {}
        self._same("core/serviceaccounts", namespace, account)
        extra: dict[str, tuple[str, ...]] = {}
        if claims.get("jti"):
            extra[f"{EXTRA}credential-id"] = (f"JTI={claims['jti']}",)
        for kind, collection in (("pod", "core/pods"), ("secret", "core/secrets"), ("node", "core/nodes")):
            bound = private.get(kind)
            if not bound:
                continue
            if kind != "node":
                self._same(collection, namespace, bound)
            elif "pod" not in private:  # beside a pod it only says where that runs
                self._same(collection, "", bound)
            if kind != "secret":
                for part in ("name", "uid"):
                    extra |= {f"{EXTRA}{kind}-{part}": (bound[part],)} if bound.get(part) else {}
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
        name = f"system:serviceaccount:{namespace}:{account.get('name')}"
        return User(name, groups, account.get("uid", ""), extra)

    def _of_bootstrap_token(self, text: str) -> User:
        """Raises BadTokenError; it says too little for a guesser to learn which part was wrong."""
        try:
            name, secret = bootstrap_tokens.split(text)
            name = bootstrap_tokens.SECRET_PREFIX + name
            entry = self._cache.get("core/secrets", bootstrap_tokens.NAMESPACE, name)
            stored = entry.parse() if entry is not None else None
            if stored is None or "deletionTimestamp" in stored["metadata"]:
                raise BadTokenError("no such bootstrap token")
            token = bootstrap_tokens.of_secret(stored)
        except bootstrap_tokens.BadBootstrapToken as error:
            raise BadTokenError(str(error)) from error
        if not hmac.compare_digest(token.secret.encode(), secret.encode()):
            raise BadTokenError("no such bootstrap token")
        if token.expired(self._clock()) or "authentication" not in token.usages:
            raise BadTokenError("the bootstrap token has expired, or is not for logging in")
        groups = (bootstrap_tokens.GROUP, *token.groups, AUTHENTICATED)
        return User(bootstrap_tokens.USER_PREFIX + token.id, groups)

    def _same(self, collection: str, namespace: str, reference: Mapping[str, str]) -> None:
        """Does the object still exist, and is it the same one? A look at the bytes saves decoding them."""
        entry = self._cache.get(collection, namespace, reference.get("name", ""))
        uid = reference.get("uid", "")
        if entry is None or f'"{uid}"'.encode() not in entry.raw or entry.parse()["metadata"]["uid"] != uid:
            raise BadTokenError(f"{collection} {namespace}/{reference.get('name')} is gone")
        if b'"deletionTimestamp"' in entry.raw:
            due = entry.parse()["metadata"].get("deletionTimestamp")
            if due and datetime.fromisoformat(due).timestamp() + LEEWAY < self._clock():
                raise BadTokenError(f"{collection} {namespace}/{reference.get('name')} has been deleted")


def of_certificate(peer: Mapping[str, Any]) -> User:
    """CN and O of a verified certificate."""
    return _of_subject(peer.get("subject", ()))


@lru_cache(maxsize=256)
def _of_subject(subject: tuple[tuple[tuple[str, str], ...], ...]) -> User:
    """A client's certificate comes with each of its requests."""
    name = ""
    groups: list[str] = []
    for part in subject:
        for key, value in part:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    if not name:
        raise unauthorized()
    return User(name, (*groups, AUTHENTICATED))
