"""Stops: who goes first, that nobody waits, and that a shorter grace hastens what is under way."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import NOW, pod, up

from kubelet_py.pods.model import Object
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.stopping import Stopper, next_to_stop
from kubelet_py.pods.termination import deadline, grace_of

SIDECARS = [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}]
LONG = 5.0


@pytest.mark.parametrize(
    ("running", "stopped"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (["a", "s1", "s2"], ["a"]),
        (["debugger", "s1"], ["debugger"]),
        (["s1", "s2"], ["s2"]),
        (["s1"], ["s1"]),
    ],
)
def test_all_at_once_then_the_sidecars_backwards(running: list[str], stopped: list[str]) -> None:
    body = pod("a", "b", init=[*SIDECARS])
    assert [c.name for c in next_to_stop(body, [up(name) for name in running])] == stopped


@pytest.mark.parametrize(
    ("spec", "deletion", "gone", "seconds"),
    [
        (None, None, False, 30),
        (7, None, False, 7),
        (0, None, False, 1),
        (7, 3, False, 3),
        (7, 0, False, 1),
        (30, None, True, 1),
    ],
)
def test_grace(spec: int | None, deletion: int | None, gone: bool, seconds: float) -> None:
    body = pod(terminationGracePeriodSeconds=spec)
    body["metadata"]["deletionGracePeriodSeconds"] = deletion
    assert grace_of(PodRecord(body, NOW, gone=gone)) == seconds


def test_a_static_pod_whose_file_is_gone_keeps_its_grace() -> None:
    body = pod(terminationGracePeriodSeconds=7)
    body["metadata"]["annotations"] = {"kubernetes.io/config.source": "file"}
    assert grace_of(PodRecord(body, NOW, gone=True)) == 7


def test_the_active_deadline_counts_from_the_start_that_the_api_shows() -> None:
    body = pod(activeDeadlineSeconds=10)
    record = PodRecord(body, NOW)
    assert deadline(record) == NOW + 10
    record.pod = {**body, "status": {"startTime": "2026-01-01T00:00:00Z"}}
    assert deadline(record) == 1767225600 + 10
    assert deadline(PodRecord(pod(), NOW)) is None


class Runtime:
    """stop_container ends when the shortest grace it was given is over, as a container that ignores us."""

    def __init__(self) -> None:
        self.graces: list[float] = []
        self.ended = threading.Event()
        self.hooked = threading.Event()
        self.state = "RUNNING"

    def container(self, identifier: str) -> Any:
        return SimpleNamespace(state=self.state)

    def stop_container(self, identifier: str, grace: float) -> None:
        self.graces.append(grace)
        if grace <= 1:
            self.ended.set()
        self.ended.wait(LONG)

    def exec_sync(self, identifier: str, argv: list[str], timeout: float | None) -> Any:
        self.hooked.set()
        self.ended.wait(LONG)
        raise TimeoutError


def wait_for(condition: Any) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def stopper(runtime: Runtime, told: list[str]) -> Stopper:
    def tell(pod: Object, name: str, kind: str, reason: str, message: str) -> None:
        told.append(reason)

    return Stopper(runtime, tell)  # type: ignore[arg-type]


def test_a_shorter_grace_hastens_and_saying_it_again_is_free(
    stopper: Stopper, runtime: Runtime, told: list[str]
) -> None:
    for grace in (30, 30, 40, 1):
        stopper.stop(pod(), {}, up(), "", grace, "Stopping container c")
    wait_for(lambda: len(runtime.graces) == 2)
    assert sorted(runtime.graces) == [1, 30] and told == ["Killing"]


def test_a_shorter_grace_does_not_wait_for_the_pre_stop_hook(stopper: Stopper, runtime: Runtime) -> None:
    spec = {"name": "c", "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3600"]}}}}
    stopper.stop(pod(), spec, up(), "", 30, "Stopping container c")
    assert runtime.hooked.wait(LONG) and runtime.graces == [], "first the hook"
    stopper.stop(pod(), spec, up(), "", 1, "Stopping container c")
    wait_for(lambda: runtime.graces[:1] == [1])


HOOKED = {"name": "s1", "lifecycle": {"preStop": {"exec": {"command": ["true"]}}}}


@pytest.fixture
def hooked(runtime: Runtime) -> Runtime:
    """Its preStop hook is soon over."""

    def exec_sync(identifier: str, argv: list[str], timeout: float | None) -> Any:
        runtime.hooked.set()
        return SimpleNamespace(exit_code=0, stdout=b"", stderr=b"")

    runtime.exec_sync = exec_sync  # type: ignore[method-assign]
    return runtime


def test_a_sidecars_hook_runs_at_once_and_its_stop_waits_for_its_turn(
    stopper: Stopper, hooked: Runtime, told: list[str]
) -> None:
    stopper.stop(pod(), HOOKED, up("s1"), "", 30, "Stopping container s1", turn=False)
    assert hooked.hooked.wait(LONG) and told == ["Killing"]
    assert not hooked.ended.wait(0.05) and hooked.graces == []
    stopper.stop(pod(), HOOKED, up("s1"), "", 29.9, "Stopping container s1")
    wait_for(lambda: len(hooked.graces) == 1)
    assert 25 < hooked.graces[0] <= 30 and told == ["Killing"]
    hooked.ended.set()


def test_nobody_waits_for_a_turn_longer_than_the_grace(stopper: Stopper, hooked: Runtime) -> None:
    stopper.stop(pod(), {}, up("s1"), "", 3600, "Stopping container s1", turn=False)
    stopper.stop(pod(), HOOKED, up("s2"), "", 0.01, "Stopping container s2", turn=False)
    wait_for(lambda: hooked.graces == [2])
    stopper.stop(pod(), {}, up("s1"), "", 0.01, "Stopping container s1", turn=False)
    wait_for(lambda: hooked.graces[1:] == [0.01])
    hooked.ended.set()


def test_one_that_ended_by_itself_has_nobody_wait_for_its_turn(stopper: Stopper, hooked: Runtime) -> None:
    stopper.stop(pod(), {}, up("s1"), "", 3600, "Stopping container s1", turn=False)
    stopper.ended("s1-0")
    stopper.ended("of another pod")
    wait_for(lambda: len(hooked.graces) == 1)
    hooked.ended.set()
    wait_for(lambda: not stopper._stops)


def test_one_that_has_ended_meanwhile_is_not_stopped_once_more(
    stopper: Stopper, runtime: Runtime, told: list[str]
) -> None:
    """The worker's picture of the pod may be older than the end of the stop that it asked for."""
    runtime.state = "EXITED"
    stopper.stop(pod(), HOOKED, up(), "", 30, "Stopping container c")
    assert told == [] and not stopper._stops


def test_a_pre_stop_sleep_ends_with_its_container(stopper: Stopper, runtime: Runtime) -> None:
    spec = {"name": "c", "lifecycle": {"preStop": {"sleep": {"seconds": 3600}}}}
    stopper.stop(pod(), spec, up(), "", 3600, "Stopping container c")
    began = time.monotonic()
    stopper.stop(pod(), spec, up(), "", 1, "Stopping container c")
    wait_for(lambda: len(runtime.graces) == 2)
    assert time.monotonic() - began < LONG
