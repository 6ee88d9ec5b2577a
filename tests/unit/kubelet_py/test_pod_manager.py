"""Which versions of a pod its worker is woken for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from kubelet_py.pods.model import ANNOTATION_CONFIG_MIRROR
from kubelet_py.pods.pod_manager import PodManager

Pod = dict[str, Any]


def pod() -> Pod:
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "1"},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
        "status": {"phase": "Pending"},
    }


def gated() -> Pod:
    made = pod()
    made["spec"]["readinessGates"] = [{"conditionType": "example.com/in"}]
    return made


def told(old: Pod, change: Callable[[Pod], None]) -> tuple[PodManager, list[str]]:
    """A manager that has heard of the pod, and of the change; whom it woke for that."""
    woken: list[str] = []
    manager = PodManager(None, woken.append, lambda: "")
    manager.on_api_event("ADDED", old, None)
    assert woken == ["u"]
    woken.clear()
    new = copy.deepcopy(old)
    new["metadata"]["resourceVersion"] = "2"
    change(new)
    manager.on_api_event("MODIFIED", new, old)
    return manager, woken


def set_status(**status: Any) -> Callable[[Pod], None]:
    return lambda pod: pod.update(status=status)


def set_metadata(**metadata: Any) -> Callable[[Pod], None]:
    return lambda pod: pod["metadata"].update(metadata)


def test_its_own_status_that_comes_back_wakes_nobody_and_is_known_nevertheless() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    manager, woken = told(pod(), set_status(phase="Running", podIP="10.244.0.2", conditions=ready))
    assert woken == []
    record = manager.record("u")
    assert record is not None and record.pod["status"]["conditions"] == ready


@pytest.mark.parametrize(
    "change",
    [
        set_metadata(labels={"a": "b"}),
        set_metadata(annotations={"a": "b"}),
        set_metadata(deletionTimestamp="2026-11-27T12:00:00Z", deletionGracePeriodSeconds=30),
        set_status(phase="Failed", reason="Preempted"),
        set_status(phase="Succeeded"),
        lambda pod: pod["spec"]["containers"][0].update(image="busybox:2"),
        lambda pod: pod["spec"].update(ephemeralContainers=[{"name": "debug", "image": "busybox"}]),
    ],
)
def test_what_a_worker_acts_upon_wakes_it(change: Callable[[Pod], None]) -> None:
    assert told(pod(), change)[1] == ["u"]


def test_a_condition_that_a_readiness_gate_may_wait_for_wakes_the_worker() -> None:
    condition = {"type": "example.com/in", "status": "True"}
    assert told(gated(), set_status(phase="Pending", conditions=[condition]))[1] == ["u"]


def test_a_shorter_grace_of_a_pod_that_ends_wakes_its_worker() -> None:
    old = pod()
    set_metadata(deletionTimestamp="2026-11-27T12:00:00Z", deletionGracePeriodSeconds=30)(old)
    assert told(old, set_metadata(deletionGracePeriodSeconds=1))[1] == ["u"]


def test_a_pod_that_is_gone_wakes_its_worker() -> None:
    woken: list[str] = []
    manager = PodManager(None, woken.append, lambda: "")
    manager.on_api_event("ADDED", pod(), None)
    manager.on_api_event("DELETED", pod(), pod())
    assert woken == ["u", "u"]


def test_a_mirror_into_which_someone_wrote_another_hash_is_no_longer_that_pods() -> None:
    manager = PodManager(None, lambda uid: None, lambda: "")
    mirror = pod()
    mirror["metadata"] |= {"uid": "m", "annotations": {ANNOTATION_CONFIG_MIRROR: "static"}}
    manager.on_api_event("ADDED", mirror, None)
    static = {**pod(), "metadata": {**pod()["metadata"], "uid": "static"}}
    assert manager.mirror(static) == mirror
    other = copy.deepcopy(mirror)
    other["metadata"]["annotations"][ANNOTATION_CONFIG_MIRROR] = "x"
    manager.on_api_event("MODIFIED", other, mirror)
    assert manager.mirror(static) is None, "so that it is made anew"
