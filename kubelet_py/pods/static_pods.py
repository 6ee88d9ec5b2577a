"""Static pods: manifests in a folder are pods of this node, with or without an API server.

The API gets a mirror of each, so that clients see it; deleting the mirror does not end the pod, removing the
file does. Names get the node's name, uids are a hash of the node, the file and its text (a changed file is
another pod), annotations are upstream's kubernetes.io/config.*.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kubeclient.errors import AlreadyExists, ApiError, NotFound
from kubeclient.resources import PODS
from kubeclient.rest import RestClient
from kubelet_py.errors import ConfigError
from kubelet_py.pods.model import (
    ANNOTATION_CONFIG_HASH,
    ANNOTATION_CONFIG_MIRROR,
    ANNOTATION_CONFIG_SEEN,
    ANNOTATION_CONFIG_SOURCE,
    Object,
    timestamp,
)

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")


def parse(text: str, source: str, node_name: str, now: float) -> Object:
    """One manifest → the pod as this node runs it. ConfigError for what is no Pod."""
    if source.endswith(".json"):
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"Could not parse {source}: {error}") from error
    else:
        import yaml  # late: only nodes with manifests need it

        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"Could not parse {source}: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != "Pod":
        raise ConfigError(f"Could not use {source}: it is no Pod")
    pod: Object = copy.deepcopy(document)
    metadata = pod.setdefault("metadata", {})
    if not metadata.get("name") or not (pod.get("spec") or {}).get("containers"):
        raise ConfigError(f"Could not use {source}: a pod needs a name and containers")
    digest = hashlib.md5(f"{node_name}\0{source}\0{text}".encode(), usedforsecurity=False).hexdigest()
    metadata["name"] = f"{metadata['name']}-{node_name}"
    metadata.setdefault("namespace", "default")
    metadata["uid"] = digest
    annotations = metadata["annotations"] = dict(metadata.get("annotations") or {})
    annotations |= {
        ANNOTATION_CONFIG_HASH: digest,
        ANNOTATION_CONFIG_SEEN: timestamp(now),
        ANNOTATION_CONFIG_SOURCE: "file",
    }
    spec = pod["spec"]
    spec["nodeName"] = node_name
    _defaults(spec)
    return pod


def _defaults(spec: Object) -> None:
    """The few defaults that the API server would have filled in and that the node relies on."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("tolerations", [{"operator": "Exists", "effect": "NoExecute"}])
    for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
        image = str(container.get("image", ""))
        latest = ":" not in image.rpartition("/")[2] or image.endswith(":latest")
        container.setdefault("imagePullPolicy", "Always" if latest and "@" not in image else "IfNotPresent")
        resources = container.get("resources") or {}
        limits = resources.get("limits")
        if limits:
            resources["requests"] = {**limits, **(resources.get("requests") or {})}


class StaticPods:
    """Watches the folder by looking at it; `changed(pods)` gets all pods whenever something is different."""

    def __init__(
        self,
        folder: Path,
        node_name: str,
        changed: Callable[[dict[str, Object]], None],
        *,
        period: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._node_name = node_name
        self._changed = changed
        self._period = period
        self._clock = clock
        self._seen: dict[str, tuple[tuple[int, int, int], Object | None]] = {}
        self._stop = threading.Event()

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.look()
        threading.Thread(target=self._run, name="static-pods", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self.look()

    def look(self) -> None:
        """Read what changed; a broken file keeps what it was before."""
        found: dict[str, tuple[tuple[int, int, int], Object | None]] = {}
        try:
            entries = sorted(self._folder.iterdir())
        except FileNotFoundError:
            entries = []
        for file in entries:
            if file.suffix not in SUFFIXES or file.name.startswith("."):
                continue
            try:
                status = file.stat()
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                before = self._seen.get(str(file))
                if before is not None and before[0] == stamp:
                    found[str(file)] = before
                    continue
                text = file.read_text()
            except OSError as error:
                log.warning("Failed to read manifest file=%s error=%s", file, error.strerror)
                continue
            try:
                pod: Object | None = parse(text, str(file), self._node_name, self._clock())
            except ConfigError as error:
                log.warning("Refused manifest error=%s", error)
                pod = before[1] if before is not None else None
            found[str(file)] = (stamp, pod)
        if found != self._seen:
            self._seen = found
            self._changed({p["metadata"]["uid"]: p for _, p in found.values() if p is not None})


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
