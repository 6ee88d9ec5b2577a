"""What `up` was told about this node, kept for the next `up`, for `status` and for `down`.

The file is `etc/kubelet-py/node.json`; `reset` removes it. A node that comes back with another
address range or name than before would strand its own pods, hence the memory.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kubelet_py.paths import NodePaths

_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class SettingsError(Exception):
    """A value that no node can be started with; the message names the option."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Options of `kubelet-py up` that describe the node and its cluster.

    `server` is the API server of a node that joined a cluster elsewhere; "" where it runs here. `node_ip` was
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
    cluster_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/12"
    node_cidr_mask_size: int = 0
    kubelet_config: str = ""
    cluster_dns: bool = True
    pod_routes: str = "auto"
    load_balancer_addresses: str = ""
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
            pods, services = ipaddress.ip_network(self.cluster_cidr), ipaddress.ip_network(self.service_cidr)
            address = ipaddress.ip_address(self.node_ip)
            ipaddress.ip_address(self.bind_address)
            if self.load_balancer_addresses not in ("", "nodes"):
                for part in self.load_balancer_addresses.split(","):
                    ipaddress.ip_network(part.strip())
        except ValueError as error:
            raise SettingsError(f"Could not read an address option: {error}") from error
        most = pods.max_prefixlen - 2
        if self.node_cidr_mask_size and not pods.prefixlen <= self.node_cidr_mask_size <= most:
            raise SettingsError(
                f"--node-cidr-mask-size {self.node_cidr_mask_size} must be between {pods.prefixlen}, "
                f"the mask of --cluster-cidr {pods}, and {most}"
            )
        if pods.overlaps(services):
            raise SettingsError(f"--cluster-cidr {pods} and --service-cidr {services} overlap (change one)")
        for option, network in (("--cluster-cidr", pods), ("--service-cidr", services)):
            if address in network:
                raise SettingsError(f"The node's address {address} lies in {option} {network} (change it)")
        for option, port in (
            ("--secure-port", self.secure_port),
            ("--kubelet-port", self.kubelet_port),
            ("--proxy-healthz-port", self.proxy_healthz_port),
        ):
            if not 0 < port < 65536:
                raise SettingsError(f"{option} {port} is not a port number (1-65535)")

    @property
    def dns_address(self) -> str:
        """ClusterIP of the DNS Service: by convention the tenth of the range. Empty without cluster DNS."""
        services = ipaddress.ip_network(self.service_cidr)
        return str(services[10]) if self.cluster_dns and services.num_addresses > 11 else ""

    def save(self, paths: NodePaths) -> None:
        paths.config.mkdir(parents=True, exist_ok=True)
        new = paths.config / "node.json.new"
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        new.rename(file(paths))


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
