"""Reading and writing the small files that cgroups consist of, and what both drivers share."""

from __future__ import annotations

import errno
import os
import time

from runtime.errors import CgroupError, errno_name
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

UNLIMITED = 2**63 - 1
REMOVE_SECONDS = 2.0
FREEZE_SECONDS = 10.0
NOWHERE: Mapping[str, str] = {}
GONE = (errno.ENOENT, errno.ENODEV)  # a cgroup's file; the latter if it goes between open and read or write


class CgroupStats(Record):
    """One reading. Bytes, nanoseconds, counts; a limit of None is none. `memory_working_set` is usage without
    inactive file pages, as the kubelet counts. `oom_kills`: processes of this cgroup the OOM killer killed.
    """

    cpu_usage_ns: int = 0
    memory_usage: int = 0
    memory_working_set: int = 0
    memory_rss: int = 0
    memory_limit: int | None = None
    memory_page_faults: int = 0
    memory_major_page_faults: int = 0
    memory_swap: int = 0
    pids: int = 0
    oom_kills: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_ns: int = 0


class CgroupLimits(Record):
    """What a cgroup is limited to now. `shares` 0: not known. `by_weight`: the shares were converted from a
    weight, which several shares have. `quota` -1: no limit. `memory` None with `memory_known`: no limit."""

    shares: int = 0
    by_weight: bool = False
    quota: int = -1
    period: int = 0
    memory: int | None = None
    memory_known: bool = False


def read(path: str) -> str:
    """A file's text without the final newline; "" if it is not there, or not any more."""
    try:
        with open(path, "rb", 0) as file:  # a text file's decoder is a module that a command has no time for
            return file.read().decode("ascii").strip()
    except OSError as error:
        if error.errno not in GONE:
            raise
        return ""


def number(path: str) -> int:
    """A file that holds one number; 0 if it is not there, UNLIMITED for "max"."""
    text = read(path)
    if text == "max":
        return UNLIMITED
    return int(text) if text else 0


def table(path: str) -> dict[str, int]:
    """A file of "name value" lines."""
    found: dict[str, int] = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if value.lstrip("-").isdigit():
            found[name] = int(value)
    return found


def write(path: str, *values: str) -> None:
    """Writes each value in one system call. Raises CgroupError with the file and the value."""
    value = values[0]
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for value in values:
                os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        name = errno_name(error.errno or 0)
        raise CgroupError(f"Could not write {value!r} to {path}: {name}", error.errno or 0) from error


def make_folders(root: str, path: str, made: Callable[[str], None] | None = None) -> None:
    """mkdir -p of `path` below `root`; `made` is called with each parent-relative path that is new."""
    try:
        os.mkdir(f"{root}/{path}", 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = path.rpartition("/")[0]
        if not parent:
            raise CgroupError(f"Could not make cgroup {root}/{path}: ENOENT", errno.ENOENT) from None
        make_folders(root, parent, made)
        make_folders(root, path, made)
        return
    except OSError as error:
        name = errno_name(error.errno or 0)
        raise CgroupError(f"Could not make cgroup {root}/{path}: {name}", error.errno or 0) from error
    if made is not None:
        made(path)


def remove_folder(folder: str, recursive: bool) -> None:
    """rmdir, depth first if `recursive`. Waits a little while the kernel still counts ending processes."""
    deadline = time.monotonic() + REMOVE_SECONDS
    pause = 0.0005
    while True:
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # EBUSY for one with children, too.
            late = time.monotonic() > deadline
            if recursive and error.errno == errno.EBUSY and not late and _remove_children(folder):
                continue
            if error.errno != errno.EBUSY or late:
                name = errno_name(error.errno or 0)
                text = f"Could not remove cgroup {folder}: {name} (are processes left in it?)"
                raise CgroupError(text, error.errno or 0) from error
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def remove_if_empty(folder: str) -> bool:
    """rmdir, once and without waiting; whether it is gone. For who may not wait, as a shim may not."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # processes or cgroups are in it
    return True


def _remove_children(folder: str) -> bool:
    """Whether there were any."""
    try:
        with os.scandir(folder) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return False
    for child in children:
        remove_folder(child, True)
    return bool(children)


def pids_in(folder: str, recursive: bool = True) -> list[int]:
    """Processes of a cgroup, and of those below it. A threaded one has none of its own to tell (EOPNOTSUPP):
    they are its domain's, above it."""
    try:
        found = [int(line) for line in read(f"{folder}/cgroup.procs").split()]
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        found = []
    if recursive:
        try:
            with os.scandir(folder) as entries:
                children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return found
        for child in children:
            found += pids_in(child)
    return found


def kill_tree(folder: str) -> None:
    """cgroup.kill, or signals one by one on kernels before 5.14. A folder that is gone has no processes."""
    try:
        write(f"{folder}/cgroup.kill", "1")
    except CgroupError as error:
        if error.errno not in GONE:
            raise
        for _ in range(100):
            pids = pids_in(folder)
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue


def freeze(folder: str) -> None:
    """cgroup.freeze, and waits until all processes of the subtree have stopped, as cgroup.events tells: one
    in a long system call goes on for a while. Raises CgroupError, with all of them going on again."""
    write(f"{folder}/cgroup.freeze", "1")
    deadline = time.monotonic() + FREEZE_SECONDS
    while table(f"{folder}/cgroup.events").get("frozen") != 1:
        if time.monotonic() > deadline:
            write(f"{folder}/cgroup.freeze", "0")
            text = f"Could not freeze {folder}: its processes have not stopped in {FREEZE_SECONDS:.0f} s"
            raise CgroupError(text, errno.ETIMEDOUT)
        time.sleep(0.001)


def below(folder: str, path: str) -> str:
    """An existing cgroup below `folder`; `folder` itself for "". Raises CgroupError."""
    if not path.strip("/"):
        return folder
    found = f"{folder}/{checked_path(path)}"
    if not os.path.isdir(found):
        raise CgroupError(f"Could not join cgroup {found}: ENOENT", errno.ENOENT)
    return found


def checked_path(path: str) -> str:
    """A relative cgroup path without empty, "." and ".." parts. Raises CgroupError."""
    clean = path.strip("/")
    if not clean or any(part in ("", ".", "..") for part in clean.split("/")):
        raise CgroupError(f"Could not use cgroup path {path!r}: it must name a folder below the root")
    return clean


def section(resources: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """A part of linux.resources; {} if absent."""
    return (resources or {}).get(name) or {}


def check_use(memory: Mapping[str, Any], used: int) -> None:
    """Refuses new limits (checkBeforeUpdate) when as much memory is in use already. Raises CgroupError."""
    for key in ("limit", "swap"):
        if 0 < (memory.get(key) or 0) <= used:
            text = f"Could not limit memory.{key} to {memory[key]}: {used} bytes are in use"
            raise CgroupError(f"{text} (checkBeforeUpdate)")


def check_swap(limit: int, swap: int) -> None:
    """OCI's swap is memory plus swap. Raises CgroupError for one below the limit of memory."""
    if 0 < swap < limit:
        text = f"Could not limit memory.swap to {swap}: it counts memory, too, whose limit is {limit}"
        raise CgroupError(text)


def weight_of_shares(shares: int) -> int:
    """cpu.shares (2…262144) → cpu.weight (1…10000), the conversion of KEP 2254 and runc 1.1."""
    return 1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142


def shares_of_weight(weight: int) -> int:
    """The smallest cpu.shares that `weight_of_shares` turns into this weight."""
    return 2 - (-(weight - 1) * 262142 // 9999)


def rdma_writes(resources: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """One line per device; v1 and v2 have the same file."""
    writes = []
    for device, limits in section(resources, "rdma").items():
        names = (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
        parts = [f"{name}={limits[key]}" for key, name in names if limits.get(key) is not None]
        if parts:
            writes.append(("rdma.max", " ".join((device, *parts))))
    return writes
