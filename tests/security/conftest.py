"""Containers as pods get them: the agent's own description of a pod, started on the real kernel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.config import Config
from kubelet_py.paths import NodePaths
from kubelet_py.pods.containers import ContainerStarter
from kubelet_py.pods.context import NodeFacts, ObjectSource
from kubelet_py.pods.timeline import Timelines
from kubelet_py.volumes.manager import VolumeManager
from runtime.images.store import Image
from runtime.linux import LinuxKernel
from tests.privileged.runtime.conftest import Box, Running, box
from tests.privileged.runtime_service.conftest import node, rootfs, runtime

__all__ = ["box", "node", "pods", "rootfs", "runtime"]

NAMESPACES = ("mount", "pid", "ipc", "uts", "network", "cgroup")
MEMORY = 16 << 30


class Pods:
    """Describes pods with the agent's ContainerStarter and runs their one container in a box."""

    def __init__(self, box: Box, folder: Path) -> None:
        self.box = box
        self.paths = NodePaths(folder)
        self.starter = ContainerStarter(
            paths=self.paths,
            config=Config(),
            runtime=None,  # type: ignore[arg-type]
            images=None,  # type: ignore[arg-type]
            volumes=VolumeManager(self.paths.pods),
            objects=ObjectSource(None),
            kernel=LinuxKernel(),
            services=list,
            node=NodeFacts("node", ("192.0.2.1",), {}, MEMORY),
            event=lambda *_: None,
            timelines=Timelines(),
        )
        mine = self.paths.pods / "uid"
        (mine / "shm").mkdir(parents=True)
        for name in ("hostname", "resolv.conf", "etc-hosts"):
            (mine / name).write_text(f"{name} of the pod\n")

    def pod(self, spec: Mapping[str, Any] | None = None) -> dict[str, Any]:
        metadata = {"name": "p", "namespace": "default", "uid": "uid"}
        return {"metadata": metadata, "spec": {"enableServiceLinks": False, **(spec or {})}}

    def describe(
        self,
        script: str,
        *,
        security: Mapping[str, Any] | None = None,
        pod: Mapping[str, Any] | None = None,
        image: Mapping[str, Any] | None = None,
        attempt: int = 0,
        **container: Any,
    ) -> dict[str, Any]:
        """The OCI configuration of a pod's container, with namespaces of its own."""
        described = {
            "name": "main",
            "image": "busybox",
            "command": ["sh", "-c", script],
            "env": [{"name": "PATH", "value": "/bin"}],
            "securityContext": dict(security or {}),
            **container,
        }
        whole = self.pod(pod)
        whole["spec"]["containers"] = [described]
        stored = Image("sha256:0", ("busybox",), (), 1, dict(image or {}), (str(self.box.root),))
        spec = dict(self.starter.describe(whole, described, attempt, stored, (), {}).spec)
        spec["linux"] = {**spec["linux"], "namespaces": [{"type": kind} for kind in NAMESPACES]}
        return spec

    def start(self, script: str, **how: Any) -> Running:
        return self.box.start("", spec=self.describe(script, **how))

    def run(self, script: str, **how: Any) -> str:
        return self.start(script, **how).wait()[1]


@pytest.fixture
def pods(box: Box, tmp_path: Path) -> Pods:
    return Pods(box, tmp_path / "node")
