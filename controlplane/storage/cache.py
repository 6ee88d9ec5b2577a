"""All objects in memory, as the bytes that clients get; the one place where writes are ordered.

A read never touches the database and never encodes: GET answers the stored bytes, LIST joins them. A write
goes three steps:

1. `put` or `remove` compares with the newest version (optimistic locking), takes the next revision and writes
   it into the object;
2. the bytes are committed;
3. the change becomes visible, watchers get their events, and the writer's future resolves.

Where a commit only hands pages to the kernel (30 µs) all three are one step on the event loop's thread: a
thread of its own would cost ten times as much, for each hand-over waits for the interpreter's lock. Where it
waits for a disk, or while the store is being tidied, the committer's thread writes everything that waits in
one transaction (group commit), and step 3 follows on the loop.

So whatever a client was ever shown is on disk, and a crash shows nobody a write that never happened.
Writes that are on their way are kept aside (`_pending`): later writers must compare with those, readers
must not see them.

Each collection keeps a window of past events. A watch may start anywhere in it, and `snapshot` rebuilds the
list as of an older revision from it by undoing events, which is how pages of one list stay consistent.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from controlplane.errors import StoreError
from controlplane.storage.store import Change, Store, make_key, split_key

log = logging.getLogger(__name__)

Object = dict[str, Any]
Place = tuple[str, str]  # (namespace or "", name)

HISTORY = 2048  # events kept per collection

# What the committer's queue carries besides changes.
_CONTINUE = "nothing more for now"
_TIDY = "the store has work of its own to do"
_STOP = "stop"
_FORGOTTEN = "the loop has failed every write that waited"


class Entry:
    """One version of one object: its JSON bytes and the few parsed fields that selectors need.

    `fresh` is the object itself for as long as a write of it is being published.
    """

    __slots__ = ("_labels", "fields", "fresh", "name", "namespace", "raw", "revision")

    def __init__(self, namespace: str, name: str, revision: int, raw: bytes, labels: Any = None) -> None:
        self.namespace = namespace
        self.name = name
        self.revision = revision
        self.raw = raw
        self._labels: Mapping[str, str] | None = labels
        self.fresh: Object | None = None
        self.fields: Mapping[str, str] | None = None  # filled by whoever knows the kind's selectable fields

    def parse(self) -> Object:
        """The object, newly decoded: the caller may change it."""
        parsed: Object = orjson.loads(self.raw)
        return parsed

    def look(self) -> Object:
        """The object for reading only, decoded if it has to be."""
        return self.parse() if self.fresh is None else self.fresh

    @property
    def labels(self) -> Mapping[str, str]:
        if self._labels is None:
            self._labels = self.parse()["metadata"].get("labels") or {}
        return self._labels


class Event:
    """A change that readers may see: ADDED, MODIFIED or DELETED.

    `entry` is the new version; of a deletion it is the last one, with the deletion's revision. `encoded`
    holds the event's bytes in each form that some watcher asked for, so that a hundred watchers cost one
    encoding.
    """

    __slots__ = ("encoded", "entry", "previous", "type")

    def __init__(self, kind: str, entry: Entry, previous: Entry | None) -> None:
        self.type = kind
        self.entry = entry
        self.previous = previous
        self.encoded: dict[Any, bytes] = {}

    @property
    def revision(self) -> int:
        return self.entry.revision


Listener = Callable[[Event], None]


class StaleError(Exception):
    """The object changed since it was read: someone else's write came first."""


class TooOldError(Exception):
    """The history no longer reaches back to the revision that was asked for."""


class Collection:
    """All objects of one kind, in key order, and their recent past."""

    __slots__ = ("entries", "floor", "history", "listeners", "name", "order", "touched")

    def __init__(self, name: str, floor: int) -> None:
        self.name = name
        self.entries: dict[Place, Entry] = {}
        self.order: list[Place] = []
        self.history: deque[Event] = deque()
        self.floor = floor  # every event after this revision is in `history`
        self.touched = floor
        self.listeners: dict[object, Listener] = {}

    def insert(self, entry: Entry) -> None:
        place = (entry.namespace, entry.name)
        if place not in self.entries:
            if not self.order or self.order[-1] < place:
                self.order.append(place)
            else:
                insort(self.order, place)
        self.entries[place] = entry

    def discard(self, place: Place) -> None:
        if self.entries.pop(place, None) is not None:
            del self.order[bisect_left(self.order, place)]

    def remember(self, event: Event) -> None:
        if len(self.history) >= HISTORY:
            self.floor = self.history.popleft().revision
        self.history.append(event)
        self.touched = event.revision

    def since(self, revision: int) -> list[Event]:
        """Events after this revision. Raises TooOldError."""
        if revision < self.floor:
            raise TooOldError(f"{self.name} has history since revision {self.floor}, not {revision}")
        if revision >= self.touched:
            return []
        newer: list[Event] = []
        for event in reversed(self.history):
            if event.revision <= revision:
                break
            newer.append(event)
        newer.reverse()
        return newer

    def present(self, namespace: str = "", after: Place | None = None) -> Iterator[Entry]:
        """The present objects in key order, of one namespace if given, those after a place if given."""
        yield from self._walk(self.entries, self.order, namespace, after)

    def snapshot(self, revision: int, namespace: str = "", after: Place | None = None) -> Iterator[Entry]:
        """As `present`, but as things were at an older revision. Raises TooOldError."""
        newer = self.since(revision)
        if not newer:
            return self.present(namespace, after)
        entries = dict(self.entries)
        for event in reversed(newer):
            place = (event.entry.namespace, event.entry.name)
            if event.previous is None:
                entries.pop(place, None)
            else:
                entries[place] = event.previous
        return self._walk(entries, sorted(entries), namespace, after)

    @staticmethod
    def _walk(
        entries: dict[Place, Entry], order: list[Place], namespace: str, after: Place | None
    ) -> Iterator[Entry]:
        first = bisect_left(order, (namespace, "")) if namespace else 0
        if after is not None:
            first = max(first, bisect_left(order, (after[0], after[1] + "\0")))
        for place in order[first:]:
            if namespace and place[0] != namespace:
                return
            yield entries[place]


class Cache:
    """Every collection, and the way of a write through the committer. Used on the loop's thread only."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        """Load everything. Raises StoreError."""
        self._loop = loop
        self._store = store
        snapshot = store.load()
        self.revision = snapshot.revision  # newest that readers may see
        self._assigned = snapshot.revision  # newest that a writer was given
        self._collections: dict[str, Collection] = {}
        self._pending: dict[str, tuple[int, Entry | None]] = {}
        self._waiting: dict[int, tuple[Event, str, asyncio.Future[Entry]]] = {}
        self._direct = not store.waits_for_disk
        self._tidying = False
        for name, touched in snapshot.touched.items():
            self._collections[name] = Collection(name, touched)
        for row in snapshot.rows:
            name, namespace, object_name = split_key(row.key)
            assert row.value is not None
            self.collection(name).insert(Entry(namespace, object_name, row.revision, row.value))
        self._queue: queue.SimpleQueue[Change | str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._commit_forever, name="committer", daemon=True)
        self._thread.start()

    def collection(self, name: str) -> Collection:
        """The collection of that name (`core/pods`), empty if nothing was ever written to it."""
        found = self._collections.get(name)
        if found is None:
            found = self._collections[name] = Collection(name, 0)
        return found

    def get(self, collection: str, namespace: str, name: str) -> Entry | None:
        """The version that readers see."""
        return self.collection(collection).entries.get((namespace, name))

    def latest(self, collection: str, namespace: str, name: str) -> Entry | None:
        """The version that a writer must compare with: newer than `get`'s while a write is on its way."""
        key = make_key(collection, namespace, name)
        pending = self._pending.get(key)
        if pending is not None:
            return pending[1]
        return self.get(collection, namespace, name)

    def newest(self, collection: str, namespace: str) -> Iterator[Entry]:
        """All of a namespace as `latest` has them: what a writer must count."""
        prefix = make_key(collection, namespace, "")
        pending = {key: entry for key, (_, entry) in self._pending.items() if key.startswith(prefix)}
        for entry in self.collection(collection).present(namespace):
            if make_key(collection, namespace, entry.name) not in pending:
                yield entry
        yield from (entry for entry in pending.values() if entry is not None)

    def put(
        self, collection: str, namespace: str, name: str, obj: Object, previous: Entry | None
    ) -> asyncio.Future[Entry]:
        """Create (`previous` None) or replace; the object gets its resourceVersion here.

        Raises StaleError at once; the future raises StoreError when the disk refuses.
        """
        if self.latest(collection, namespace, name) is not previous:
            raise StaleError(name)
        revision = self._next()
        obj["metadata"]["resourceVersion"] = str(revision)
        labels = obj["metadata"].get("labels") or {}
        entry = Entry(namespace, name, revision, orjson.dumps(obj), labels)
        event = Event("ADDED" if previous is None else "MODIFIED", entry, previous)
        return self._submit(collection, event, entry, obj)

    def remove(self, collection: str, previous: Entry, last: Object) -> asyncio.Future[Entry]:
        """Delete; `last` is the state that watchers are shown. Raises as `put`."""
        namespace, name = previous.namespace, previous.name
        if self.latest(collection, namespace, name) is not previous:
            raise StaleError(name)
        revision = self._next()
        last["metadata"]["resourceVersion"] = str(revision)
        entry = Entry(namespace, name, revision, orjson.dumps(last), last["metadata"].get("labels") or {})
        return self._submit(collection, Event("DELETED", entry, previous), None, last)

    def listen(self, collection: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each event from now on; the answer ends that."""
        listeners = self.collection(collection).listeners
        token = object()
        listeners[token] = listener

        def stop() -> None:
            listeners.pop(token, None)

        return stop

    def close(self) -> None:
        """Write what waits, then stop the committer and close the database."""
        self._queue.put(_STOP)
        self._thread.join()
        self._store.close()

    def _next(self) -> int:
        self._assigned += 1
        return self._assigned

    def _submit(
        self, collection: str, event: Event, pending: Entry | None, obj: Object
    ) -> asyncio.Future[Entry]:
        entry = event.entry
        key = make_key(collection, entry.namespace, entry.name)
        change = Change(key, entry.revision, None if pending is None else entry.raw)
        future: asyncio.Future[Entry] = self._loop.create_future()
        if self._direct and not self._tidying and not self._waiting:
            entry.fresh = obj
            self._commit_now(change, collection, event, future)
            entry.fresh = None
            return future
        self._pending[key] = (entry.revision, pending)
        self._waiting[entry.revision] = (event, collection, future)
        self._queue.put(change)
        return future

    def _commit_now(
        self, change: Change, collection: str, event: Event, future: asyncio.Future[Entry]
    ) -> None:
        """All of a write at once: nobody else can come between."""
        try:
            self._store.commit((change,))
        except StoreError as error:
            log.error("Could not commit writes=1 error=%s", error)
            future.set_exception(error)
            return
        self._publish(change, collection, event)
        future.set_result(event.entry)
        if self._store.untidy():
            self._tidying = True
            self._queue.put(_TIDY)

    def _tidied(self, _: object) -> None:
        self._tidying = False

    def _commit_forever(self) -> None:
        while True:
            batch: list[Change] = []
            order = self._queue.get()
            if order is _TIDY:
                self._store.tidy()
                self._call(self._tidied, None)
                continue
            while isinstance(order, Change):
                batch.append(order)
                try:
                    order = self._queue.get_nowait()
                except queue.Empty:
                    order = _CONTINUE
            if batch and not self._commit(batch):
                # Whatever else is queued was built upon writes that never happened.
                while order is not _FORGOTTEN and order is not _STOP:
                    order = self._queue.get()
            if order is _STOP:
                return

    def _commit(self, batch: list[Change]) -> bool:
        try:
            self._store.commit(batch)
        except StoreError as error:
            log.error("Could not commit writes=%d error=%s", len(batch), error)
            self._call(self._refused, error)
            return False
        self._call(self._committed, batch)
        return True

    def _call(self, function: Callable[[Any], None], argument: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)

    def _committed(self, batch: list[Change]) -> None:
        for change in batch:
            event, name, future = self._waiting.pop(change.revision)
            self._publish(change, name, event)
            if not future.done():  # the client may have hung up
                future.set_result(event.entry)

    def _publish(self, change: Change, name: str, event: Event) -> None:
        collection = self.collection(name)
        entry = event.entry
        if change.value is None:
            collection.discard((entry.namespace, entry.name))
        else:
            collection.insert(entry)
        pending = self._pending.get(change.key)
        if pending is not None and pending[0] == change.revision:
            del self._pending[change.key]
        self.revision = change.revision
        collection.remember(event)
        for listener in tuple(collection.listeners.values()):
            try:
                listener(event)
            except Exception:
                # The write has happened: one watcher's defect is neither the writer's nor the others'.
                log.exception("Failed to tell a watcher collection=%s", name)

    def _refused(self, error: StoreError) -> None:
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._pending.clear()
        self._queue.put(_FORGOTTEN)
        for _, _, future in waiting:
            if not future.done():
                future.set_exception(error)
