"""The node's side of pod networking: from a podCIDR to an Invoker that can attach pods, and back.

One place knows which files and kernel objects the network of a node consists of, so that the agent that
makes them and the commands that remove them cannot disagree:

    <state>/cni-bin/             our plugins as programs (for other runtimes; the agent runs them in-process),
                                 and the socket by which they leave the work to the agent
    <config>/10-kubelet-py.conflist   written when the folder holds no other network
    <state>/cni/{results,networks}/   what ADD answered; address reservations
    <state>/network.json         sysctls as they were before us
    bridge, masquerade and host port chains, routes with protocol 75
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from cni import conflist, skeleton
from cni.errors import CniError
from cni.invoke import Invoker
from cni.netlink import Netlink
from cni.rtnetlink import Link
from cni.warm import WarmPlugins
from kubeclient.ranges import read_ranges
from kubelet_py.node import routes, segments
from kubelet_py.paths import NodePaths

log = logging.getLogger(__name__)

CONFLIST = "10-kubelet-py.conflist"
NETWORK = "kubelet-py"
USUAL_MTU = 1500
SPARE_ADDRESSES = 8  # pods that start together before one waits for the disk


class NodeNetwork:
    """`bin_dirs` are searched for plugins before our own folder (--cni-bin-dir); by `overhead` bytes pods'
    packets grow on their way to other nodes: their MTU is so much less than the uplink's. `wrapped`: they
    go into others. `gso`: the size asked for by --pod-gso-size."""

    def __init__(
        self,
        paths: NodePaths,
        bin_dirs: Sequence[Path] = (),
        overhead: int = 0,
        gso: int = 0,
        *,
        wrapped: bool = False,
    ) -> None:
        self._paths = paths
        self._overhead = overhead
        self._wrapped = wrapped or overhead > 0
        self._asked = gso
        self._gso: int | None = None  # what pods have, where the network is ours
        self._own = paths.state / "cni-bin"
        self._warm = WarmPlugins(self._own)
        self._state = paths.state / "network.json"
        self.invoker = Invoker(
            config_dir=paths.cni_config,
            bin_dirs=[*bin_dirs, self._own],
            cache_dir=paths.cni_state,
            own_bin_dir=self._own,
            spare_addresses=SPARE_ADDRESSES,
        )

    def start(
        self,
        *,
        python: str,
        pod_cidr: str,
        cluster_cidr: str,
        service_cidr: str,
        neighbours: Sequence[str] = (),
    ) -> list[str]:
        """Make or repair everything a pod's attachment relies on; may be called again at any time. Each range
        may be two, one of each IP version with a comma.

        Answers what the kernel could not give, one sentence each. Raises CniError.
        """
        skeleton.write_executables(self._own, python)
        self._warm.start()
        size = self._write_conflist(pod_cidr, cluster_cidr, neighbours)
        versions = [network.version for network in read_ranges(pod_cidr)]
        problems = routes.prepare_kernel(self._state, six=6 in versions)
        self.invoker.prepare()
        if size is not None:
            self._resize(size)
        with Netlink() as netlink:
            routes.ensure(
                netlink,
                bridge=self._paths.bridge,
                pod_cidr=pod_cidr,
                cluster_cidr=cluster_cidr,
                service_cidr=service_cidr,
            )
        self._gso = size  # at the end: what broke off before is seen as outgrown, and begun again
        return problems

    def outgrown(self) -> bool:
        """Whether pods' pieces of TCP should have another size than they have: an interface came or went, or
        takes more or less. Then `start` again. Raises NetlinkError."""
        return self._gso is not None and self._size() != self._gso

    def _resize(self, size: int) -> None:
        try:
            self.invoker.resize(size)
        except CniError as error:  # they can talk all the same
            log.warning("Failed to give pods another size of TCP pieces error=%s", error)

    def _size(self) -> int:
        with Netlink() as netlink:
            return segments.of_node(netlink, self._asked, bridge=self._paths.bridge, wrapped=self._wrapped)

    def close(self) -> None:
        """The agent ends, pods and network stay."""
        try:
            self.invoker.close()
        except (CniError, OSError) as error:
            log.warning("Failed to give back addresses set aside error=%s", error)

    def tear_down(self) -> None:
        """Remove all of it but the address reservations' folder; the pods must be gone. Raises CniError."""
        self._warm.stop()
        self.invoker.gc(())
        self.invoker.tear_down()
        routes.restore(self._state, bridge=self._paths.bridge)

    def remembered(self) -> str:
        """The subnet (or two) that this node gave its pods before, "" where it made no network."""
        if not self.ours():
            return ""
        try:
            body = json.loads((self._paths.cni_config / CONFLIST).read_text())
            ranges = body["plugins"][0]["ipam"]["ranges"]
            return ",".join(str(one[0]["subnet"]) for one in ranges)
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("Failed to read the network that was error=%s", error)
            return ""

    def ours(self) -> bool:
        """Whether the pods' network is the one that this node made."""
        return not self._foreign() and (self._paths.cni_config / CONFLIST).exists()

    def _foreign(self) -> bool:
        kinds = (".conflist", ".conf", ".json")
        return any(p.suffix in kinds and p.name < CONFLIST for p in self._paths.cni_config.glob("*"))

    def _write_conflist(self, pod_cidr: str, cluster_cidr: str, neighbours: Sequence[str]) -> int | None:
        """The size of pods' pieces in it, None where the network is another's."""
        folder = self._paths.cni_config
        if self._foreign():
            # Somebody chose another network; of several files the first by name wins, as everywhere.
            # Files behind ours (podman's 87-…) are other runtimes' and stay theirs.
            return None
        size, way_out = self._size(), uplink()
        mtu = way_out.mtu if way_out else 0
        body = conflist.bridge_network(
            name=NETWORK,
            bridge=self._paths.bridge,
            subnets=[str(network) for network in read_ranges(pod_cidr)],
            cluster_cidrs=[str(network) for network in read_ranges(cluster_cidr)],
            data_dir=self._paths.cni_state / "networks",
            mtu=(mtu or USUAL_MTU) - self._overhead if self._overhead else mtu,
            gso=size,
            neighbours=neighbours,
        )
        if conflist.write(folder / CONFLIST, body):
            words = "Wrote network configuration file=%s subnet=%s gso=%s"
            log.info(words, folder / CONFLIST, pod_cidr, size or "usual")
        return size


def uplink() -> Link | None:
    """The default route's interface."""
    with Netlink() as netlink:
        known = [*netlink.routes(), *netlink.routes(family=socket.AF_INET6)]
        ways = [r for r in known if r.dst in ("0.0.0.0/0", "::/0") and r.device]
        defaults = sorted(ways, key=lambda r: (":" in r.dst, r.metric))
        return netlink.link(defaults[0].device) if defaults else None
