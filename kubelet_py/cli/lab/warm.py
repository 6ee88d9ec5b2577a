"""Processes of a lab's nodes, forked from one that has imported their programs already.

Starting Python and importing an agent costs half a second and some 40 MB; forked, both are shared by all
nodes of the lab. Forking is right here because whoever forks (the lab command, a machine's supervisor) has
one thread and has opened nothing. A child begins as an executed program would: its own session, its own log,
default signals.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from kubelet_py.cli.lab.title import set_title
from kubelet_py.cli.supervisor import ChildSpec, Process, start_program
from runtime import clibrary

M_ARENA_MAX = -8
PROGRAMS = {"kubelet_py.agent": "kubelet_py.agent", "proxy": "proxy.__main__"}  # after -m: the module
# What these programs import once they run; imported after the fork it would be every node's own memory.
LATER = (
    "kubelet_py.server.app", "proxy.dns.server", "proxy.slice_version",
    "cni.bandwidth", "cni.bridge", "cni.conntrack", "cni.host_local", "cni.iptables", "cni.masquerade",
    "cni.portmap", "encodings.unicode_escape", "runtime.systemd.manager", "shlex",
)  # fmt: skip


class ForkedProcess:
    """A child made by fork, with what the supervisor needs of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self._code is None:
            if timeout is not None:
                pidfd = os.pidfd_open(self.pid)
                try:
                    if not select.select([pidfd], [], [], timeout)[0]:
                        raise subprocess.TimeoutExpired(str(self.pid), timeout)
                finally:
                    os.close(pidfd)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._code is None:  # not waited for, so the pid is still its own
            os.kill(self.pid, number)


class WarmSpawner:
    """Starts a node's processes: those whose program is imported by forking, others as ever."""

    def __init__(self, machine: str, programs: Mapping[str, Callable[[list[str]], int]]) -> None:
        self._machine = machine
        self._programs = programs

    def __call__(self, spec: ChildSpec) -> Process:
        python, flag, module, *arguments = spec.argv
        main = self._programs.get(module) if (python, flag) == (sys.executable, "-m") else None
        if main is None:
            return start_program(spec)
        title = f"{self._machine}: {spec.name}"
        return ForkedProcess(fork(lambda: main(arguments), title, spec.log_file))


def import_programs(*names: str) -> dict[str, Callable[[list[str]], int]]:
    """The main functions by the names after `python -m`."""
    found = {name: importlib.import_module(PROGRAMS[name]).main for name in names}
    for module in LATER:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection would write to every page that the children share
    return found


def fork(run: Callable[[], int], title: str, log_file: Path, keep: tuple[int, ...] = ()) -> int:
    """Run `run` in a child of its own session and log; its return value is the exit code. The pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        become(run, title, log_file, keep)
    return pid


def become(run: Callable[[], int], title: str, log_file: Path, keep: tuple[int, ...] = ()) -> NoReturn:
    """Make this forked process what an executed program would be, run, and end with its exit code."""
    code = 1
    try:
        detach(log_file, keep)
        set_title(title)
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def detach(log_file: Path, keep: tuple[int, ...]) -> None:
    """A session of its own, no files of the parent but `keep`, output in `log_file`, default signals."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    log_file.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    low = 3
    for kept in sorted(keep):
        os.closerange(low, kept)
        low = kept + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
    logging.root.handlers.clear()
    _share_one_arena()


def _share_one_arena() -> None:
    """Python's threads allocate one at a time, so malloc's arena for each only costs memory."""
    try:
        clibrary.libc("mallopt", "iii")(M_ARENA_MAX, 1)
    except OSError:
        pass  # musl has no arenas
