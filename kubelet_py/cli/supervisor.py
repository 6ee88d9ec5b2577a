"""The parent of the node's processes: starts them, restarts them with back-off, stops them in order.

It stays small on purpose (standard library only), because it is there as long as the node is. What it
started stands in `run/kubelet-py/supervisor.json` with pid and start time, so that `status`, `down` and
the next `up` find it, also after the supervisor itself was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from kubelet_py.cli.processes import ProcessIdentity

log = logging.getLogger("supervisor")

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
LIVED_LONG_ENOUGH = 10.0


class AlreadyRunning(Exception):
    """Another supervisor holds this node's lock."""


def restart_delay(previous: float, lived: float) -> float:
    """Seconds to wait before a restart: none after a long life, else doubling up to ten seconds."""
    if lived >= LIVED_LONG_ENOUGH:
        return 0.0
    return min(LONGEST_DELAY, previous * 2) if previous else FIRST_DELAY


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process of the node: its name in `status`, its command line, its log file. `after`: the seconds for
    which its first start is put off, for one that those before it do not need."""

    name: str
    argv: Sequence[str]
    log_file: Path
    after: float = 0.0


class Process(Protocol):
    """A started child, as subprocess.Popen has it."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start_program(spec: ChildSpec) -> Process:
    """Run the command line as a session of its own, its output in its log file."""
    with spec.log_file.open("ab") as output:
        return subprocess.Popen(
            list(spec.argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


@dataclass(slots=True)
class Child:
    spec: ChildSpec
    process: Process | None = None
    pidfd: int = -1
    started: float = 0.0
    restarts: int = 0
    delay: float = 0.0
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class SupervisorState:
    """What `supervisor.json` says: the supervisor and its children, by name."""

    supervisor: ProcessIdentity
    children: Mapping[str, ProcessIdentity]
    restarts: Mapping[str, int]


def read_state(run_dir: Path) -> SupervisorState | None:
    """The state file, or None where no node was started (or `down` ended it)."""
    try:
        data = json.loads((run_dir / "supervisor.json").read_text())
    except FileNotFoundError:
        return None
    return SupervisorState(
        supervisor=ProcessIdentity(*data["supervisor"]),
        children={name: ProcessIdentity(*identity) for name, identity in data["children"].items()},
        restarts=data["restarts"],
    )


class Supervisor:
    """Runs `children` until SIGTERM or SIGINT; holds an exclusive lock on the node meanwhile."""

    def __init__(
        self,
        run_dir: Path,
        children: Sequence[ChildSpec],
        *,
        spawn: Callable[[ChildSpec], Process] = start_program,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`tell` gets sd_notify's messages."""
        self._run_dir = run_dir
        self._spawn = spawn
        self._tell = tell
        self._children = [Child(spec) for spec in children]
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._lock_fd = -1

    def lock(self) -> None:
        """Claim the node; raises AlreadyRunning with the other's pid."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        lock_file = self._run_dir / "supervisor.lock"
        self._lock_fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            state = read_state(self._run_dir)
            pid = f" (pid {state.supervisor.pid})" if state else ""
            raise AlreadyRunning(f"A node already runs here{pid}") from error

    def end_leftovers(self) -> None:
        """End the children of a supervisor that was killed; they would hold the ports."""
        state = read_state(self._run_dir)
        if state is None:
            return
        for name, identity in state.children.items():
            if identity.alive():
                log.info("Ended process of an earlier supervisor name=%s pid=%d", name, identity.pid)
                identity.stop(2.0)

    def run(self) -> None:
        """Start all children, keep them running, return after SIGTERM or SIGINT ended them all."""
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._selector.register(wake_read, selectors.EVENT_READ, None)
        for child in self._children:
            if child.spec.after:
                child.due = self._clock() + child.spec.after
            else:
                self._start(child)
        self._write_state()
        self._tell("READY=1")
        while not self._stopping:
            self._wait(wake_read)
        self._tell("STOPPING=1")
        self._stop_all()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _wait(self, wake: socket.socket) -> None:
        now = self._clock()
        waiting = [child for child in self._children if child.process is None]
        timeout = max(0.0, min(child.due for child in waiting) - now) if waiting else None
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
            else:
                self._ended(key.data)
        for child in self._children:
            if child.process is None and child.due <= self._clock() and not self._stopping:
                child.restarts += child.started > 0
                self._start(child)
                self._write_state()

    def _start(self, child: Child) -> None:
        child.spec.log_file.parent.mkdir(parents=True, exist_ok=True)
        child.process = self._spawn(child.spec)
        child.started = self._clock()
        child.pidfd = os.pidfd_open(child.process.pid)
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        log.info("Started process name=%s pid=%d", child.spec.name, child.process.pid)

    def _ended(self, child: Child) -> None:
        assert child.process is not None
        code = child.process.wait()
        self._forget(child)
        child.delay = restart_delay(child.delay, self._clock() - child.started)
        child.due = self._clock() + child.delay
        log.warning(
            "Process ended name=%s code=%d restart_in_seconds=%.1f log=%s",
            child.spec.name,
            code,
            child.delay,
            child.spec.log_file,
        )

    def _forget(self, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.process = None

    def _stop_all(self) -> None:
        """Proxy and agent first, the control plane last, so that their last words are heard."""
        for child in reversed(self._children):
            if child.process is None:
                continue
            child.process.terminate()
            try:
                child.process.wait(5.0)
            except subprocess.TimeoutExpired:
                log.warning("Process ignored SIGTERM name=%s pid=%d", child.spec.name, child.process.pid)
                child.process.kill()
                child.process.wait()
            self._forget(child)
        (self._run_dir / "supervisor.json").unlink(missing_ok=True)

    def _write_state(self) -> None:
        running = [child for child in self._children if child.process]
        identities = {c.spec.name: ProcessIdentity.of(c.process.pid) for c in running if c.process}
        me = ProcessIdentity.of(os.getpid())
        assert me is not None
        data = {
            "supervisor": [me.pid, me.start],
            "children": {name: [i.pid, i.start] for name, i in identities.items() if i is not None},
            "restarts": {child.spec.name: child.restarts for child in self._children},
        }
        temporary = self._run_dir / "supervisor.json.new"
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.rename(self._run_dir / "supervisor.json")
