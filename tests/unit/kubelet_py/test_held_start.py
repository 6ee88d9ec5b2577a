"""Which container is set up while its pod is made."""

from __future__ import annotations

from typing import Any

import pytest

from kubelet_py.pods.actions import Start, first_start
from kubelet_py.pods.held_start import may_be_held
from kubelet_py.pods.model import ContainerView, PodView


def pod(*names: str, inits: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    made = {"containers": [{"name": n} for n in names], "initContainers": [{"name": n} for n in inits]}
    return {"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {**made, **spec}}


def field(path: str) -> dict[str, Any]:
    return {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": path}}}]}


@pytest.mark.parametrize(
    ("container", "held"),
    [
        ({}, True),
        ({"env": [{"name": "A", "value": "status.podIP"}]}, True),
        (field("status.hostIP"), True),
        (field("metadata.name"), True),
        (field("status.podIP"), False),
        (field("status.podIPs"), False),
        ({"tty": True}, False),
        ({"volumeMounts": [{"name": "config", "mountPath": "/c"}]}, True),
        ({"volumeMounts": [{"name": "image", "mountPath": "/i"}]}, False),
    ],
)
def test_what_needs_the_network_or_a_pull_is_not_held(container: dict[str, Any], held: bool) -> None:
    volumes = [{"name": "config", "configMap": {"name": "c"}}, {"name": "image", "image": {"reference": "r"}}]
    assert may_be_held(pod("main", volumes=volumes), {"name": "main", **container}) is held


def test_a_new_pod_begins_with_its_first_container() -> None:
    nothing = PodView("u", (), ())
    assert first_start(pod("one", "two"), nothing) == Start("one", 0)
    assert first_start(pod("one", inits=("before", "then")), nothing) == Start("before", 0, None, True)
    assert first_start(pod(), nothing) is None


def test_a_pod_that_had_containers_goes_the_usual_way() -> None:
    """Which of them is next, and when, is for its past to say."""
    view = PodView("u", (), (ContainerView("c", "one", 0, "EXITED", "s"),))
    assert first_start(pod("one"), view) is None


def test_a_reboot_does_not_lose_the_count_of_restarts() -> None:
    known = pod("one")
    known["status"] = {"containerStatuses": [{"name": "one", "restartCount": 3, "containerID": "x://1"}]}
    assert first_start(known, PodView("u", (), ())) == Start("one", 4)


def test_one_that_has_ended_for_good_is_not_set_up_once_more() -> None:
    known = pod("one") | {"spec": pod("one")["spec"] | {"restartPolicy": "OnFailure"}}
    ended = {"terminated": {"exitCode": 0}}
    known["status"] = {"containerStatuses": [{"name": "one", "containerID": "x://1", "state": ended}]}
    assert first_start(known, PodView("u", (), ())) is None
