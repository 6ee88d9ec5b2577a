"""A shim's whole life, played through in the forkserver before the first shim is forked.

Running Python code for the first time writes all over memory: inline caches and specialised instructions,
hashes, version tags of types and dicts, the order of free blocks. Whatever the forkserver has been through
its shims need not write again, and what they write comes back to the state that `pages` remembers. The play
is the real shim with its real loop and files: only programs are stand-ins (forks of this process, without
namespaces and cgroups), its folder is a tmpfs that nobody else can see, and the agent is a fork, too.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from runtime import json_text, pause, state
from runtime.cgroups.oom_files import OomFiles
from runtime.errors import RuntimeFailure
from runtime.gate import PassGate, gate_of
from runtime.kernel import Kernel, Step
from runtime.launch import Process
from runtime.linux import LinuxKernel
from runtime.orders import Cast, receive, serve
from runtime.plan import Context, Operation, Plan
from runtime.prepared import GATE, NAME
from runtime.process import ConnectStdio, Execute, ExecuteImage, Start
from runtime.streams import REQUEST, RESPONSE, FrameReader, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.pages import Pages

ROUNDS = 8
SITTINGS = 3
OUTPUT_LINES = 5
LONGEST_WAIT = 10
POD, CONTAINER = "0" * 64, "c" * 64
WAIT, EXIT = "wait", "exit"


class NoCgroups:
    """A cgroup driver, and its only cgroup, in which nothing is."""

    oom_kills = 0
    unified = "/nonexistent"

    def create(self, path: str, resources: Any = None) -> NoCgroups:
        return self

    def create_bare(self, path: str) -> NoCgroups:
        return self

    def open(self, path: str) -> NoCgroups:
        return self

    def oom_files(self) -> OomFiles:
        return OomFiles()

    def remove(self, path: str, recursive: bool = False) -> None:
        return

    def exists(self, path: str) -> bool:
        return False

    def stats(self) -> NoCgroups:
        return self

    def pids(self) -> list[int]:
        return []

    def join(self) -> None:
        return None


class Sitter:
    """Stands in for `Pages` in the shim that sits for the picture: its first rest is the moment."""

    def __init__(self, pages: Pages, done: int) -> None:
        self._pages = pages
        self._done = done

    def warm(self) -> None:
        """What will be needed is not known yet."""

    def rest(self, descriptor: int, timeout: int) -> None:
        os.write(self._done, self._tell())
        os.killpg(0, signal.SIGKILL)  # with the stand-ins

    def _tell(self) -> bytes:
        self._pages.pose()
        return b"1"


class Teller(Sitter):
    """The same when the picture has been taken: tells which memory a shim writes to."""

    def _tell(self) -> bytes:
        return self._pages.written()


NO_CGROUPS: Any = NoCgroups()


class Sitting:
    """Orders for the forkserver's own loop, on `line`, until its end; the shims are made with `cast`.

    Several for the picture, because only the second of two equal rounds leaves memory as it has found it.
    """

    def __init__(
        self, folder: int, pages: Pages, sitter: type[Sitter] = Sitter, sittings: int = SITTINGS
    ) -> None:
        self._folder = folder
        self._pages = pages
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        sits: Any = sitter(pages, writer)
        self.cast = Cast(NO_CGROUPS, sits, stand_in, 0)
        self.line, self._agent = call_agent(f"/proc/self/fd/{folder}", sittings, ahead=True)
        self._writer = writer

    def finish(self, serve: Callable[[Sitting], None]) -> None:
        """The end of `line` has come: takes the picture. Then one more sitting, for which `serve` serves the
        orders, tells what shims write to. Raises OSError, RuntimeFailure."""
        try:
            if len(self.told()) < SITTINGS:
                raise RuntimeFailure("the shim of the rehearsal ended early")
            self._pages.take()
            self._pages.expect(told_apart(self._folder, self._pages, serve))
        finally:
            os.close(self._folder)

    def told(self) -> bytes:
        """What the sitters have told."""
        os.close(self._writer)
        self.line.close()
        return read_whole(self._reader)


def told_apart(folder: int, pages: Pages, serve: Callable[[Sitting], None]) -> bytes:
    """Which memory a shim writes to. From a fork: whatever this process does now, it and all its shims would
    have besides what is in the picture. Raises OSError."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        if os.fork() == 0:
            be_apart(folder, pages, serve, writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return read_whole(reader)


def be_apart(folder: int, pages: Pages, serve: Callable[[Sitting], None], writer: int) -> None:
    """The fork's side. Does not return."""
    try:
        sitting = Sitting(folder, pages, Teller, 1)
        serve(sitting)
        told = sitting.told()
        while told:
            told = told[os.write(writer, told) :]
    except BaseException as error:
        # Whatever it was, this process may not get back into the forkserver.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def read_whole(reader: int) -> bytes:
    """All that comes from a pipe, which is closed then."""
    found = b""
    while piece := os.read(reader, 65536):
        found += piece
    os.close(reader)
    return found


def rehearse(kernel: LinuxKernel, pages: Pages) -> Sitting | None:
    """Play ROUNDS lives of a pod in this process; what remains to be done for the picture, if it can be.

    Raises OSError, RuntimeFailure.
    """
    import runtime.ahead  # noqa: F401  # once, not in each agent's fork

    tree = kernel.fsopen("tmpfs")
    try:
        kernel.fsconfig(tree, "", None)
        folder = kernel.fsmount(tree, 0)
    finally:
        os.close(tree)
    try:
        for number in range(ROUNDS):
            play(f"/proc/self/fd/{folder}", kernel, pages, ahead=number % 2 > 0)
        gc.collect()
        gc.freeze()
        if pages.prepare():
            return Sitting(folder, pages)
    except BaseException:
        os.close(folder)
        raise
    os.close(folder)
    return None


def play(folder: str, kernel: LinuxKernel, pages: Pages, *, ahead: bool) -> None:
    """One life in this process, with an agent in a fork, which prepares starts or does not."""
    ours, agent = call_agent(folder, 0, ahead=ahead)
    order = receive(ours)
    if order is None:
        raise RuntimeFailure("the agent of the rehearsal ended early")
    shim = serve(order, kernel, Cast(NO_CGROUPS, pages, stand_in, 0))
    ended = os.pidfd_open(agent)
    shim.loop.watch(ended, lambda mask: shim.loop.stop())
    try:
        shim.run(socket.socket(fileno=order.first))
    finally:
        shim.loop.close()
        ours.close()
        os.close(ended)
    if os.waitpid(agent, 0)[1]:
        raise RuntimeFailure("the agent of the rehearsal did not get what it asked for")


def call_agent(folder: str, sittings: int, *, ahead: bool) -> tuple[socket.socket, int]:
    """An agent in a fork: our end of the line to it, and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        be_agent(theirs, folder, sittings, ahead=ahead)
    theirs.close()
    return ours, pid


def write_files(directory: str, folder: str) -> None:
    """What an agent writes for a sandbox and a container."""
    os.makedirs(directory, exist_ok=True)
    os.makedirs(f"{folder}/{CONTAINER}", exist_ok=True)
    sandbox = {
        "ociVersion": "1.2.0",
        "process": {"args": ["/pause"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "network"}]},
    }
    state.write_json(f"{directory}/sandbox.json", {"id": POD, "cgroup": POD, "oci": sandbox})
    config = {
        "tty": False,
        "stdin": False,
        "stdin_once": False,
        "layers": [folder],
        "log_path": f"{folder}/{CONTAINER}/log",
    }
    state.write_json(f"{folder}/{CONTAINER}/config.json", {"cgroup": CONTAINER, "config": config})
    program = {
        "ociVersion": "1.2.0",
        "process": {"args": [WAIT], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}], "resources": {}},
    }
    state.write_json(f"{folder}/{CONTAINER}/oci.json", program)
    for name in ("oom", "control"):
        os.close(os.open(f"{folder}/{name}", os.O_CREAT, 0o600))
    if os.path.exists(f"{folder}/{CONTAINER}/state.json"):
        os.unlink(f"{folder}/{CONTAINER}/state.json")


class Say(Operation):
    """The child writes some lines."""

    def describe(self) -> str:
        return "say something"

    def run(self, kernel: Kernel, context: Context) -> None:
        line = b"a line of output\n"
        context.child(*(Step("write", (1, line, len(line))) for _ in range(OUTPUT_LINES)))


def prepare_stand_in(directory: str, oom: tuple[str, str] = ("", ""), *, held: bool = False) -> None:
    """A program, as an agent prepares it, of what needs neither namespaces nor cgroups."""
    from runtime.ahead import prepare

    gate = (PassGate(GATE),) if held else ()
    steps = (ConnectStdio(), Say(), *gate, ExecuteImage("pause", pause.image()), Start())
    joined = ("ipc",) if held else ()  # to be opened, not to be joined
    prepare(LinuxKernel(), Plan(steps), (), f"{directory}/{NAME}", joined=joined, held=held, oom=oom)


def stand_in(
    kernel: Any,
    plan: Plan,
    stdio: tuple[int, int, int],
    *,
    terminal: bool = False,
    attend: Any = None,
    sibling: bool = False,
) -> Process:
    """As runtime.launch.launch, but the program is a fork: it says something, and waits if it should. A
    sibling comes to the shim, which is a subreaper now, by the end of its parent."""
    brief = any(isinstance(step, Execute) and step.args == (EXIT,) for step in plan.operations)
    if not sibling:
        return Process(play_program(stdio[1], brief=brief), 0, -1)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        try:
            os.write(writer, str(play_program(stdio[1], brief=brief)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(between, 0)
    pid = int(os.read(reader, 16))
    os.close(reader)
    return Process(pid, 0, -1)


def play_program(output: int, *, brief: bool) -> int:
    """Its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(OUTPUT_LINES):
                os.write(output, b"a line of output\n")
            if not brief:
                signal.alarm(LONGEST_WAIT)
                signal.pause()
        finally:
            os._exit(0)
    return pid


def be_agent(server: socket.socket, folder: str, sittings: int, *, ahead: bool) -> None:
    """The agent's side of one life, or of `sittings` halves. Does not return."""
    code = 1
    signal.alarm(LONGEST_WAIT)  # the forkserver waits for our end
    try:
        for _ in range(sittings or 1):
            live(server, folder, half=bool(sittings), ahead=ahead)
        code = 0
    except BaseException as error:
        # Whatever it was, this process may not get back into the forkserver.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def live(server: socket.socket, folder: str, *, half: bool, ahead: bool) -> None:
    """Have a shim made, and a container and an exec started in it; half a life ends there, at rest."""
    directory = f"{folder}/{POD}"
    write_files(directory, folder)
    if ahead:
        prepare_stand_in(directory)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{directory}/shim.sock")
    listener.listen(1)
    connection, theirs = socket.socketpair()
    request = json_text.dumps({"directory": directory, "containers": folder}).encode()
    socket.send_fds(server, [request], [listener.fileno(), theirs.fileno()])
    listener.close()
    theirs.close()
    reader = FrameReader()
    connection.sendall(pack(REQUEST, json_text.dumps({"id": 1, "op": "hello"}).encode()))
    answer(connection, reader)
    answer(connection, reader)
    started = False
    if ahead:
        prepare_stand_in(f"{folder}/{CONTAINER}", (f"{folder}/oom", f"{folder}/control"), held=True)
        gate, opener = os.pipe2(os.O_CLOEXEC)
        os.write(opener, b"1")
        started = ask(connection, reader, op="start", container=CONTAINER, gate=gate_of(gate))["started"]
    if not started:  # nor can programs run where their addresses are too high for the processor
        ask(connection, reader, op="start", container=CONTAINER)
    session = socket.socket(socket.AF_UNIX)
    session.connect(f"{directory}/shim.sock")
    ask(session, FrameReader(), op="exec", container=CONTAINER, argv=[EXIT], stdout=True, stderr=True)
    while session.recv(4096):
        continue
    session.close()
    ask(connection, reader, op="rest")
    if half:
        while connection.recv(4096):
            continue
        os.unlink(f"{directory}/shim.sock")
    else:
        ask(connection, reader, op="stop", container=CONTAINER, signal=9, grace=1.0)
        ask(connection, reader, op="forget", container=CONTAINER)
        ask(connection, reader, op="end")
    connection.close()


def ask(connection: socket.socket, reader: FrameReader, **request: Any) -> dict[str, Any]:
    """One request and its answer. Raises RuntimeFailure when the answer is an error."""
    connection.sendall(pack(REQUEST, json_text.dumps({"id": 1, **request}).encode()))
    return answer(connection, reader)


def answer(connection: socket.socket, reader: FrameReader) -> dict[str, Any]:
    data = b""  # there may be another one in what was read for the last
    while True:
        for channel, payload in reader.feed(data):
            if channel == RESPONSE:
                values: dict[str, Any] = json_text.loads(payload.decode())
                if "error" in values:
                    raise RuntimeFailure(payload.decode())
                return values
        data = connection.recv(65536)
        if not data:
            raise RuntimeFailure("the shim has gone")
