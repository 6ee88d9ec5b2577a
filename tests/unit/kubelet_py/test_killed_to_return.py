"""A container that is killed to come back may end before the same look tells the pod's status."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import IP, NOW, down, pod, up
from test_held_order import Node

from kubelet_py.pods.actions import spec_hash
from kubelet_py.pods.backoff import BackoffEntry
from kubelet_py.pods.model import Ending, Health, PodView, SandboxView

HEALTHY, DEAD = {"c": Health()}, {"c": Health(failed="liveness")}


class Quick(Node):
    """A running pod; a container that is told to stop has ended with 0 before anybody looks again."""

    def __init__(self, of: dict[str, Any]) -> None:
        super().__init__(of)
        self.sandboxes = (SandboxView("s", 0, True, ips=(IP,)),)
        self.containers = (up(),)
        self.health, self.resized = HEALTHY, frozenset[str]()
        self.said: list[dict[str, Any]] = []
        self.events: list[str] = []
        parts, self.ended = self.syncer._p, threading.Event()
        parts.pleg.view = lambda uid: PodView(uid, self.sandboxes, self.containers)
        parts.prober.health = lambda view: self.health
        parts.resizer.act = lambda record, view: self.resized
        parts.event = lambda of, name, kind, reason, text: self.events.append(reason)
        parts.statuses.set = lambda of, status, soon=False: self.said.append(status)
        self.syncer._stopper._runtime = SimpleNamespace(  # type: ignore[assignment]
            stop_container=self.stop_container, container=lambda identifier: SimpleNamespace(state="RUNNING")
        )
        begin = self.syncer._stopper._begin
        self.syncer._stopper._begin = lambda *call: (begin(*call), self.ended.wait(10))  # type: ignore[method-assign]

    def stop_container(self, identifier: str, grace: float) -> None:
        self.containers = tuple(replace(c, state="EXITED", exit_code=0) for c in self.containers)
        self.ended.set()

    def stop(self, view: PodView) -> None:
        self.did.append("stop the sandbox")
        self.sandboxes = tuple(replace(box, ready=False) for box in self.sandboxes)

    def start(self, *of: Any) -> str:
        self.containers = (up(of[1]["name"], attempt=of[2].attempt), *self.containers)
        return super().start(*of)


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
@pytest.mark.parametrize("why", ["liveness", "resize"])
def test_the_pod_is_not_over_meanwhile(policy: str, why: str) -> None:
    node = Quick(pod(policy=policy))
    node.health, node.resized = (DEAD, frozenset()) if why == "liveness" else (HEALTHY, frozenset("c"))
    node.syncer.sync("u")
    node.health, node.resized = HEALTHY, frozenset()  # of the one that ended nobody is asked any more
    assert "terminated" in node.said[-1]["containerStatuses"][0]["state"]
    node.record.pod = node.record.pod | {"status": node.said[-1]}
    node.syncer.sync("u")
    node.syncer.sync("u")
    assert [status["phase"] for status in node.said] == ["Running"] * 3
    assert node.did == ["start c"]
    assert "running" in node.said[-1]["containerStatuses"][0]["state"]
    assert node.record.returning == {"c-0"}, "as long as it is remembered"


@pytest.mark.parametrize(
    ("policy", "phases", "did"),
    [
        ("Always", {"Running"}, ["stop the sandbox", "release c"]),
        ("OnFailure", {"Running"}, ["stop the sandbox", "release c"]),
        ("Never", {"Running", "Succeeded"}, ["stop the sandbox"]),
    ],
)
def test_nor_when_it_is_its_sandbox_that_died(policy: str, phases: set[str], did: list[str]) -> None:
    """What runs of a dead sandbox is told to end, and a program that heeds that ends with 0."""
    node = Quick(pod(policy=policy))
    node.sandboxes = (SandboxView("old", 0, False),)
    node.containers = (up(sandbox="old"),)
    for _ in range(5):
        node.syncer.sync("u")
        node.record.pod = node.record.pod | {"status": node.said[-1]}
    assert {status["phase"] for status in node.said} == phases
    assert node.did == did
    assert node.events.count("SandboxChanged") == (policy != "Never")


def told(name: str, state: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "state": state, "restartCount": 0, "containerID": f"x://{name}"}


RUNS, DONE, FAILED = {"running": {}}, {"terminated": {"exitCode": 0}}, {"terminated": {"exitCode": 1}}
NOTHING_LEFT = [
    ("Never", RUNS, RUNS, {"Failed"}, []),
    ("Never", DONE, RUNS, {"Failed"}, []),
    ("Never", DONE, {"waiting": {"reason": "ErrImagePull"}}, {"Failed"}, []),
    ("OnFailure", DONE, RUNS, {"Running"}, ["start b"]),
    ("OnFailure", FAILED, DONE, {"Running"}, ["release a"]),
    ("Always", DONE, DONE, {"Running"}, ["release a", "start b"]),
]


@pytest.mark.parametrize(("policy", "a", "b", "phases", "did"), NOTHING_LEFT)
def test_what_the_runtime_has_forgotten_is_not_run_twice(
    policy: str, a: dict[str, Any], b: dict[str, Any], phases: set[str], did: list[str]
) -> None:
    """As after `down`: the status alone tells how far the containers were, and restartPolicy holds."""
    node = Quick(pod("a", "b", policy=policy))
    node.record.pod["status"] = {"phase": "Running", "containerStatuses": [told("a", a), told("b", b)]}
    node.sandboxes = node.containers = ()
    for _ in range(3):
        node.syncer.sync("u")
        node.record.pod = node.record.pod | {"status": node.said[-1]}
    assert {status["phase"] for status in node.said} == phases
    assert [step for step in node.did if step.split()[0] in ("start", "release")] == did


@pytest.mark.parametrize(("image", "did"), [("i", []), ("mended", ["start c"])])
def test_a_crashed_container_with_another_image_does_not_wait(image: str, did: list[str]) -> None:
    body = pod()
    node = Quick(body)
    node.containers = (down(code=1, spec_hash=spec_hash(body["spec"]["containers"][0])),)
    node.record.backoffs["c"] = BackoffEntry(300.0, NOW - 9)
    body["spec"]["containers"][0]["image"] = image
    node.syncer.sync("u")
    assert node.did == did


def test_a_static_pod_goes_on_from_what_its_mirror_says() -> None:
    """An agent that was started anew has to wait for the API to show it."""
    body = pod()
    body["metadata"]["annotations"] = {"kubernetes.io/config.source": "file"}
    began, mirrors = "2026-01-01T00:00:00Z", list[dict[str, Any]]()
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": began}
    node = Quick(body)
    node.syncer._p.mirror = lambda of: mirrors[0] if mirrors else None  # type: ignore[misc, assignment]
    node.syncer.sync("u")
    assert node.said == []
    mirrors.append(body | {"status": {"phase": "Running", "startTime": began, "conditions": [ready]}})
    node.syncer.sync("u")
    mirrors[0] = body | {"status": {}}
    node.syncer.sync("u")
    for status in node.said:
        assert status["startTime"] == began
        [found] = [c for c in status["conditions"] if c["type"] == "Ready"]
        assert found["lastTransitionTime"] == began


@pytest.mark.parametrize("why", ["the node ends it", "it is too old"])
def test_a_post_start_hook_keeps_no_pod_that_is_to_end(why: str) -> None:
    body = pod()
    body["spec"]["containers"][0]["lifecycle"] = {"postStart": {"exec": {"command": ["sleep", "3600"]}}}
    node, left = Quick(body), threading.Event()
    node.containers = ()

    def exec_sync(identifier: str, argv: list[str], timeout: float | None) -> Any:
        if why == "it is too old":
            body["spec"]["activeDeadlineSeconds"] = 0
        else:
            node.record.ending = Ending("Evicted", "The node was low on resource: memory. ")
        node.record.nudge.set()
        left.wait(5)
        raise TimeoutError

    node.syncer._p.runtime = SimpleNamespace(exec_sync=exec_sync)  # type: ignore[misc, assignment]
    node.syncer.sync("u")
    left.set()
    assert "FailedPostStartHook" not in node.events
