"""One container as its shim sees it: started, read, waited for, recorded.

The order at the end matters: what the process wrote is in the log, and its exit code is on disk, before
anyone hears of it. An agent that was away finds both.
"""

from __future__ import annotations

import os
import signal
import time

from runtime import oom, prepared, state
from runtime.cgroups import files, oom_files
from runtime.errors import CgroupError, RuntimeFailure
from runtime.exec_program import ExecPrograms
from runtime.logs import LineFormatter, LogFile
from runtime.operations import Rootfs, container_plan
from runtime.records import Record
from runtime.session import Attach, Exec, Stdio, give, resize
from runtime.spec import parse
from runtime.state import EXITED, RUNNING, ContainerState, Identity
from runtime.stdio import Input, Output
from runtime.streams import STDERR, STDOUT
from runtime.userns import host_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.cgroups import CgroupDriver
    from runtime.foreign import Foreign
    from runtime.launch import Launch, Process
    from runtime.linux import LinuxKernel
    from runtime.plan import Attend, Operation, Plan
    from runtime.shim import Shim
    from runtime.stdio import Connection

START_ERROR_CODE = 128
LEFTOVER_OUTPUT_SECONDS = 1.0
SAVE_AGAIN_SECONDS = 1.0
KILLED_SECONDS, KILLED_SECONDS_AT_MOST = 0.2, 60.0


class Tools(Record):
    """What a container is started with."""

    kernel: LinuxKernel
    cgroups: CgroupDriver
    launch: Launch


class Errand(Record):
    """A container to be started by our own runtime, in values that can be sent to a worker. `join`: type and
    path of each namespace."""

    directory: str
    cgroup: str
    layers: tuple[str, ...]
    join: tuple[tuple[str, str], ...]
    tty: bool
    stdin: bool
    work: str


def read_oci(directory: str) -> dict[str, Any]:
    """The OCI configuration, read again each time: kept in memory it would cost every pod."""
    config = state.read_json(f"{directory}/oci.json")
    if config is None:
        raise RuntimeFailure(f"Could not read container {directory[-64:]}: no oci.json (was it removed?)")
    return config


def run_errand(
    tools: Tools, errand: Errand, stdio: tuple[int, int, int], *, sibling: bool = False
) -> Process:
    """A worker's part of a start. `stdio`: the child's descriptors, all -1 for a terminal to be made."""
    config = read_oci(errand.directory)
    rootfs = Rootfs(errand.layers, f"{errand.directory}/upper", f"{errand.directory}/{errand.work}")
    if errand.tty:
        config["process"]["terminal"] = True
    spec = parse(config)
    if not errand.tty:
        uid = host_id(spec.linux.uid_mappings, spec.process.user.uid if spec.process else 0)
        give(stdio if errand.stdin else stdio[1:], uid)
    cgroup = tools.cgroups.create(errand.cgroup, spec.linux.resources)
    joined = dict(errand.join)

    def plan(wait_on: Operation | None = None) -> Plan:
        return container_plan(spec, rootfs=rootfs, join=joined, cgroup=cgroup.join(), wait_on=wait_on)

    def start(planned: Plan, attend: Attend | None = None) -> Process:
        return tools.launch(tools.kernel, planned, stdio, terminal=errand.tty, attend=attend, sibling=sibling)

    if spec.linux.seccomp and spec.linux.seccomp.get("listenerPath"):
        from runtime.attended import launch_attended

        fifo = f"{errand.directory}/start.fifo"
        described = described_for_agent(errand.directory, config, "creating", 0)
        process = launch_attended(fifo, spec.linux.seccomp, described, plan, start)
    else:
        process = start(plan())
    return oom.watch(process, lambda: tools.cgroups.open(errand.cgroup))


def described_for_agent(directory: str, config: Mapping[str, Any], status: str, pid: int) -> dict[str, Any]:
    """A container's state as a seccomp agent is told it (runtime.md, "State"). `pid` 0: the process that the
    listener is of."""
    return {
        "ociVersion": config.get("ociVersion", "1.2.0"),
        "id": directory.rpartition("/")[2],
        "status": status,
        "pid": pid,
        "bundle": directory,
        "annotations": dict(config.get("annotations") or {}),
    }


class Container:
    """A container of this shim's pod, from its start to the removal of its folder."""

    def __init__(self, shim: Shim, identifier: str) -> None:
        self.id = identifier
        self.directory = f"{shim.containers_directory}/{identifier}"
        record = state.read_json(f"{self.directory}/config.json")
        if record is None:
            raise RuntimeFailure(f"Could not find container {identifier}: no config.json (create it first)")
        config = record["config"]
        self.loop = shim.loop
        self.kernel = shim.kernel
        self.cgroups = shim.cgroups
        self.starter = shim.starter
        self.launch = shim.launch
        self.tty: bool = config["tty"]
        self.stdin_once: bool = config["stdin_once"]
        self.state: ContainerState = state.container_state_from(
            state.read_json(f"{self.directory}/state.json")
        )
        self.stdin: Input | None = None
        self._wants_stdin: bool = config["stdin"]
        self._layers: tuple[str, ...] = tuple(config["layers"])
        self._shim = shim
        self._cgroup_path: str = record["cgroup"]
        self._runtime: Mapping[str, Any] | None = record.get("runtime")
        self._process: Process | None = None
        self._log = LogFile(config["log_path"], shim.complain)
        self._outputs: list[Output] = []
        self._attached: list[Attach] = []
        self._oom: oom.Watch | None = None
        self._work = "work"
        self._execs = 0
        self._exec_cgroups: list[str] = []
        self.exec_programs = ExecPrograms(self.directory)
        self._waiters: list[Callable[[], None]] = []

    @property
    def pid(self) -> int:
        """The first process's pid on the host. Raises RuntimeFailure when it doesn't run."""
        return self._require_running().pid

    @property
    def pidfd(self) -> int:
        """Of the first process; ours. Raises RuntimeFailure when it doesn't run."""
        return self._require_running().pidfd

    @property
    def start_time(self) -> int:
        """The first process's start time in clock ticks; with `pid` its identity."""
        return self._require_running().start_time_ticks

    def _require_running(self) -> Process:
        if self._process is None:
            raise RuntimeFailure(f"Could not enter container {self.id}: container is not running")
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None

    def read_oci(self) -> dict[str, Any]:
        return read_oci(self.directory)

    def start(self, join: Mapping[str, str], pause: int, gate: str = "") -> bool:
        """Start it inside the namespaces `join` of the process `pause`. On failure the container is EXITED
        with code 128. At a `gate` (see prepared.py) this waits until it is opened; what comes to nothing
        there, for whatever reason, has not been tried: then this is False, and nothing has changed."""
        if self.state.state != state.CREATED:
            raise RuntimeFailure(f"Could not start container {self.id}: it is {self.state.state}")
        try:
            process = self._launch(join, pause, gate)
        except (RuntimeFailure, OSError, ValueError, KeyError) as error:
            self._never_started(str(error))
            raise
        if process is None:
            return False
        self._process = process
        identity = Identity(process.pid, process.start_time_ticks, self._shim.boot)
        self._record(state=RUNNING, process=identity, started_at=time.time())
        self.loop.watch(process.pidfd, self._exited)
        # A container of which only a child is killed goes on, and nobody would learn why it limps.
        self._oom = oom.Watch(self.loop, self._watched(process), self._look_for_kills)
        return True

    def _launch(self, join: Mapping[str, str], pause: int, gate: str) -> Process | None:
        stdio = Stdio(tty=self.tty, stdin=self._wants_stdin, stdout=True, stderr=True)
        try:
            process = self._prepared(pause, stdio, gate)
            if process is None and not gate:
                process = self._launch_in_worker(join, stdio)
        except BaseException:
            stdio.close_own()
            raise
        finally:
            stdio.close_child()
        if process is None:
            stdio.close_own()
            return None
        for warning in process.warnings:
            self._shim.complain(f"container={self.id[:12]} {warning}")
        stdio.take_console(process.console)
        self._adopt(stdio)
        return process

    def _prepared(self, pause: int, stdio: Stdio, gate: str) -> Process | None:
        """Started by the program that was made with it, if it has one that will do. What that has left in the
        overlay's work folder when it will not, keeps others from mounting it."""
        place = f"{self.directory}/{prepared.NAME}"
        if not prepared.exists(place):
            return None
        started = prepared.start(
            self.kernel, place, stdio.child, pause=pause, gate=gate, give=stdio.give_to
        )
        if started is None:
            self._kill_left()
            self._work = "work-again"
            return None
        self.starter.adopt(started)
        return started

    def _kill_left(self) -> None:
        """What should have set the container up may have been killed itself, and its process wait for ever.
        Not by cgroup.kill: after that, Linux 6.18 kills whoever is born into the cgroup from outside."""
        try:
            for pid in self.cgroups.open(self._cgroup_path).pids():
                os.kill(pid, signal.SIGKILL)
        except (CgroupError, OSError):
            return  # none is left, or there was no cgroup yet

    def _launch_in_worker(self, join: Mapping[str, str], stdio: Stdio) -> Process:
        if self._runtime is not None:
            return self.starter.start(lambda: self._launch_foreign(join, stdio))
        joined = tuple(join.items())
        values = (
            self.directory, self._cgroup_path, self._layers, joined, self.tty, self._wants_stdin, self._work
        )  # fmt: skip
        started = self.starter.send(values, stdio.child)
        if started is not None:
            return started
        tools = Tools(self.kernel, self.cgroups, self.launch)
        return self.starter.start(lambda: run_errand(tools, Errand(*values), stdio.child))

    def _launch_foreign(self, join: Mapping[str, str], stdio: Stdio) -> Process:
        config = self.read_oci()
        rootfs = Rootfs(self._layers, f"{self.directory}/upper", f"{self.directory}/work")
        stdio.give_to(config["process"]["user"]["uid"])
        return self.foreign().start(config, rootfs, join, stdio.child, tty=self.tty)

    @property
    def has_foreign_runtime(self) -> bool:
        return self._runtime is not None

    def foreign(self) -> Foreign:
        """The runtime that its pod's handler names, in place of ours. For workers only: they end with the
        namespaces it enters and the memory it takes."""
        from runtime.foreign import Foreign, Place

        assert self._runtime is not None
        place = Place(self.id, self.directory, self._cgroup_path)
        return Foreign(self.kernel, self.cgroups, self._runtime, place)

    def _adopt(self, stdio: Stdio) -> None:
        if stdio.stdin >= 0:
            self.stdin = Input(self.loop, stdio.stdin, self._stdin_drained)
        for channel, name, descriptor in (
            (STDOUT, "stdout", stdio.stdout),
            (STDERR, "stderr", stdio.stderr),
        ):
            if descriptor >= 0:
                self._outputs.append(self._output(channel, name, descriptor))

    def _output(self, channel: int, name: str, descriptor: int) -> Output:
        lines = LineFormatter(name)

        def deliver(data: bytes) -> None:
            self._log.write(lines.feed(data))
            for client in tuple(self._attached):
                client.output(channel, data)

        def ended() -> None:
            self._log.write(lines.flush())

        return Output(self.loop, descriptor, deliver, ended)

    def _stdin_drained(self) -> None:
        for client in self._attached:
            client.resume()

    def _never_started(self, text: str) -> None:
        self._kill_cgroup()
        self._close_stdio()
        now = time.time()
        self._record(
            state=EXITED,
            exit_code=START_ERROR_CODE,
            reason="StartError",
            message=text,
            started_at=0.0,
            finished_at=now,
        )

    def _record(self, **values: Any) -> None:
        self.state = state.changed(self.state, **values)
        self._save()

    def _save(self) -> None:
        """A full disk must not end the shim: it goes on trying, and whoever asks is told the truth."""
        try:
            state.write_json(f"{self.directory}/state.json", state.plain(self.state))
        except FileNotFoundError:
            return  # the folder was removed: nobody will ask any more
        except OSError as error:
            self._shim.complain(f"Could not save state of container {self.id}: {error.strerror}")
            self.loop.call_later(SAVE_AGAIN_SECONDS, self._save)

    # the end

    def stop(self, signal_number: int, grace: float, stopped: Callable[[], None]) -> None:
        """Ask it to end, and after `grace` seconds make it end; `stopped` is called when it has."""
        if self._process is None:
            stopped()
            return
        self._waiters.append(stopped)
        if grace <= 0:
            self.kill()
            return
        self._ask_to_end(signal_number)
        self.loop.call_later(grace, self.kill)

    def _ask_to_end(self, number: int) -> None:
        """By the runtime's `kill` where the process may be another than the one that we know, as in a VM."""
        if self._runtime is not None:
            try:
                self.starter.call(lambda: self.foreign().signal(number))
                return
            except (RuntimeFailure, OSError) as error:
                self._shim.complain(f"container={self.id[:12]} {error}")
        self.signal(number)

    def signal(self, number: int) -> None:
        """Send a signal to the first process; nothing happens when it has ended."""
        if self._process is not None:
            try:
                signal.pidfd_send_signal(self._process.pidfd, number)
            except ProcessLookupError:
                pass  # it has just ended; the pidfd is about to say so

    def kill(self) -> None:
        """SIGKILL for everything in the container, execs included."""
        if self._process is None:
            return
        self._kill_cgroup()
        self.signal(signal.SIGKILL)

    def _kill_cgroup(self) -> None:
        try:
            if self.cgroups.exists(self._cgroup_path):
                self.cgroups.open(self._cgroup_path).kill()
        except (CgroupError, OSError) as error:
            self._shim.complain(f"Could not kill cgroup {self._cgroup_path}: {error}")

    def _exited(self, mask: int) -> None:
        process = self._process
        assert process is not None
        self.loop.forget(process.pidfd)
        code = self.starter.reap(process)
        self._process = None
        self._kill_cgroup()  # others live on when the pod shares its PID namespace
        if self._oom is not None:
            self._oom.close()
        for output in tuple(self._outputs):
            output.drain()
        self._end_clients()
        if any(output.descriptor >= 0 for output in self._outputs):
            self.loop.call_later(LEFTOVER_OUTPUT_SECONDS, self._close_stdio)
        else:
            self._close_stdio()
        known, killed = self.state.oom_kills, self._oom_kills()
        self._record(
            state=EXITED,
            exit_code=code,
            finished_at=time.time(),
            reason=oom.reason(code, killed),
            oom_kills=killed,
        )
        if killed > known:
            self._shim.announce("oom", self)
        self._shim.announce("exited", self)
        waiters, self._waiters = self._waiters, []
        for stopped in waiters:
            stopped()

    def _watched(self, process: Process) -> tuple[int, int]:
        """A foreign runtime's worker is in a mount namespace that may hide cgroups, so it opens no watch."""
        if self._runtime is None:
            return process.oom
        try:
            return oom_files.watch(self.cgroups.open(self._cgroup_path).oom_files())
        except (CgroupError, OSError) as error:
            self._shim.complain(f"Could not watch for OOM kills in {self._cgroup_path}: {error}")
            return -1, 0

    def _look_for_kills(self) -> bool:
        killed = self._oom_kills()
        if self._process is None or killed <= self.state.oom_kills:
            return False
        if oom.is_ending(self._process.pid):
            return False  # it was the victim, and its end tells of it
        self._record(oom_kills=killed)
        self._shim.tell_some_day("oom", self)
        return True

    def _oom_kills(self) -> int:
        try:
            return oom.kills(self.cgroups.open(self._cgroup_path))
        except (CgroupError, OSError) as error:
            self._shim.complain(f"Could not read OOM kills of {self._cgroup_path}: {error}")
            return 0

    def forget(self) -> None:
        """Nobody asks for it any more. One that has ended closes its log when its output has."""
        if self.state.state == state.CREATED:
            self._log.close()

    def _close_stdio(self) -> None:
        for output in self._outputs:
            output.close()
        self._outputs.clear()
        if self.stdin is not None:
            self.stdin.close()
            self.stdin = None
        self._log.close()

    # clients

    def exec(self, connection: Connection, request: Mapping[str, Any]) -> None:
        """Run one more process in it; the connection becomes its stdio."""
        self._require_running()
        Exec(self, connection, request)

    def attach(self, connection: Connection, request: Mapping[str, Any]) -> None:
        """The connection becomes one more view on its stdio."""
        self._require_running()
        self._attached.append(Attach(self, connection, request))

    def detach(self, client: Attach) -> None:
        if client in self._attached:
            self._attached.remove(client)

    def _end_clients(self) -> None:
        clients, self._attached = self._attached, []
        for client in clients:
            client.finish()

    def end_stdin(self) -> None:
        if self.stdin is not None:
            self.stdin.end()
            self.stdin = None

    def resize_terminal(self, payload: bytes) -> None:
        if self._outputs:
            resize(self._outputs[0], payload)

    def next_exec_cgroup(self) -> str:
        self._execs += 1
        return f"{self._cgroup_path}/exec-{self._execs}"

    def remove_exec_cgroup(self, made: str, *, killed: bool = False) -> None:
        """At once when it is empty; otherwise after a later exec, or with the container's own.

        Never waits: what an exec left running may run as long as the container, and the pod's logs and probes
        would stand still meanwhile. For a whole tree that was `killed` the kernel needs a while: that one is
        looked after.
        """
        self._exec_cgroups.append(made)
        self._sweep_exec_cgroups(made if killed else "")

    def _sweep_exec_cgroups(self, dying: str = "", pause: float = KILLED_SECONDS) -> None:
        # They hold processes together and nothing else, so they are in the v2 tree alone (create_bare).
        root = self.cgroups.unified
        self._exec_cgroups = [
            path for path in self._exec_cgroups if not files.remove_if_empty(f"{root}/{path}")
        ]
        if dying in self._exec_cgroups and pause < KILLED_SECONDS_AT_MOST:
            self.loop.call_later(pause, lambda: self._sweep_exec_cgroups(dying, 2 * pause))

    def reopen_log(self) -> None:
        """Only while it runs: nothing is written to the log of an ended container."""
        if self._process is not None:
            self._log.reopen()
