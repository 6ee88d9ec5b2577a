"""What the CNI tests share: the type of the `attach` fixture, and a look at what is left."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from cni.invoke import Invoker
from cni.netlink import Netlink
from cni.types import Result

Attach = Callable[..., Invoker]


def addresses_of(result: Result) -> list[str]:
    """Without prefix length."""
    return [str(ipaddress.ip_interface(ip.address).ip) for ip in result.ips]


def links() -> list[str]:
    with Netlink() as host:
        return [link.name for link in host.links()]


def leases(folder: Path) -> list[str]:
    """The reserved addresses of a host-local store."""
    if not folder.exists():
        return []
    return sorted(n for n in os.listdir(folder) if n != "lock" and not n.startswith("last_reserved_ip"))


def nat_rules(tool: str = "iptables") -> str:
    return subprocess.run([tool, "-t", "nat", "-S"], capture_output=True, text=True, check=True).stdout
