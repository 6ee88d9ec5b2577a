"""Which OOM kills become Events, and when."""

from __future__ import annotations

from typing import Any

from pods_in_words import pod

from kubelet_py.pods.oom_watcher import OomWatcher
from runtime.errors import NotFoundError
from runtime.values import Container, ContainerConfig, Event


class Runtime:
    """Knows one container, c1, of pod u1."""

    def container(self, identifier: str) -> Container:
        if identifier != "c1":
            raise NotFoundError(identifier)
        labels = {"io.kubernetes.pod.uid": "u1"}
        config = ContainerConfig("web", 0, "i", "i", {}, (), "", labels=labels)
        return Container("c1", "s1", config, "RUNNING", 1, 0.0, 0.0, None, None, "", "")


class Case:
    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[tuple[Any, ...]] = []
        self.pods: dict[str, Any] = {"u1": pod()}
        runtime: Any = Runtime()
        self.watcher = OomWatcher(runtime, clock=lambda: self.now)

    def hear(self, container: str = "c1", kind: str = "oom", code: int | None = None) -> None:
        self.watcher.heard(Event("s1", container, kind, code, 0.0))

    def look(self) -> list[tuple[Any, ...]]:
        self.told.clear()
        self.watcher.look(self.pods.get, lambda _pod, *rest: self.told.append(rest))
        return self.told


def test_kill_of_a_child_is_told_once_with_its_container() -> None:
    case = Case()
    case.hear()
    text = "Out of memory: a process of container web was killed, the container goes on without it"
    assert case.look() == [("web", "Warning", "OOMKilling", text)]
    assert case.look() == []


def test_kill_that_ended_the_container_and_other_events_are_not_told() -> None:
    case = Case()
    case.hear(code=137)
    case.hear(kind="exited", code=0)
    case.hear(container="gone")
    assert case.look() == []


def test_kill_waits_a_minute_for_its_pod() -> None:
    case = Case()
    known, case.pods = case.pods, {}
    case.hear()
    assert case.look() == []
    case.now, case.pods = 59.0, known
    assert len(case.look()) == 1
    case.hear()
    case.pods = {}
    case.now = 119.0
    assert case.look() == []
    case.pods = known
    assert case.look() == [], "too late"
