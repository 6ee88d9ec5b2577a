"""Events: what happened to an object, in words, for `kubectl describe` and `kubectl get events`.

They are sent by a thread of their own and never hold up the work they tell about: while there is much to
tell, there is much to do, so they wait until nothing was told for QUIET seconds, but no event longer than
LONGEST. A pod's start comes with four or five, half of the requests of a hundred pods that start at once,
which would take the API server's time just before the statuses that everybody waits for. An event that
repeats within ten minutes raises `count` on the first one instead of making another; an object that floods is
held to a burst of 25 and then one per five minutes. Source: client-go's tools/record (correlator).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kubeclient.errors import ApiError, NotFound
from kubeclient.resources import EVENTS
from kubeclient.rest import RestClient

log = logging.getLogger(__name__)

Object = dict[str, Any]
_Item = tuple[Object, str, str, str, float]
SAME_FOR = 600.0
BURST = 25
REFILL = 1 / 300
WAITING = 1000
QUIET, LONGEST = 0.1, 3.0
REMEMBERED = 4096


@dataclass(slots=True)
class _Known:
    name: str
    namespace: str
    count: int
    seen: float


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
    ) -> None:
        self._client = client
        self._source = {"component": component, **({"host": host} if host else {})}
        self._component = component
        self._host = host
        self._clock = clock
        self._known: dict[tuple[str, ...], _Known] = {}
        self._tokens: dict[str, tuple[float, float]] = {}
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
            item = self._next()
            try:
                self._send(*item)
            except ApiError as error:
                log.info(
                    "Failed to send event reason=%s object=%s error=%s", item[2], item[0].get("name"), error
                )

    def _send(self, reference: Object, kind: str, reason: str, message: str, now: float) -> None:
        key = (reference.get("uid", ""), reference.get("fieldPath", ""), kind, reason, message)
        if not self._allowed(key[0], now):
            return
        known = self._known.get(key)
        if known is not None and now - known.seen < SAME_FOR:
            known.count += 1
            known.seen = now
            try:
                body = {"count": known.count, "lastTimestamp": _stamp(now)}
                self._client.patch(EVENTS, known.name, body, known.namespace)
                return
            except NotFound:
                pass  # it was cleaned up meanwhile: make a new one
        made = self._client.create(EVENTS, self._event(reference, kind, reason, message, now))
        if len(self._known) >= REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[key] = _Known(made["metadata"]["name"], made["metadata"]["namespace"], 1, now)

    def _event(self, reference: Object, kind: str, reason: str, message: str, now: float) -> Object:
        namespace = reference.get("namespace") or "default"
        name = f"{reference['name']}.{int(now * 1e9):x}"
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": reference,
            "reason": reason,
            "message": message[:1024],
            "source": self._source,
            "firstTimestamp": _stamp(now),
            "lastTimestamp": _stamp(now),
            "count": 1,
            "type": kind,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }

    def _allowed(self, uid: str, now: float) -> bool:
        """A token bucket per object."""
        tokens, since = self._tokens.pop(uid, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - since) * REFILL)
        self._tokens[uid] = (max(0.0, tokens - 1), now)
        if len(self._tokens) > REMEMBERED:
            self._tokens.pop(next(iter(self._tokens)))
        return tokens >= 1


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
