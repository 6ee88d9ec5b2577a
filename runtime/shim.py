"""The shim: one small daemon per pod, the parent of pause and of the pod's containers.

It exists so that the agent may die, be upgraded or hang without a container noticing: only a parent
learns an exit code, somebody must read the pipes, and the pause process must belong to someone. It is
single-threaded around one epoll loop. What it starts was prepared by the agent (prepared.py), or is
launched by a worker (worker.py). It serves any
number of agents, one after another or at once, on `<sandbox folder>/shim.sock` (0600), with frames of
runtime/streams.py:

    REQUEST  {"id": n, "op": name, …}   RESPONSE {"id": n, …} or {"id": n, "error": text, "kind": class}
    EVENT    {"type": …, "container": id, "state": {…}}   after "hello"

Operations: hello, start, stop, signal, reopen, exec, attach, forget, rest, end. After `exec` and `attach` the
connection belongs to that session. `end` kills everything, is answered when all is dead, and ends the
shim.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time

from runtime import json_text, prepared, state
from runtime.container import Container, Errand, Tools, run_errand
from runtime.errors import RuntimeFailure
from runtime.launch import launch
from runtime.loop import Loop, Rhythm, Timer
from runtime.namespaces import namespaces_of
from runtime.operations import sandbox_plan
from runtime.session import null, reply
from runtime.spec import parse
from runtime.state import Identity, SandboxState
from runtime.stdio import Connection
from runtime.streams import EVENT, REQUEST
from runtime.worker import Starter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.cgroups import CgroupDriver
    from runtime.launch import Launch, Process
    from runtime.linux import LinuxKernel
    from runtime.pages import Pages

GOODBYE_SECONDS = 1.0
MISTAKE_PAUSE_SECONDS = 0.1
WORKER_STAYS_SECONDS = 2.0
# A rest costs 2 ms of processor time. A pod seldom starts alone: the others come first.
NO_REST_SECONDS = 3.0


class Shim:
    """See the module. `directory` is the sandbox's own, `containers_directory` that of all containers."""

    def __init__(
        self,
        directory: str,
        containers_directory: str,
        listener: socket.socket,
        *,
        kernel: LinuxKernel,
        driver: CgroupDriver,
        pages: Pages,
        launch: Launch = launch,
    ) -> None:
        self.directory = directory
        self.containers_directory = containers_directory
        self.kernel = kernel
        self.cgroups = driver
        self.launch = launch
        self.starter = Starter(kernel)
        self._record: dict[str, Any] = {}
        self._program = f"{directory}/{prepared.NAME}"
        self.loop = Loop(rest=self._rest, no_rest=NO_REST_SECONDS)
        self.boot = state.boot_id()
        self._pages = pages
        self._listener = listener
        self._connections: list[Connection] = []
        self._subscribers: list[Connection] = []
        self._untold: list[tuple[str, Container]] = []
        self._greeted = False
        self._containers: dict[str, Container] = {}
        self._pause: Process | None = None
        self._rhythm = Rhythm()
        self._ended: list[Callable[[], None]] = []
        self._ending = False
        self._stays = Timer(0.0, self.starter.dismiss)
        self._state = SandboxState(shim=state.identify(os.getpid()), created_at=time.time())
        self._operations: dict[str, Callable[[Connection, Mapping[str, Any]], None]] = {
            "hello": self._hello,
            "start": self._start,
            "stop": self._stop,
            "signal": self._signal,
            "reopen": self._reopen,
            "exec": self._exec,
            "attach": self._attach,
            "forget": self._forget,
            "rest": self._rest_now,
            "end": self._end,
        }
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), self._accept)

    def run(self, first: socket.socket) -> None:
        """Start pause, tell the first client, and serve until `end`. Before, the client has prepared what it
        can, and says something; one that has died meanwhile leaves all to us: what it held is gone."""
        self._greeted = bool(first.recv(1, socket.MSG_PEEK))
        self._record = state.read_json(f"{self.directory}/sandbox.json") or {}
        connection = self._welcome(first)
        try:
            self._have_pause()
        except (RuntimeFailure, OSError, ValueError, KeyError) as error:
            reply(connection, 0, error=str(error), kind=type(error).__name__)
            self._close_door()
            self._leave()
        else:
            reply(connection, 0, sandbox=state.plain(self._state))
        while not self.loop.stopped:
            try:
                self.loop.run()
            except Exception as error:
                # A mistake of ours, or a full disk, must not cost the pod its parent: it is written down.
                sys.excepthook(type(error), error, error.__traceback__)
                time.sleep(MISTAKE_PAUSE_SECONDS)

    def complain(self, text: str) -> None:
        """One line in shim.log. Who complains has more to do: a full disk, of which most complaints are, may
        have no room for them either."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            os.write(2, f"{stamp} {text}\n".encode())
        except OSError:
            pass

    def announce(self, kind: str, container: Container | None) -> None:
        """Tell every subscriber. What is told is on disk already."""
        values: dict[str, Any] = {"type": kind, "at": time.time()}
        if container is not None:
            values |= {"container": container.id, "state": state.plain(container.state)}
        else:
            values |= {"sandbox": state.plain(self._state)}
        payload = json_text.dumps(values).encode()
        for subscriber in tuple(self._subscribers):
            subscriber.send(EVENT, payload)
        if self._ending:
            self._end_when_empty()

    def tell_some_day(self, kind: str, container: Container) -> None:
        """As `announce`, but what is lost when no agent listens: the next one is told when it comes."""
        if self._subscribers:
            self.announce(kind, container)
        elif (kind, container) not in self._untold:
            self._untold.append((kind, container))

    def _rest(self, descriptor: int, timeout: Callable[[], int]) -> None:
        """Nothing has happened for a while: give back what need not be this process's own, and wait."""
        self._dismiss_worker()
        gc.collect()
        self._pages.rest(descriptor, timeout())

    def _dismiss_worker(self) -> None:
        self._stays.cancel()
        self.starter.dismiss()

    # the sandbox

    def _begin_pause(self) -> None:
        """Have a worker start it."""
        linux = self._record.get("oci", {}).get("linux", {})
        if any(entry["type"] == "user" for entry in linux.get("namespaces", ())):
            # It takes a process between us and what is started, which cannot make it our child and live on.
            self.starter.begin(lambda: self._launch_pause(sibling=False), None)
            return
        tools = Tools(self.kernel, self.cgroups, self.launch)
        self.starter.begin(
            lambda: self._launch_pause(sibling=True),
            lambda values, child: run_errand(tools, Errand(*values), child, sibling=True),
        )

    def _have_pause(self) -> None:
        self._pause = self._prepared_pause()
        if self._pause is None:
            self._pause = self.starter.begun()
            # A container that never stops writing never lets us rest.
            self._stays = self.loop.call_later(WORKER_STAYS_SECONDS, self.starter.dismiss)
        pause = Identity(self._pause.pid, self._pause.start_time_ticks, self.boot)
        self._change(pause=pause)
        self.loop.watch(self._pause.pidfd, self._pause_exited)

    def _prepared_pause(self) -> Process | None:
        started, descriptor = None, null()
        try:
            if self._greeted:
                started = prepared.start(self.kernel, self._program, (descriptor, descriptor, descriptor))
        finally:
            os.close(descriptor)
        if started is not None:
            self.starter.adopt(started)
        else:
            self._begin_pause()
        return started

    def _launch_pause(self, *, sibling: bool) -> Process:
        spec = parse(self._record["oci"])
        cgroup = self.cgroups.create_bare(self._record["cgroup"])
        descriptor = null()
        join = (state.read_json(f"{self.directory}/{state.JOIN}") or {}) if self._greeted else {}
        plan = sandbox_plan(spec, cgroup=cgroup.join(), join=join)
        try:
            return self.launch(self.kernel, plan, (descriptor, descriptor, descriptor), sibling=sibling)
        finally:
            os.close(descriptor)

    def _change(self, **values: Any) -> None:
        fields = {name: getattr(self._state, name) for name in self._state._fields}
        self._state = SandboxState(**{**fields, **values})
        state.write_json(f"{self.directory}/state.json", state.plain(self._state))

    def _pause_exited(self, mask: int) -> None:
        pause, self._pause = self._pause, None
        assert pause is not None
        self.loop.forget(pause.pidfd)
        code = self.starter.reap(pause)
        try:
            self._change(exited_at=time.time(), exit_code=code)
        except OSError as error:
            # Whoever reads the old record sees that the process in it is gone.
            self.complain(f"Could not save state of sandbox {self._record['id']}: {error.strerror}")
        self.announce("sandbox-exited", None)

    def _namespaces(self) -> dict[str, str]:
        """The namespaces a container joins: those that pause made."""
        if self._pause is None:
            raise RuntimeFailure(f"Could not join sandbox {self._record['id']}: its pause process has ended")
        return namespaces_of(self._record["oci"], self._pause.pid)

    # clients

    def _accept(self, mask: int) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # the client has gone away again
        self._welcome(client)

    def _welcome(self, client: socket.socket) -> Connection:
        connection = Connection(self.loop, client, lambda channel, payload: None)
        connection.on_frame = lambda channel, payload: self._frame(connection, channel, payload)
        connection.on_closed = lambda: self._gone(connection)
        # Sessions take the notice of their end for themselves, so what has closed is dropped here.
        self._connections = [known for known in self._connections if known.open] + [connection]
        return connection

    def _gone(self, connection: Connection) -> None:
        for group in (self._connections, self._subscribers):
            if connection in group:
                group.remove(connection)

    def _frame(self, connection: Connection, channel: int, payload: bytes) -> None:
        if channel != REQUEST:
            connection.close()
            return
        number = 0
        try:
            request = json_text.loads(payload.decode())
            number = request.get("id", 0)
            self._operations[request["op"]](connection, request)
        except (RuntimeFailure, OSError, ValueError, KeyError) as error:
            reply(connection, number, error=str(error), kind=type(error).__name__)
        except Exception as error:
            # A mistake of ours in one request must not cost the pod its parent: it is told and written down.
            sys.excepthook(type(error), error, error.__traceback__)
            reply(connection, number, error=f"internal error: {error!r}", kind="InternalError")

    def _container(self, request: Mapping[str, Any]) -> Container:
        identifier = request["container"]
        if identifier not in self._containers:
            self._containers[identifier] = Container(self, identifier)
        return self._containers[identifier]

    # operations

    def _hello(self, connection: Connection, request: Mapping[str, Any]) -> None:
        self._subscribers.append(connection)
        containers = {name: state.plain(one.state) for name, one in self._containers.items()}
        if "id" in request:  # who has had us made, has had the answer that pause runs
            reply(connection, request["id"], sandbox=state.plain(self._state), containers=containers)
        untold, self._untold = self._untold, []
        for kind, container in untold:
            self.announce(kind, container)

    def _start(self, connection: Connection, request: Mapping[str, Any]) -> None:
        if self._ending:
            raise RuntimeFailure("Could not start container: its sandbox is being stopped")
        container = self._container(request)
        try:
            started = container.start(
                self._namespaces(), self._pause.pid if self._pause else 0, request.get("gate", "")
            )
        except (RuntimeFailure, OSError, ValueError, KeyError) as error:
            reply(
                connection,
                request["id"],
                error=str(error),
                kind=type(error).__name__,
                state=state.plain(container.state),
            )
            return
        reply(connection, request["id"], state=state.plain(container.state), started=started)
        if started:
            self.announce("started", container)

    def _stop(self, connection: Connection, request: Mapping[str, Any]) -> None:
        container = self._container(request)

        def stopped() -> None:
            reply(connection, request["id"], state=state.plain(container.state))

        container.stop(request["signal"], request["grace"], stopped)

    def _signal(self, connection: Connection, request: Mapping[str, Any]) -> None:
        self._container(request).signal(request["signal"])
        reply(connection, request["id"])

    def _reopen(self, connection: Connection, request: Mapping[str, Any]) -> None:
        self._container(request).reopen_log()
        reply(connection, request["id"])

    def _exec(self, connection: Connection, request: Mapping[str, Any]) -> None:
        self._hand_over(connection)
        self.loop.stay_awake(self._rhythm.beat(time.monotonic()))
        self._container(request).exec(connection, request)

    def _attach(self, connection: Connection, request: Mapping[str, Any]) -> None:
        self._hand_over(connection)
        self._container(request).attach(connection, request)

    def _hand_over(self, connection: Connection) -> None:
        if connection in self._subscribers:
            raise RuntimeFailure("Could not open session: this connection receives events (open another)")

    def _forget(self, connection: Connection, request: Mapping[str, Any]) -> None:
        container = self._containers.get(request["container"])
        if container is not None and container.running:
            raise RuntimeFailure(f"Could not remove container {container.id}: it is running (stop it first)")
        if container is not None:
            container.forget()
        self._containers.pop(request["container"], None)
        reply(connection, request["id"])

    def _rest_now(self, connection: Connection, request: Mapping[str, Any]) -> None:
        reply(connection, request["id"])
        self.loop.tired = True

    def _end(self, connection: Connection, request: Mapping[str, Any]) -> None:
        self._ended.append(lambda: reply(connection, request["id"], sandbox=state.plain(self._state)))
        self._ending = True
        for container in self._containers.values():
            container.kill()
        if self._pause is not None:
            signal.pidfd_send_signal(self._pause.pidfd, signal.SIGKILL)
        self._end_when_empty()

    def _end_when_empty(self) -> None:
        running = any(container.running for container in self._containers.values())
        if self._pause is not None or running or not self._ended:
            return
        ended, self._ended = self._ended, []
        self._close_door()  # first: who is told may remove the folder
        for tell in ended:
            tell()
        self._leave()

    def _close_door(self) -> None:
        """Take no more clients."""
        self.loop.forget(self._listener.fileno())
        self._listener.close()
        try:
            os.unlink(f"{self.directory}/shim.sock")
        except FileNotFoundError:
            pass  # its folder was renamed by an agent that could not wait

    def _leave(self) -> None:
        """Let the clients have their last frames, then end."""
        self._dismiss_worker()  # it has a copy of the first client's connection
        for connection in tuple(self._connections):
            connection.end()
        waiting = any(connection.open for connection in self._connections)
        self.loop.call_later(GOODBYE_SECONDS if waiting else 0, self.loop.stop)
