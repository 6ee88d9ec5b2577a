"""What all controllers share: one watch per kind for the whole process, and a queue of keys per controller.

A controller is a function from a key ("namespace/name") to the next step towards what the object asks for.
It reads from the informers' caches, writes through the API, and is called again when anything it watches
changes or when a write failed. Keys that wait are deduplicated, so a burst of events costs one call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kubeclient.errors import ApiError, Conflict
from kubeclient.events import EventRecorder
from kubeclient.informer import Informer
from kubeclient.resources import Resource
from kubeclient.rest import RestClient
from kubeclient.workqueue import WorkQueue

log = logging.getLogger("controllers")

Object = dict[str, Any]
Handler = Callable[[str, Object, Object | None], None]


class SharedInformers:
    """One informer per kind, any number of handlers, the scheduler's among them; handlers run on that kind's
    watch thread, in the order in which they came.
    """

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self._informers: dict[tuple[Resource, str, str], Informer] = {}
        self._handlers: dict[tuple[Resource, str, str], list[Handler]] = {}

    def of(
        self, resource: Resource, handler: Handler | None = None, *, namespace: str = "", fields: str = ""
    ) -> Informer:
        """The kind's informer, made at the first call; handlers must be added before `start`.

        With a namespace or field selector only those objects are copied, by an informer of its own.
        """
        key = (resource, namespace, fields)
        if key not in self._informers:
            handlers = self._handlers.setdefault(key, [])

            def dispatch(kind: str, new: Object, old: Object | None) -> None:
                for each in handlers:
                    try:
                        each(kind, new, old)
                    except Exception:
                        # A defect in one controller must not leave the others deaf.
                        log.exception("Failed to handle event type=%s key=%s", kind, key_of(new))

            self._informers[key] = Informer(
                self._client, resource, namespace or None, field_selector=fields or None, on_event=dispatch
            )
        if handler is not None:
            self._handlers[key].append(handler)
        return self._informers[key]

    def start(self) -> None:
        for informer in self._informers.values():
            informer.start()

    def wait_synced(self, timeout: float) -> bool:
        return all(informer.wait_synced(timeout) for informer in self._informers.values())

    def stop(self) -> None:
        for informer in self._informers.values():
            informer.stop()


class Controller:
    """Base of all controllers: subclasses say what they watch (in __init__) and implement `sync`."""

    name = "controller"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        self.client = client
        self.informers = informers
        self.recorder = recorder
        self.queue = WorkQueue()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def sync(self, key: str) -> None:
        """Bring the object of this key one step closer; an ApiError puts the key back, with back-off."""
        raise NotImplementedError

    def enqueue(self, kind: str, new: Object, old: Object | None = None) -> None:
        """Handler that queues the object's own key."""
        self.queue.add(key_of(new))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.queue.shut_down()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while (key := self.queue.get()) is not None:
            try:
                self.sync(key)
            except ApiError as error:
                # A conflict only means that our cache is behind; the next event brings the newer object.
                level = logging.DEBUG if isinstance(error, Conflict) else logging.WARNING
                log.log(level, "Failed to sync controller=%s key=%s error=%s", self.name, key, error)
                self.queue.add_rate_limited(key)
            except Exception:
                # A defect in one object's handling must not end the controller for all others.
                log.exception("Failed to sync controller=%s key=%s", self.name, key)
                self.queue.add_rate_limited(key)
            else:
                self.queue.forget(key)
            finally:
                self.queue.done(key)


def key_of(obj: Object) -> str:
    """ "namespace/name", or "/name" for kinds without a namespace."""
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"


def split_key(key: str) -> tuple[str | None, str]:
    """Namespace (None for kinds without one) and name."""
    namespace, _, name = key.partition("/")
    return namespace or None, name


def controller_of(obj: Object) -> Object | None:
    """The ownerReference that controls the object, or None."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)
