"""What the agent's parts share: facts of the node, and where ConfigMaps, Secrets and tokens come from."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeclient.errors import ApiError, NotFound
from kubeclient.resources import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS
from kubeclient.rest import RestClient
from kubelet_py.errors import VolumeError
from kubelet_py.pods.image_puller import decoded
from kubelet_py.pods.model import Object

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0


@dataclass(slots=True)
class NodeFacts:
    """What pods may ask about their node; filled in once at start."""

    name: str
    ips: Sequence[str]
    allocatable: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0


class ObjectSource:
    """ConfigMaps and Secrets by name, at most a second old; the same answer serves all pods that ask."""

    def __init__(self, client: RestClient | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], tuple[float, Object | None]] = {}

    def lookup(self, namespace: str) -> Callable[[str, str], Object | None]:
        """A function from ("configmap" | "secret", name) to the object; Secrets come decoded."""
        return lambda kind, name: self.get(kind, namespace, name)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """None when there is none such; VolumeError when the API cannot be asked."""
        key = (kind, namespace, name)
        now = self._clock()
        with self._lock:
            known = self._known.get(key)
            if known is not None and now - known[0] < FRESH_SECONDS:
                return known[1]
        found = self._ask(kind, namespace, name)
        with self._lock:
            self._known[key] = (now, found)
            for old in [k for k, (at, _) in self._known.items() if now - at > 10 * FRESH_SECONDS]:
                del self._known[old]
        return found

    def _ask(self, kind: str, namespace: str, name: str) -> Object | None:
        if self._client is None:
            return None
        resource = SECRETS if kind == "secret" else CONFIG_MAPS
        try:
            found = self._client.get(resource, name, namespace)
        except NotFound:
            return None
        except ApiError as error:
            raise VolumeError(f"Could not read {kind} {namespace}/{name}: {error}") from error
        return decoded(found) if kind == "secret" else found


class TokenSource:
    """Service-account tokens of pods, kept until four fifths of their life are over."""

    def __init__(self, client: RestClient | None, *, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, int], tuple[float, str]] = {}

    def token(self, pod: Object, audience: str, seconds: int) -> str:
        """A token bound to the pod; VolumeError when the API does not give one."""
        key = (pod["metadata"]["uid"], audience, seconds)
        with self._lock:
            known = self._known.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        if self._client is None:
            raise VolumeError("there is no API server to ask for a service account token")
        account = pod["spec"].get("serviceAccountName") or "default"
        metadata = pod["metadata"]
        spec: dict[str, Any] = {
            "expirationSeconds": seconds,
            "boundObjectRef": {
                "kind": "Pod",
                "apiVersion": "v1",
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
        if audience:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = self._client.create(
                SERVICE_ACCOUNTS, body, metadata["namespace"], subresource="token", name=account
            )
        except ApiError as error:
            raise VolumeError(f"failed to fetch token: {error}") from error
        token = str(answer["status"]["token"])
        with self._lock:
            self._known[key] = (self._clock() + seconds * 0.8, token)
        return token

    def forget(self, uid: str) -> None:
        with self._lock:
            for key in [key for key in self._known if key[0] == uid]:
                del self._known[key]
