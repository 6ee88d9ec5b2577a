"""The store and the cache: order, visibility, history, and what survives SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import StoreError
from controlplane.storage.cache import HISTORY, Cache, Event, StaleError, TooOldError
from controlplane.storage.sqlite import SqliteStore
from controlplane.storage.store import Change, Snapshot, make_key, split_key


class ListStore:
    """A database in memory that can be told to refuse."""

    def __init__(self, *, waits_for_disk: bool = True) -> None:
        self.waits_for_disk = waits_for_disk
        self.batches: list[list[Change]] = []
        self.threads: list[str] = []
        self.full = False
        self.owing = False
        self.may_tidy = threading.Event()

    def load(self) -> Snapshot:
        return Snapshot(0, [], {})

    def commit(self, changes: Sequence[Change]) -> None:
        if self.full:
            raise StoreError("Could not write state.db: disk is full (free some disk space)")
        self.batches.append(list(changes))
        self.threads.append(threading.current_thread().name)

    def untidy(self) -> bool:
        return self.owing

    def tidy(self) -> None:
        assert threading.current_thread().name == "committer"
        assert self.may_tidy.wait(30)
        self.owing = False

    def close(self) -> None:
        pass


def config(name: str, value: str = "", namespace: str = "default") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "data": {"v": value}}


KIND = "core/configmaps"


def put(cache: Cache, name: str, value: str = "", namespace: str = "default") -> asyncio.Future[Any]:
    return cache.put(
        KIND, namespace, name, config(name, value, namespace), cache.latest(KIND, namespace, name)
    )


def run(test: Any, store: Any = None) -> Any:
    async def inner() -> Any:
        cache = Cache(store or ListStore(), asyncio.get_running_loop())
        try:
            return await test(cache)
        finally:
            cache.close()

    return asyncio.run(inner())


def test_keys_come_apart_as_they_were_put_together() -> None:
    assert split_key(make_key("core/pods", "default", "web")) == ("core/pods", "default", "web")
    assert split_key(make_key("core/nodes", "", "n1")) == ("core/nodes", "", "n1")


def test_a_write_is_seen_by_writers_at_once_and_by_readers_after_the_commit() -> None:
    async def test(cache: Cache) -> None:
        future = put(cache, "a")
        assert cache.latest(KIND, "default", "a") is not None
        assert cache.get(KIND, "default", "a") is None
        entry = await future
        assert cache.get(KIND, "default", "a") is entry
        assert entry.parse()["metadata"]["resourceVersion"] == str(entry.revision) == "1"

    run(test)


def test_a_writer_that_read_an_older_version_is_refused() -> None:
    async def test(cache: Cache) -> None:
        first = await put(cache, "a")
        second = put(cache, "a", "2")
        with pytest.raises(StaleError):
            cache.put(KIND, "default", "a", config("a"), first)
        await second

    run(test)


def test_create_delete_create_in_one_tick_publishes_three_events_in_order() -> None:
    async def test(cache: Cache) -> None:
        seen: list[tuple[str, int]] = []
        cache.listen(KIND, lambda event: seen.append((event.type, event.revision)))
        first = put(cache, "a")
        latest = cache.latest(KIND, "default", "a")
        assert latest is not None
        second = cache.remove(KIND, latest, latest.parse())
        assert cache.latest(KIND, "default", "a") is None
        third = put(cache, "a")
        await asyncio.gather(first, second, third)
        assert seen == [("ADDED", 1), ("DELETED", 2), ("ADDED", 3)]
        found = cache.get(KIND, "default", "a")
        assert found is not None and found.revision == 3

    run(test)


def test_lists_are_in_key_order_and_of_one_namespace() -> None:
    async def test(cache: Cache) -> None:
        await asyncio.gather(*(put(cache, name, namespace=ns) for ns in "ba" for name in "zyx"))
        collection = cache.collection(KIND)
        assert [(e.namespace, e.name) for e in collection.present()] == [(n, x) for n in "ab" for x in "xyz"]
        assert [e.name for e in collection.present("b")] == ["x", "y", "z"]
        assert [e.name for e in collection.present("a", ("a", "x"))] == ["y", "z"]

    run(test)


def test_a_snapshot_shows_the_past() -> None:
    async def test(cache: Cache) -> None:
        await put(cache, "a", "old")
        await put(cache, "b")
        then = cache.revision
        await put(cache, "a", "new")
        await put(cache, "c")
        latest = cache.latest(KIND, "default", "b")
        assert latest is not None
        await cache.remove(KIND, latest, latest.parse())
        past = list(cache.collection(KIND).snapshot(then, "default"))
        assert [(e.name, e.parse()["data"]["v"]) for e in past] == [("a", "old"), ("b", "")]

    run(test)


def test_history_is_bounded_and_says_when_it_does_not_reach_back() -> None:
    async def test(cache: Cache) -> None:
        for _ in range(HISTORY + 1):
            last = put(cache, "a")
        await last
        collection = cache.collection(KIND)
        assert len(collection.since(1)) == HISTORY
        with pytest.raises(TooOldError):
            collection.since(0)

    run(test)


def test_a_full_disk_fails_the_write_and_everything_built_upon_it() -> None:
    store = ListStore()

    async def test(cache: Cache) -> None:
        store.full = True
        first = put(cache, "a")
        second = put(cache, "a", "2")
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [StoreError, StoreError]
        assert cache.latest(KIND, "default", "a") is None
        store.full = False
        entry = await put(cache, "a", "3")
        assert entry.parse()["data"]["v"] == "3"

    run(test, store)


def test_writes_that_wait_share_one_commit() -> None:
    store = ListStore()

    async def test(cache: Cache) -> None:
        await asyncio.gather(*(put(cache, str(n)) for n in range(200)))

    run(test, store)
    assert sum(map(len, store.batches)) == 200
    assert len(store.batches) < 100


def test_a_store_that_waits_for_nothing_commits_and_publishes_at_once() -> None:
    store = ListStore(waits_for_disk=False)

    async def test(cache: Cache) -> None:
        seen: list[int] = []
        cache.listen(KIND, lambda event: seen.append(event.revision))
        future = put(cache, "a")
        assert future.done() and seen == [1] and cache.revision == 1
        assert cache.get(KIND, "default", "a") is cache.latest(KIND, "default", "a") is await future
        assert store.threads == [threading.current_thread().name]

    run(test, store)


def test_a_commit_that_is_refused_at_once_leaves_the_version_before() -> None:
    store = ListStore(waits_for_disk=False)

    async def test(cache: Cache) -> None:
        before = await put(cache, "a", "1")
        store.full = True
        with pytest.raises(StoreError, match="disk is full"):
            await put(cache, "a", "2")
        assert cache.latest(KIND, "default", "a") is cache.get(KIND, "default", "a") is before
        store.full = False
        assert (await put(cache, "a", "3")).parse()["data"]["v"] == "3"

    run(test, store)


def test_writes_wait_in_order_while_the_store_is_tidied_and_reads_do_not() -> None:
    store = ListStore(waits_for_disk=False)

    async def test(cache: Cache) -> None:
        seen: list[int] = []
        cache.listen(KIND, lambda event: seen.append(event.revision))
        store.owing = True
        first = await put(cache, "a", "1")
        second, third = put(cache, "a", "2"), put(cache, "b")
        assert not second.done() and cache.get(KIND, "default", "a") is first
        store.may_tidy.set()
        await asyncio.gather(second, third)
        assert store.threads[1:] == ["committer"] * (len(store.batches) - 1)
        while not put(cache, "c").done():  # the loop has yet to hear that all is tidy
            await asyncio.sleep(0)
        assert seen == list(range(1, len(seen) + 1)) and store.threads[-1] != "committer"

    run(test, store)


def test_sqlite_folds_its_log_into_the_file_when_asked_and_not_in_a_commit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.load()
    before = (tmp_path / "state.db").stat().st_size
    revision = 0
    while not store.untidy():
        revision += 1
        store.commit([Change(make_key(KIND, "default", f"c{revision}"), revision, bytes(4096))])
    assert (tmp_path / "state.db").stat().st_size == before
    log = (tmp_path / "state.db-wal").stat().st_size
    store.tidy()
    assert not store.untidy()
    assert (tmp_path / "state.db").stat().st_size >= revision * 4096
    for number in range(100):
        store.commit([Change(make_key(KIND, "default", "again"), revision + number, b"{}")])
    assert (tmp_path / "state.db-wal").stat().st_size == log  # begun anew
    store.close()
    again = SqliteStore(tmp_path)
    assert len(again.load().rows) == revision + 1
    again.close()


def test_sqlite_gives_back_objects_revision_and_what_was_touched(tmp_path: Path) -> None:
    async def fill(cache: Cache) -> None:
        await put(cache, "a", "1")
        await put(cache, "b", "1")
        latest = cache.latest(KIND, "default", "b")
        assert latest is not None
        await cache.remove(KIND, latest, latest.parse())

    run(fill, SqliteStore(tmp_path))

    async def check(cache: Cache) -> None:
        assert cache.revision == 3
        assert [e.name for e in cache.collection(KIND).present()] == ["a"]
        assert cache.collection(KIND).since(3) == []
        with pytest.raises(TooOldError):
            cache.collection(KIND).since(2)
        events: list[Event] = []
        cache.listen(KIND, events.append)
        await put(cache, "a", "2")
        assert [(event.type, event.revision) for event in events] == [("MODIFIED", 4)]

    run(check, SqliteStore(tmp_path))


def test_a_second_control_plane_over_the_same_folder_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="another control plane"):
        SqliteStore(tmp_path)
    store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from controlplane.storage.cache import Cache
from controlplane.storage.sqlite import SqliteStore

async def main():
    cache = Cache(SqliteStore(Path(sys.argv[1])), asyncio.get_running_loop())
    number = 0
    while True:
        names = [str(number + offset) for offset in range(3)]
        number += 3
        await asyncio.gather(*(
            cache.put("core/configmaps", "d", name, {"metadata": {"name": name}}, None) for name in names))
        print(number, flush=True)

asyncio.run(main())
"""


def test_every_answered_write_survives_sigkill(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    ) as process:
        assert process.stdout is not None
        for _ in range(50):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        answered = int((process.stdout.read().split() or ["150"])[-1])
    store = SqliteStore(tmp_path)
    kept = {split_key(row.key)[2] for row in store.load().rows}
    store.close()
    assert answered >= 150
    assert kept >= {str(number) for number in range(answered)}


def test_a_watcher_with_a_defect_is_nobody_else_s() -> None:
    async def test(cache: Cache) -> None:
        seen: list[int] = []

        def broken(event: Event) -> None:
            raise ValueError("a defect")

        cache.listen(KIND, broken)
        cache.listen(KIND, lambda event: seen.append(event.revision))
        entry = await put(cache, "a")
        assert seen == [entry.revision]

    run(test, ListStore())
