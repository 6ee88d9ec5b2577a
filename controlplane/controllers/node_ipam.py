"""Gives every Node its part of the cluster's pod ranges (`spec.podCIDRs`, the first is also `podCIDR`), a /24
(IPv6: a /64) each, or what `--node-cidr-mask-size` says: a /24 has addresses for 253 pods.

Source: upstream's nodeipam controller, RangeAllocator. The parts that are taken are read from the Node
objects themselves, so nothing else has to be remembered.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Mapping

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.ranges import USUAL_SIZES, Network, read_ranges
from kubeclient.resources import NODES
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")


def free_part(cluster: Network, taken: Iterable[str], size: int = 0) -> str | None:
    """The lowest part of the cluster's range that overlaps none of `taken`; None when all are given away.
    `size` is its prefix length, 0 the usual one."""
    size = size or USUAL_SIZES[cluster.version]
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
        mask_sizes: Mapping[int, int] = USUAL_SIZES,
    ) -> None:
        """`mask_sizes` by IP version."""
        super().__init__(client, informers, recorder)
        self._ranges, self._mask_sizes = read_ranges(cluster_cidr), mask_sizes
        self._given: dict[str, list[str]] = {}  # node uid → ranges that the informer need not show yet
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
        taken = self._taken()
        found = [free_part(whole, taken, self._mask_sizes[whole.version]) for whole in self._ranges]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            message = f"Node {name} status is now: CIDRNotAvailable"
            self.recorder.event(node, "Normal", "CIDRNotAvailable", message)
            return
        try:
            self.client.patch(NODES, name, {"spec": {"podCIDR": parts[0], "podCIDRs": parts}})
        except NotFound:
            return
        self._given[node["metadata"]["uid"]] = parts
        log.info("Gave pod range node=%s cidrs=%s", name, ",".join(parts))

    def _taken(self) -> set[str]:
        taken = {part for parts in self._given.values() for part in parts}
        for node in self._nodes.list():
            taken.update(node["spec"].get("podCIDRs") or [])
            if node["spec"].get("podCIDR"):
                taken.add(node["spec"]["podCIDR"])
        return taken
