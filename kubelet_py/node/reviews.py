"""What the kubelet's server asks the API server: whose token is that, and may they do this on this node?

Source: upstream's pkg/kubelet/server/auth.go: every path is a subresource of this node's object.
"""

from __future__ import annotations

from typing import Any

from kubeclient.errors import KubeClientError
from kubeclient.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from kubeclient.rest import RestClient
from kubelet_py.server.access import Identity, ReviewError


class NodeReviews:
    """The server's Reviewer; without an API server nobody may anything."""

    def __init__(self, client: RestClient | None, node_name: str) -> None:
        self._client = client
        self._node_name = node_name

    def whose_token(self, token: str) -> Identity | None:
        """None for a token that is not good. Raises ReviewError."""
        if self._client is None:
            return None
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        try:
            status = self._client.create(TOKEN_REVIEWS, body).get("status") or {}
        except KubeClientError as error:
            raise ReviewError(str(error)) from error
        if not status.get("authenticated"):
            return None
        user = status.get("user") or {}
        extra = {name: tuple(values or ()) for name, values in (user.get("extra") or {}).items()}
        return Identity(user.get("username", ""), tuple(user.get("groups") or ()), user.get("uid", ""), extra)

    def may(self, who: Identity, verb: str, subresource: str) -> bool:
        """Raises ReviewError."""
        if self._client is None:
            return False
        attributes = {
            "verb": verb,
            "version": "v1",
            "resource": "nodes",
            "subresource": subresource,
            "name": self._node_name,
        }
        spec: dict[str, Any] = {
            "user": who.name,
            "groups": list(who.groups),
            "resourceAttributes": attributes,
        }
        if who.uid:
            spec["uid"] = who.uid
        if who.extra:
            spec["extra"] = {name: list(values) for name, values in who.extra.items()}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        try:
            answer = self._client.create(SUBJECT_ACCESS_REVIEWS, body)
        except KubeClientError as error:
            raise ReviewError(str(error)) from error
        return bool((answer.get("status") or {}).get("allowed"))
