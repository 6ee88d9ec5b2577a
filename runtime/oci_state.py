"""The containers of the OCI command line: one folder each, found again by later commands.

`<root>/<id>/state.json` holds what does not change after create; status is worked out from the process: its
pid counts only together with its start time. `<root>/<id>/exec.fifo` exists until `start`, and the
container's process waits in opening it.
"""

from __future__ import annotations

import os

from runtime import json_text
from runtime.errors import StateError, errno_name
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NOTIFY = "notify"  # the only folder in a container's
CREATING, CREATED, RUNNING, STOPPED, PAUSED = "creating", "created", "running", "stopped", "paused"
_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_ID_CHARACTERS = _LETTERS | frozenset("_+.-")


class Container(Record):
    """What create wrote down. `start_time` in clock ticks since boot; `cgroup` relative to the trees'
    roots; `manager` made it (cgroupfs, systemd)."""

    id: str
    pid: int
    start_time: int
    bundle: str
    cgroup: str
    created: str
    config: Mapping[str, Any]
    manager: str = "cgroupfs"


class Store:
    """All containers below one folder."""

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, identity: str) -> str:
        """The container's folder. Raises StateError for ids that are no plain names. Files of all containers
        begin with a dot."""
        if not identity or len(identity) > 1024 or not _ID_CHARACTERS.issuperset(identity):
            raise StateError(f"Could not use container id {identity!r}: letters, digits, _ + . - only")
        if identity[0] == ".":
            raise StateError(f"Could not use container id {identity!r}: it begins with a dot")
        return f"{self.root}/{identity}"

    def fifo(self, identity: str) -> str:
        """The FIFO that a created container waits in."""
        return f"{self.folder(identity)}/exec.fifo"

    def creating(self, identity: str, on: bool) -> None:
        """Marks a container whose process is there while create has not finished: hooks run, which may ask
        for its state."""
        mark = f"{self.folder(identity)}/{CREATING}"
        if on:
            os.close(os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        else:
            os.unlink(mark)

    def make(self, identity: str) -> None:
        """Reserves the id. Raises StateError if it is taken."""
        folder = self.folder(identity)
        try:
            os.makedirs(self.root, 0o700, exist_ok=True)
            os.mkdir(folder, 0o700)
        except FileExistsError:
            raise StateError(f"Could not create container {identity}: it exists already") from None
        except OSError as error:
            name = errno_name(error.errno or 0)
            raise StateError(f"Could not create folder {folder}: {name}") from error

    def save(self, container: Container) -> None:
        """Writes the state, whole or not at all."""
        path = f"{self.folder(container.id)}/state.json"
        state = json_text.dumps({name: getattr(container, name) for name in container._fields})
        with open(f"{path}.new", "wb") as file:
            file.write(state.encode())
        os.rename(f"{path}.new", path)

    def load(self, identity: str) -> Container:
        """Raises StateError if there is no such container."""
        try:
            with open(f"{self.folder(identity)}/state.json", "rb") as file:
                return Container(**json_text.loads(file.read().decode()))
        except FileNotFoundError:
            raise StateError(f"Could not find container {identity}: it does not exist") from None

    def note(self, identity: str, text: str) -> None:
        """Adds a line to the container's file of warnings."""
        with open(f"{self.folder(identity)}/warnings", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def all(self) -> list[Container]:
        """Every container, by name; half-made ones are left out."""
        try:
            names = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"Could not read {self.root}: {errno_name(error.errno or 0)}") from error
        found = []
        for name in names:
            try:
                found.append(self.load(name))
            except StateError:
                continue
        return found

    def forget(self, identity: str) -> None:
        """Removes the container's folder, which holds plain files, and the one of oci_notify.py."""
        folder = self.folder(identity)
        try:
            for name in os.listdir(folder):
                if name == NOTIFY:
                    from runtime import oci_notify

                    oci_notify.remove(folder)
                    continue
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
        except FileNotFoundError:
            return

    def status(self, container: Container) -> str:
        """creating, created, running or stopped, as the processes say."""
        if not alive(container.pid, container.start_time):
            return STOPPED
        if os.path.exists(f"{self.folder(container.id)}/{CREATING}"):
            return CREATING
        return CREATED if os.path.exists(self.fifo(container.id)) else RUNNING

    def describe(self, container: Container) -> dict[str, Any]:
        """The state as the specification wants it (runtime.md, "State")."""
        status = self.status(container)
        return {
            "ociVersion": container.config.get("ociVersion", "1.2.0"),
            "id": container.id,
            "status": status,
            "pid": 0 if status == STOPPED else container.pid,
            "bundle": container.bundle,
            "rootfs": container.config.get("root", {}).get("path", ""),
            "created": container.created,
            "owner": "root",
            "annotations": dict(container.config.get("annotations") or {}),
        }


def alive(pid: int, start_time: int) -> bool:
    """Whether that very process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == start_time and fields[0] not in (b"Z", b"X")
