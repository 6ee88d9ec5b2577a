"""Process 1 of a lab machine: makes its namespaces habitable, starts its service, reaps whatever is left.

When it ends, the kernel kills everything in its PID namespace, and network, mounts and cables go with that.
So a SIGKILL for it is a power cut. SIGTERM is the power button: it stops the supervisor first, as a shutdown
does.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.lab import warm
from kubelet_py.cli.settings import SettingsError
from kubelet_py.cli.supervisor import read_state
from kubelet_py.paths import NodePaths
from runtime.kernel import Kernel
from runtime.namespaces import flags_of

NAMESPACES = ("mount", "network", "uts", "ipc", "cgroup", "pid")
STOP_SECONDS = 20.0
WATCHED = (signal.SIGCHLD, signal.SIGTERM)
PATHS = NodePaths(Path("/"))


@dataclass(frozen=True, slots=True)
class Service:
    """What a machine is for: a supervisor, and what is done before and after its start."""

    title: str
    supervise: Callable[[], int]
    prepare: Callable[[], None] | None = None
    afterwards: Callable[[], None] | None = None


def leave_host(kernel: Kernel, *, enter: Callable[[], None]) -> int:
    """Go into new namespaces and cgroups; the pid of the child that is process 1 there, 0 in that child."""
    enter()
    kernel.unshare(flags_of(NAMESPACES))
    return os.fork()


def settle_cgroup(unified: str) -> None:
    """Into a leaf of the v2 tree, below what this namespace shows as its root: that passes controllers on."""
    leaf = Path(unified, "init")
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text("0")


def run(service: Service | None) -> NoReturn:
    """Be process 1."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    if service is not None:
        _start(service)
    while signal.sigwait(WATCHED) != signal.SIGTERM:
        _reap()
    state = read_state(PATHS.run)
    if state is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, lambda *_: _reap())
        state.supervisor.stop(STOP_SECONDS)
    os._exit(0)


def _start(service: Service) -> None:
    """What has to be done first is waited for: the supervisor's memory shall not bear its traces."""
    if service.prepare is not None:
        _, status = os.waitpid(_child(service.prepare), 0)
        if status != 0:
            return  # the machine is on, for whoever wants to look; its boot log says what was wrong
    warm.fork(lambda: _told(service.supervise), service.title, PATHS.logs / "supervisor.log")
    if service.afterwards is not None:
        _child(service.afterwards)


def _child(work: Callable[[], None]) -> int:
    """Do it in a child that goes on writing to the boot log. The pid."""
    pid = os.fork()
    if pid:
        return pid
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    def done() -> int:
        work()
        return 0

    code = 1
    try:
        code = _told(done)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _told(work: Callable[[], int]) -> int:
    """The exit code; an error for people is one line."""
    try:
        return work()
    except (CommandError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
