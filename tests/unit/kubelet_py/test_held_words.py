"""What is told of a container that is set up while its pod is made: the same as of others, and once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import pod, view

from kubelet_py.config import Config
from kubelet_py.paths import NodePaths
from kubelet_py.pods.actions import Start
from kubelet_py.pods.containers import ContainerStarter
from kubelet_py.pods.context import NodeFacts
from kubelet_py.pods.held_start import HeldStart
from kubelet_py.pods.timeline import Timelines
from runtime.users import User

IMAGE = SimpleNamespace(id="sha256:i", layers=(), config={}, repo_tags=("i",), repo_digests=())
SETTINGS = {"metadata": {"name": "settings"}, "data": {"1x": "never", "OK": "yes"}}


class Node:
    """A starter of containers, of which the runtime holds those that it `can`; what was told, in order."""

    def __init__(self, tmp_path: Path, *, can: bool = True) -> None:
        self.can = can
        self.told: list[str] = []
        self.asked: list[str] = []
        self.timelines = Timelines()
        self.pod = pod("c", volumes=[])
        self.container = self.pod["spec"]["containers"][0]
        # the host's AppArmor, if it has it, is left alone
        self.container |= {"command": ["x"], "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}
        self.starter = ContainerStarter(
            paths=NodePaths(tmp_path),
            config=Config(),
            runtime=self,  # type: ignore[arg-type]
            images=SimpleNamespace(present=lambda container: IMAGE, ensure=self.ensure),  # type: ignore[arg-type]
            volumes=SimpleNamespace(mounts=lambda *_: []),  # type: ignore[arg-type]
            objects=SimpleNamespace(lookup=lambda pod: self.lookup),  # type: ignore[arg-type]
            kernel=None,  # type: ignore[arg-type]
            services=list,
            node=NodeFacts("n", ("192.0.2.1",)),
            event=self.event,
            timelines=self.timelines,
        )
        self.starter._user = lambda image, wanted: User(0, 0)  # type: ignore[method-assign]

    def event(self, of: Any, container: str, kind: str, reason: str, message: str) -> None:
        self.told.append(reason)

    def ensure(self, of: Any, container: Any, tell: Any, secrets: Any) -> Any:
        tell("Normal", "Pulled", "it is here")
        return IMAGE

    @staticmethod
    def lookup(kind: str, name: str) -> Any:
        return SETTINGS if name == "settings" else None

    def hold(self, handler: str = "") -> HeldStart | None:
        sandbox: Any = SimpleNamespace(id="s", config=SimpleNamespace(runtime_handler=handler))
        return self.starter.hold(self.pod, self.container, Start("c", 0), sandbox, {})

    def start(self, held: HeldStart | None) -> str:
        return self.starter.start(self.pod, self.container, Start("c", 0), "s", view(), {}, lambda: held)

    def created(self) -> tuple[int, int]:
        """How often the runtime was asked to create a container, and failed to."""
        counted = self.timelines.operations()["create_container"]
        return counted.count, counted.failures

    # as the runtime

    def hold_container(self, sandbox: Any, config: Any) -> Any:
        self.asked.append("hold")
        return SimpleNamespace(id="c1") if self.can else None

    def create_container(self, sandbox: str, config: Any) -> str:
        self.asked.append("create")
        return "c1"

    def start_container(self, identifier: str) -> None:
        self.asked.append("start")

    def release_container(self, held: Any) -> None:
        self.asked.append("release")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def with_settings(node: Node) -> None:
    node.container["envFrom"] = [{"configMapRef": {"name": "settings"}}]


def test_what_is_wrong_with_its_variables_is_told_after_its_image(node: Node) -> None:
    """As upstream, which describes a container when it has its image."""
    with_settings(node)
    held = node.hold()
    assert held is not None and node.told == []
    node.start(held)
    assert node.told == ["Pulled", "InvalidEnvironmentVariableNames", "Created", "Started"]
    assert node.asked == ["hold", "release"] and node.created() == (1, 0)


def test_one_that_cannot_be_held_is_told_of_once(tmp_path: Path) -> None:
    node = Node(tmp_path, can=False)
    with_settings(node)
    assert node.hold() is None
    node.start(None)
    assert node.told == ["Pulled", "InvalidEnvironmentVariableNames", "Created", "Started"]
    assert node.asked == ["hold", "create", "start"] and node.created() == (1, 0)
    assert [step.name for step in node.timelines.of("u")] == ["image", "create", "start"]


def test_what_cannot_be_described_was_no_call_of_the_runtime(node: Node) -> None:
    """The start tells what is wrong with it, and is what is counted."""
    node.container["envFrom"] = [{"configMapRef": {"name": "missing"}}]
    assert node.hold() is None
    assert node.told == [] == node.asked and node.created() == (0, 0)


def test_another_runtimes_container_is_not_even_described(node: Node) -> None:
    with_settings(node)
    assert node.hold("crun") is None and node.asked == []
