"""Events: what happened to an object, in words, for `kubectl describe` and `kubectl get events`.

They are sent by a thread of their own and never hold up the work they tell about: while there is much to
tell, there is much to do, so they wait until nothing was told for QUIET seconds, but no event longer than
LONGEST. A pod's start comes with four or five, half of the requests of a hundred pods that start at once,
which would take the API server's time just before the statuses that everybody waits for. What repeats,
is similar or floods is made less of by event_correlator.py. An API server that does not answer is asked
TRIES times; what it refuses is not told again. Source: client-go's tools/record.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kubeclient.errors import AlreadyExists, ApiError, NotFound, ServerUnavailable, TooManyRequests
from kubeclient.event_correlator import EventCorrelator, Told
from kubeclient.resources import EVENTS
from kubeclient.rest import RestClient

log = logging.getLogger(__name__)

Object = dict[str, Any]
_Item = tuple[Object, str, str, str, float]
WAITING = 1000
QUIET, LONGEST = 0.1, 3.0
TRIES, RETRY_SECONDS = 12, 10.0


class EventRecorder:
    """Events of one component ("kubelet", "default-scheduler"); `host` is the node's name or ""."""

    def __init__(
        self,
        client: RestClient,
        component: str,
        host: str = "",
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._sleep = sleep
        self._source = {"component": component, **({"host": host} if host else {})}
        self._component = component
        self._host = host
        self._clock = clock
        self._correlator = EventCorrelator()
        self._monotonic = monotonic
        self._waiting: deque[tuple[float, _Item]] = deque()
        self._told_at = 0.0
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None

    def event(
        self, obj: Object, kind: str, reason: str, message: str, *, field_path: str | None = None
    ) -> None:
        """Tell about `obj` (an object, or an ObjectReference with uid); `kind` is Normal or Warning."""
        reference = _reference(obj, field_path)
        item = (reference, kind, reason, message, self._clock())
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            full = len(self._waiting) >= WAITING
            if not full:
                self._told_at = self._monotonic()
                self._waiting.append((self._told_at, item))
                if len(self._waiting) == 1:
                    self._lock.notify()
        if full:
            log.warning("Dropped event reason=%s object=%s", reason, reference.get("name"))

    def _next(self) -> _Item:
        """The oldest, when its time has come."""
        with self._lock:
            while True:
                left: float | None = None
                if self._waiting:
                    oldest = self._waiting[0][0]
                    left = hold_back(oldest, self._told_at, self._monotonic(), len(self._waiting))
                    if left <= 0:
                        return self._waiting.popleft()[1]
                self._lock.wait(left)

    def _run(self) -> None:
        while True:
            reference, kind, reason, message, now = self._next()
            told = self._correlator.tell(reference, kind, reason, message[:1024], now)
            if told is not None:
                self._deliver(reference, kind, reason, told, now)

    def _deliver(self, reference: Object, kind: str, reason: str, told: Told, now: float) -> None:
        for tries in range(1, TRIES + 1):
            try:
                self._send(reference, kind, reason, told, now, again=tries > 1)
                return
            except (ServerUnavailable, TooManyRequests) as error:
                if tries == TRIES:
                    name = reference.get("name")
                    log.warning("Gave up on event reason=%s object=%s error=%s", reason, name, error)
                    return
                # The first wait is a random one: nodes shall not all come back at once.
                self._sleep(RETRY_SECONDS * (random.random() if tries == 1 else 1))
            except ApiError as error:
                log.info("Refused event reason=%s object=%s error=%s", reason, reference.get("name"), error)
                return

    def _send(
        self, reference: Object, kind: str, reason: str, told: Told, now: float, *, again: bool
    ) -> None:
        if told.name:
            body = {"count": told.count, "lastTimestamp": _stamp(now), "message": told.message}
            try:
                self._client.patch(EVENTS, told.name, body, _namespace(reference))
                return
            except NotFound:
                pass  # it was cleaned up meanwhile: make a new one
        event = self._event(reference, kind, reason, told, now)
        try:
            self._client.create(EVENTS, event)
        except AlreadyExists:
            if not again:
                raise
            # The server that did not answer had made it all the same.
        self._correlator.made(reference, kind, reason, told.message, event["metadata"]["name"])

    def _event(self, reference: Object, kind: str, reason: str, told: Told, now: float) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{reference['name']}.{int(now * 1e9):x}",
                "namespace": _namespace(reference),
            },
            "involvedObject": reference,
            "reason": reason,
            "message": told.message[:1024],
            "source": self._source,
            "firstTimestamp": _stamp(told.first),
            "lastTimestamp": _stamp(now),
            "count": told.count,
            "type": kind,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }


def _namespace(reference: Object) -> str:
    return str(reference.get("namespace") or "default")


def hold_back(oldest: float, newest: float, now: float, count: int) -> float:
    """Seconds for which the oldest of `count` waiting events is not yet sent; `oldest` and `newest` were told
    then."""
    return min(newest + QUIET, oldest + LONGEST) - now if count < WAITING // 2 else 0.0


def _reference(obj: Object, field_path: str | None) -> Object:
    if "metadata" in obj:
        metadata = obj["metadata"]
        reference = {
            "kind": obj.get("kind", ""),
            "apiVersion": obj.get("apiVersion", ""),
            "name": metadata["name"],
            "namespace": metadata.get("namespace", ""),
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
    else:
        reference = dict(obj)
    if field_path:
        reference["fieldPath"] = field_path
    return {key: value for key, value in reference.items() if value}


def _stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
