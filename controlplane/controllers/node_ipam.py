"""Gives every Node its part of the cluster's pod range (`spec.podCIDR`), a /24 (IPv6: a /64) each, or what
`--node-cidr-mask-size` says: a /24 has addresses for 253 pods.

Source: upstream's nodeipam controller, RangeAllocator. The parts that are taken are read from the Node
objects themselves, so nothing else has to be remembered.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import NODES
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def free_part(cluster: Network, taken: Iterable[str], size: int = 0) -> str | None:
    """The lowest part of the cluster's range that overlaps none of `taken`; None when all are given away.
    `size` is its prefix length, 0 the usual one."""
    size = size or (24 if cluster.version == 4 else 64)
    used = {ipaddress.ip_network(text) for text in taken}
    for part in cluster.subnets(new_prefix=max(size, cluster.prefixlen)):
        if not any(part.version == other.version and part.overlaps(other) for other in used):
            return str(part)
    return None


class NodeIpam(Controller):
    name = "node-ipam"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        cluster_cidr: str,
        mask_size: int = 0,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._cluster, self._mask_size = ipaddress.ip_network(cluster_cidr), mask_size
        self._given: dict[str, str] = {}  # node uid → range that the informer need not show yet
        self._nodes = informers.of(NODES, self._on_node)

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._given.pop(new["metadata"]["uid"], None)
        elif not new["spec"].get("podCIDR"):
            self.enqueue(kind, new)

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        node = self._nodes.get(name)
        # A new node's first status arrives while our patch is on its way back: that must not patch it twice.
        if node is None or node["spec"].get("podCIDR") or node["metadata"]["uid"] in self._given:
            return
        part = free_part(self._cluster, self._taken(), self._mask_size)
        if part is None:
            message = f"Node {name} status is now: CIDRNotAvailable"
            self.recorder.event(node, "Normal", "CIDRNotAvailable", message)
            return
        try:
            self.client.patch(NODES, name, {"spec": {"podCIDR": part, "podCIDRs": [part]}})
        except NotFound:
            return
        self._given[node["metadata"]["uid"]] = part
        log.info("Gave pod range node=%s cidr=%s", name, part)

    def _taken(self) -> set[str]:
        taken = set(self._given.values())
        for node in self._nodes.list():
            taken.update(node["spec"].get("podCIDRs") or [])
            if node["spec"].get("podCIDR"):
                taken.add(node["spec"]["podCIDR"])
        return taken
