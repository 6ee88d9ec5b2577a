"""A local copy of one kind's objects, kept up to date by list and watch, with a call for every change.

Reading the copy costs nothing and never blocks on the network; it may lag behind the server by a moment.
Objects in it are shared: readers must not change them. After a lost connection the watch goes on from the
last resourceVersion seen; only when the server has forgotten that point (410) everything is listed again, and
the differences to the copy become events, so that no change is ever missed. Source: client-go's Reflector.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from kubeclient.errors import ApiError, Gone
from kubeclient.resources import Resource
from kubeclient.rest import RestClient, Watch

log = logging.getLogger(__name__)

Object = dict[str, Any]
Handler = Callable[[str, Object, Object | None], None]

FIRST_DELAY = 0.05
LONGEST_DELAY = 5.0
PAGE = 500
"""Objects in one answer to a list; client-go's pager takes as many."""


class Informer:
    """`on_event(type, new, old)` is called on the informer's own thread: ADDED, MODIFIED, DELETED.

    For DELETED `new` is the last state known. The handler must be quick; what it raises is logged.
    With `identities_only` the copy holds names, uids and resourceVersions, for listeners that keep what
    they need by themselves: `old`, and `new` of a deletion that was missed, are then no more than that.
    """

    def __init__(
        self,
        client: RestClient,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_event: Handler | None = None,
        identities_only: bool = False,
    ) -> None:
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._labels, self._fields = label_selector, field_selector
        self._on_event = on_event
        self._identities_only = identities_only
        self._objects: dict[tuple[str, str], Object] = {}
        self._lock = threading.Lock()
        self._synced = threading.Event()
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._version = ""
        self._thread = threading.Thread(target=self._run, name=f"informer-{resource.plural}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the watch and the thread; the copy stays readable."""
        self._stopping.set()
        with self._lock:
            watch = self._watch
        if watch is not None:
            watch.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)

    def wait_synced(self, timeout: float | None = None) -> bool:
        """Whether the first list is in the copy and its events were handled, within `timeout` seconds."""
        return self._synced.wait(timeout)

    def synced(self) -> bool:
        return self._synced.is_set()

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        with self._lock:
            return self._objects.get((namespace or "", name))

    def list(self) -> list[Object]:
        with self._lock:
            return [*self._objects.values()]

    def _run(self) -> None:
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if not self._version:
                    self._replace()
                self._follow()
            except Gone:
                self._version = ""
                continue
            except ApiError as error:
                log.debug("Lost watch kind=%s error=%s", self._resource.plural, error)
            except Exception:
                # An answer of a shape that no server gives must not leave the process deaf: list again.
                log.exception("Failed to follow kind=%s", self._resource.plural)
                self._version = ""
            if time.monotonic() - began > 10.0:
                delay = FIRST_DELAY
                continue
            self._stopping.wait(delay)
            # Until the server was reached once, asking often makes a start quick; it costs it nothing.
            delay = min(LONGEST_DELAY, delay * 2) if self._synced.is_set() else FIRST_DELAY

    def _replace(self) -> None:
        """List everything; what differs from the copy becomes events.

        Where the copy is small the list comes in pages, lest all of it is in memory at once.
        """
        limit = PAGE if self._identities_only else None
        head = {"apiVersion": self._resource.api_version, "kind": self._resource.kind}
        page = self._page(limit, None)
        # Every page tells of the same moment.
        version = page["metadata"]["resourceVersion"]
        if limit is None:
            self._drop_all_but({_key(obj) for obj in page["items"]})
        present: set[tuple[str, str]] = set()
        while True:
            for obj in page["items"]:
                present.add(_key(obj))
                self._apply("MODIFIED", {**head, **obj})
            follows = page["metadata"].get("continue")
            if not follows:
                break
            page = self._page(limit, follows)
        self._drop_all_but(present)
        self._version = version
        self._synced.set()

    def _page(self, limit: int | None, follows: str | None) -> Object:
        return self._client.list(
            self._resource,
            self._namespace,
            label_selector=self._labels,
            field_selector=self._fields,
            limit=limit,
            continue_=follows,
        )

    def _drop_all_but(self, present: set[tuple[str, str]]) -> None:
        with self._lock:
            gone = [obj for key, obj in self._objects.items() if key not in present]
        for obj in gone:
            self._apply("DELETED", obj)

    def _follow(self) -> None:
        watch = self._client.watch(
            self._resource,
            self._namespace,
            resource_version=self._version,
            label_selector=self._labels,
            field_selector=self._fields,
        )
        with self._lock:
            self._watch = watch
        if self._stopping.is_set():
            watch.close()
        for event in watch:
            if event.type != "BOOKMARK":
                self._apply(event.type, event.object)
            self._version = event.object["metadata"]["resourceVersion"]

    def _apply(self, kind: str, obj: Object) -> None:
        key = _key(obj)
        with self._lock:
            old = self._objects.get(key)
            if kind == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = _identity(obj) if self._identities_only else obj
        if kind == "DELETED":
            self._tell("DELETED", obj, old)
        elif old is None:
            self._tell("ADDED", obj, None)
        elif old["metadata"].get("uid") != obj["metadata"].get("uid"):
            # Deleted and made again under the same name between two looks.
            self._tell("DELETED", old, old)
            self._tell("ADDED", obj, None)
        elif old["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
            self._tell("MODIFIED", obj, old)

    def _tell(self, kind: str, new: Object, old: Object | None) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(kind, new, old)
        except Exception:
            # A defect in one object's handling must not leave the process deaf to all others.
            plural = self._resource.plural
            log.exception("Failed to handle event resource=%s type=%s key=%s", plural, kind, _key(new))


def _identity(obj: Object) -> Object:
    kept = ("name", "namespace", "uid", "resourceVersion")
    return {"metadata": {name: value for name, value in obj["metadata"].items() if name in kept}}


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]
