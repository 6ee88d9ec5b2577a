"""What there is of a pod when its agent may be killed while making it, and what a failure leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pods_in_words import IP, pod

from cni.errors import CniError
from kubelet_py.config import Config
from kubelet_py.errors import SandboxError
from kubelet_py.instruments import Histogram
from kubelet_py.paths import NodePaths
from kubelet_py.pods import sandboxes
from kubelet_py.pods.context import NodeFacts
from kubelet_py.pods.held_start import HeldStart
from kubelet_py.pods.sandboxes import Sandboxes
from kubelet_py.pods.timeline import Timelines
from runtime.errors import CgroupError, StartError

SANDBOX = SimpleNamespace(id="s", netns="/proc/7/ns/net")


class Node:
    """Sandboxes over a runtime and a network that note what they are asked for, and fail at `fails`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.paths = NodePaths(folder)
        self.hosts = self.paths.pods / "u/etc-hosts"
        self.hosts_at_begin: str | None = None
        noted = self.noted
        monkeypatch.setattr(sandboxes.mounting, "mount_tmpfs", lambda *_, **__: noted("shm"))
        opened = SimpleNamespace(update=lambda values: noted("limit"))
        self.sandboxes = Sandboxes(
            service=SimpleNamespace(  # type: ignore[arg-type]
                begin_pod_sandbox=self.begin,
                drop_container=lambda held: noted("drop"),
                remove_pod_sandbox=lambda identifier: noted("remove"),
            ),
            cgroups=SimpleNamespace(  # type: ignore[arg-type]
                parents_first=False,
                names=SimpleNamespace(group=lambda *parts: "/".join(map(str, parts))),
                create=lambda path, limits: noted("cgroup"),
                home=lambda path: path,
                settle=lambda path: None,
                open=lambda path: opened,
            ),
            invoker=SimpleNamespace(  # type: ignore[arg-type]
                ready=lambda: None,
                wires_early=lambda: True,
                add=self.attach,
                delete=lambda *_: noted("detach"),
            ),
            paths=self.paths,
            config=Config(),
            facts=NodeFacts("n", ("192.0.2.1",)),
            classes=SimpleNamespace(handler=lambda pod: ""),  # type: ignore[arg-type]
            event=lambda *_: None,
            timelines=Timelines(),
            users=SimpleNamespace(range_of=lambda *_: (0, 0)),  # type: ignore[arg-type]
            cgroup_times=Histogram("x", "x", "operation_type"),
        )

    def noted(self, what: str) -> None:
        self.did.append(what)
        if what in self.fails:
            raise self.fails[what]

    def begin(self, config: Any, meanwhile: Callable[[], None]) -> Any:
        self.hosts_at_begin = self.hosts.read_text() if self.hosts.exists() else None
        self.noted("begin")
        meanwhile()
        netns = "" if config.host_network else "/proc/1/fd/9"
        return SimpleNamespace(id="s", netns=netns, finish=self.finish)

    def finish(self) -> Any:
        self.noted("finish")
        return SANDBOX

    def attach(self, *_: Any, **__: Any) -> Any:
        self.noted("attach")
        return SimpleNamespace(ips=(SimpleNamespace(address=f"{IP}/24"),))

    def hold(self, start: Any) -> HeldStart:
        self.noted("hold")
        return HeldStart("c", "s", "", SimpleNamespace(id="c"))  # type: ignore[arg-type]

    def create(self, of: dict[str, Any]) -> HeldStart | None:
        return self.sandboxes.create(of, 0, self.hold)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_a_pod_is_set_up_and_wired_while_its_shim_begins(node: Node) -> None:
    assert node.create(pod()) is not None
    assert node.did == ["begin", "cgroup", "shm", "hold", "attach", "finish", "limit"]
    assert f"{IP}\tp" in node.hosts.read_text()


def test_one_on_the_hosts_network_is_whole_before_it_begins(node: Node) -> None:
    """Once its pause runs, the next agent takes it as it is: it has no addresses that could be missing."""
    assert node.create(pod(hostNetwork=True)) is not None
    assert node.did == ["cgroup", "shm", "begin", "hold", "finish", "limit"]
    assert node.hosts_at_begin is not None and node.hosts_at_begin == node.hosts.read_text()
    assert node.hosts_at_begin.startswith("# Kubernetes-managed hosts file (host network).")


@pytest.mark.parametrize(
    ("fails", "error", "raised"),
    [
        ("attach", CniError("no address left"), SandboxError),
        ("attach", ValueError("a plugin's nonsense"), ValueError),
        ("finish", StartError("pause"), SandboxError),
        ("limit", OSError(5, "EIO"), SandboxError),
        ("limit", ValueError("a defect"), ValueError),
    ],
)
def test_what_fails_after_a_container_was_held_drops_it_once(
    node: Node, fails: str, error: BaseException, raised: type[BaseException]
) -> None:
    node.fails[fails] = error
    with pytest.raises(raised):
        node.create(pod())
    assert node.did.count("drop") == 1
    if raised is SandboxError:
        assert node.did.index("drop") < node.did.index("remove")


@pytest.mark.parametrize("fails", ["shm", "hold"])
def test_what_fails_before_leaves_no_sandbox(node: Node, fails: str) -> None:
    node.fails[fails] = CgroupError("Could not limit it")
    with pytest.raises(SandboxError, match="failed to create sandbox: Could not limit it"):
        node.create(pod())
    assert node.did[-2:] == ["finish", "remove"] and "drop" not in node.did


def test_a_limit_that_is_refused_only_is_told(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.fails["limit"] = CgroupError("EINVAL")
    assert node.create(pod()) is not None
    assert "Failed to limit pod" in caplog.text
