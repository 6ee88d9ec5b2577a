"""Brings the node's network up once its range is known, and again when that changes; tries until it works."""

from __future__ import annotations

import ipaddress
import logging
import sys
import threading
from collections.abc import Callable

from cni.errors import CniError
from kubelet_py.config import Config
from kubelet_py.node.network import NodeNetwork

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
NOT_YET = "cni plugin not initialized"


class NetworkKeeper:
    """`changed()` is called whenever the network has come up."""

    def __init__(self, network: NodeNetwork, config: Config, changed: Callable[[], None]) -> None:
        self._network = network
        self._config = config
        self._changed = changed
        self._lock = threading.Lock()
        self._cidr = ""
        self._problem: str | None = NOT_YET

    def bring_up(self, cidr: str) -> None:
        """Give the node's pods addresses of `cidr`; nothing happens when they have them."""
        with self._lock:
            if cidr == self._cidr:
                return
            try:
                problems = self._network.start(
                    python=sys.executable,
                    pod_cidr=cidr,
                    cluster_cidr=self._config.cluster_cidr,
                    service_cidr=self._config.service_cidr,
                )
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
        self._changed()

    def problem(self) -> str | None:
        """None when pods can be attached, else why not."""
        return self._problem if self._problem is not None else self._network.invoker.ready()


def first_subnet(cluster_cidr: str) -> str:
    """The /24 that a node without an API server gives its pods."""
    network = ipaddress.ip_network(cluster_cidr)
    return str(next(network.subnets(new_prefix=max(24, network.prefixlen))))
