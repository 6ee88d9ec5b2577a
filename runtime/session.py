"""What one client does with one container: an exec, or an attach.

An exec gets a cgroup of its own below the container's: that is the one thing its processes cannot leave
by forking, setsid or ignoring signals, so a timeout or a vanished client ends all of them (cgroup.kill).
What an exec leaves running when it ends by itself stays, as upstream.
"""

from __future__ import annotations

import os

from runtime import json_text, terminal
from runtime.operations import exec_plan
from runtime.spec import parse, parse_process
from runtime.stdio import Input, Output
from runtime.streams import CLOSE, EXIT, RESIZE, RESPONSE, STDERR, STDIN, STDOUT
from runtime.userns import host_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from runtime.container import Container
    from runtime.launch import Process
    from runtime.plan import Attend, Operation, Plan
    from runtime.stdio import Connection


class Stdio:
    """Both sides of a process's stdio; -1 for an end that the shim does not hold.

    With a terminal `launch` makes the pair inside the container (a tty from elsewhere has no name there)
    and `take_console` splits its master into `stdout` and `stdin`, because epoll knows each descriptor
    once.
    """

    def __init__(self, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> None:
        self.stdin = self.stdout = self.stderr = -1
        self._tty = tty
        self._wants_stdin = stdin
        self._pipes: list[int] = []
        self.child = (-1, -1, -1)
        if tty:
            return
        child_in, self.stdin = os.pipe2(os.O_CLOEXEC) if stdin else (null(), -1)
        self.stdout, child_out = os.pipe2(os.O_CLOEXEC) if stdout else (-1, null())
        self.stderr, child_err = os.pipe2(os.O_CLOEXEC) if stderr else (-1, null())
        self.child = (child_in, child_out, child_err)
        self._pipes = [end for wanted, end in zip((stdin, stdout, stderr), self.child, strict=True) if wanted]

    def give_to(self, uid: int) -> None:
        """Let the process's user open /dev/stdout and its like again, as runc does."""
        give(self._pipes, uid)

    def take_console(self, master: int) -> None:
        """The master side that `launch` returned."""
        if self._tty:
            self.stdout = master
            self.stdin = os.dup(master) if self._wants_stdin else -1

    def close_child(self) -> None:
        for descriptor in self.child:
            if descriptor >= 0:
                os.close(descriptor)

    def close_own(self) -> None:
        """After a failed start."""
        for descriptor in (self.stdin, self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)


def give(pipes: Iterable[int], uid: int) -> None:
    """Make the pipes the user's; root's they are already."""
    for end in pipes if uid else ():
        os.fchown(end, uid, -1)


def null() -> int:
    """/dev/null, opened through the shim's own standard input (forkserver_link.py), which lies in a read-only
    mount: a process that has this as its input cannot change the mode or owner of the host's device."""
    return os.open("/proc/self/fd/0", os.O_RDWR | os.O_CLOEXEC)


def reply(connection: Connection, number: int, **values: Any) -> None:
    connection.send(RESPONSE, json_text.dumps({"id": number, **values}).encode())


def end_with(connection: Connection, **values: Any) -> None:
    """The last frame of a session, then the end of the connection."""
    connection.send(EXIT, json_text.dumps(values).encode())
    connection.end()


def resize(master: Output, payload: bytes) -> None:
    """Obey a RESIZE frame; one that makes no sense is ignored."""
    size = terminal.parse_size(payload)
    if size is not None and master.descriptor >= 0:
        terminal.resize(master.descriptor, *size)


class Exec:
    """One process inside a running container, bound to one client."""

    def __init__(self, container: Container, connection: Connection, request: Mapping[str, Any]) -> None:
        self._container = container
        self._connection = connection
        self._loop = container.loop
        self._tty = bool(request.get("tty"))
        self._stdin: Input | None = None
        self._outputs: list[Output] = []
        self._timed_out = False
        self._killed = False
        self._cgroup_path = container.next_exec_cgroup()
        try:
            self._process = self._launch(request)
        except BaseException:
            container.remove_exec_cgroup(self._cgroup_path)
            raise
        self._loop.watch(self._process.pidfd, self._exited)
        timeout = request.get("timeout")
        self._timer = self._loop.call_later(timeout, self._time_out) if timeout else None
        connection.on_frame = self._frame
        connection.on_closed = self._client_gone
        connection.on_drained = self._client_caught_up
        if not request.get("quiet"):  # who only waits for the end is told that alone
            reply(connection, request.get("id", 0), pid=self._process.pid)

    def _launch(self, request: Mapping[str, Any]) -> Process:
        stdio = Stdio(
            tty=self._tty,
            stdin=bool(request.get("stdin")),
            stdout=bool(request.get("stdout")),
            stderr=bool(request.get("stderr")) and not self._tty,
        )
        try:
            started = self._by_program(request, stdio) or self._by_worker(request, stdio)
        except BaseException:
            stdio.close_own()
            raise
        finally:
            stdio.close_child()
        stdio.take_console(started.console)
        self._adopt(stdio)
        return started

    def _by_program(self, request: Mapping[str, Any], stdio: Stdio) -> Process | None:
        """Started by the program that was compiled for it, if there is one that will do."""
        container, argv = self._container, request["argv"]
        if self._tty or not container.exec_programs.has(argv):
            return None
        container.cgroups.create_bare(self._cgroup_path)
        started = container.exec_programs.start(
            container.kernel,
            argv,
            stdio.child,
            init=container.pidfd,
            cgroup=f"{container.cgroups.unified}/{self._cgroup_path}",
            give=stdio.give_to,
        )
        if started is not None:
            container.starter.adopt(started)
        return started

    def _by_worker(self, request: Mapping[str, Any], stdio: Stdio) -> Process:
        container = self._container
        compilable = not (self._tty or container.has_foreign_runtime)
        place = container.exec_programs.place_for(request["argv"]) if compilable else ""
        return container.starter.start(
            lambda: launch_exec(container, request, self._cgroup_path, stdio, place)
        )

    def _adopt(self, stdio: Stdio) -> None:
        if stdio.stdin >= 0:
            self._stdin = Input(self._loop, stdio.stdin, self._connection.resume_reading)
        for channel, descriptor in ((STDOUT, stdio.stdout), (STDERR, stdio.stderr)):
            if descriptor >= 0:
                self._outputs.append(Output(self._loop, descriptor, self._sender(channel), lambda: None))

    def _sender(self, channel: int) -> Callable[[bytes], None]:
        def send(data: bytes) -> None:
            self._connection.send(channel, data)
            if self._connection.full:
                for output in self._outputs:
                    output.pause()

        return send

    def _client_caught_up(self) -> None:
        for output in self._outputs:
            output.resume()

    def _frame(self, channel: int, payload: bytes) -> None:
        if channel == STDIN and self._stdin is not None:
            self._stdin.write(payload)
            if self._stdin.full:
                self._connection.pause_reading()
        elif channel == CLOSE and payload == bytes((STDIN,)) and self._stdin is not None and not self._tty:
            self._stdin.end()
        elif channel == RESIZE and self._tty:
            resize(self._outputs[0], payload)

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    def _client_gone(self) -> None:
        self.kill()

    def kill(self) -> None:
        """End every process of this exec, whatever it has become."""
        if not self._killed:
            self._killed = True
            self._container.cgroups.open(self._cgroup_path).kill()

    def _exited(self, mask: int) -> None:
        self._loop.forget(self._process.pidfd)
        code = self._container.starter.reap(self._process)
        if self._timer is not None:
            self._timer.cancel()
        for output in self._outputs:
            output.resume()
            output.drain()
            output.close()
        if self._stdin is not None:
            self._stdin.close()
        self._container.remove_exec_cgroup(self._cgroup_path, killed=self._killed)
        self._connection.on_closed = self._connection.on_drained = None
        if self._timed_out:
            end_with(self._connection, exitCode=code, error="command timed out", timedOut=True)
        else:
            end_with(self._connection, exitCode=code)


def launch_exec(
    container: Container, request: Mapping[str, Any], cgroup_path: str, stdio: Stdio, program: str = ""
) -> Process:
    """The worker's part of an exec: read the container's spec, put the command in, start it. `program`: the
    file that it shall be compiled to before, for the next one."""
    config = container.read_oci()
    tty = bool(request.get("tty"))
    process = {**config["process"], "args": list(request["argv"]), "terminal": tty}
    process.pop("consoleSize", None)
    if container.has_foreign_runtime:
        stdio.give_to(process["user"]["uid"])
        return container.foreign().exec(process, cgroup_path, stdio.child, tty=tty)
    process_spec, spec = parse_process(process), parse(config)
    stdio.give_to(host_id(spec.linux.uid_mappings, process_spec.user.uid))
    cgroup = container.cgroups.create_bare(cgroup_path).join()

    def plan(wait_on: Operation | None = None) -> Plan:
        return exec_plan(
            spec,
            process_spec,
            init_pid=container.pid,
            init_start_time=container.start_time,
            cgroup=cgroup,
            wait_on=wait_on,
        )

    def start(planned: Plan, attend: Attend | None = None) -> Process:
        return container.launch(container.kernel, planned, stdio.child, terminal=tty, attend=attend)

    if not (spec.linux.seccomp and spec.linux.seccomp.get("listenerPath")):
        planned = plan()
        if program:
            from runtime.exec_ahead import compile_exec

            root, owner = f"/proc/{container.pid}/root", process_spec.user.uid
            compile_exec(
                container.kernel, planned, program, root=root, cgroup=cgroup.unified, owner=owner
            )
        return start(planned)
    from runtime.attended import launch_attended
    from runtime.container import described_for_agent

    described = described_for_agent(container.directory, config, "running", container.pid)
    fifo = f"{container.directory}/exec-{os.getpid()}.fifo"
    return launch_attended(fifo, spec.linux.seccomp, described, plan, start)


class Attach:
    """A client on the stdio of a container's first process. Several may be there; all see all output."""

    def __init__(self, container: Container, connection: Connection, request: Mapping[str, Any]) -> None:
        self._container = container
        self._connection = connection
        self._channels = {
            channel for channel, name in ((STDOUT, "stdout"), (STDERR, "stderr")) if request.get(name)
        }
        self._stdin = container.stdin if request.get("stdin") else None
        connection.on_frame = self._frame
        connection.on_closed = self._client_gone
        reply(connection, request.get("id", 0), pid=container.pid)

    def output(self, channel: int, data: bytes) -> None:
        if channel in self._channels:
            self._connection.send(channel, data)

    def resume(self) -> None:
        """The container has read its stdin."""
        self._connection.resume_reading()

    def finish(self) -> None:
        """The container has ended; attaching to it went well."""
        self._connection.on_closed = None
        end_with(self._connection, exitCode=0)

    def _frame(self, channel: int, payload: bytes) -> None:
        if channel == STDIN and self._stdin is not None:
            self._stdin.write(payload)
            if self._stdin.full:
                self._connection.pause_reading()
        elif channel == CLOSE and payload == bytes((STDIN,)) and self._stdin is not None:
            self._stdin_ended()
        elif channel == RESIZE and self._container.tty:
            self._container.resize_terminal(payload)

    def _stdin_ended(self) -> None:
        """As containerd: stdinOnce closes the container's stdin and the client stays; else it is done."""
        self._stdin = None
        if self._container.stdin_once and not self._container.tty:
            self._container.end_stdin()
        else:
            self._container.detach(self)
            self.finish()

    def _client_gone(self) -> None:
        self._container.detach(self)
        if self._stdin is not None and self._container.stdin_once and not self._container.tty:
            self._container.end_stdin()
