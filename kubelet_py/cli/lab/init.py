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
from pathlib import Path
from typing import NoReturn

from kubelet_py.cli.supervisor import read_state
from kubelet_py.paths import NodePaths
from runtime.kernel import Kernel
from runtime.namespaces import flags_of

NAMESPACES = ("mount", "network", "uts", "ipc", "cgroup", "pid")
STOP_SECONDS = 20.0
WATCHED = (signal.SIGCHLD, signal.SIGTERM)


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


def run(service: Callable[[], None] | None) -> NoReturn:
    """Be process 1. `service` runs in a child; it may end, as what it started lives on here."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    if service is not None and os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        code = 1
        try:
            service()
            code = 0
        except SystemExit:
            pass  # it has said why
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    while signal.sigwait(WATCHED) != signal.SIGTERM:
        _reap()
    state = read_state(NodePaths(Path("/")).run)
    if state is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, lambda *_: _reap())
        state.supervisor.stop(STOP_SECONDS)
    os._exit(0)


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
