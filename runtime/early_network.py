"""A pod's network namespace, made by the agent before there is a process that could hold it.

Wiring a pod takes about as long as starting its shim and its pause, and needs nothing of them but this
namespace. So the agent makes it and holds it by a descriptor; while plugins wire it, pause starts, and joins
it by that descriptor's path. unshare(2) acts on the calling thread, which goes back to its own namespace at
once: what the new one is like (its sysctls, its owner) is what it would be if pause had made it in that
moment. It is made for one pod, for the next one ahead (spare_network.py), and goes with its last holder:
nothing of it is kept for a later one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime import state
from runtime.kernel import Kernel
from runtime.namespaces import FLAGS

log = logging.getLogger(__name__)

_OWN = "/proc/thread-self/ns/net"
_OF_LINKS = ("net.ipv4.conf.", "net.ipv6.conf.", "net.ipv4.neigh.", "net.ipv6.neigh.")


class EarlyNetwork:
    """Made when it is constructed (`make` gives a descriptor), and held until `close`. `join`: type → path,
    as plans join namespaces; it is left in the sandbox's folder for its shim, too. Raises OSError."""

    def __init__(self, make: Callable[[], int], folder: Path) -> None:
        self._descriptor = make()
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.join = {"network": self.path}
        try:
            state.write_json(f"{folder}/{state.JOIN}", self.join)
        except OSError:
            self.close()
            raise

    @classmethod
    def of(cls, make: Callable[[], int], oci: Mapping[str, Any], folder: Path) -> EarlyNetwork | None:
        """For pause's configuration; None when the pod has no network of its own, or a user namespace, which
        has to own it, or settings of links, which pause must have written before there is one. What cannot
        be made now is left to pause, which tells why."""
        made = {entry["type"] for entry in oci["linux"]["namespaces"]}
        if "network" not in made or "user" in made:
            return None
        if any(name.startswith(_OF_LINKS) for name in oci["linux"].get("sysctl") or ()):
            return None
        try:
            return cls(make, folder)
        except OSError as error:
            log.warning("Could not make a network namespace, left it to pause error=%s", error)
            return None

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def made(kernel: Kernel) -> int:
    """A descriptor of a new network namespace. Raises OSError."""
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.unshare(FLAGS["network"])
        try:
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _go_back(kernel, own)
    finally:
        os.close(own)


def _go_back(kernel: Kernel, own: int) -> None:
    """That takes no more than making the new one did (CAP_SYS_ADMIN). A thread that could not would do to the
    pod's network whatever it does later to the host's: the process ends then."""
    try:
        kernel.setns(own, FLAGS["network"])
    except OSError:
        log.critical("Could not return to the host's network namespace")
        os.abort()
