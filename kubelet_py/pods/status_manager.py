"""Sends pod statuses to the API: when they change, at once, the newest only.

A pod that is being made changes twice within milliseconds (Pending, then Running); the first of the two is
held back for a moment (`soon`), so that a quick start costs one write. The moment is longer the more pods are
being made, since each of them takes longer then. Everything else goes out at once, by a few threads; while
one patch of a pod is on its way, newer statuses wait and only the last of them is sent.

The control plane writes too: the pods of a node that it does not hear of are not Ready. What the API has
otherwise than we said it is sent again when it is seen; an event older than our last patch does not count.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.resources import PODS
from kubeclient.rest import RestClient
from kubelet_py.instruments import Histogram, Instrument
from kubelet_py.pods.model import Object, full_name, uid_of
from kubelet_py.pods.status import contradicted, difference

log = logging.getLogger(__name__)

SENDERS = 4
HOLD_BACK, FOR_EACH_OTHER, LONGEST = 0.15, 0.04, 3.0
RETRY = 1.0
# The uid in the body is a precondition: these are the words when another pod has the name now. A conflict in
# other words (too many wrote at once) passes, as does a certificate or a right that is not known there yet.
OTHER_POD = "UID in precondition"
NEVER_TAKEN = (400, 405, 413, 415, 422)
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 20, 30, 45, 60)


@dataclass(slots=True)
class _Entry:
    pod: Object
    wanted: Object
    sent: Object
    due: float = 0.0
    held: float | None = None  # the moment since which it may wait for a better one
    since: float | None = None  # the moment of the oldest change that the API has not
    version: int = 0  # the pod's, as our last patch made it
    seen: tuple[int, Object] = (0, {})  # the newest version and status that the API showed
    busy: bool = False
    queued: bool = False
    idle: threading.Condition = field(default_factory=threading.Condition)


class StatusManager:
    """`set` never blocks; `flush` waits until the API has the newest status of one pod. `sent` is told of
    each status that the API has taken, and in how many seconds."""

    def __init__(
        self,
        client: RestClient,
        *,
        sent: Callable[[str, Object, float], None] = lambda uid, status, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._sent = sent
        self._clock = clock
        self._lock = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._ready: deque[str] = deque()
        self._stopping = False
        self._duration = Histogram(
            "kubelet_pod_status_sync_duration_seconds",
            "Duration in seconds to sync a pod status update. Measures time from detection of a change to "
            "pod status until the API is successfully updated for that pod, even if multiple intervening "
            "changes to pod status occur.",
            bounds=BOUNDS,
        )
        self.instruments: tuple[Instrument, ...] = (self._duration,)
        self._threads = [
            threading.Thread(target=self._run, name=f"status-{number}", daemon=True)
            for number in range(SENDERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._lock.notify_all()

    def set(self, pod: Object, status: Object, *, soon: bool = False) -> None:
        """Make `status` the pod's; `soon`: it may wait a moment for a better one."""
        uid = uid_of(pod)
        with self._lock:
            entry = self._entries.get(uid)
            if entry is None:
                entry = self._entries[uid] = _Entry(pod, status, dict(pod.get("status") or {}))
            entry.pod, entry.wanted = pod, status
            if not difference(entry.sent, status):
                return
            now = self._clock()
            entry.since = now if entry.since is None else entry.since
            if not soon:
                entry.due, entry.held = 0.0, None
            elif not entry.queued:
                entry.held = now
            if not entry.queued and not entry.busy:
                entry.queued = True
                self._ready.append(uid)
            if not soon or len(self._ready) == 1:
                self._lock.notify_all()  # else who waits for the others' moment comes sooner than it is due

    def seen(self, pod: Object) -> None:
        """The API shows the pod like this: correct it if its conditions are not as we said."""
        with self._lock:
            entry = self._entries.get(uid_of(pod))
            if entry is None:
                return
            entry.seen = (int(pod["metadata"]["resourceVersion"]), pod.get("status") or {})
            if not entry.busy:
                self._reconcile(uid_of(pod), entry)

    def _reconcile(self, uid: str, entry: _Entry) -> None:
        version, shown = entry.seen
        if version <= entry.version or not contradicted(shown, entry.sent):
            return
        entry.version, entry.sent = version, dict(shown)
        log.info("Found pod status overwritten pod=%s", full_name(entry.pod))
        if difference(entry.sent, entry.wanted) and not entry.queued:
            entry.queued, entry.due = True, 0.0
            self._ready.append(uid)
            self._lock.notify()

    def known(self, uid: str) -> Object | None:
        """The status last given to `set`, which may be newer than the API's."""
        with self._lock:
            entry = self._entries.get(uid)
            return entry.wanted if entry is not None else None

    def flush(self, uid: str, timeout: float) -> bool:
        """Wait until nothing of this pod is left to send; False when `timeout` seconds were not enough."""
        end = self._clock() + timeout
        with self._lock:
            while (entry := self._entries.get(uid)) is not None and (entry.busy or entry.queued):
                left = end - self._clock()
                if left <= 0 or self._stopping:
                    return False
                self._lock.wait(left)
        return True

    def forget(self, uid: str) -> None:
        with self._lock:
            self._entries.pop(uid, None)

    def _run(self) -> None:
        while True:
            with self._lock:
                picked = self._pick()
                if picked is None:
                    return
                uid, entry = picked
                entry.queued, entry.busy, entry.held = False, True, None
                pod, wanted = entry.pod, entry.wanted
                patch = difference(entry.sent, wanted)
                since, entry.since = entry.since, None
            began = self._clock()
            again = bool(patch) and not self._send(uid, entry, pod, patch)
            if patch and not again:
                now = self._clock()
                self._duration.observe(now - (began if since is None else since))
                self._sent(uid, wanted, now - began)
            with self._lock:
                entry.busy = False
                if not again:
                    entry.sent = wanted
                elif since is not None:
                    entry.since = since
                if self._entries.get(uid) is entry and difference(entry.sent, entry.wanted):
                    entry.queued = True
                    entry.due = self._clock() + RETRY if again else 0.0
                    self._ready.append(uid)
                self._reconcile(uid, entry)
                self._lock.notify_all()

    def _pick(self) -> tuple[str, _Entry] | None:
        """The next pod that is due; waits for one. None: the manager stops."""
        while not self._stopping:
            now, soonest = self._clock(), None
            for _ in range(len(self._ready)):
                uid = self._ready.popleft()
                entry = self._entries.get(uid)
                if entry is None:
                    continue
                due = entry.due
                if entry.held is not None:
                    due = max(due, entry.held + hold_back(len(self._ready)))
                if due <= now:
                    if self._ready:
                        self._lock.notify_all()  # somebody has to wait for the others' moment
                    return uid, entry
                self._ready.append(uid)
                soonest = due if soonest is None else min(soonest, due)
            self._lock.wait(None if soonest is None else max(0.001, soonest - now))
        return None

    def _send(self, uid: str, entry: _Entry, pod: Object, patch: Object) -> bool:
        """True when the API has it, or when it has nobody to give it to any more."""
        metadata = pod["metadata"]
        body: dict[str, Any] = {"metadata": {"uid": uid}, "status": patch}
        try:
            name, namespace = metadata["name"], metadata["namespace"]
            made = self._client.patch(PODS, name, body, namespace, subresource="status")
            entry.version = int(made["metadata"]["resourceVersion"])
        except ApiError as error:
            if isinstance(error, NotFound) or (isinstance(error, Conflict) and OTHER_POD in error.message):
                log.debug("Dropped pod status pod=%s error=%s", full_name(pod), error)
                return True
            log.info("Failed to send pod status pod=%s error=%s", full_name(pod), error)
            return error.code in NEVER_TAKEN
        return True


def hold_back(others: int) -> float:
    """Seconds for which the status of a pod that is being made may wait while so many others wait, too."""
    return min(LONGEST, HOLD_BACK + FOR_EACH_OTHER * others)


class NullStatusManager(StatusManager):
    """For a node without an API server: remembers, sends nothing."""

    def __init__(self) -> None:
        self._wanted: dict[str, Object] = {}
        self.instruments = ()

    def start(self) -> None:
        return

    def stop(self) -> None:
        return

    def set(self, pod: Object, status: Object, *, soon: bool = False) -> None:
        self._wanted[uid_of(pod)] = status

    def seen(self, pod: Object) -> None:
        return

    def known(self, uid: str) -> Object | None:
        return self._wanted.get(uid)

    def flush(self, uid: str, timeout: float) -> bool:
        return True

    def forget(self, uid: str) -> None:
        self._wanted.pop(uid, None)
