"""A node of one test: a runtime service, a busybox root file system and short cuts."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.cgroups import CgroupDriver
from runtime.service import (
    Container,
    ContainerConfig,
    Event,
    OciRuntime,
    RuntimeService,
    Sandbox,
    SandboxConfig,
)
from runtime.state import stat_of
from runtime.streams import EXIT, Stream

BUSYBOX = Path("/usr/bin/busybox")
APPLETS = (
    "cat", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ls", "mount", "printf", "ps",
    "kill", "mknod", "seq", "sh", "sleep", "stty", "tail", "tr", "true", "tty", "wc", "yes",
)  # fmt: skip
# Inherited by the agents that tests start as processes of their own.
ROOT_CGROUP = os.environ.setdefault("KUBELET_PY_TEST_CGROUP", f"kubelet-py-test-service-{os.getpid()}")
SHIM = "kubelet-py-shim\n"
DEFAULT_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
]


def oci(argv: list[str], **process: Any) -> dict[str, Any]:
    """A document; keywords are members of `process`, but for `mounts` (further ones), `resources`,
    `propagation` of the root, `seccomp` and `masked` paths."""
    resources, mounts = process.pop("resources", {}), process.pop("mounts", [])
    propagation = process.pop("propagation", "rprivate")
    masked = {"maskedPaths": process.pop("masked")} if "masked" in process else {}
    seccomp = {"seccomp": process.pop("seccomp")} if "seccomp" in process else {}
    return {
        "ociVersion": "1.2.0",
        "process": {
            "args": argv,
            "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
            "user": {"uid": 0, "gid": 0},
            **process,
        },
        "root": {"path": "rootfs"},
        "mounts": [*DEFAULT_MOUNTS, *mounts],
        "linux": {"resources": resources, "rootfsPropagation": propagation, **seccomp, **masked},
    }


@dataclass
class Node:
    """A service with short cuts; `fresh` makes another service over the same folders. `runtime`: what runs
    the containers in place of ours."""

    folder: Path
    rootfs: Path
    driver: CgroupDriver
    service: RuntimeService
    events: list[Event] = field(default_factory=list)
    runtime: OciRuntime | None = None

    def sandbox(self, **config: Any) -> Sandbox:
        handler = self.runtime.name if self.runtime else ""
        values = {"name": "pod", "namespace": "test", "uid": "u1", "hostname": "pod-name", **config}
        values.setdefault("runtime_handler", handler)
        return self.service.run_pod_sandbox(
            SandboxConfig(cgroup_parent=f"{ROOT_CGROUP}/pod{len(os.listdir(self.folder))}", **values)
        )

    def create(self, sandbox: Sandbox, argv: list[str], **values: Any) -> str:
        return self.service.create_container(sandbox.id, self.config(argv, **values))

    def config(self, argv: list[str], **values: Any) -> ContainerConfig:
        names = ("tty", "stdin", "stdin_once", "stop_signal")
        config = {name: values.pop(name) for name in names if name in values}
        return ContainerConfig(
            name="main",
            attempt=0,
            image="busybox",
            image_id="sha256:0",
            spec=oci(argv, **values),
            layers=(str(self.rootfs),),
            log_path=str(self.folder / "logs" / f"{time.monotonic_ns()}.log"),
            **config,
        )

    def run(self, sandbox: Sandbox, argv: list[str], **values: Any) -> str:
        container = self.create(sandbox, argv, **values)
        self.service.start_container(container)
        return container

    def ended(self, container_id: str, seconds: float = 60) -> Container:
        wait_for(lambda: self.service.container(container_id).state == "EXITED", seconds)
        return self.service.container(container_id)

    def log(self, container_id: str) -> bytes:
        """The container's output as its log has it, without stamps."""
        path = Path(self.service.container(container_id).config.log_path)
        lines = (line.split(b" ", 3) for line in path.read_bytes().splitlines())
        return b"".join(content + (b"\n" if tag == b"F" else b"") for _, _, tag, content in lines)

    def fresh(self) -> RuntimeService:
        service = RuntimeService(
            run_dir=self.folder / "run",
            state_dir=self.folder / "containers",
            cgroups=self.driver,
            runtimes={self.runtime.name: self.runtime} if self.runtime else {},
        )
        service.subscribe(self.events.append)
        return service


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError("it did not come true in time")


def read_all(stream: Stream) -> tuple[dict[int, bytes], bytes]:
    """All output by channel, and the EXIT payload."""
    stream.settimeout(60)
    got: dict[int, bytes] = {}
    last = b""
    while (frame := stream.receive()) is not None:
        if frame[0] == EXIT:
            last = frame[1]
        else:
            got[frame[0]] = got.get(frame[0], b"") + frame[1]
    stream.close()
    return got, last


def shims(folder: Path) -> set[int]:
    """The living shims whose log lies below `folder`; others on this machine are not ours."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                log = os.readlink(entry / "fd" / "2")
                if str(folder) in log and (entry / "comm").read_text() == SHIM:
                    found.add(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile
    return found


def cgroups_made() -> list[str]:
    """Every cgroup below our root one, in each of the trees that this host has."""
    trees = [f"/sys/fs/cgroup/{ROOT_CGROUP}", *glob.glob(f"/sys/fs/cgroup/*/{ROOT_CGROUP}")]
    return [folder for tree in trees for folder, _, _ in os.walk(tree)]


def gone(pid: int) -> bool:
    """Whether the process has ended; init may take its time to reap it."""
    found = stat_of(pid)
    return found is None or found[0] in "ZX"
