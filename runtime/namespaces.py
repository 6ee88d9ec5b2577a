"""Namespaces, made and joined by one thread.

unshare(2) and setns(2) act on the calling thread. A mount namespace can only be entered by a thread whose
working directory and root are its own, hence CLONE_FS first. A PID namespace never takes the thread itself,
only its next child; procfs, however, mounts the namespace of that next child, which is why /proc is right
before PID 1 exists.
"""

from __future__ import annotations

import os

from runtime.kernel import Kernel, Step
from runtime.plan import Context, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CLONE_FS = 0x200
FLAGS = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "time": 0x00000080,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
FILES = {"mount": "mnt", "network": "net"}  # names under /proc/<pid>/ns that differ from OCI's
PROC_SUPER_MAGIC = 0x9FA0
IPC_SYSCTLS = frozenset(
    "kernel." + name
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


JOINABLE = {"user": "user", "network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}


def namespaces_of(oci: Mapping[str, Any], pause: int = 0) -> dict[str, str]:
    """Type → path of the namespaces that the process `pause` made by the sandbox's configuration `oci`.
    Without one the paths are nobody's: they stand for those of a process that is known later (see
    ahead.py)."""
    made = {entry["type"] for entry in oci["linux"]["namespaces"]}
    return {kind: f"/proc/{pause}/ns/{name}" for kind, name in JOINABLE.items() if kind in made}


def flags_of(kinds: tuple[str, ...]) -> int:
    """The clone flags of several namespace types."""
    total = 0
    for kind in kinds:
        total |= FLAGS[kind]
    return total


class OpenHost(Operation):
    """Takes hold of the host's /proc while paths still mean the host's. Attributes and sysctls are later
    written through this descriptor, which is known to be a real procfs (CVE-2025-52881)."""

    def describe(self) -> str:
        return "open the host's /proc"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.host_proc = context.keep(kernel.open("/proc", os.O_PATH | os.O_DIRECTORY))
        if kernel.filesystem(context.host_proc) != PROC_SUPER_MAGIC:
            raise OSError(22, "/proc is not a procfs")


class OpenNull(Operation):
    """Takes hold of a /dev/null that is known to be device 1:3, for masks (CVE-2025-31133). After the mount
    namespace was made: only mounts of the own namespace can be bound."""

    def describe(self) -> str:
        return "open the host's /dev/null"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.null = open_null(kernel, context)


def open_null(kernel: Kernel, context: Context) -> int:
    """The host's /dev/null, looked at. Raises OSError when it is another device."""
    null = context.keep(kernel.open("/dev/null", os.O_PATH | os.O_NOFOLLOW))
    if kernel.fstat(null).rdev != os.makedev(1, 3):
        raise OSError(22, "/dev/null is not device 1:3")
    return null


class Undumpable(Operation):
    """Nobody may trace us or read our memory through /proc while a child shares it (CVE-2016-9962)."""

    def describe(self) -> str:
        return "forbid tracing of the process that sets up"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.dumpable(False)
        kernel.block_signals()


class OwnFolder(Operation):
    """Separates the thread's working directory, root and umask from the process's."""

    def describe(self) -> str:
        return "separate the working directory"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.unshare(CLONE_FS)
        kernel.umask(0)


class JoinNamespace(Operation):
    """Enters a namespace by path."""

    kind: str
    path: str

    def describe(self) -> str:
        return f"join the {self.kind} namespace {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        held = context.prepared.pop(f"{self.kind} namespace", -1)
        fd = kernel.duplicate(held) if held >= 0 else kernel.open(self.path, os.O_RDONLY)
        try:
            kernel.setns(fd, FLAGS[self.kind])
        finally:
            kernel.close(fd)


class HoldNamespace(Operation):
    """Opens a namespace that is joined later, when its path may be closed to us."""

    kind: str
    path: str

    def describe(self) -> str:
        return f"open the {self.kind} namespace {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        fd = kernel.open(self.path, os.O_RDONLY)
        context.prepared[f"{self.kind} namespace"] = context.keep(fd)


class JoinProcess(Operation):
    """Enters namespaces of a running process, all at once (setns on a pidfd, Linux 5.8). Its cgroup namespace
    is the child's to enter, by the same pidfd: see JoinCgroupNamespace.

    `start_time`, if given, is compared after the pidfd is held, so a recycled pid is noticed.
    """

    pid: int
    kinds: tuple[str, ...]
    start_time: int | None = None

    def describe(self) -> str:
        return f"join the {', '.join(self.kinds)} namespaces of process {self.pid}"

    def run(self, kernel: Kernel, context: Context) -> None:
        fd = context.keep(kernel.pidfd_open(self.pid))
        if self.start_time is not None and kernel.start_time(self.pid) != self.start_time:
            raise OSError(3, "the process has ended and its number was given to another")
        kernel.setns(fd, flags_of(self.kinds))
        context.cgroup_namespace = fd
        if "user" in self.kinds:
            kernel.become_root()
            context.user_namespace = True
            context.held = kernel.capabilities(proc=context.host_proc)
        if "mount" in self.kinds:
            context.root = context.keep(kernel.open("/", os.O_PATH | os.O_DIRECTORY))


class NewNamespaces(Operation):
    """Makes namespaces for this thread (pid: for its next child)."""

    kinds: tuple[str, ...]

    def describe(self) -> str:
        return f"make new {', '.join(self.kinds)} namespaces"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.unshare(flags_of(self.kinds))


class RaiseLoopback(Operation):
    """Brings up the loopback interface of the new network namespace, as runc and crun do: nobody else comes
    to wire a container that has nothing but that (`podman run --network none`)."""

    def describe(self) -> str:
        return "bring up the loopback interface"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.raise_loopback()


class NewCgroupNamespace(Operation):
    """The child's own cgroups become the roots it sees; therefore after it has joined them."""

    def describe(self) -> str:
        return "make a new cgroup namespace"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("unshare", (FLAGS["cgroup"],)))


class HoldCgroupNamespace(Operation):
    """Takes hold of a cgroup namespace by path, for the child to join."""

    path: str

    def describe(self) -> str:
        return f"open the cgroup namespace {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.cgroup_namespace = context.keep(kernel.open(self.path, os.O_RDONLY))


class JoinCgroupNamespace(Operation):
    """The child joins an existing cgroup namespace, after it was born into its cgroup. Not the thread before:
    where cgroup2 is mounted with nsdelegate, as systemd does, nobody inside a cgroup namespace may bring a
    process in from a cgroup outside of it, and clone3 answers ENOENT."""

    def describe(self) -> str:
        return "join the cgroup namespace"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("setns", (context.cgroup_namespace, FLAGS["cgroup"])))


class SetHostname(Operation):
    """Names the new UTS namespace."""

    hostname: str
    domainname: str = ""

    def describe(self) -> str:
        return f"set the hostname {self.hostname}"

    def run(self, kernel: Kernel, context: Context) -> None:
        if self.hostname:
            kernel.sethostname(self.hostname)
        if self.domainname:
            kernel.setdomainname(self.domainname)


def namespace_of_sysctl(name: str) -> str:
    """The type of namespace that a kernel setting belongs to, "" for one of the whole machine. Setting those
    for a container would be setting them for everybody: kernel.core_pattern names a program that the kernel
    runs as root outside of any container (CVE-2022-0811). Source: runc's libcontainer/configs/validate.
    """
    parts = name.split("/" if "/" in name else ".")
    if not {"", ".", ".."}.isdisjoint(parts):
        return ""
    if parts[0] == "net":
        return "network"
    if parts[:2] == ["fs", "mqueue"] or ".".join(parts) in IPC_SYSCTLS:
        return "ipc"
    return "uts" if parts == ["kernel", "domainname"] else ""


class SetSysctl(Operation):
    """Writes a namespaced kernel setting. The kernel picks the namespace by the writing thread."""

    name: str
    value: str

    def describe(self) -> str:
        return f"set the sysctl {self.name}"

    def run(self, kernel: Kernel, context: Context) -> None:
        path = "sys/" + (self.name if "/" in self.name else self.name.replace(".", "/"))
        resolve = 0x01 | 0x02 | 0x04 | 0x08  # neither other mounts, nor links of any kind, nor upwards
        fd = kernel.openat2(context.host_proc, path, os.O_WRONLY, resolve=resolve)
        try:
            kernel.write(fd, self.value.encode())
        finally:
            kernel.close(fd)
