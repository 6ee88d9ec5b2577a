"""A plan, executed in a process of its own: for namespaces that a process with threads may not enter.

User namespaces, and time namespaces that exist already, take only processes with one thread. So the caller is
forked; the copy works off the plan and makes the container with CLONE_PARENT, which makes it the *caller's*
child; then it ends. What the copy cannot do from inside (mappings) it asks the caller to do. Only the OCI
command line comes here: its process is small and has no threads.
"""

from __future__ import annotations

import errno
import json
import os
import socket

from runtime.errors import ExecutableError, LaunchError, RuntimeFailure
from runtime.kernel import Kernel
from runtime.plan import Context, Plan
from runtime.stopped import LOOK_SECONDS, kill_stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.plan import Attend

LARGEST = 65536
KINDS = {"ExecutableError": ExecutableError, "LaunchError": LaunchError}


def execute_apart(
    execute: Callable[[Kernel, Plan, Context], BaseException | None],
    kernel: Kernel,
    plan: Plan,
    context: Context,
    attend: Attend | None = None,
) -> BaseException | None:
    """As launch's own `execute`, in a forked process; fills in `context` what the rest of the launch needs.
    Returns what went wrong."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            _child(execute, kernel, plan, context, theirs, attend is not None)
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    with ours:
        try:
            return _serve(ours, pid, plan, context, attend)
        finally:
            os.waitpid(pid, 0)


def _child(
    execute: Callable[[Kernel, Plan, Context], BaseException | None],
    kernel: Kernel,
    plan: Plan,
    context: Context,
    channel: socket.socket,
    attended: bool,
) -> None:
    def ask(what: str) -> None:
        channel.send(what.encode())
        answer = int(channel.recv(16))
        if answer:
            raise OSError(answer, os.strerror(answer))

    context.ask, context.sibling = ask, True
    if attended:
        context.attend = lambda what, pid, number: ask(f"attend {what} {pid} {number}")
    failure = execute(kernel, plan, context)
    report: dict[str, Any] = {"pid": context.process[0], "warnings": context.warnings}
    if isinstance(failure, LaunchError):
        report["error"] = [
            type(failure).__name__, failure.step, failure.operation, failure.errno, failure.detail
        ]  # fmt: skip
    elif failure is not None:
        report["error"] = ["RuntimeFailure", f"Could not start the process: {failure!r}"]
    fds = [context.console] if context.console >= 0 and failure is None else []
    socket.send_fds(channel, [json.dumps(report).encode()], fds)


def _serve(
    channel: socket.socket, pid: int, plan: Plan, context: Context, attend: Attend | None
) -> BaseException | None:
    problem: BaseException | None = None
    channel.settimeout(LOOK_SECONDS)
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(channel, LARGEST, 1, socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            kill_stopped(os.getpid())
            continue
        if not data:
            return LaunchError(0, "run the set-up process", 0, "it ended early")
        if data in (b"map", b"time"):
            channel.send(str(_write(pid, plan, data.decode())).encode())
            continue
        if data.startswith(b"attend ") and attend is not None:
            what, process, number = data.decode().split()[1:]
            try:
                attend(what, int(process), int(number))
            except BaseException as error:  # the launch's failure, once the other side has undone its part
                problem = error
            channel.send(str(errno.ECANCELED if problem else 0).encode())
            continue
        report = json.loads(data)
        if problem is not None:
            return problem
        if "error" in report:
            kind, *details = report["error"]
            return KINDS[kind](*details) if kind in KINDS else RuntimeFailure(*details)
        context.process = (report["pid"], os.pidfd_open(report["pid"]))
        context.warnings = report["warnings"]
        if fds:
            context.console = fds[0]
        return None


def _write(pid: int, plan: Plan, what: str) -> int:
    """Mappings or clock offsets of the set-up process; 0 or the errno."""
    files = {"map": ("uid_map", "gid_map"), "time": ("timens_offsets",)}[what]
    texts = plan.mappings if what == "map" else (plan.time_offsets,)
    try:
        for name, text in zip(files, texts, strict=True):
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
    except OSError as error:
        return error.errno or 22
    return 0

