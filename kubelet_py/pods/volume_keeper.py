"""Keeps the files of running pods true: the agent's loop calls `look` once a second.

It watches the objects that pods name and has the pods' workers write what changed; and it has them look again
when a token wants to be renewed, or when nobody has looked for `syncFrequency`. It writes nothing by itself:
a pod's worker is the only one that touches the pod's volumes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

from kubeclient.informer import Informer
from kubeclient.rest import RestClient
from kubelet_py.pods.context import RESOURCES, ObjectSource, TokenSource
from kubelet_py.pods.model import Object, is_static
from kubelet_py.pods.object_watches import Handler, ObjectWatches
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.references import Key


class VolumeKeeper:
    """`records` are all pods of the node, `wake(uid)` has a pod's worker look at it, `period` is seconds."""

    def __init__(
        self,
        client: RestClient | None,
        objects: ObjectSource,
        tokens: TokenSource,
        *,
        records: Callable[[], Sequence[PodRecord]],
        wake: Callable[[str], None],
        period: float,
    ) -> None:
        self._client, self._objects, self._tokens = client, objects, tokens
        self._records, self._wake, self._period = records, wake, period
        self._watches = ObjectWatches(objects, self._follow, self._on_change)

    def look(self, now: float) -> None:
        """`now` is monotonic. Returns at once."""
        living = [record for record in self._records() if not record.ends and not record.finished]
        if self._client is not None:
            self._watches.keep(frozenset().union(*(self._wanted(record) for record in living)))
        due = self._tokens.due()
        for record in living:
            if not record.changing:
                continue
            record.refreshed_at = record.refreshed_at or now - self._period * _share(record.uid)
            if now - record.refreshed_at >= self._period or record.uid in due:
                record.refreshed_at = now
                self._refresh(record)

    def stop(self) -> None:
        """End the watches."""
        self._watches.stop()

    def keep_local(self, source: str, objects: Mapping[Key, Object]) -> None:
        """What lies beside the manifests of a source is this now."""
        for key in self._objects.keep_local(source, objects):
            for record in self._records():
                if key in record.references and is_static(record.pod):
                    self._refresh(record)

    def _wanted(self, record: PodRecord) -> frozenset[Key]:
        """What the API is to tell of: all that the pod names but what a manifest beside it gives."""
        if not is_static(record.pod):
            return record.references
        return frozenset(key for key in record.references if self._objects.local(key) is None)

    def _follow(self, key: Key, handler: Handler) -> Informer:
        kind, namespace, name = key
        assert self._client is not None
        own = f"metadata.name={name}"
        return Informer(self._client, RESOURCES[kind], namespace, field_selector=own, on_event=handler)

    def _on_change(self, key: Key) -> None:
        for record in self._records():
            if key in record.references:
                self._refresh(record)

    def _refresh(self, record: PodRecord) -> None:
        record.stale = True
        self._wake(record.uid)


def _share(uid: str) -> float:
    """From 0 to 1, another for each pod: an agent that has just begun must not look at all of them at once,
    once a period, for ever."""
    return zlib.crc32(uid.encode()) / 0xFFFFFFFF
