"""Brings a container's image here by its pull policy, with back-off, and tells about it in upstream's events.

A pull runs on a thread of its own and wakes the pod when it is done: nobody waits for it, so that a pod whose
image is large or whose registry hangs can be deleted at any time. The pull itself goes on then, and whoever
comes next finds the image. One pull of an image at a time; others who want the same one find it after that.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kubelet_py.errors import ImageError, ImagePulling
from kubelet_py.pods import backoff
from kubelet_py.pods.model import Object
from kubelet_py.pods.pull_counts import PullCounts
from runtime.images import reference
from runtime.images.errors import ImageError as StoreError
from runtime.images.errors import InvalidReference, PullError, RegistryUnavailable
from runtime.images.store import Image, ImageStore

if TYPE_CHECKING:
    from runtime.images.credentials import Credentials, Keyring

log = logging.getLogger(__name__)

Tell = Callable[[str, str, str], None]
"""(Normal or Warning, reason, message): an event about the container."""


Secrets = Callable[[str], Object | None]
"""Finds an imagePullSecret by name, its data decoded."""


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock
    users: int = 0


@dataclass(slots=True)
class _Pull:
    """A container's pull: under way as long as it has neither result."""

    image: Image | None = None
    error: ImageError | None = None


class ImagePuller:
    """`ensure` answers with the image, or raises ImagePulling or ImageError with the reason to show.

    `wake(uid)` is called when a pull for that pod is over.
    """

    def __init__(
        self,
        store: ImageStore,
        wake: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
        fetch: Callable[[ImageStore, Object, str, Secrets], Image] | None = None,
        at_once: int = 0,
    ) -> None:
        """`at_once`: how many images are fetched at the same time; 0: as many as are wanted."""
        self._places = threading.BoundedSemaphore(at_once) if at_once else nullcontext()
        self._store = store
        self._wake = wake
        self._clock = clock
        self._fetch = fetch or fetch_with_credentials
        self._pulls: dict[tuple[str, str, str], _Pull] = {}
        self._lock = threading.Lock()
        self._turns: dict[str, _Turn] = {}
        self._backoffs: dict[tuple[str, str], tuple[backoff.BackoffEntry, float, str]] = {}
        self.counts = PullCounts()

    def ensure(self, pod: Object, container: Object, tell: Tell, secrets: Secrets) -> Image:
        """The image of `container`. Never waits."""
        name = container["image"]
        try:
            reference.parse(name)
        except InvalidReference as error:
            message = (
                f'Failed to apply default image tag "{name}": couldn\'t parse image name "{name}": {error}'
            )
            tell("Warning", "InspectFailed", message)
            raise ImageError(message, "InvalidImageName") from error
        pulled = self._result(pod, container)
        if pulled is not None:
            return pulled
        policy = container.get("imagePullPolicy") or "IfNotPresent"
        present = self._store.lookup(name)
        if present is not None and policy != "Always":
            tell("Normal", "Pulled", f'Container image "{name}" already present on machine')
            return present
        if policy == "Never":
            message = f'Container image "{name}" is not present with pull policy of Never'
            tell("Warning", "ErrImageNeverPull", message)
            raise ImageError(message, "ErrImageNeverPull")
        raise self._begin(pod, container, tell, secrets, again=policy == "Always")

    def present(self, container: Object) -> Image | None:
        """The image, if `ensure` would answer with it at once."""
        name = container["image"]
        try:
            reference.parse(name)
        except InvalidReference:
            return None
        return None if container.get("imagePullPolicy") == "Always" else self._store.lookup(name)

    def retry_at(self, pod: Object, name: str) -> float | None:
        """When the next try of this pod's image is allowed, or None where none is held back."""
        held = self._backoffs.get((pod["metadata"]["uid"], name))
        return None if held is None else backoff.waits_until(held[0], held[1], self._clock())

    def forget(self, uid: str) -> None:
        """The pod is gone: its back-offs too."""
        with self._lock:
            for key in [key for key in self._backoffs if key[0] == uid]:
                del self._backoffs[key]
            for pull in [key for key in self._pulls if key[0] == uid]:
                del self._pulls[pull]

    def _result(self, pod: Object, container: Object) -> Image | None:
        """What the container's pull brought, once; ImagePulling while it is under way."""
        key = _key(pod, container)
        with self._lock:
            pull = self._pulls.get(key)
            if pull is None:
                return None
            if pull.image is None and pull.error is None:
                raise ImagePulling(f'pulling image "{container["image"]}"')
            del self._pulls[key]
        if pull.error is not None:
            raise pull.error
        return pull.image

    def _begin(
        self, pod: Object, container: Object, tell: Tell, secrets: Secrets, *, again: bool
    ) -> ImageError | ImagePulling:
        """Begin to pull unless that is held back; what to raise meanwhile."""
        name = container["image"]
        held = self._backoffs.get((pod["metadata"]["uid"], name))
        if held is not None and backoff.waits_until(held[0], held[1], self._clock()) is not None:
            message = f'Back-off pulling image "{name}"'
            tell("Normal", "BackOff", message)
            return ImageError(f"{message}: ErrImagePull: {held[2]}", "ImagePullBackOff")
        tell("Normal", "Pulling", f'Pulling image "{name}"')
        key, pull = _key(pod, container), _Pull()
        arguments = (key, pull, pod, tell, secrets, again)
        thread = threading.Thread(target=self._work, args=arguments, name="image-pull", daemon=True)
        with self._lock:
            # Noted once the thread runs: one that could not be started is tried again.
            thread.start()
            self._pulls[key] = pull
        return ImagePulling(f'pulling image "{name}"')

    def _work(
        self,
        key: tuple[str, str, str],
        pull: _Pull,
        pod: Object,
        tell: Tell,
        secrets: Secrets,
        again: bool,
    ) -> None:
        try:
            pull.image = self._pull(key, pod, tell, secrets, again)
        except ImageError as error:
            pull.error = error
        except Exception as error:
            # A defect in here would leave the pod waiting for ever.
            log.exception("Failed to pull image image=%s", key[2])
            pull.error = ImageError(str(error), "ErrImagePull")
        self._wake(key[0])

    def _pull(
        self, key: tuple[str, str, str], pod: Object, tell: Tell, secrets: Secrets, again: bool
    ) -> Image:
        uid, _, name = key
        began = self._clock()
        held = self._backoffs.get((uid, name))
        try:
            image, fresh = self._pull_in_turn(pod, name, tell, secrets, again)
        except (StoreError, OSError) as error:
            now = self._clock()
            entry = backoff.after_try(held[0] if held else None, held[1] if held else now, now)
            with self._lock:
                if key in self._pulls:  # else the pod is gone, and nobody would forget it again
                    self._backoffs[uid, name] = (entry, now, str(error))
            tell("Warning", "Failed", f'Failed to pull image "{name}": {error}')
            reason = "RegistryUnavailable" if isinstance(error, RegistryUnavailable) else "ErrImagePull"
            log.info("Failed to pull image image=%s reason=%s error=%s", name, reason, error)
            raise ImageError(str(error), "ErrImagePull") from error
        with self._lock:
            self._backoffs.pop((uid, name), None)
        if not fresh:
            tell("Normal", "Pulled", f'Container image "{name}" already present on machine')
            return image
        took = f"{self._clock() - began:.3f}s"
        size = f"Image size: {image.size} bytes."
        message = f'Successfully pulled image "{name}" in {took} ({took} including waiting). {size}'
        tell("Normal", "Pulled", message)
        return image

    def _pull_in_turn(
        self, pod: Object, name: str, tell: Tell, secrets: Secrets, again: bool
    ) -> tuple[Image, bool]:
        """The image, and whether it had to be fetched. `again`: fetch it although it is here."""
        with self._lock:
            turn = self._turns.setdefault(name, _Turn(threading.Lock()))
            turn.users += 1
        try:
            with turn.lock:
                present = None if again else self._store.lookup(name)
                if present is not None:
                    return present, False
                found = _told_secrets(pod, tell, secrets)
                with self._places:
                    return self.counts.pulled(lambda: self._fetch(self._store, pod, name, found)), True
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    self._turns.pop(name, None)


def _secret_names(pod: Object) -> list[str]:
    # A manifest may leave a name out; upstream passes over it.
    return [entry["name"] for entry in pod["spec"].get("imagePullSecrets") or () if entry.get("name")]


def _told_secrets(pod: Object, tell: Tell, secrets: Secrets) -> Secrets:
    """The pod's secrets, read; those that are missing are told of, as the pull may do without."""
    found = {name: secrets(name) for name in _secret_names(pod)}
    missing = ", ".join(name for name, secret in found.items() if secret is None)
    if missing:
        text = f"Unable to retrieve some image pull secrets ({missing}); "
        text += "attempting to pull the image may not succeed."
        tell("Warning", "FailedToRetrieveImagePullSecret", text)
    return found.get


def _key(pod: Object, container: Object) -> tuple[str, str, str]:
    return pod["metadata"]["uid"], container["name"], container["image"]


def fetch_with_credentials(
    store: ImageStore,
    pod: Object,
    name: str,
    secrets: Secrets,
    *,
    hosts_dir: Path | None = None,
    node_file: Path | None = None,
) -> Image:
    """Pull with the credentials that the pod's secrets have for this image, or without. Raises PullError.

    `hosts_dir` says per registry which mirrors to ask first (runtime/images/hosts.py); `node_file` is a
    docker config.json for all pods, whose credentials are tried after those of the pod, as the kubelet does.
    """
    # requests is large: a node that never pulls never loads it.
    from runtime.images import login, registry

    parsed = reference.parse(name)
    found = _keyring(pod, secrets).lookup(parsed)
    if node_file is not None and node_file.exists():
        found += login.credentials_for(parsed, node_file)
    last: PullError | None = None
    candidates: list[Credentials | None] = [*found] or [None]
    for credentials in candidates:
        try:
            return registry.pull(store, name, credentials=credentials, hosts_dir=hosts_dir)
        except PullError as error:
            last = error
    assert last is not None
    raise last


def _keyring(pod: Object, secrets: Secrets) -> Keyring:
    from runtime.images.credentials import Keyring, parse_docker_config

    ring = Keyring()
    for name in _secret_names(pod):
        secret = secrets(name)
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
