"""Another OCI runtime in the place of runtime/launch.py: runc, crun, or whatever has their command line.

The shim, its logs, sessions and exit codes stay the same; only who sets a container up is another. Each
command (create, start, exec --detach, kill, update, delete) runs in a process or thread made for it, in a
mount namespace of its own: there the overlay is mounted, so that no mount of the host's has to be undone by
anybody, and nothing that the runtime mounts comes back. What a detached command leaves running becomes the
shim's child, because the shim is a child subreaper for that moment (prctl(2)).

On hybrid hosts the v2 tree has no controllers and serves to kill: a process stays there in what its parent
was in. So the command itself enters the container's (or the exec's) v2 cgroup, and hides that tree from the
runtime, which then sees a v1 host: crun refuses hybrid ones, and runc would move an exec out of its cgroup.
Runtimes that know hybrid hosts (`hybrid_cgroups`), and all runtimes on pure v2, are told the exec's cgroup.

Imported by a shim's short-lived workers and the agent only: a shim's memory does not know this module.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from runtime import json_text, state
from runtime.capabilities import NUMBERS
from runtime.errors import CgroupError, RuntimeFailure, StartError, errno_name
from runtime.kernel import AT_FDCWD
from runtime.launch import Process
from runtime.mounting import AT_RECURSIVE, MS_REC, MS_SLAVE, OPEN_TREE_CLONE
from runtime.mounts import MountOverlay
from runtime.plan import NO_STDIO, Context
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.cgroups import CgroupDriver
    from runtime.linux import LinuxKernel
    from runtime.operations import Rootfs

CLONE_NEWNS = 0x20000
CAP_SYS_RESOURCE = 24
LOWEST_SCORE = -1000
COMMAND_SECONDS = 45.0  # for all commands of a start; the agent waits for a minute
QUICK_SECONDS = 10.0  # for kill, and for delete after a failed start
MOST_WORDS = 4096
OCI_VERSION = "1.0.2"  # crun 1.8 takes no later one; nothing that an agent asks for is younger
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
CONSOLE = "console.sock"


class Runtime(Record):
    """The executable behind a handler, as the container's record has it (see values.OciRuntime)."""

    path: str
    root: str
    arguments: tuple[str, ...]
    hybrid_cgroups: bool


class Place(Record):
    """A container: its id, its folder, its cgroup below the trees' roots."""

    id: str
    directory: str
    cgroup: str


class Reach(Record):
    """What this process may do: bits of its capabilities, and the lowest oom_score_adj that it may set."""

    capabilities: int
    least_score: int


def within_reach(process: Mapping[str, Any], reach: Reach) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The process as it can be had here, and what was left out: runc and crun give up where they may not set
    what is asked for, whereas ours goes on and says so. Pure."""
    made, warnings = dict(process), []
    score = process.get("oomScoreAdj")
    if score is not None and score < reach.least_score:
        made["oomScoreAdj"] = reach.least_score
        warnings.append(f"Could not set oom_score_adj to {score}: EPERM (it is {reach.least_score})")
    sets = process.get("capabilities") or {}
    wanted = {name for names in sets.values() for name in names}
    missing = {name for name in wanted if not reach.capabilities >> NUMBERS.get(name, 63) & 1}
    if missing:
        made["capabilities"] = {
            kind: [name for name in names if name not in missing] for kind, names in sets.items()
        }
        warnings.append(f"Could not give {', '.join(sorted(missing))}: EPERM (we have none ourselves)")
    return made, tuple(warnings)


def foreign_config(
    oci: Mapping[str, Any], *, root: str, cgroup: str, join: Mapping[str, str], tty: bool
) -> dict[str, Any]:
    """The bundle's config.json: our document with what we otherwise say beside it. Pure.

    `join` (type → path) wins over namespaces of the document.
    """
    listed = {entry["type"]: dict(entry) for entry in oci["linux"].get("namespaces", ())}
    listed |= {kind: {"type": kind, "path": path} for kind, path in join.items()}
    return {
        **oci,
        "ociVersion": OCI_VERSION,
        "process": {**oci["process"], "terminal": tty},
        "root": {**oci.get("root", {}), "path": root},
        "linux": {**oci["linux"], "namespaces": list(listed.values()), "cgroupsPath": f"/{cgroup}"},
    }


class Foreign:
    """One container under another runtime. Every method leaves its thread in a mount namespace of its own, so
    each instance serves once, in a process or a thread that ends afterwards (`runtime/own_thread.py`)."""

    def __init__(
        self,
        kernel: LinuxKernel,
        driver: CgroupDriver,
        runtime: Mapping[str, Any],
        place: Place,
        seconds: float = COMMAND_SECONDS,
    ) -> None:
        self._kernel = kernel
        self._driver = driver
        self._runtime = Runtime(
            runtime["path"], runtime["root"], tuple(runtime["arguments"]), runtime["hybrid_cgroups"]
        )
        self._place = place
        self._bundle = f"{place.directory}/bundle"
        self._log = f"{place.directory}/runtime.log"
        self._hidden = driver.name == "hybrid" and not self._runtime.hybrid_cgroups
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    # commands

    def start(
        self,
        oci: Mapping[str, Any],
        rootfs: Rootfs,
        join: Mapping[str, str],
        stdio: tuple[int, int, int],
        *,
        tty: bool,
    ) -> Process:
        """create, then start. Raises StartError, with nothing left behind but the folder."""
        process_document, warnings = within_reach(oci["process"], self._reach())
        oci = {**oci, "process": process_document}
        config = foreign_config(oci, root=rootfs.upper, cgroup=self._place.cgroup, join=join, tty=tty)
        os.mkdir(self._bundle, 0o700)
        state.write_json(f"{self._bundle}/config.json", config)
        self._driver.create_bare(self._place.cgroup)
        self._enter(self._place.cgroup, shared_sources(oci))
        MountOverlay(rootfs.layers, rootfs.upper, rootfs.work).run(self._kernel, Context(NO_STDIO, False))
        words = ["create", "--bundle", self._bundle]
        try:
            process = self._detached(words, "container", stdio, tty=tty)
            self._run(["start", self._place.id])
        except RuntimeFailure:
            self._discard()
            raise
        return Process(process.pid, process.start_time_ticks, -1, process.console, warnings)

    def exec(
        self, process: Mapping[str, Any], cgroup: str, stdio: tuple[int, int, int], *, tty: bool
    ) -> Process:
        """exec --detach, in `cgroup`, a folder of the container's own. Raises StartError."""
        name = cgroup.rpartition("/")[2]
        self._driver.create_bare(cgroup)
        file = f"{self._bundle}/{name}.json"
        process, warnings = within_reach(process, self._reach())
        state.write_json(file, process)
        if process.get("oomScoreAdj") is not None:
            # Inherited: runc and crun set it for the first process only.
            write("/proc/self/oom_score_adj", str(process["oomScoreAdj"]))
        self._enter(cgroup)
        words = ["exec", "--detach", "--process", file]
        if not self._hidden:
            words += ["--cgroup", f"unified:{name}" if self._driver.name == "hybrid" else name]
        try:
            started = self._detached(words, name, stdio, tty=tty)
        finally:
            os.unlink(file)
        return Process(started.pid, started.start_time_ticks, -1, started.console, warnings)

    def signal(self, number: int) -> None:
        """kill, which is not only SIGKILL. Raises StartError, soon: the shim waits, and has its own way."""
        self._enter("")
        self._allow(QUICK_SECONDS)
        self._run(["kill", self._place.id, str(number)])

    def update(self, resources: Mapping[str, Any]) -> None:
        """update: what is not mentioned stays. Raises StartError."""
        file = f"{self._place.directory}/resources.json"
        state.write_json(file, resources)
        self._enter("")
        self._run(["update", "--resources", file, self._place.id])

    def delete(self) -> None:
        """delete --force; an unknown container is deleted already. Raises StartError."""
        folder = f"{self._runtime.root}/{self._place.id}"
        if not os.path.exists(folder):
            return
        self._enter("")
        self._run(["delete", "--force", self._place.id])

    # how they are run

    def _enter(self, cgroup: str, shared: Sequence[str] = ()) -> None:
        """Go into the cgroup, where that is left to us, and into a mount namespace which hears of the host's
        mounts and tells it of none, but for those below `shared`."""
        kernel = self._kernel
        if cgroup and self._hidden:
            write(f"{self._driver.unified}/{cgroup}/cgroup.procs", "0")
        kernel.unshare(CLONE_NEWNS)
        # A copy of a mount is in its peer group; made before the cut it still is, wherever it is put.
        trees = [(kernel.open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | AT_RECURSIVE), path) for path in shared]
        kernel.mount("", "/", "", MS_SLAVE | MS_REC, "")
        for tree, path in trees:
            target = kernel.open(path, os.O_PATH)
            kernel.move_mount(tree, target)
            kernel.close(target)
            kernel.close(tree)
        if self._hidden:
            kernel.mount("tmpfs", self._driver.unified, "tmpfs", 0, "mode=555,size=4k")
        os.chdir(self._bundle if os.path.isdir(self._bundle) else "/")

    def _detached(self, words: list[str], name: str, stdio: tuple[int, int, int], *, tty: bool) -> Process:
        """A command that leaves a process running: which, and its terminal."""
        pid_file = f"{self._bundle}/{name}.pid"
        words += ["--pid-file", pid_file]
        if not tty:
            self._run([*words, self._place.id], stdio)
            return self._started(words[0], pid_file, -1)
        # Socket paths are short, so it is a relative one: the bundle is the working directory.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(CONSOLE)
            listener.listen(1)
            try:
                self._run([*words, "--console-socket", CONSOLE, self._place.id])
                console = receive_console(listener, self._runtime.path)
            finally:
                os.unlink(CONSOLE)
        return self._started(words[0], pid_file, console)

    def _started(self, verb: str, pid_file: str, console: int) -> Process:
        """The process that the runtime says it has left. It is ours to signal and to reap only when the shim
        has become its parent, and so a number that was made up is not taken. Raises StartError."""
        try:
            text = state.read_file(pid_file).decode(errors="replace").strip()
            os.unlink(pid_file)
        except FileNotFoundError:
            raise StartError(f"OCI runtime {verb} failed: it left no process (no pid file)") from None
        if not (text.isascii() and text.isdigit()):
            raise StartError(f"OCI runtime {verb} failed: {readable(text)!r} in its pid file is no pid")
        pid = int(text)
        if parent_of(text) != os.getppid():
            raise StartError(f"OCI runtime {verb} failed: process {text} of its pid file is none of its own")
        return Process(pid, self._kernel.start_time(pid), -1, console)

    def _allow(self, seconds: float) -> None:
        """So much time for what comes next, but not more than for everything."""
        self._deadline = time.monotonic() + min(seconds, self._seconds)

    def _run(self, words: Sequence[str], stdio: tuple[int, int, int] = NO_STDIO) -> None:
        """One command to its end. Raises StartError with the runtime's own words."""
        runtime, verb = self._runtime, words[0]
        if words[0] != "delete":
            os.makedirs(runtime.root, 0o700, exist_ok=True)
        told = size_of(self._log)
        argv = [runtime.path, "--root", runtime.root, "--log", self._log, "--log-format", "json"]
        try:
            pid = os.posix_spawn(
                runtime.path,
                [*argv, *runtime.arguments, *words],
                ENVIRONMENT,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, descriptor, number)
                    if descriptor >= 0
                    else (os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0)
                    for number, descriptor in enumerate(stdio)
                ],
                setpgroup=0,  # what it leaves when it fails can be found by that
                setsigmask=[],
                # An ignored signal stays so beyond execve.
                setsigdef=self._kernel.ignored_signals(),
            )
        except OSError as error:
            reason = errno_name(error.errno or 0)
            raise StartError(f"Could not run OCI runtime {runtime.path}: {reason}") from error
        begun = time.monotonic()
        code = wait(pid, self._deadline - begun)
        if code is None:
            raise StartError(f"OCI runtime {verb} failed: no end within {self._deadline - begun:.3g} s")
        if code != 0:
            text = last_error(self._log, told) or f"{runtime.path} ended with code {code}"
            raise StartError(f"OCI runtime {verb} failed: {text}")

    def _discard(self) -> None:
        """After a failed start, whose error is the one to be told."""
        self._allow(QUICK_SECONDS)
        try:
            self._run(["delete", "--force", self._place.id])
        except StartError:
            return

    def _reach(self) -> Reach:
        held = self._kernel.capabilities()[0]
        free = held >> CAP_SYS_RESOURCE & 1
        return Reach(held, LOWEST_SCORE if free else int(state.read_file("/proc/self/oom_score_adj")))


def shared_sources(oci: Mapping[str, Any]) -> list[str]:
    """Folders whose mounts, made inside, the host shall see (mountPropagation: Bidirectional)."""
    return [
        mount["source"]
        for mount in oci.get("mounts", ())
        if {"shared", "rshared"} & set(mount.get("options", ()))
    ]


def write(path: str, value: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        number = error.errno or 0
        raise CgroupError(f"Could not write {value!r} to {path}: {errno_name(number)}", number) from error


def wait(pid: int, seconds: float) -> int | None:
    """The exit code, or minus the signal; None when it had to be killed because the time was over. What it
    has started goes with it when it fails, as far as it is in its process group: the container's own process
    is in the container's cgroup, and ended by that."""
    pidfd = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        deadline = time.monotonic() + seconds
        late = False
        while not waiting.poll(max(0, deadline - time.monotonic()) * 1000):
            if late := time.monotonic() >= deadline:
                break
        if late or failed(pidfd):
            os.killpg(pid, signal.SIGKILL)  # not reaped yet, so the number is still the group's
    finally:
        os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if late else code


def failed(pidfd: int) -> bool:
    """Whether a process that has ended has not ended well; it stays to be reaped."""
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    return ended is not None and ended.si_status != 0


def parent_of(pid: str) -> int:
    """The parent of a process, -1 when there is none of that number (proc_pid_stat(5))."""
    try:
        return int(state.read_file(f"/proc/{pid}/stat").rpartition(b") ")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return -1


def receive_console(listener: socket.socket, path: str) -> int:
    """The master side of the terminal that the runtime has sent. Raises StartError."""
    listener.setblocking(False)
    try:
        with listener.accept()[0] as connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
            return descriptors[0]
    except (BlockingIOError, IndexError):
        raise StartError(f"OCI runtime {path} sent no terminal") from None


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def last_error(path: str, offset: int) -> str:
    """The last error in a log of JSON lines from `offset` on; its last line whatever it is, else ""."""
    if not os.path.exists(path):
        return ""
    lines = [line.strip() for line in state.read_file(path)[offset:].decode(errors="replace").splitlines()]
    for line in reversed(lines):
        try:
            entry = json_text.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            return readable(str(entry.get("msg", "")))
    return readable(next((line for line in reversed(lines) if line), ""))


def readable(text: str) -> str:
    """For an event: on one line, without what a terminal would obey, and not without end."""
    words = " ".join(text.split())[:MOST_WORDS]
    return "".join(character if character.isprintable() else "\ufffd" for character in words)
