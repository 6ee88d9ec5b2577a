"""Brings a container's image here by its pull policy, with back-off, and tells about it in upstream's events.

One pull of an image at a time; others who want the same one wait for it and then find it here.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kubelet_py.errors import ImageError
from kubelet_py.pods import backoff
from kubelet_py.pods.model import Object
from runtime.images import reference
from runtime.images.errors import ImageError as StoreError
from runtime.images.errors import InvalidReference, PullError, RegistryUnavailable
from runtime.images.store import Image, ImageStore

log = logging.getLogger(__name__)

Tell = Callable[[str, str, str], None]
"""(Normal or Warning, reason, message): an event about the container."""


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock
    users: int = 0


class ImagePuller:
    """`ensure` answers with the image or raises ImageError with the reason that `state.waiting` shows."""

    def __init__(self, store: ImageStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._turns: dict[str, _Turn] = {}
        self._backoffs: dict[tuple[str, str], tuple[backoff.BackoffEntry, float, str]] = {}

    def ensure(
        self, pod: Object, container: Object, tell: Tell, secrets: Callable[[str], Object | None]
    ) -> Image:
        """The image of `container`; `secrets` finds an imagePullSecret by name (data decoded)."""
        name = container["image"]
        try:
            reference.parse(name)
        except InvalidReference as error:
            message = (
                f'Failed to apply default image tag "{name}": couldn\'t parse image name "{name}": {error}'
            )
            tell("Warning", "InspectFailed", message)
            raise ImageError(message, "InvalidImageName") from error
        policy = container.get("imagePullPolicy") or "IfNotPresent"
        present = self._store.lookup(name)
        if present is not None and policy != "Always":
            tell("Normal", "Pulled", f'Container image "{name}" already present on machine')
            return present
        if policy == "Never":
            message = f'Container image "{name}" is not present with pull policy of Never'
            tell("Warning", "ErrImageNeverPull", message)
            raise ImageError(message, "ErrImageNeverPull")
        return self._pull(pod, name, tell, secrets)

    def retry_at(self, pod: Object, name: str) -> float | None:
        """When the next try of this pod's image is allowed, or None where none is held back."""
        held = self._backoffs.get((pod["metadata"]["uid"], name))
        return None if held is None else backoff.waits_until(held[0], held[1], self._clock())

    def forget(self, uid: str) -> None:
        """The pod is gone: its back-offs too."""
        with self._lock:
            for key in [key for key in self._backoffs if key[0] == uid]:
                del self._backoffs[key]

    def _pull(self, pod: Object, name: str, tell: Tell, secrets: Callable[[str], Object | None]) -> Image:
        key = (pod["metadata"]["uid"], name)
        held = self._backoffs.get(key)
        if held is not None and backoff.waits_until(held[0], held[1], self._clock()) is not None:
            message = f'Back-off pulling image "{name}"'
            tell("Normal", "BackOff", message)
            raise ImageError(f"{message}: {held[2]}", "ImagePullBackOff")
        tell("Normal", "Pulling", f'Pulling image "{name}"')
        began = self._clock()
        try:
            image = self._pull_in_turn(pod, name, secrets)
        except StoreError as error:
            now = self._clock()
            entry = backoff.after_try(held[0] if held else None, held[1] if held else now, now)
            with self._lock:
                self._backoffs[key] = (entry, now, str(error))
            tell("Warning", "Failed", f'Failed to pull image "{name}": {error}')
            reason = "RegistryUnavailable" if isinstance(error, RegistryUnavailable) else "ErrImagePull"
            tell("Warning", "Failed", "Error: ErrImagePull")
            log.info("Failed to pull image image=%s reason=%s error=%s", name, reason, error)
            raise ImageError(str(error), "ErrImagePull") from error
        with self._lock:
            self._backoffs.pop(key, None)
        took = f"{self._clock() - began:.3f}s"
        size = f"Image size: {image.size} bytes."
        message = f'Successfully pulled image "{name}" in {took} ({took} including waiting). {size}'
        tell("Normal", "Pulled", message)
        return image

    def _pull_in_turn(self, pod: Object, name: str, secrets: Callable[[str], Object | None]) -> Image:
        with self._lock:
            turn = self._turns.setdefault(name, _Turn(threading.Lock()))
            turn.users += 1
        try:
            with turn.lock:
                return self._try_credentials(pod, name, secrets)
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    self._turns.pop(name, None)

    def _try_credentials(self, pod: Object, name: str, secrets: Callable[[str], Object | None]) -> Image:
        # requests is large: a node that never pulls never loads it.
        from runtime.images import registry

        found = self._keyring(pod, secrets).lookup(reference.parse(name))
        last: PullError | None = None
        for credentials in found or [None]:
            try:
                return registry.pull(self._store, name, credentials=credentials)
            except PullError as error:
                last = error
        assert last is not None
        raise last

    @staticmethod
    def _keyring(pod: Object, secrets: Callable[[str], Object | None]):  # type: ignore[no-untyped-def]
        from runtime.images.credentials import Keyring, parse_docker_config

        ring = Keyring()
        for entry in pod["spec"].get("imagePullSecrets") or ():
            secret = secrets(entry["name"])
            data: Mapping[str, str] = (secret or {}).get("data") or {}
            for key in (".dockerconfigjson", ".dockercfg"):
                if key in data:
                    ring += parse_docker_config(data[key].encode())
        return ring


def decoded(secret: Object) -> Object:
    """A Secret with its base64 values as texts; bytes that are no UTF-8 survive as surrogates."""
    data = {
        key: base64.b64decode(value).decode("utf-8", "surrogateescape")
        for key, value in (secret.get("data") or {}).items()
    }
    return {**secret, "data": data}
