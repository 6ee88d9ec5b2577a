"""What a pod's shim and the agent leave on disk, so that either may be killed at any moment.

Layout: `<run>/sandboxes/<id>/{sandbox.json,state.json,shim.sock,shim.log}` and `<state>/<container
id>/{config.json,state.json,upper,work}`. The agent writes sandbox.json and config.json once; only the
shim writes state.json, always before it tells anybody. Files are replaced by rename, so a reader sees the
old or the new one, never half of one; no fsync, because after a power loss no process of ours is left
that the files could describe.

A process is (pid, start time, boot): the kernel gives pids out again, but not with the same start time in
clock ticks since the same boot.
"""

from __future__ import annotations

import os

from runtime import json_text
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CREATED = "CREATED"
RUNNING = "RUNNING"
EXITED = "EXITED"
UNKNOWN = "UNKNOWN"
JOIN = "join.json"  # beside sandbox.json: namespaces that the agent has made before pause
READY = "READY"
NOT_READY = "NOTREADY"


class Identity(Record):
    """One process, for ever: `start` is field 22 of /proc/<pid>/stat, `boot` the kernel's boot id."""

    pid: int
    start: int
    boot: str

    def alive(self) -> bool:
        """Whether exactly this process exists and is not a zombie."""
        if self.boot != boot_id():
            return False
        found = stat_of(self.pid)
        return found is not None and found[1] == self.start and found[0] not in "ZX"


def stat_of(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in ticks) of `pid`; None when there is no such process."""
    try:
        fields = read_file(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[19])


def identify(pid: int) -> Identity:
    """The identity of a process that is known to exist. Raises ProcessLookupError."""
    found = stat_of(pid)
    if found is None:
        raise ProcessLookupError(pid)
    return Identity(pid, found[1], boot_id())


def boot_id() -> str:
    """The running kernel's. No process outlives it, so it is read once; shims have it from the forkserver."""
    if not _boot:
        _boot.append(read_file("/proc/sys/kernel/random/boot_id").decode().strip())
    return _boot[0]


_boot: list[str] = []


class SandboxState(Record):
    """What the shim knows of its pod: itself, pause, and when pause went."""

    shim: Identity | None = None
    pause: Identity | None = None
    created_at: float = 0.0
    exited_at: float | None = None
    exit_code: int | None = None
    message: str = ""


class ContainerState(Record):
    """One container's life; times are seconds since the epoch, None while they have not come."""

    state: str = CREATED
    process: Identity | None = None
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    oom_kills: int = 0


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Replace `path` by `value` in one step, readable by root only."""
    fresh = path + ".new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(json_text.dumps(value).encode())
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
    os.rename(fresh, path)


def read_file(path: str) -> bytes:
    """All of a file, without the io module: its buffers and codecs would be each shim's own pages."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def read_json(path: str) -> dict[str, Any] | None:
    """The object in `path`; None when the file is missing. Raises ValueError when it holds something else."""
    try:
        text = read_file(path).decode()
    except FileNotFoundError:
        return None
    try:
        value = json_text.loads(text)
    except ValueError as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(value, dict):
        raise _unreadable(path, "not a JSON object")
    return value


def _unreadable(path: str, why: str) -> ValueError:
    return ValueError(f"Could not read state {path}: {why} (remove the folder to forget it)")


def changed(old: ContainerState, /, **values: Any) -> ContainerState:
    """The same state with some fields replaced."""
    return ContainerState(**{**{name: getattr(old, name) for name in old._fields}, **values})


def plain(state: SandboxState | ContainerState) -> dict[str, Any]:
    """The state as JSON values."""
    value: dict[str, Any] = {}
    for name in state._fields:
        field = getattr(state, name)
        if isinstance(field, Identity):
            field = {"pid": field.pid, "start": field.start, "boot": field.boot}
        value[name] = field
    return value


def identity_from(value: Mapping[str, Any] | None) -> Identity | None:
    return None if value is None else Identity(value["pid"], value["start"], value["boot"])


def container_state_from(value: Mapping[str, Any] | None) -> ContainerState:
    """The reverse of `plain`; a container without a file is CREATED."""
    if value is None:
        return ContainerState()
    return ContainerState(**{**value, "process": identity_from(value["process"])})


def sandbox_state_from(value: Mapping[str, Any] | None) -> SandboxState:
    """The reverse of `plain`; a sandbox without a file has no process yet."""
    if value is None:
        return SandboxState()
    shim, pause = identity_from(value["shim"]), identity_from(value["pause"])
    return SandboxState(**{**value, "shim": shim, "pause": pause})
