"""Ending and clearing away what no shim looks after: for an agent that finds a shim dead, and for `down`.

A process is found through its cgroup, whose name is known before the process exists, and through its
recorded identity. Both are used: the cgroup catches what was forked or never recorded, the identity works
where the cgroup has gone.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import state
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError, ShimError, StartError
from runtime.own_thread import in_thread_of_its_own
from runtime.pidfds import open_process
from runtime.removal import remove_tree
from runtime.shim_link import call
from runtime.state import EXITED, RUNNING, ContainerState, Identity, SandboxState

if TYPE_CHECKING:
    from runtime.foreign import Foreign

log = logging.getLogger(__name__)

REMOVING = ".removing-"
LOST_REASON = "ContainerStatusUnknown"
LOST_MESSAGE = "The pod's shim was lost, so its containers were killed"
LOST_CODE = 137
DEATH_SECONDS = 5.0
BUSY_SECONDS = 5.0
BUSY_PAUSE = 0.02


def folders(parent: Path) -> list[Path]:
    """The folders of live objects in `parent`, oldest id order; [] when it doesn't exist."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def owed(parent: Path) -> list[Path]:
    """Folders that were given up but not cleared away yet."""
    return sorted(parent.glob(REMOVING + "*")) if parent.is_dir() else []


def give_up(folder: Path) -> Path:
    """Take a folder out of sight in one step; what it owes stays known through its contents."""
    hidden = folder.with_name(REMOVING + folder.name)
    folder.rename(hidden)
    return hidden


def record_of(path: str) -> dict[str, Any] | None:
    """A record; None also for one that cannot be read, as a power cut may leave it (empty). What it described
    is cleared away like what was never described, and nobody else is held up."""
    try:
        return state.read_json(path)
    except ValueError as error:
        log.warning("Took record for lost error=%s", error)
        return None


def container_state(folder: Path) -> ContainerState:
    """Of one that cannot be read nobody knows but that it began: it counts as running, and is to be ended."""
    try:
        return state.container_state_from(state.read_json(f"{folder}/state.json"))
    except ValueError as error:
        log.warning("Took state for lost error=%s", error)
        return ContainerState(state=RUNNING)


def is_lost(found: ContainerState) -> bool:
    """Whether nobody knows its process."""
    return found.state == RUNNING and found.process is None


def sandbox_state(folder: Path) -> SandboxState:
    return state.sandbox_state_from(record_of(f"{folder}/state.json"))


def end_process(identity: Identity | None) -> None:
    """SIGKILL exactly this process and wait until it is dead. Does nothing when it is already."""
    if identity is None:
        return
    pidfd = open_process(identity.pid)
    if pidfd is None:
        return
    try:
        if not identity.alive():
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        waiting.poll(int(DEATH_SECONDS * 1000))
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def kill_cgroup(driver: CgroupDriver, path: str) -> None:
    if path and driver.exists(path):
        driver.open(path).kill()


def end_container(driver: CgroupDriver, folder: Path) -> ContainerState | None:
    """Kill what is left of a container; returns its new state if it was recorded as running."""
    record = record_of(f"{folder}/config.json") or {}
    found = container_state(folder)
    kill_cgroup(driver, record.get("cgroup", ""))
    end_process(found.process)
    if found.state != RUNNING:
        return None
    ended = state.changed(
        found,
        state=EXITED,
        exit_code=LOST_CODE,
        reason=LOST_REASON,
        message=LOST_MESSAGE,
        finished_at=time.time(),
    )
    _save(folder, state.plain(ended))
    return ended


def end_sandbox(driver: CgroupDriver, folder: Path) -> SandboxState:
    """Kill a pod's shim (when it still is there) and pause; returns and records the sandbox's last state."""
    record: dict[str, Any] = record_of(f"{folder}/sandbox.json") or {}
    found = sandbox_state(folder)
    end_process(found.shim)
    kill_cgroup(driver, record.get("cgroup", ""))
    end_process(found.pause)
    if found.exited_at is not None:
        return found
    ended = SandboxState(
        shim=found.shim,
        pause=found.pause,
        created_at=found.created_at,
        exited_at=time.time(),
        exit_code=LOST_CODE,
        message=LOST_MESSAGE,
    )
    _save(folder, state.plain(ended))
    return ended


def _save(folder: Path, ended: dict[str, Any]) -> None:
    """Write down how it ended. On a full disk the old record stays, whose processes are gone: it is ended
    once more by whoever reads it, and until then what it holds can be removed."""
    try:
        state.write_json(f"{folder}/state.json", ended)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.warning("Could not save state folder=%s error=%s", folder, error.strerror)


def end_by_shim(folder: Path, timeout: float) -> bool:
    """Let the pod's own shim end everything; False when it is gone or does not answer."""
    try:
        call(str(folder), timeout, "end")
    except (OSError, ShimError):
        return False
    return True


def remove_cgroup(driver: CgroupDriver, path: str) -> None:
    """Remove a cgroup and those below it, busy for a moment after a kill. Raises CgroupError."""
    deadline = time.monotonic() + BUSY_SECONDS
    while path and driver.exists(path):
        try:
            driver.remove(path, recursive=True)
        except (CgroupError, OSError):
            if time.monotonic() > deadline:
                raise
            kill_cgroup(driver, path)
            time.sleep(BUSY_PAUSE)


def by_runtime(
    driver: CgroupDriver, folder: Path, record: Mapping[str, Any], work: Callable[[Foreign], None]
) -> None:
    """Have a container's own OCI runtime do something, in a thread that may go where it must."""
    from runtime.foreign import Foreign, Place
    from runtime.linux import LinuxKernel

    place = Place(record["id"], str(folder), record["cgroup"])
    foreign = Foreign(LinuxKernel(), driver, record["runtime"], place)
    in_thread_of_its_own(lambda: work(foreign))


def _delete_by_runtime(driver: CgroupDriver, folder: Path, record: Mapping[str, Any]) -> None:
    """A runtime that fails, or is not installed any more, must not keep the rest from being cleared away."""
    kill_cgroup(driver, record["cgroup"])
    try:
        by_runtime(driver, folder, record, lambda foreign: foreign.delete())
    except StartError as error:
        log.warning("Cleared away without its runtime container=%s error=%s", record["id"][:12], error)
        shutil.rmtree(f"{record['runtime']['root']}/{record['id']}", ignore_errors=True)


def clear(driver: CgroupDriver, folder: Path) -> None:
    """Remove what a given-up sandbox or container still owes: what another runtime knows of it, its cgroup,
    then its files."""
    for name in ("config.json", "sandbox.json"):
        record = record_of(f"{folder}/{name}")
        if record is None:
            continue
        if record.get("runtime"):
            _delete_by_runtime(driver, folder, record)
        remove_cgroup(driver, record.get("cgroup", ""))
    remove_tree(folder)


def end_everything(driver: CgroupDriver, sandboxes: Path, containers: Path, seconds: float) -> None:
    """Kill and remove every sandbox and container on disk. `seconds`: for each shim to do it itself."""
    parents = set()
    for folder in folders(sandboxes):
        record = record_of(f"{folder}/sandbox.json") or {}
        parents.add(record.get("config", {}).get("cgroup_parent", ""))
        if not end_by_shim(folder, seconds):
            end_sandbox(driver, folder)
    for folder in folders(containers):
        end_container(driver, folder)
    for parent in (sandboxes, containers):
        for folder in folders(parent):
            give_up(folder)
        for folder in owed(parent):
            clear(driver, folder)
    for path in sorted(parents - {""}):
        remove_cgroup(driver, path)
