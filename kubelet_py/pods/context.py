"""What the agent's parts share: facts of the node, and where ConfigMaps, Secrets and tokens come from."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubeclient.errors import ApiError, NotFound
from kubeclient.resources import (
    CONFIG_MAPS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from kubeclient.rest import RestClient
from kubelet_py.errors import VolumeError
from kubelet_py.pods.image_puller import decoded
from kubelet_py.pods.model import Object, epoch, is_static
from kubelet_py.pods.references import Key
from kubelet_py.pods.resources import Rules

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
LONGEST_SECONDS = 24 * 3600.0
RESOURCES = {
    "configmap": CONFIG_MAPS,
    "secret": SECRETS,
    "persistentvolumeclaim": PERSISTENT_VOLUME_CLAIMS,
    "persistentvolume": PERSISTENT_VOLUMES,
}


@dataclass(slots=True)
class NodeFacts:
    """What pods may ask about their node; filled in once at start."""

    name: str
    ips: Sequence[str]
    allocatable: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    rules: Rules = field(default_factory=Rules)


class ObjectSource:
    """Objects that pods name: at most a second old, or as their watch told them last.

    The same answer serves all pods that ask.
    """

    def __init__(self, client: RestClient | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._local: dict[str, dict[Key, Object]] = {}
        self._known: dict[Key, tuple[float, Object | None]] = {}
        self._told: dict[Key, Object | None] = {}

    def lookup(self, pod: Object) -> Callable[[str, str], Object | None]:
        """A function from (kind, name) to the object of the pod's namespace; Secrets come decoded. A static
        pod is served what lies beside the manifests first; nobody else is served any of that."""
        namespace, static = pod["metadata"]["namespace"], is_static(pod)

        def look(kind: str, name: str) -> Object | None:
            own = self.local((kind, namespace, name)) if static else None
            return own if own is not None else self.get(kind, namespace, name)

        return look

    def local(self, key: Key) -> Object | None:
        """The object as it lies beside this node's manifests."""
        with self._lock:
            return next((objects[key] for objects in self._local.values() if key in objects), None)

    def keep_local(self, source: str, objects: Mapping[Key, Object]) -> set[Key]:
        """All that lies beside the manifests of a source now; answers the names of what is different."""
        fresh = {key: decoded(found) if key[0] == "secret" else found for key, found in objects.items()}
        with self._lock:
            before = self._local.get(source, {})
            self._local[source] = fresh
        return {key for key in {**before, **fresh} if before.get(key) != fresh.get(key)}

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """None when there is none such; VolumeError when the API cannot be asked."""
        key = (kind, namespace, name)
        now = self._clock()
        with self._lock:
            if key in self._told:
                return self._told[key]
            known = self._known.get(key)
            if known is not None and now - known[0] < FRESH_SECONDS:
                return known[1]
        found = self._ask(kind, namespace, name)
        with self._lock:
            self._known[key] = (now, found)
            for old in [k for k, (at, _) in self._known.items() if now - at > 10 * FRESH_SECONDS]:
                del self._known[old]
        return found

    def learn(self, key: Key, found: Object | None) -> bool:
        """A watch tells what the object is now, and will go on to. True unless we knew exactly that."""
        fresh = decoded(found) if found is not None and key[0] == "secret" else found
        with self._lock:
            before = self._told[key] if key in self._told else self._known.get(key, (0.0, None))[1]
            known = key in self._told or key in self._known
            self._told[key] = fresh
        return not known or _version(before) != _version(fresh)

    def unlearn(self, key: Key) -> None:
        """Nobody watches it any more."""
        with self._lock:
            self._told.pop(key, None)

    def _ask(self, kind: str, namespace: str, name: str) -> Object | None:
        if self._client is None:
            return None
        resource = RESOURCES[kind]
        try:
            found = self._client.get(resource, name, namespace if resource.namespaced else None)
        except NotFound:
            return None
        except ApiError as error:
            raise VolumeError(f"Could not read {kind} {namespace}/{name}: {error}") from error
        return decoded(found) if kind == "secret" else found


def _version(found: Object | None) -> tuple[str, str] | None:
    metadata = (found or {}).get("metadata") or {}
    return None if found is None else (metadata.get("uid", ""), metadata.get("resourceVersion", ""))


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew_at: float
    expires_at: float


class TokenSource:
    """Service-account tokens of pods, kept until four fifths of their life, or a day, are over.

    Source: upstream's pkg/kubelet/token. A token that cannot be renewed is used as long as it is valid.
    """

    def __init__(self, client: RestClient | None, *, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, int], _Token] = {}

    def token(self, pod: Object, audience: str, seconds: int) -> str:
        """A token bound to the pod; VolumeError when the API does not give one."""
        key = (pod["metadata"]["uid"], audience, seconds)
        with self._lock:
            known = self._known.get(key)
        now = self._clock()
        if known is not None and now < known.renew_at:
            return known.text
        try:
            fresh = self._ask(pod, audience, seconds, now)
        except VolumeError as error:
            if known is not None and now < known.expires_at:
                log.info("Kept token pod_uid=%s error=%s", key[0], error)
                return known.text
            raise
        with self._lock:
            self._known[key] = fresh
        return fresh.text

    def due(self) -> set[str]:
        """The uids of the pods that have a token which wants to be renewed."""
        now = self._clock()
        with self._lock:
            return {key[0] for key, token in self._known.items() if now >= token.renew_at}

    def forget(self, uid: str) -> None:
        with self._lock:
            for key in [key for key in self._known if key[0] == uid]:
                del self._known[key]

    def _ask(self, pod: Object, audience: str, seconds: int, now: float) -> _Token:
        if self._client is None:
            raise VolumeError("there is no API server to ask for a service account token")
        metadata, account = pod["metadata"], pod["spec"].get("serviceAccountName") or "default"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        spec: dict[str, Any] = {"expirationSeconds": seconds, "boundObjectRef": bound}
        if audience:
            spec["audiences"] = [audience]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = self._client.create(
                SERVICE_ACCOUNTS, body, metadata["namespace"], subresource="token", name=account
            )
        except ApiError as error:
            raise VolumeError(f"failed to fetch token: {error}") from error
        status = answer["status"]
        # The server may give less, or more, than was asked for.
        life = int((answer.get("spec") or {}).get("expirationSeconds") or seconds)
        ends = status.get("expirationTimestamp")
        expires = epoch(ends) if ends else now + life
        return _Token(str(status["token"]), min(expires - life / 5, now + LONGEST_SECONDS), expires)
