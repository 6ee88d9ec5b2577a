"""What the control plane asks of a database: keep bytes under keys, in the order of their revisions.

The API server holds all objects in memory and decides everything there (see `cache`); a database behind
this door only has to give back after a crash whatever it once said was written. That is why the Protocol
is this small: a real etcd, an SQLite file and a list in a test all fit it.

Keys are upstream's: `/registry/<group or core>/<plural>/<namespace>/<name>`, without the namespace part for
cluster-scoped kinds. A revision is etcd's: one counter for the whole store, one step per write, which
clients see as `metadata.resourceVersion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Change:
    """One write: `value` is the object's JSON with `revision` already in it, None for a deletion."""

    key: str
    revision: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a database holds when it is opened.

    `touched` says for each collection (`core/pods`) the revision of its newest write, deletions included:
    a client that has seen that one has missed nothing, even though the server was restarted in between.
    """

    revision: int
    rows: Sequence[Change]
    touched: Mapping[str, int]


class Store(Protocol):
    """A database. `load` is called once, before the first `commit`; one call at a time, from any thread.

    `waits_for_disk`: a `commit` takes as long as a disk or a network does, so it has to be made in a thread.
    """

    @property
    def waits_for_disk(self) -> bool: ...

    def load(self) -> Snapshot:
        """Read everything. Raises StoreError."""

    def commit(self, changes: Sequence[Change]) -> None:
        """Write all of these or none; they survive the death of the process once this returns.

        Raises StoreError, and then nothing was written.
        """

    def untidy(self) -> bool:
        """Whether `tidy` should be called soon: work that may take long is kept out of `commit`."""

    def tidy(self) -> None:
        """Do that work, with no `commit` beside it. A failure is logged: it loses nothing."""

    def close(self) -> None:
        """Give the database back."""


def collection_of(key: str) -> str:
    """`core/pods` of `/registry/core/pods/default/web`."""
    _, _, group, plural, _ = key.split("/", 4)
    return f"{group}/{plural}"


def make_key(collection: str, namespace: str, name: str) -> str:
    """The store's key of an object; `namespace` is empty for cluster-scoped kinds."""
    if namespace:
        return f"/registry/{collection}/{namespace}/{name}"
    return f"/registry/{collection}/{name}"


def split_key(key: str) -> tuple[str, str, str]:
    """(collection, namespace, name) of a key."""
    parts = key.split("/")
    namespace = parts[4] if len(parts) == 6 else ""
    return f"{parts[2]}/{parts[3]}", namespace, parts[-1]
