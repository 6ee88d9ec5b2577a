"""A pod is let go of when the API has read how it ended: who holds it by a finalizer counts that."""

from __future__ import annotations

from types import SimpleNamespace

from pods_in_words import NOW, pod
from test_held_order import NOTHING, Node

from kubelet_py.errors import VolumeError
from kubelet_py.pods.record import PodRecord


class Slow(Node):
    """A pod that is deleted and has ended; the API takes its status when it is `awake`."""

    def __init__(self) -> None:
        of = pod(policy="Never")
        of["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/counted"]}
        super().__init__(of)
        self.record = PodRecord(of, NOW)
        self.awake = False
        parts = self.syncer._p
        parts.mirror = lambda of: of
        parts.client = SimpleNamespace(delete=lambda *_, **__: self.did.append("delete"))  # type: ignore[misc]
        parts.statuses.set = lambda of, status, soon=False: self.did.append(status["phase"])
        parts.statuses.flush = lambda uid, seconds: self.awake
        parts.statuses.forget = lambda uid: self.did.append("forget the status")
        parts.sandboxes.remove = parts.sandboxes.remove_logs = NOTHING
        parts.volumes.give_up = parts.volumes.tear_down = parts.puller.forget = parts.tokens.forget = NOTHING


def test_a_status_that_is_on_its_way_is_waited_for() -> None:
    node = Slow()
    assert node.syncer.sync("u"), "it is looked at again"
    assert node.did == ["Failed"] and not node.record.deleted
    node.awake = True
    assert node.syncer.sync("u") is None
    assert node.did == ["Failed", "Failed", "delete", "forget the status"] and node.record.deleted


def test_volumes_are_unmounted_before_the_pod_is_gone() -> None:
    """As upstream's: a claim, or a folder of the host, is free for who waits until the API has the
    pod no more."""
    node, busy = Slow(), True
    node.awake = True

    def give_up(uid: str) -> None:
        if busy:
            raise VolumeError("Could not unmount /v: EBUSY")
        node.did.append("unmount")

    node.syncer._p.volumes.give_up = give_up
    assert node.syncer.sync("u"), "it is looked at again"
    assert "delete" not in node.did
    busy = False
    assert node.syncer.sync("u") is None
    assert node.did[-3:] == ["unmount", "delete", "forget the status"]
