"""May a client of the kubelet's server do what it asks? The API server decides, by SubjectAccessReview.

Source: upstream's pkg/kubelet/server/auth.go: every path is a subresource of this node's object.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kubeclient.errors import ApiError
from kubeclient.resources import SUBJECT_ACCESS_REVIEWS
from kubeclient.rest import RestClient
from kubelet_py.server.access import subresource

log = logging.getLogger(__name__)


class NodeAuthorizer:
    """Callable as KubeletServer's `authorize`; without an API server nobody may anything."""

    def __init__(self, client: RestClient | None, node_name: str) -> None:
        self._client = client
        self._node_name = node_name

    def __call__(self, user: str, groups: Sequence[str], verb: str, path: str) -> bool:
        if self._client is None:
            return False
        attributes = {
            "verb": verb,
            "resource": "nodes",
            "subresource": subresource(path),
            "name": self._node_name,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes},
        }
        try:
            answer = self._client.create(SUBJECT_ACCESS_REVIEWS, body)
        except ApiError as error:
            log.warning("Failed to authorize user=%s path=%s error=%s", user, path, error)
            return False
        return bool((answer.get("status") or {}).get("allowed"))
