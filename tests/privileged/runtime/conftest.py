"""A box: containers from a busybox root on the real kernel, cleaned up whatever a test does."""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups
from runtime.capabilities import DEFAULT
from runtime.launch import Process, launch
from runtime.linux import LinuxKernel
from runtime.machine import this_machine
from runtime.operations import Rootfs, container_plan, exec_plan, sandbox_plan
from runtime.seccomp.profile import runtime_default
from runtime.spec import parse, parse_process

APPLETS = [
    "sh",
    "ls",
    "cat",
    "id",
    "hostname",
    "ps",
    "ip",
    "mount",
    "umount",
    "touch",
    "wc",
    "grep",
    "sleep",
    "true",
    "false",
    "mknod",
    "ping",
    "mkdir",
    "rm",
    "echo",
    "env",
    "tty",
    "stat",
    "dd",
    "head",
    "tail",
    "kill",
    "readlink",
    "ln",
    "od",
    "stty",
    "chmod",
    "sync",
]
MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    },
    {
        "destination": "/dev/mqueue",
        "type": "mqueue",
        "source": "mqueue",
        "options": ["nosuid", "noexec", "nodev"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
    {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    },
]


class Running:
    """A started container; output is read through one pipe."""

    def __init__(self, process: Process, output: int, cgroup: cgroups.Cgroup, spec: dict[str, Any]) -> None:
        self.process = process
        self.cgroup = cgroup
        self.spec = spec
        self._output = output
        self._text = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, seconds: float = 60) -> tuple[int, str]:
        """Exit code (128 + n for a signal) and output, when all writers have gone."""
        deadline = time.monotonic() + seconds
        while True:
            ready = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"still running after {seconds} s: {self._text!r}"
            chunk = os.read(self._output, 65536)
            if not chunk:
                break
            self._text += chunk
        found = os.waitid(os.P_PIDFD, self.process.pidfd, os.WEXITED)
        assert found is not None
        code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
        return code, self._text.decode(errors="replace")

    def read_until(self, text: str, seconds: float = 60) -> str:
        """Output so far, once it contains `text`."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self._text:
            ready = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"no {text!r} in {self._text!r}"
            chunk = os.read(self._output, 65536)
            assert chunk, f"it has ended without {text!r}: {self._text!r}"
            self._text += chunk
        return self._text.decode(errors="replace")

    def close(self) -> None:
        self.cgroup.kill()
        try:
            os.waitid(os.P_PIDFD, self.process.pidfd, os.WEXITED)
        except ChildProcessError:
            pass
        os.close(self.process.pidfd)
        os.close(self._output)
        if self.process.console >= 0:
            os.close(self.process.console)


class Box:
    """Makes containers from one busybox root; every one has its own overlay and cgroup."""

    def __init__(
        self,
        folder: Path,
        name: str,
        driver: cgroups.CgroupDriver | None = None,
        place: Callable[[int], str] | None = None,
    ) -> None:
        self.kernel = LinuxKernel()
        self.driver = driver or cgroups.detect()
        self.place = place or (lambda number: f"{self.base}/{number}")  # of a container's cgroup
        self.folder = folder
        self.root = folder / "image"
        self.base = f"kubelet-py-test-{os.getpid()}-{name}"
        self._running: list[Running] = []
        self._count = 0
        self._null = os.open("/dev/null", os.O_RDWR)
        (self.root / "bin").mkdir(parents=True)
        (self.root / "etc").mkdir()
        (self.root / "tmp").mkdir()
        shutil.copy("/usr/bin/busybox", self.root / "bin/busybox")
        for applet in APPLETS:
            (self.root / "bin" / applet).symlink_to("busybox")

    def spec(self, args: Sequence[str] | str, **changes: Any) -> dict[str, Any]:
        """A default container; `process`, `linux` and `mounts` (appended) may be changed."""
        argv = ["sh", "-c", args] if isinstance(args, str) else list(args)
        capabilities = list(changes.pop("capabilities", DEFAULT))
        process = {
            "args": argv,
            "cwd": "/",
            "env": ["PATH=/bin"],
            "noNewPrivileges": True,
            "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            **changes.pop("process", {}),
        }
        linux = {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network", "cgroup")],
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "seccomp": runtime_default(capabilities, this_machine().name),
            **changes.pop("linux", {}),
        }
        return {
            "ociVersion": "1.2.0",
            "process": process,
            "mounts": MOUNTS + changes.pop("mounts", []),
            "root": {"path": "rootfs", "readonly": changes.pop("readonly", False)},
            "linux": linux,
            "hostname": "box",
            **changes,
        }

    def upper(self) -> Path:
        """The writable layer of the newest container."""
        return self.folder / f"upper{self._count}"

    def start(
        self,
        args: Sequence[str] | str,
        *,
        join: Mapping[str, str] | None = None,
        terminal: bool = False,
        kernel: Any = None,
        spec: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Running:
        """Starts a container; standard output and error come back through Running.wait."""
        config = spec or self.spec(args, **changes)
        path = self.place(self._count + 1)
        cgroup = self.driver.create(path, config["linux"]["resources"], config.get("annotations"))
        running = self.launch(config, cgroup, join=join or {}, terminal=terminal, kernel=kernel)
        self.driver.settle(path)
        return running

    def launch(
        self,
        config: dict[str, Any],
        cgroup: cgroups.Cgroup,
        *,
        join: Mapping[str, str] | None = None,
        terminal: bool = False,
        kernel: Any = None,
    ) -> Running:
        """Starts a container in a given cgroup."""
        self._count += 1
        rootfs = Rootfs((str(self.root),), str(self.upper()), str(self.folder / f"work{self._count}"))
        tree = cgroups.tree_options(Path("/proc/self/mountinfo").read_text())
        plan = container_plan(parse(config), rootfs=rootfs, join=join or {}, cgroup=cgroup.join(), tree=tree)
        return self._launch(plan, cgroup, config, terminal, kernel)

    def exec(
        self, running: Running, args: Sequence[str] | str, terminal: bool = False, **process: Any
    ) -> Running:
        """One more process in a running container."""
        argv = ["sh", "-c", args] if isinstance(args, str) else list(args)
        config = {**running.spec["process"], "args": argv, **process}
        plan = exec_plan(
            parse(running.spec),
            parse_process(config),
            init_pid=running.pid,
            cgroup=running.cgroup.join(),
            init_start_time=running.process.start_time_ticks,
        )
        return self._launch(plan, running.cgroup, running.spec, terminal, None)

    def sandbox(self, **changes: Any) -> Running:
        """A pause process with its own namespaces."""
        self._count += 1
        config = {
            "ociVersion": "1.2.0",
            "hostname": "pod",
            "linux": {"namespaces": [{"type": k} for k in ("network", "ipc", "uts", "pid")], **changes},
        }
        cgroup = self.driver.create(f"{self.base}/{self._count}")
        return self._launch(sandbox_plan(parse(config), cgroup=cgroup.join()), cgroup, config, False, None)

    def _launch(self, plan: Any, cgroup: Any, config: dict[str, Any], terminal: bool, kernel: Any) -> Running:
        reader, writer = os.pipe()
        stdio = (-1, -1, -1) if terminal else (self._null, writer, writer)
        try:
            process = launch(kernel or self.kernel, plan, stdio, terminal=terminal)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        running = Running(process, reader, cgroup, config)
        self._running.append(running)
        return running

    def run(self, args: Sequence[str] | str, **changes: Any) -> tuple[int, str]:
        """Starts a container and waits for its end."""
        return self.start(args, **changes).wait()

    def close(self) -> None:
        for running in reversed(self._running):
            running.close()
        if self.driver.exists(self.base):
            self.driver.remove(self.base, recursive=True)
        os.close(self._null)


@pytest.fixture
def box_with(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """Makes a box with another driver: `box_with(driver, place)`."""
    made: list[Box] = []

    def make(driver: cgroups.CgroupDriver, place: Callable[[int], str]) -> Box:
        made.append(Box(tmp_path, "other", driver, place))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    if os.geteuid() != 0:
        pytest.skip("root is missing")
    if not Path("/usr/bin/busybox").exists():
        pytest.skip("/usr/bin/busybox is missing")
    made = Box(tmp_path, request.node.name.partition("[")[0][-40:])
    yield made
    made.close()
