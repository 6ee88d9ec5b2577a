"""The address (or two) that the node announces, and why, for people: `run/kubelet-py/node-address.json`.

The agent writes it, `status` shows it, and `join` ends at once where it says that the cluster has another
node with this address.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.errors import AddressTaken
from kubelet_py.node import addresses
from kubelet_py.node.addresses import NodeAddress
from kubelet_py.paths import NodePaths
from kubelet_py.pods.model import Object

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announced:
    """What the file says; `refused` is why the node does not register with this address, or ""."""

    address: str
    interface: str
    reason: str
    refused: str


def file(paths: NodePaths) -> Path:
    return paths.run / "node-address.json"


def read(paths: NodePaths) -> Announced | None:
    """None before the first agent, and after `down`."""
    try:
        said = json.loads(file(paths).read_text())
    except FileNotFoundError:
        return None
    return Announced(said["address"], said["interface"], said["reason"], said["refused"])


class Announcement:
    """The addresses of Node `me`, its first before all; `nodes` tells the Nodes there are."""

    def __init__(
        self, paths: NodePaths, me: str, found: Sequence[NodeAddress], nodes: Callable[[], Sequence[Object]]
    ) -> None:
        self._file, self._me, self._found, self._nodes = file(paths), me, found, nodes
        for one in found:
            log.info("Chose node address=%s interface=%s reason=%s", one.address, one.interface, one.reason)
        self._write("")

    def check(self) -> None:
        """Raise AddressTaken if another Node announces one of these addresses."""
        nodes = self._nodes()
        refusals = [addresses.clash(one, self._me, nodes) for one in self._found]
        refused = next(filter(None, refusals), "")
        self._write(refused)
        if refused:
            raise AddressTaken(refused)

    def _write(self, refused: str) -> None:
        first, every = self._found[0], ",".join(one.address for one in self._found)
        said = {"address": every, "interface": first.interface, "reason": first.reason}
        new = self._file.with_suffix(".new")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(said | {"refused": refused}) + "\n")
        new.rename(self._file)
