"""What the Node's status says at this moment: the parts of the agent are asked, status.py puts it into words.

The registrar decides when it is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kubelet_py.config import Config
from kubelet_py.node import allocatable
from kubelet_py.node import status as node_status
from kubelet_py.node.enforcement import Enforcement
from kubelet_py.node.guard import Guard
from kubelet_py.node.network import NodeNetwork
from kubelet_py.node.network_keeper import NetworkKeeper
from kubelet_py.pods.context import NodeFacts
from kubelet_py.pods.model import Object
from kubelet_py.pods.user_namespaces import UserNamespaces
from runtime.cgroups import CgroupDriver
from runtime.images.errors import ImageError
from runtime.images.store import ImageStore

log = logging.getLogger(__name__)


class NodeReport:
    """`handlers` are the names that a RuntimeClass may give a runtime, "" (the default) first."""

    def __init__(
        self,
        *,
        config: Config,
        node: NodeFacts,
        machine: node_status.Machine,
        handlers: Sequence[str],
        users: UserNamespaces,
        images: ImageStore,
        network: NetworkKeeper,
        cni: NodeNetwork,
        cgroups: CgroupDriver,
        enforcement: Enforcement,
        guard: Guard,
    ) -> None:
        self._config, self._node, self._machine = config, node, machine
        self._handlers, self._users, self._images = handlers, users, images
        self._network, self._cni, self._cgroups = network, cni, cgroups
        self._enforcement, self._guard = enforcement, guard

    def labels(self) -> dict[str, str]:
        return node_status.labels(self._machine, self._node.name, self._config)

    def status(self, now: float, node: Object) -> Object:
        """`node` as the API had it last: a condition that stays keeps the moment since when it is so."""
        addresses = [{"type": "InternalIP", "address": ip} for ip in self._node.ips]
        before = (node.get("status") or {}).get("conditions") or ()
        return {
            "capacity": allocatable.capacity(self._machine, self._config),
            "allocatable": dict(self._node.allocatable),
            "addresses": [*addresses, {"type": "Hostname", "address": self._node.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._config.port}},
            "nodeInfo": node_status.node_info(self._machine),
            "runtimeHandlers": node_status.runtime_handlers(self._handlers, self._users.supported),
            "images": self._known_images(),
            "features": {"supplementalGroupsPolicy": True},
            "conditions": node_status.conditions(before, self._health(), now),
        }

    def _known_images(self) -> list[Object]:
        """None where they cannot be read, as upstream: how the node is must be told all the same."""
        try:
            known = self._images.list()
        except (ImageError, OSError) as error:
            log.warning("Failed to list images for the node's status error=%s", error)
            return []
        return node_status.images(known, self._config.node_status_max_images)

    def _health(self) -> node_status.Health:
        return node_status.Health(
            network=self._network.problem(),
            routed=self._cni.ours(),
            degraded=[*self._cgroups.missing_features(), *self._enforcement.problems],
            pressures=self._guard.pressures(),
            shutting_down=self._guard.shutting_down(),
        )
