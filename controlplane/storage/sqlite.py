"""The embedded database: one SQLite file with a write-ahead log.

With `synchronous=NORMAL` a commit appends to the log with write(2) and does not wait for the disk: the
pages are the kernel's from then on, so they survive SIGKILL of this process, and the whole file stays
consistent over a power cut, which may lose only the last moments. `durable=True` (synchronous=FULL) waits
for fsync on each commit and survives the power cut as well, as etcd does.

Now and then the log has to be folded into the file, which waits for the disk in either mode. SQLite would do
that inside the commit that finds the log long enough; where commits are not to wait it is a step of its own
(`tidy`), and how long the log is is reckoned from what was written.

The tables hold the present state and, per collection, the revision of its newest write; history for
watches is kept in memory only (see `cache`).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from controlplane.errors import StoreError
from controlplane.storage.store import Change, Snapshot, collection_of

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS touched (collection TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS format (version INTEGER NOT NULL);
"""
_FORMAT = 1
_PAGE = 4096
_LONG_LOG = 1000  # pages, SQLite's own measure
_PAGES_BESIDE = 2  # a commit's: the leaf of the object and that of its collection


class SqliteStore:
    """A Store in `folder/state.db`.

    The file is locked for as long as the store is open: a second control plane over the same folder is
    refused at once instead of overwriting revisions.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.waits_for_disk = durable
        self._logged = 0  # pages since the log was last folded into the file, about
        self._path = folder / "state.db"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Used by the main thread and the committer's: one at a time, which SQLite allows.
            self._connection = sqlite3.connect(
                self._path, timeout=0.5, isolation_level=None, check_same_thread=False
            )
            try:
                self._open(durable)
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"Could not open {self._path}: {error} ({_advice(error)})") from error

    def _open(self, durable: bool) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode=EXCLUSIVE")
        execute("PRAGMA journal_mode=WAL")
        execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        if not durable:
            execute("PRAGMA wal_autocheckpoint=0")
        execute("PRAGMA cache_size=-1024")  # KiB; all reads after the start come from memory
        execute("PRAGMA journal_size_limit=8388608")
        self._connection.executescript(_SCHEMA)
        found = execute("SELECT version FROM format").fetchone()
        if found is None:
            execute("INSERT INTO format VALUES (?)", (_FORMAT,))
        elif found[0] != _FORMAT:
            raise StoreError(
                f"Could not open {self._path}: its format is {found[0]}, this version reads {_FORMAT} "
                "(use the version that wrote it, or `kubelet-py reset`)"
            )
        execute("UPDATE format SET version = version")  # take the lock now, not at the first write
        if not durable:
            self.tidy()  # whoever is killed again and again would never come to it

    def load(self) -> Snapshot:
        """Read everything. Raises StoreError when the file is damaged."""
        try:
            rows = [
                Change(key, revision, value)
                for key, revision, value in self._connection.execute(
                    "SELECT key, revision, value FROM objects ORDER BY key"
                )
            ]
            touched = dict(self._connection.execute("SELECT collection, revision FROM touched"))
        except sqlite3.Error as error:
            raise StoreError(f"Could not read {self._path}: {error} ({_advice(error)})") from error
        return Snapshot(max(touched.values(), default=0), rows, touched)

    def commit(self, changes: Sequence[Change]) -> None:
        """One transaction for the whole batch. Raises StoreError (disk full, I/O error)."""
        touched = {collection_of(change.key): change.revision for change in changes}
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for change in changes:
                    if change.value is None:
                        connection.execute("DELETE FROM objects WHERE key = ?", (change.key,))
                    else:
                        connection.execute(
                            "INSERT INTO objects VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                            " SET revision = excluded.revision, value = excluded.value",
                            (change.key, change.revision, change.value),
                        )
                connection.executemany(
                    "INSERT INTO touched VALUES (?, ?) ON CONFLICT (collection) DO UPDATE"
                    " SET revision = excluded.revision",
                    touched.items(),
                )
                connection.execute("COMMIT")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"Could not write {self._path}: {error} ({_advice(error)})") from error
        self._logged += sum(_PAGES_BESIDE + len(change.value or b"") // _PAGE for change in changes)

    def untidy(self) -> bool:
        return not self.waits_for_disk and self._logged >= _LONG_LOG

    def tidy(self) -> None:
        """Fold the log into the file, so that the next commits begin it anew."""
        self._logged = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            log.warning("Could not fold the log into file=%s error=%s", self._path, error)

    def close(self) -> None:
        """Fold the log into the file and unlock it."""
        self._connection.close()


def _advice(error: Exception) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return "is another control plane running over this folder?"
    if "full" in text:
        return "free some disk space"
    if isinstance(error, sqlite3.DatabaseError) and "malformed" in text:
        return "restore a backup, or `kubelet-py reset`"
    return "is the folder writable?"
