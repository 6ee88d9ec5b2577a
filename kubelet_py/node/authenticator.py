"""Whose is this bearer token? The API server says it, by a TokenReview, and is not asked again for a while.

Prometheus and other clients log in on port 10250 with the token of their service account. Source: upstream's
webhook authentication of the kubelet; its answers count for two minutes (authentication.webhook.cacheTTL),
refusals here for a few seconds only, since a token may be younger than what the API server has seen. Tokens
are remembered by their digest alone.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable

from kubeclient.errors import ApiError
from kubeclient.resources import TOKEN_REVIEWS
from kubeclient.rest import RestClient
from kubelet_py.server.access import Identity

log = logging.getLogger(__name__)

KNOWN_SECONDS, REFUSED_SECONDS = 120.0, 5.0
MOST = 1000


class TokenAuthenticator:
    """Callable as access.Authenticate; without an API server nobody's token is known. Thread-safe."""

    def __init__(self, client: RestClient | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[bytes, tuple[float, Identity | None]] = {}

    def __call__(self, token: str) -> Identity | None:
        if self._client is None:
            return None
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        with self._lock:
            until, known = self._answers.get(digest, (now, None))
        if now < until:
            return known
        try:
            found = self._review(self._client, token)
        except ApiError as error:
            log.warning("Failed to review token error=%s", error)
            return None
        seconds = REFUSED_SECONDS if found is None else KNOWN_SECONDS
        with self._lock:
            self._answers.pop(digest, None)
            if len(self._answers) >= MOST:
                self._answers.pop(next(iter(self._answers)))  # the oldest
            self._answers[digest] = (now + seconds, found)
        return found

    @staticmethod
    def _review(client: RestClient, token: str) -> Identity | None:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = client.create(TOKEN_REVIEWS, body).get("status") or {}
        if not status.get("authenticated"):
            return None
        user = status.get("user") or {}
        return Identity(str(user.get("username") or ""), tuple(user.get("groups") or ()))
