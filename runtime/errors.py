"""What can go wrong in the runtime, as one tree.

RuntimeFailure
├── SpecError            the OCI configuration is wrong; `.field` names the place
├── LaunchError          a set-up operation failed; nothing is left behind
│   └── ExecutableError  the program itself could not be executed; worded as runc words it
├── CgroupError          a cgroup could not be made, limited or removed
│   └── SystemdError     systemd cannot be reached, or refuses
├── SeccompError         a seccomp profile cannot be compiled
├── UserError            a user or group is not known to the image
├── HookError            an OCI hook failed
├── StateError           the container is unknown or in the wrong state (OCI command line)
├── NotFoundError        the service knows no sandbox or container of that id
├── StartError           a sandbox, container or exec could not be started; its text is for the user
├── ExecTimeout          exec_sync ran longer than it was given; everything it started is dead
├── RuntimesError        the table of OCI runtimes cannot be used
└── ShimError            a pod's shim refused, is gone or does not answer
"""

from __future__ import annotations

import errno as _errno


def errno_name(number: int) -> str:
    """`ENOENT` for 2; the bare number for one the C library does not name."""
    return _errno.errorcode.get(number, f"errno {number}")


class RuntimeFailure(Exception):
    """Base of every error this room raises on purpose."""


class SpecError(RuntimeFailure):
    """The OCI configuration asks for something invalid. `field` is the path in config.json."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"Could not read config.json: {field}: {problem}")
        self.field = field
        self.problem = problem


class LaunchError(RuntimeFailure):
    """Set-up operation number `step` failed with `errno` (0: refused by us, not by the kernel)."""

    def __init__(self, step: int, operation: str, errno: int, detail: str = "") -> None:
        reason = detail or (errno_name(errno) if errno else "refused")
        if detail and errno:
            reason = f"{errno_name(errno)} ({detail})"
        super().__init__(f"Could not {operation}: {reason}")
        self.step = step
        self.operation = operation
        self.errno = errno
        self.detail = detail


class ExecutableError(LaunchError):
    """The program could not be executed; the text is what runc's users look for."""

    def __init__(self, step: int, operation: str, errno: int, text: str) -> None:
        super().__init__(step, operation, errno, text)
        self.args = (text,)


class CgroupError(RuntimeFailure):
    """A cgroup operation failed; `errno` is 0 when no system call was involved."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class SystemdError(CgroupError):
    """systemd is not there, does not answer, or says no."""


class SeccompError(RuntimeFailure):
    """The profile names an unknown action, operator or architecture, or is too large."""


class UserError(RuntimeFailure):
    """The image does not know the user or group by name."""


class HookError(RuntimeFailure):
    """A hook could not be run, ran too long or exited with a code other than 0."""


class StateError(RuntimeFailure):
    """No such container, or one whose state forbids the command."""


class NotFoundError(RuntimeFailure):
    """The service knows no sandbox or container of that id."""


class StartError(RuntimeFailure):
    """A sandbox, container or exec could not be started. The text goes into status and events as it is."""


class ExecTimeout(RuntimeFailure):
    """exec_sync ran longer than it was given; every process it started has been killed."""


class RuntimesError(RuntimeFailure):
    """The table of OCI runtimes is no TOML, or names something that cannot be used."""


class ShimError(RuntimeFailure):
    """The pod's shim refused a request, is gone, or did not answer in time."""
