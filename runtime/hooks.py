"""OCI hooks: other people's programs, run at fixed moments of a container's life (runtime-spec, config.md).

Each gets the container's state as JSON on standard input. A hook that fails stops the container; a poststop
hook that fails is reported, and the others still run. Without `env` a hook has the environment of whoever
runs it, as with crun; a startContainer hook, which is a program of the container's, has the container's.
"""

from __future__ import annotations

import os
import time

from runtime import json_text, signals
from runtime.errors import HookError, LaunchError, errno_name
from runtime.spec import Hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

STOPPING = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart")
_OUTPUT = 4096


def run_hooks(kind: str, hooks: Sequence[Hook], state: Mapping[str, Any]) -> list[str]:
    """Runs hooks in order with `state` on their standard input. Returns what went wrong in kinds whose
    failure does not stop the container; raises HookError in the others."""
    problems: list[str] = []
    for hook in hooks:
        try:
            _run(kind, hook, json_text.dumps(state).encode())
        except HookError as error:
            if kind in STOPPING:
                raise
            problems.append(str(error))
    return problems


def run_inside(
    kind: str, hook: Hook, state: Mapping[str, Any], start: Callable[[tuple[int, int, int]], int]
) -> None:
    """Runs a createContainer or startContainer hook: `start` makes the process in the container's namespaces,
    with three descriptors as its streams, and returns its pid. Raises HookError."""
    _run(kind, hook, json_text.dumps(state).encode(), start)


def _run(
    kind: str,
    hook: Hook,
    state: bytes,
    start: Callable[[tuple[int, int, int]], int] | None = None,
) -> None:
    # Files in memory, read and written at their own pace: no pipe can fill up.
    source = os.memfd_create("state", os.MFD_CLOEXEC)
    output = os.memfd_create("output", os.MFD_CLOEXEC)
    try:
        os.write(source, state)
        os.lseek(source, 0, os.SEEK_SET)
        try:
            pid = start((source, output, output)) if start else _spawn(hook, source, output)
        except OSError as error:
            name = errno_name(error.errno or 0)
            raise HookError(f"Could not run {kind} hook {hook.path}: {name}") from error
        except LaunchError as error:
            raise HookError(f"Could not run {kind} hook {hook.path}: {error}") from error
        code = _wait(pid, hook.timeout)
        if code != 0:
            said = os.pread(output, _OUTPUT, 0).decode(errors="replace").strip()
            why = f"it took longer than {hook.timeout} s" if code is None else f"exit code {code}"
            raise HookError(f"Could not run {kind} hook {hook.path}: {why}" + (f": {said}" if said else ""))
    finally:
        os.close(source)
        os.close(output)


def _spawn(hook: Hook, source: int, output: int) -> int:
    return os.posix_spawn(
        hook.path,
        hook.args or (hook.path,),
        dict(entry.partition("=")[::2] for entry in hook.env) if hook.env is not None else os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsigdef=(signals.SIGPIPE,),
        setpgroup=0,
    )


def _wait(pid: int, timeout: int | None) -> int | None:
    """Exit code as a shell shows it; None when the hook ran out of time (and was killed with its group)."""
    if timeout is None:
        return _code(os.waitpid(pid, 0)[1])
    import select

    pidfd = os.pidfd_open(pid)
    try:
        deadline = time.monotonic() + timeout
        ready = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]
        if ready:
            return _code(os.waitpid(pid, 0)[1])
        os.killpg(pid, signals.SIGKILL)
        os.waitpid(pid, 0)
        return None
    finally:
        os.close(pidfd)


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
