"""A pod's shim that holds a container hears nothing else: whoever is the next to talk to it lets go first."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import IP, NOW, pod

from kubelet_py.errors import ImageError
from kubelet_py.pods.held_start import HeldStart
from kubelet_py.pods.model import PodView, SandboxView
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.sync_pod import PodSyncer

NOTHING: Any = lambda *_, **__: None  # noqa: E731


class Node:
    """What the syncer works with, for one pod; `did` is what came of it, in order."""

    def __init__(self, of: dict[str, Any], *, ips: tuple[str, ...] = (IP,), missing: str = "") -> None:
        self.record = PodRecord(of, NOW)
        self.did: list[str] = []
        self.ips, self.missing = ips, missing
        self.sandboxes: tuple[SandboxView, ...] = ()
        self.syncer = PodSyncer(self.parts(), lambda uid: self.record, NOTHING, clock=lambda: NOW)

    def parts(self) -> Any:
        return SimpleNamespace(
            runtime=None,
            sandboxes=SimpleNamespace(create=self.create, stop=self.stop),
            volumes=SimpleNamespace(set_up=lambda context: {}, refresh=NOTHING, give_up=NOTHING),
            starter=SimpleNamespace(start=self.start, drop=self.drop, field_facts=lambda pod, ips: {}),
            pleg=SimpleNamespace(view=lambda uid: PodView(uid, self.sandboxes)),
            prober=SimpleNamespace(
                update=NOTHING, health=lambda view: {}, terminate=NOTHING, forget=NOTHING
            ),
            puller=SimpleNamespace(retry_at=NOTHING),
            statuses=SimpleNamespace(set=NOTHING),
            objects=SimpleNamespace(lookup=NOTHING),
            tokens=SimpleNamespace(token=None),
            gate=SimpleNamespace(admit=NOTHING, released=NOTHING),
            cpus=SimpleNamespace(admit=NOTHING, release=NOTHING),
            resizer=SimpleNamespace(agree=NOTHING, act=lambda *_: frozenset(), shown=lambda *_: {}),
            node=SimpleNamespace(ips=("192.0.2.1",), allocatable={}),
            node_object=dict,
            event=NOTHING,
            client=None,
            timelines=SimpleNamespace(step=lambda *_, **__: nullcontext()),
            mirror=NOTHING,
            longest_wait=300.0,
        )

    def create(self, of: dict[str, Any], attempt: int, hold: Any) -> HeldStart:
        self.sandboxes = (SandboxView("s", attempt, True, ips=self.ips),)
        name = of["spec"]["containers"][0]["name"]
        return HeldStart(name, "s", "", SimpleNamespace(id=name))  # type: ignore[arg-type]

    def stop(self, view: PodView) -> None:
        if self.sandboxes:
            self.did.append("stop the sandbox")
        self.sandboxes = ()

    def start(
        self, of: Any, container: Any, start: Any, sandbox: str, view: Any, volumes: Any, held: Any
    ) -> str:
        name = container["name"]
        if name == self.missing:
            raise ImageError("it was removed", "ErrImageNeverPull")
        self.did.append(f"release {name}" if held() else f"start {name}")
        return f"id of {name}"

    def drop(self, held: HeldStart) -> None:
        self.did.append(f"drop {held.name}")


def test_the_one_that_is_held_is_released_before_the_others_start() -> None:
    node = Node(pod("a", "b"))
    node.syncer.sync("u")
    assert node.did == ["release a", "start b"]


def test_one_that_cannot_be_released_is_dropped_before_the_others_start() -> None:
    """Its image has gone meanwhile."""
    node = Node(pod("a", "b"), missing="a")
    node.syncer.sync("u")
    assert node.did == ["drop a", "start b"]


def test_one_that_waits_alone_is_dropped_too() -> None:
    node = Node(pod("a"), missing="a")
    node.syncer.sync("u")
    assert node.did == ["drop a"]


def test_a_sandbox_that_is_stopped_has_nothing_held_any_more() -> None:
    """Its network has given it no address, for example."""
    node = Node(pod("a"), ips=())
    node.syncer.sync("u")
    assert node.did[:2] == ["drop a", "stop the sandbox"]
    assert node.record.held is None


@pytest.mark.parametrize("error", [KeyError("a"), MemoryError()])
def test_a_defect_on_the_way_lets_go_as_well(error: Exception) -> None:
    node = Node(pod("a"))

    def start(*_: Any) -> str:
        raise error

    node.syncer._p.starter.start = start  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        node.syncer.sync("u")
    assert node.did == ["drop a"] and node.record.held is None
