"""Static pods: manifests in a folder are pods of this node, with or without an API server.

The API gets a mirror of each, so that clients see it; deleting the mirror does not end the pod, removing the
file does. What a manifest means: manifests.py; those behind an address: manifest_url.py.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kubeclient.errors import AlreadyExists, ApiError, NotFound
from kubeclient.resources import PODS
from kubeclient.rest import RestClient
from kubelet_py.errors import ConfigError
from kubelet_py.pods import manifests
from kubelet_py.pods.manifests import Key, Manifest
from kubelet_py.pods.model import ANNOTATION_CONFIG_MIRROR, Object

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")
Stamp = tuple[int, int, int]
"""Time of the last change, size and inode: what tells that a file is another."""
Seen = tuple[Stamp, Manifest | None]


class StaticPods:
    """Watches the folder, or a single file, by looking at it; `changed(manifest)` gets all of it, after the
    first look and whenever something is different."""

    def __init__(
        self,
        folder: Path,
        node_name: str,
        changed: Callable[[Manifest], None],
        *,
        period: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._node_name = node_name
        self._changed = changed
        self._period = period
        self._clock = clock
        self._seen: dict[str, Seen] | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        if not self._folder.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
        self.look()
        threading.Thread(target=self._run, name="static-pods", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self.look()

    def look(self) -> None:
        """Read what changed; a broken file keeps what it was before, and so does a folder nobody can read."""
        seen = self._seen or {}
        found: dict[str, Seen] = {}
        try:
            files = self._files()
        except OSError as error:
            log.warning("Failed to read manifests folder=%s error=%s", self._folder, error.strerror)
            return
        for file in files:
            read = self._read(file, seen.get(str(file)))
            if read is not None:
                found[str(file)] = read
        if found != self._seen:
            self._seen = found
            everything = [manifest for _, manifest in found.values() if manifest is not None]
            self._changed(merged(everything))

    def _files(self) -> list[Path]:
        """Those of the folder that are manifests by their names; or the one that stands in its place."""
        if self._folder.is_file():
            return [self._folder]
        try:
            entries = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [file for file in entries if file.suffix in SUFFIXES and not file.name.startswith(".")]

    def _read(self, file: Path, before: Seen | None) -> Seen | None:
        try:
            status = file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if before is not None and before[0] == stamp:
                return before
            text = file.read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            log.warning("Failed to read manifest file=%s error=%s", file, error)
            return before
        try:
            return stamp, manifests.parse(text, str(file), self._node_name, self._clock())
        except ConfigError as error:
            log.warning("Refused manifest error=%s", error)
            return stamp, before[1] if before is not None else None


def merged(found: Iterable[Manifest]) -> Manifest:
    pods: dict[str, Object] = {}
    objects: dict[Key, Object] = {}
    for manifest in found:
        pods.update(manifest.pods)
        objects.update(manifest.objects)
    return Manifest(pods, objects)


def mirror_of(pod: Object, node_uid: str) -> Object:
    """The API's image of a static pod."""
    mirror: Object = copy.deepcopy(pod)
    metadata = mirror["metadata"]
    metadata["annotations"][ANNOTATION_CONFIG_MIRROR] = metadata["uid"]
    del metadata["uid"]
    if node_uid:
        owner = {"apiVersion": "v1", "kind": "Node", "name": pod["spec"]["nodeName"], "uid": node_uid}
        metadata["ownerReferences"] = [{**owner, "controller": True}]
    mirror.pop("status", None)
    return mirror


def ensure_mirror(client: RestClient, pod: Object, existing: Object | None, node_uid: str) -> Object | None:
    """Create the mirror, or replace one of another version; answers the API's pod, None while that waits."""
    if existing is not None:
        annotations = existing["metadata"].get("annotations") or {}
        same = annotations.get(ANNOTATION_CONFIG_MIRROR) == pod["metadata"]["uid"]
        if same and not existing["metadata"].get("deletionTimestamp"):
            return existing
        delete_mirror(client, existing)
    try:
        return client.create(PODS, mirror_of(pod, node_uid), pod["metadata"]["namespace"])
    except AlreadyExists:
        return None
    except ApiError as error:
        log.info("Failed to create mirror pod=%s error=%s", pod["metadata"]["name"], error)
        return None


def delete_mirror(client: RestClient, mirror: Object) -> None:
    metadata = mirror["metadata"]
    try:
        client.delete(
            PODS, metadata["name"], metadata["namespace"], grace_period_seconds=0, uid=metadata["uid"]
        )
    except NotFound:
        return
    except ApiError as error:
        log.info("Failed to delete mirror pod=%s error=%s", metadata["name"], error)
