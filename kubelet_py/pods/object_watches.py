"""Watches the ConfigMaps and Secrets that this node's pods name, so that a change is in a volume at once.

Without it every object would have to be read again every second or two to be as quick, or changes would
wait for upstream's period of a minute. One watch per object, by name: no node may list a whole namespace's
(upstream: pkg/kubelet/util/manager/watch_based_manager.go). An object that says it is immutable is read once
and then left alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from typing import Protocol

from kubelet_py.pods.model import Object
from kubelet_py.pods.references import Key

log = logging.getLogger(__name__)

Handler = Callable[[str, Object, Object | None], None]
"""(ADDED, MODIFIED or DELETED; the object; what it was before): kubeclient's informers call it."""


class Following(Protocol):
    """A watch of one object."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Source(Protocol):
    """Who keeps what the watches bring: ObjectSource."""

    def learn(self, key: Key, found: Object | None) -> bool: ...
    def unlearn(self, key: Key) -> None: ...


class ObjectWatches:
    """`keep` says which objects are wanted now; `changed(key)` is called, on a watch's thread, when one of
    them is another than before. Thread-safe."""

    def __init__(
        self, source: Source, follow: Callable[[Key, Handler], Following], changed: Callable[[Key], None]
    ) -> None:
        self._source, self._follow, self._changed = source, follow, changed
        self._lock = threading.Lock()
        self._followed: dict[Key, Following] = {}
        self._settled: set[Key] = set()

    def keep(self, wanted: Collection[Key]) -> None:
        """Follow these, and nothing else."""
        with self._lock:
            unwanted = [key for key in self._followed if key not in wanted]
            ended = [self._followed.pop(key) for key in unwanted]
            forgotten = [key for key in self._settled if key not in wanted]
            self._settled.difference_update(forgotten)
            begun = [key for key in wanted if key not in self._followed and key not in self._settled]
            for key in begun:
                self._followed[key] = self._follow(key, self._handler(key))
            started = [self._followed[key] for key in begun]
        for following in ended:
            following.stop()
        for key in (*unwanted, *forgotten):
            self._source.unlearn(key)
        for following in started:
            following.start()

    def followed(self) -> set[Key]:
        with self._lock:
            return set(self._followed)

    def stop(self) -> None:
        self.keep(())

    def _handler(self, key: Key) -> Handler:
        def handle(kind: str, new: Object, old: Object | None) -> None:
            with self._lock:
                if key not in self._followed:
                    return
                settled = kind != "DELETED" and bool(new.get("immutable"))
                following = self._followed.pop(key) if settled else None
                if settled:
                    self._settled.add(key)
            if following is not None:
                following.stop()
            if self._source.learn(key, None if kind == "DELETED" else new):
                log.info("Learnt of change kind=%s object=%s/%s", key[0], key[1], key[2])
                self._changed(key)

        return handle
