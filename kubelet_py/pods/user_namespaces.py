"""Which ids of the host a pod with `hostUsers: false` gets: 65536 of them, its own as long as it exists.

A range is a file, `pods/<uid>/userns` in upstream's form (pkg/kubelet/userns), written before anything runs
with it and removed with the pod's folder when nothing is left of the pod. So the files are the whole truth:
an agent that comes anew reads the same, and no range is given twice. They are read anew for each such pod,
which costs a node without them nothing.

The ranges are those that /etc/subuid and /etc/subgid give to the user "kubelet"; without such a user all from
65536 on, as many as there may be pods.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from kubelet_py.errors import ConfigError, SandboxError
from kubelet_py.pods.model import Object

log = logging.getLogger(__name__)

IDS = 65536
FILE = "userns"
USER = "kubelet"


def host_users(pod: Object) -> bool:
    """Whether root in the pod is root of the host: only an outright `false` says no."""
    return pod["spec"].get("hostUsers") is not False


def first_and_count(etc: Path, max_pods: int) -> tuple[int, int]:
    """The first id and the number of ranges. ConfigError where subuid and subgid cannot serve."""
    users, groups = (_lines(etc / name) for name in ("subuid", "subgid"))
    if USER not in _names(etc / "passwd"):
        return IDS, max_pods
    if users != groups or len(users) != 1:
        text = f"{etc}/subuid and {etc}/subgid must give the user {USER} one range, the same in both"
        raise ConfigError(f"Could not find ids for user namespaces: {text}")
    [(first, count)] = users
    if first < IDS or first % IDS or count % IDS or count // IDS < max_pods:
        text = f"{first}:{count} must begin at a multiple of {IDS} and hold {IDS} for each of {max_pods} pods"
        raise ConfigError(f"Could not find ids for user namespaces: the range of the user {USER}: {text}")
    return first, count // IDS


def _names(passwd: Path) -> set[str]:
    return {line.partition(":")[0] for line in _text(passwd).splitlines()}


def _lines(file: Path) -> list[tuple[int, int]]:
    found = []
    for line in _text(file).splitlines():
        name, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if name == USER and first.isdigit() and count.isdigit():
            found.append((int(first), int(count)))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


class UserNamespaces:
    """`pods`: the folder of the pods' folders. `supported` asks the kernel, once somebody wants to know."""

    def __init__(
        self, pods: Path, *, max_pods: int, supported: Callable[[], bool], etc: Path = Path("/etc")
    ) -> None:
        self._pods = pods
        self._supported = supported
        self._first, self._count = first_and_count(etc, max_pods)
        self._known: bool | None = None
        self._lock = threading.Lock()

    @property
    def supported(self) -> bool:
        if self._known is None:
            self._known = self._supported()
        return self._known

    def range_of(self, pod: Object, handler: str) -> tuple[int, int]:
        """The first id of the pod and how many it has; (0, 0) for one with the host's users. The same for as
        long as its folder is there. SandboxError, in upstream's words, where it cannot be had."""
        if host_users(pod):
            return 0, 0
        if handler or not self.supported:
            raise SandboxError(
                f'can\'t set `spec.hostUsers: false`, RuntimeClass handler "{handler}" does not support user '
                "namespaces"
            )
        with self._lock:
            return self._allot(self._pods / pod["metadata"]["uid"] / FILE), IDS

    def _allot(self, file: Path) -> int:
        taken = {other: self._read(other) for other in self._pods.glob(f"*/{FILE}")}
        if file in taken:
            return taken[file]
        used = set(taken.values())
        for number in range(self._count):
            first = self._first + number * IDS
            if first not in used:
                self._write(file, first)
                log.info("Gave user ids pod_uid=%s first=%d", file.parent.name, first)
                return first
        raise SandboxError("could not find an empty slot to allocate a user namespace")

    def _read(self, file: Path) -> int:
        try:
            return int(json.loads(file.read_text())["uidMappings"][0]["hostId"])
        except (ValueError, LookupError, TypeError) as error:
            # Whose ids these are is not known any more, so none can be given that are surely free.
            text = f"Could not read {file}: no user namespace mappings (restore or remove it)"
            raise SandboxError(text) from error

    def _write(self, file: Path, first: int) -> None:
        mapping = [{"hostId": first, "containerId": 0, "length": IDS}]
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{FILE}.new")
        new.write_text(json.dumps({"uidMappings": mapping, "gidMappings": mapping}))
        new.rename(file)
