"""Which pods this node has: from the API, from manifests, and what the runtime still holds of neither.

Every change wakes the pod's worker. A pod that ended is forgotten only when nothing of it is left; a late
event about it is ignored then. What the runtime holds of pods that nobody wants (they were deleted while
the agent was away) is ended once its source (API, folder, address) has told all its pods, and never before:
without an API everything keeps running.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from kubeclient.rest import RestClient
from kubelet_py.instruments import Instrument, Number
from kubelet_py.pods import static_pods
from kubelet_py.pods.model import (
    ANNOTATION_CONFIG_MIRROR,
    ANNOTATION_CONFIG_SOURCE,
    API_SOURCE,
    FILE_SOURCE,
    HTTP_SOURCE,
    Object,
    is_mirror,
    is_static,
    source_of,
    uid_of,
)
from kubelet_py.pods.record import PodRecord
from runtime.values import Sandbox

log = logging.getLogger(__name__)

REMEMBERED = 2000
_ACTED_UPON = (
    "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "labels", "annotations", "finalizers",
    "ownerReferences",
)  # fmt: skip
SOURCES = (API_SOURCE, FILE_SOURCE, HTTP_SOURCE)
# kubectl waits for a deletion by name: a mirror that is back within its round trip looks never deleted to it.
MIRROR_PAUSE = 1.0


class PodManager:
    def __init__(
        self,
        client: RestClient | None,
        wake: Callable[[str], None],
        node_uid: Callable[[], str],
        *,
        sandboxes: Callable[[], Sequence[Sandbox]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`sandboxes`: what the runtime holds now."""
        self._client = client
        self._sandboxes = sandboxes
        self._wake = wake
        self._node_uid = node_uid
        self._clock = clock
        self._lock = threading.RLock()
        self._records: dict[str, PodRecord] = {}
        self._mirrors: dict[str, Object] = {}
        self._ended: dict[str, None] = {}
        self._mirror_work = threading.Lock()
        self._mirror_gone: dict[str, float] = {}
        self._told: set[str] = set()
        self._orphans = Number(
            "kubelet_orphaned_runtime_pods_total",
            "Number of pods that have been detected in the container runtime without being already known to "
            "the pod worker. This typically indicates the kubelet was restarted while a pod was force "
            "deleted in the API or in the local configuration, which is unusual.",
        )
        self._restarted = Number(
            "kubelet_restarted_pods_total",
            "Number of pods that have been restarted because they were deleted and recreated with the same "
            "UID while the kubelet was watching them (common for static pods, extremely uncommon for API "
            "pods)",
            "static",
        )
        for static in ("", "true"):
            self._restarted.add(static, by=0)
        self.instruments: tuple[Instrument, ...] = (self._orphans, self._restarted)
        self.mirrors_due = threading.Event()

    def record(self, uid: str) -> PodRecord | None:
        with self._lock:
            return self._records.get(uid)

    def pod(self, uid: str) -> Object | None:
        record = self.record(uid)
        return record.pod if record is not None else None

    def records(self) -> list[PodRecord]:
        with self._lock:
            return [*self._records.values()]

    def find(self, namespace: str, name: str, uid: str | None = None) -> PodRecord | None:
        """By name, as the API's clients ask; a static pod also by its mirror's uid."""
        for record in self.records():
            metadata = record.pod["metadata"]
            if metadata["name"] != name or metadata["namespace"] != namespace:
                continue
            mirror = self._mirrors.get(record.uid)
            if uid in (None, "", record.uid) or (mirror is not None and uid_of(mirror) == uid):
                return record
        return None

    def mirror(self, pod: Object) -> Object | None:
        """A static pod's image in the API."""
        return self._mirrors.get(uid_of(pod))

    def forget(self, uid: str) -> None:
        """Nothing of the pod is left."""
        with self._lock:
            self._records.pop(uid, None)
            self._ended[uid] = None
            while len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]

    def on_api_event(self, kind: str, new: Object, old: Object | None) -> None:
        """The pod informer's handler."""
        uid = uid_of(new)
        if is_mirror(new):
            self._on_mirror(kind, new)
            return
        new = _of_api(new)
        with self._lock:
            record = self._records.get(uid)
            if record is None:
                if kind == "DELETED" or uid in self._ended:
                    return
                record = self._records[uid] = PodRecord(new, self._clock())
            record.take(new)
            record.gone = record.gone or kind == "DELETED"
        if record.ends:
            record.nudge.set()
        if kind != "MODIFIED" or old is None or not _tells_nothing(new, old):
            self._wake(uid)

    def _on_mirror(self, kind: str, mirror: Object) -> None:
        static = mirror["metadata"]["annotations"][ANNOTATION_CONFIG_MIRROR]
        with self._lock:
            known = self._mirrors.get(static)
            # Someone may have written another hash into it: it is no longer the mirror that it was.
            for other in [u for u, m in self._mirrors.items() if u != static and uid_of(m) == uid_of(mirror)]:
                del self._mirrors[other]
            if kind != "DELETED":
                self._mirrors[static] = mirror
            elif known is not None and uid_of(known) == uid_of(mirror):
                del self._mirrors[static]
                if (
                    static not in self._mirror_gone
                    or self._clock() - self._mirror_gone[static] > MIRROR_PAUSE
                ):
                    self._pause_mirror(static)
        self.mirrors_due.set()
        self._wake(static)

    def has_told(self, *sources: str) -> None:
        """These have told all their pods, or are not used on this node."""
        with self._lock:
            self._told.update(sources)

    def on_static_pods(self, source: str, pods: dict[str, Object]) -> None:
        """All static pods as the manifests of a source say now."""
        held = self._sandboxes()
        with self._lock:
            self._told.add(source)
            for uid, record in self._records.items():
                if source_of(record.pod) == source and uid not in pods:
                    record.gone = True
                    record.nudge.set()
            # First those of former manifests, edited while no agent was here: the new ones wait for them.
            self._find_orphans([s for s in held if s.config.uid not in pods], (source,))
            for uid, pod in pods.items():
                known = self._records.get(uid)
                if known is None or known.gone:
                    if known is not None or uid in self._ended:
                        self._restarted.add("true")
                    self._ended.pop(uid, None)
                    self._records[uid] = PodRecord(pod, self._clock())
            woken = [uid for uid, record in self._records.items() if is_static(record.pod)]
        self.mirrors_due.set()
        for uid in woken:
            self._wake(uid)

    def keep_mirrors(self) -> None:
        """Make the API's mirrors what the static pods are. Called when the API has told all pods."""
        if self._client is None:
            return
        with self._mirror_work:
            with self._lock:
                static = {r.uid: r.pod for r in self._records.values() if is_static(r.pod) and not r.gone}
                # A source that has not told its pods yet may still have that one.
                told = self._told
                mirrors = {u: m for u, m in self._mirrors.items() if u in static or source_of(m) in told}
            node_uid = self._node_uid()
            if not node_uid:  # the Node owns its mirrors: they wait until it is registered
                self._later()
                return
            for uid, mirror in mirrors.items():
                if uid not in static:
                    static_pods.delete_mirror(self._client, mirror)
            for uid, pod in static.items():
                image = mirrors.get(uid)
                if image is None and self._clock() - self._mirror_gone.get(uid, 0.0) < MIRROR_PAUSE:
                    continue
                if image is not None and image["metadata"].get("deletionTimestamp"):
                    static_pods.delete_mirror(self._client, image)
                    self._pause_mirror(uid)
                    continue
                made = static_pods.ensure_mirror(self._client, pod, image, node_uid)
                if made is not None:
                    self._mirrors[uid] = made
                    self._wake(uid)

    def _pause_mirror(self, uid: str) -> None:
        self._mirror_gone[uid] = self._clock()
        self._later()

    def _later(self) -> None:
        timer = threading.Timer(MIRROR_PAUSE * 1.1, self.mirrors_due.set)
        timer.daemon = True
        timer.start()

    def end_orphans(self, sandboxes: list[Sandbox], pods_dir: Path, clear: Callable[[str], None]) -> None:
        """End what runs of pods that do not exist any more, and have cleared away what is left of others: of
        those sources that have told their pods, and the latter only when all have."""
        with self._lock:
            self._find_orphans(sandboxes, self._told)
            if not self._told.issuperset(SOURCES) or not pods_dir.is_dir():
                return
            for folder in pods_dir.iterdir():
                if folder.name not in self._records:
                    clear(folder.name)

    def _find_orphans(self, sandboxes: Iterable[Sandbox], sources: Collection[str]) -> None:
        """Under the lock: make records of the pods of these sources that nobody wants any more."""
        for sandbox in sandboxes:
            config = sandbox.config
            source = config.annotations.get(ANNOTATION_CONFIG_SOURCE, API_SOURCE)
            if config.uid in self._records or source not in sources:
                continue
            log.info("Found orphaned pod=%s/%s uid=%s", config.namespace, config.name, config.uid)
            self._orphans.add()
            pod: Object = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": config.name,
                    "namespace": config.namespace,
                    "uid": config.uid,
                    "annotations": {ANNOTATION_CONFIG_SOURCE: source},
                },
                # Whoever deleted it meant it; nobody waits for a grace that is not known any more.
                "spec": {
                    "containers": [],
                    "hostNetwork": config.host_network,
                    "terminationGracePeriodSeconds": 1,
                },
            }
            self._records[config.uid] = PodRecord(pod, self._clock(), gone=True)
            self._wake(config.uid)


def _tells_nothing(new: Object, old: Object) -> bool:
    """Whether a version of a pod differs from the one before in nothing that its worker acts upon: mostly it
    is our own status that comes back. A phase in which a pod is over, and conditions that a readiness gate
    waits for, may be others' words (upstream's config.go, podsDifferSemantically)."""
    if new["spec"].get("readinessGates") or new["spec"] != old["spec"]:
        return False
    if any(new["metadata"].get(key) != old["metadata"].get(key) for key in _ACTED_UPON):
        return False
    phases = [(pod.get("status") or {}).get("phase") for pod in (new, old)]
    return phases[0] == phases[1] or phases[0] in ("Pending", "Running")


def _of_api(pod: Object) -> Object:
    """The pod, which comes from the API whatever its annotation says: who may create pods there must not pass
    one off as a manifest of this node."""
    if source_of(pod) == API_SOURCE:
        return pod
    metadata = pod["metadata"]
    annotations = {**metadata["annotations"], ANNOTATION_CONFIG_SOURCE: API_SOURCE}
    return {**pod, "metadata": {**metadata, "annotations": annotations}}
