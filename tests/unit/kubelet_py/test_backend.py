"""An agent that has just come back knows its containers before the API has told it whose they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from pods_in_words import pod, up, view

from kubelet_py.backend import AgentBackend
from kubelet_py.pods.model import ContainerView, PodView
from kubelet_py.pods.pod_manager import PodManager


class Pleg:
    def __init__(self, *containers: ContainerView) -> None:
        self.containers = containers

    def view(self, uid: str) -> PodView:
        return view(*self.containers)


def backend(manager: PodManager, heard: Callable[[float], bool], *containers: ContainerView) -> AgentBackend:
    nothing = cast(Any, None)
    return AgentBackend(
        manager,
        cast(Any, Pleg(*containers or (up(),))),
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        list,
        dict,
        heard,
    )


def empty_manager() -> PodManager:
    return PodManager(None, lambda uid: None, lambda: "")


def test_a_request_waits_for_the_pods_to_be_told() -> None:
    manager = empty_manager()

    def heard(seconds: float) -> bool:
        manager.on_api_event("ADDED", pod(), None)
        return True

    assert backend(manager, heard).container_id("default", "p", "c") == up().id


@pytest.mark.parametrize("answer", [True, False])
def test_a_pod_that_is_not_among_them_is_not_found(answer: bool) -> None:
    with pytest.raises(LookupError, match='pod "p" does not exist'):
        backend(empty_manager(), lambda seconds: answer).container_id("default", "p", "c")


def test_a_known_pod_is_answered_at_once() -> None:
    manager = empty_manager()
    manager.on_api_event("ADDED", pod(), None)

    def heard(seconds: float) -> bool:
        raise AssertionError("asked")

    assert backend(manager, heard).container_id("default", "p", "c") == up().id


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"terminated": {"containerID": "kubelet-py://c1"}},
            "unable to retrieve container logs for kubelet-py://c1",
        ),
        (
            {"waiting": {"reason": "ContainerCreating"}},
            'container "c" in pod "p" is waiting to start: ContainerCreating',
        ),
    ],
)
def test_logs_of_a_container_of_which_nothing_is_left(state: dict[str, Any], words: str) -> None:
    manager = empty_manager()
    manager.on_api_event("ADDED", pod(), None)
    manager.records()[0].status = {"containerStatuses": [{"name": "c", "state": state}]}
    made = backend(manager, lambda seconds: True, up("another"))
    with pytest.raises(LookupError) as refused:
        made.log_path("default", "p", "c", previous=False)
    assert str(refused.value) == words
