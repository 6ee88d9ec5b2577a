"""Brings the node's network up once its range is known, and again when that changes; tries until it works.

When it is up, the plugins collect what a killed agent left (GC), and are asked now and then whether they
still can attach pods (STATUS): the answer is the node's NetworkReady. A bridge that somebody deleted is made
again, and the size of pods' pieces of TCP follows the node's interfaces.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

from cni.errors import CniError, LimitedConnectivity
from cni.invoke import Attachments
from kubeclient.ranges import USUAL_SIZES, read_ranges
from kubelet_py.config import Config
from kubelet_py.node.network import NodeNetwork

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
STATUS_SECONDS = 10.0
NOT_YET = "cni plugin not initialized"


class NetworkKeeper:
    """`changed()` is called when the network has come up, or is not as it was, and then `usable()` if pods
    can be attached: those that failed are not tried sooner because all others will. `attached()` names the
    pods' (sandbox, interface)."""

    def __init__(
        self,
        network: NodeNetwork,
        config: Config,
        changed: Callable[[], None],
        usable: Callable[[], None],
        attached: Callable[[], Attachments],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network = network
        self._attached = attached
        self._clock = clock
        self._due = 0.0
        self._fault: str | None = None
        self._config = config
        self._changed, self._usable = changed, usable
        self._lock = threading.Lock()
        self._cidr = ""
        self._neighbours: tuple[str, ...] = ()
        self._stale = False  # the network has not been told of the neighbours
        self._problem: str | None = NOT_YET

    def bring_up(self, cidr: str) -> None:
        """Give the node's pods addresses of `cidr` (or of two, with a comma); nothing happens when they have
        them."""
        with self._lock:
            if cidr == self._cidr:
                return
            try:
                problems = self._start(cidr)
            except (CniError, OSError) as error:
                self._problem = str(error)
                log.warning("Failed to bring the network up error=%s", error)
                timer = threading.Timer(RETRY_SECONDS, self.bring_up, (cidr,))
                timer.daemon = True
                timer.start()
                return
            self._cidr, self._problem = cidr, None
        for problem in problems:
            log.warning("Went on without kernel setting problem=%s", problem)
        log.info("Brought the network up pod_cidr=%s", cidr)
        self._tell()
        self._collect()

    def know(self, neighbours: tuple[str, ...]) -> None:
        """Addresses of the other nodes: packets to them keep the pod's address."""
        with self._lock:
            if neighbours == self._neighbours:
                return
            self._neighbours = neighbours
            if not self._cidr:
                return
            self._stale, self._due = True, 0.0
        self.look()

    def _start(self, cidr: str) -> list[str]:
        return self._network.start(
            python=sys.executable,
            pod_cidr=cidr,
            cluster_cidr=self._config.cluster_cidr,
            service_cidr=self._config.service_cidr,
            neighbours=self._neighbours,
        )

    def _collect(self) -> None:
        try:
            self._network.invoker.gc(self._attached)
        except CniError as error:
            # What could not be collected now holds addresses, but stands in no pod's way.
            log.warning("Failed to collect stale attachments error=%s", error)

    def look(self) -> None:
        """Ask the plugins for their STATUS when it is due, sooner while it is bad, and repair the bridge."""
        with self._lock:
            now = self._clock()
            if not self._cidr or now < self._due:
                return
            before, self._fault = self._fault, self._ask()
            self._due = now + (STATUS_SECONDS if self._fault is None else RETRY_SECONDS)
        if self._fault != before:
            log.info("Asked the network for its status before=%s now=%s", before or "ok", self._fault or "ok")
            self._tell()

    def _tell(self) -> None:
        self._changed()
        if self.problem() is None:
            self._usable()

    def _ask(self) -> str | None:
        try:
            if self._stale or self._network.outgrown():
                self._start(self._cidr)
                self._stale = False
            try:
                self._network.invoker.status()
            except LimitedConnectivity as error:
                log.warning("Repaired the network error=%s", error)
                self._start(self._cidr)
                self._network.invoker.status()
        except (CniError, OSError) as error:
            return str(error)
        return None

    def problem(self) -> str | None:
        """None when pods can be attached, else why not."""
        return self._problem or self._network.invoker.ready() or self._fault


def first_subnet(cluster_cidr: str) -> str:
    """The first part of each range (a /24, or /64) that a node without an API server gives its pods."""
    parts = [
        next(network.subnets(new_prefix=max(USUAL_SIZES[network.version], network.prefixlen)))
        for network in read_ranges(cluster_cidr)
    ]
    return ",".join(map(str, parts))
