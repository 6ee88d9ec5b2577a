"""What `up` was told about this node, kept for the next `up`, for `status` and for `down`.

The file is `etc/kubelet-py/node.json`; `reset` removes it. A node that comes back with another
address range or name than before would strand its own pods, hence the memory.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kubeclient.ranges import Network, everywhere, part_sizes, read_ranges
from kubelet_py.paths import NodePaths

CLUSTER_CIDR = "10.244.0.0/16"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class SettingsError(Exception):
    """A value that no node can be started with; the message names the option."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Options of `kubelet-py up` that describe the node and its cluster.

    `server` is the API server of a node that joined a cluster elsewhere; "" where it runs here. `node_ip` and
    both ranges may be two, with a comma: one of each IP version, the cluster's own first. `node_ip` was
    chosen because of `address_reason`; `asked_ip` or `node_interface` is what was asked for, and counts again
    at the next start.
    """

    node_name: str
    node_ip: str
    bind_address: str = "0.0.0.0"
    secure_port: int = 6443
    kubelet_port: int = 10250
    proxy_healthz_port: int = 10256
    proxy_mode: str = "iptables"
    cluster_cidr: str = CLUSTER_CIDR
    service_cidr: str = "10.96.0.0/12"
    node_cidr_mask_size: int = 0
    node_cidr_mask_size_ipv4: int = 0
    node_cidr_mask_size_ipv6: int = 0
    kubelet_config: str = ""
    cluster_dns: bool = True
    pod_routes: str = "auto"
    wireguard_port: int = 51820
    pod_gso_size: int = 0
    load_balancer_addresses: str = ""
    nodeport_addresses: str = ""
    cluster_domain: str = "cluster.local"
    cni_bin_dirs: tuple[str, ...] = ()
    server: str = ""
    asked_ip: str = ""
    node_interface: str = ""
    address_reason: str = ""

    def check(self) -> None:
        """Raise SettingsError for a name, address range, address, port or file that cannot be used."""
        if len(self.node_name) > 253 or not _NODE_NAME.fullmatch(self.node_name):
            raise SettingsError(
                f"{self.node_name!r} is no name for a Node: lowercase letters, digits, '-' and '.' "
                "(choose one by --node-name)"
            )
        if len(self.cluster_domain) > 253 or not _NODE_NAME.fullmatch(self.cluster_domain):
            raise SettingsError(f"--cluster-domain {self.cluster_domain!r} is no name of a domain")
        if self.kubelet_config and not os.path.isfile(self.kubelet_config):
            raise SettingsError(f"Could not find --kubelet-config {self.kubelet_config} (give a file's path)")
        try:
            pods, services = read_ranges(self.cluster_cidr), read_ranges(self.service_cidr)
            addresses = [ipaddress.ip_address(text) for text in self.node_ips]
            bound = ipaddress.ip_address(self.bind_address)
            if self.load_balancer_addresses not in ("", "nodes"):
                for part in self.load_balancer_addresses.split(","):
                    ipaddress.ip_network(part.strip())
            if self.nodeport_addresses not in ("", "primary"):
                for part in self.nodeport_addresses.split(","):
                    ipaddress.ip_network(part)
        except ValueError as error:
            raise SettingsError(f"Could not read an address option: {error}") from error
        try:
            part_sizes(
                pods,
                self.node_cidr_mask_size,
                self.node_cidr_mask_size_ipv4,
                self.node_cidr_mask_size_ipv6,
            )
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self._check_apart(pods, services, addresses)
        if addresses[0].version == 6 and bound.version == 4 and not (bound.is_unspecified or self.server):
            raise SettingsError(
                f"Others reach the API server at {addresses[0]}, but it would listen on IPv4 only "
                "(--bind-address ::)"
            )
        for option, port in (
            ("--secure-port", self.secure_port),
            ("--kubelet-port", self.kubelet_port),
            ("--proxy-healthz-port", self.proxy_healthz_port),
        ):
            if not 0 < port < 65536:
                raise SettingsError(f"{option} {port} is not a port number (1-65535)")

    def _check_apart(
        self, pods: Sequence[Network], services: Sequence[Network], addresses: Sequence[Address]
    ) -> None:
        for one, other in ((p, s) for p in pods for s in services if p.version == s.version):
            if one.overlaps(other):
                raise SettingsError(f"--cluster-cidr {one} and --service-cidr {other} overlap (change one)")
        for option, networks in (("--cluster-cidr", pods), ("--service-cidr", services)):
            for network in networks:
                inside = next((address for address in addresses if address in network), None)
                if inside is not None:
                    raise SettingsError(f"The node's address {inside} lies in {option} {network} (change it)")

    @property
    def node_ips(self) -> tuple[str, ...]:
        return tuple(self.node_ip.split(","))

    @property
    def api_address(self) -> str:
        """Where the API server listens. "All addresses" means those of both IP versions where others come by
        IPv6, as a server in Go takes 0.0.0.0."""
        return everywhere(self.bind_address, self.node_ips[0])

    @property
    def dns_address(self) -> str:
        """ClusterIP of the DNS Service: by convention the tenth of the range. Empty without cluster DNS."""
        services = read_ranges(self.service_cidr)[0]
        return str(services[10]) if self.cluster_dns and services.num_addresses > 11 else ""

    def save(self, paths: NodePaths, *, synced: bool = False) -> None:
        """`synced`: a boot is to start the node with it, be it the next moment's after a power cut."""
        paths.config.mkdir(parents=True, exist_ok=True)
        new = paths.config / "node.json.new"
        with new.open("w") as output:
            output.write(json.dumps(asdict(self), indent=1) + "\n")
            output.flush()
            if synced:
                os.fsync(output.fileno())
        new.rename(file(paths))


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's arguments those that were given and are settings. Paths become absolute: the next start,
    by systemd say, happens in another folder."""
    names = {field.name for field in fields(NodeSettings)}
    found = {name: value for name, value in arguments.items() if name in names and value is not None}
    if found.get("kubelet_config"):
        found["kubelet_config"] = os.path.abspath(found["kubelet_config"])
    if "cni_bin_dirs" in found:
        found["cni_bin_dirs"] = tuple(os.path.abspath(folder) for folder in found["cni_bin_dirs"])
    return found


def file(paths: NodePaths) -> Path:
    return paths.config / "node.json"


def load(paths: NodePaths) -> NodeSettings | None:
    """The settings of the last `up` below this root, or None after `reset` or before the first."""
    try:
        data: dict[str, Any] = json.loads(file(paths).read_text())
    except FileNotFoundError:
        return None
    known = {f.name for f in fields(NodeSettings)}
    kept = {name: value for name, value in data.items() if name in known}
    kept["cni_bin_dirs"] = tuple(kept.get("cni_bin_dirs", ()))
    return NodeSettings(**kept)


def versions_of(cluster_cidr: str) -> tuple[int, ...]:
    """The cluster's IP versions, its own first. Raises SettingsError."""
    try:
        return tuple(network.version for network in read_ranges(cluster_cidr))
    except ValueError as error:
        raise SettingsError(f"Could not read an address option: {error}") from error
